// SPDX-License-Identifier: Apache-2.0
/*
 * null.c - the engine without a device: what is submitted is done, and no data is touched
 *
 * It shows what everything above the engines costs, so it must cost next to nothing itself: two lists, no system call,
 * nothing to wait for. Requests move from one list to the other in io_submit_all(), as a batch, because completing
 * them in io_queue() already would hide mistakes in the caller's batching.
 */
#include <errno.h>
#include <stdlib.h>

#include "engine.h"

struct null {
	struct io_engine engine;
	unsigned staged_count;
	struct io_list staged, done;
};

static void null_queue(struct io_engine *e, struct io_req *r)
{
	struct null *n = container_of(e, struct null, engine);

	r->res = 0;
	r->in_helper = false;
	n->staged_count++;
	io_list_push(&n->staged, r);
}

static int null_submit(struct io_engine *e)
{
	struct null *n = container_of(e, struct null, engine);
	unsigned count = n->staged_count;

	if (!count)
		return 0;
	if (n->done.first)
		n->done.last->next = n->staged.first;
	else
		n->done.first = n->staged.first;
	n->done.last = n->staged.last;
	n->staged.first = NULL;
	n->staged_count = 0;
	count_add(&e->stats.inline_done, count);
	return (int)count;
}

static unsigned null_reap(struct io_engine *e, struct io_req **done, unsigned max)
{
	struct null *n = container_of(e, struct null, engine);
	struct io_req *r = n->done.first;
	unsigned count = 0;

	for (; r && count < max; r = r->next)
		done[count++] = r;
	n->done.first = r;
	count_add(&e->stats.completions, count);
	return count;
}

static int null_wait_fd(struct io_engine *e)
{
	(void)e;
	return -1;
}

static void null_wait_word(struct io_engine *e, struct eventfd_poll_info *word)
{
	(void)e;
	*word = (struct eventfd_poll_info){ .op = EVENTFD_POLL_OP_NONE };
}

static void null_destroy(struct io_engine *e)
{
	free(container_of(e, struct null, engine));
}

static const struct io_ops null_ops = {
	.name = "null",
	.queue = null_queue,
	.submit = null_submit,
	.reap = null_reap,
	.wait_fd = null_wait_fd,
	.wait_word = null_wait_word,
	.destroy = null_destroy,
};

int null_create(struct io_engine **out, struct io_target *t, uint32_t depth)
{
	struct null *n = calloc(1, sizeof(*n));

	(void)depth; /* the lists run through the requests themselves */
	if (!n)
		return -ENOMEM;
	n->engine = (struct io_engine){ .ops = &null_ops, .target = t, .completes_inline = true };
	*out = &n->engine;
	return 0;
}
