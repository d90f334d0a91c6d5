// SPDX-License-Identifier: Apache-2.0
/*
 * uring.c - io_uring, plain: completions come by interrupt, the kernel punts what would block to its own threads
 *
 * The steering thread creates the ring and a worker uses it, so no SINGLE_ISSUER. No COOP_TASKRUN either: the worker
 * watches the completion queue's tail in memory, and that moves without a system call of ours only if the kernel may
 * interrupt us to run the completion's task work.
 *
 * Requests wait in a list until io_submit_all() turns them into submission queue entries; the submission queue is
 * short and the completion queue as long as the engine is deep, so that it can't overflow.
 */
#include <errno.h>
#include <liburing.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "engine.h"
#include "helper.h"

#define SQ_ENTRIES_MAX 256

struct uring {
	struct io_engine engine;
	struct io_uring ring;
	bool ring_open;
	int event_fd;
	uint32_t depth;
	uint32_t in_kernel; /* entries made and not reaped, at most depth */
	uint32_t staged_count;
	struct io_list staged;
};

static void uring_queue(struct io_engine *e, struct io_req *r)
{
	struct uring *u = container_of(e, struct uring, engine);

	r->done = 0;
	r->in_helper = false;
	if (unlikely(r->op > IO_WRITE) || unlikely(r->len > INT32_MAX) || /* sqe->len, cqe->res */
	    unlikely(io_range_misaligned(e->target, r->offset, r->len)) ||
	    unlikely(io_iov_misaligned(e->target, r->iov, r->iovcnt))) {
		io_helper_queue(e->helper, r);
		return;
	}
	u->staged_count++;
	io_list_push(&u->staged, r);
}

static void uring_prep(struct io_uring_sqe *sqe, struct io_req *r)
{
	int flags = r->flags & IO_F_DSYNC ? RWF_DSYNC : 0;

	/* File 0 is the registered one: spares a reference on the file for each request. */
	if (r->op == IO_READ && r->iovcnt == 1)
		io_uring_prep_read(sqe, 0, r->iov->iov_base, (unsigned)r->len, r->offset);
	else if (r->op == IO_READ)
		io_uring_prep_readv2(sqe, 0, r->iov, r->iovcnt, r->offset, 0);
	else if (r->iovcnt == 1)
		io_uring_prep_write(sqe, 0, r->iov->iov_base, (unsigned)r->len, r->offset);
	else
		io_uring_prep_writev2(sqe, 0, r->iov, r->iovcnt, r->offset, 0);
	sqe->rw_flags = r->op == IO_WRITE ? flags : 0;
	sqe->flags |= IOSQE_FIXED_FILE;
	io_uring_sqe_set_data(sqe, r);
}

static int uring_submit(struct io_engine *e)
{
	struct uring *u = container_of(e, struct uring, engine);
	unsigned before = u->staged_count + io_uring_sq_ready(&u->ring);
	bool full;

	if (!before)
		return 0;
	do {
		struct io_uring_sqe *sqe;

		full = false;
		while (u->staged.first && u->in_kernel < u->depth) {
			sqe = io_uring_get_sqe(&u->ring);
			full = !sqe;
			if (full)
				break;
			uring_prep(sqe, io_list_pop(&u->staged));
			u->staged_count--;
			u->in_kernel++;
		}
		if (!io_uring_sq_ready(&u->ring))
			break; /* the kernel has as many as the completion queue holds */
		count_add(&e->stats.submits, 1);
		if (io_uring_submit(&u->ring) < 0)
			break; /* EAGAIN, EBUSY: entries stay where they are, for the next time */
	} while (full);
	e->held = u->staged_count + io_uring_sq_ready(&u->ring);
	return (int)(before - e->held);
}

/* Return: 1 if the completion finishes its request, stored in @done; else the helper has it */
static unsigned uring_event(struct uring *u, const struct io_uring_cqe *cqe, struct io_req **done)
{
	struct io_req *r = io_uring_cqe_get_data(cqe);
	int res = cqe->res;

	if (unlikely((uint32_t)res != r->len || res < 0)) {
		if (res >= 0 || res == -EAGAIN || res == -EINTR || res == -EINVAL) {
			r->done = res > 0 ? (uint64_t)res : 0;
			io_helper_queue(u->engine.helper, r);
			return 0;
		}
	}
	r->res = res < 0 ? res : 0;
	*done = r;
	return 1;
}

static unsigned uring_reap(struct io_engine *e, struct io_req **done, unsigned max)
{
	struct uring *u = container_of(e, struct uring, engine);
	struct io_uring_cqe *cqe;
	unsigned head, events = 0, n = 0;

	io_uring_for_each_cqe(&u->ring, head, cqe)
	{
		if (n == max)
			break;
		n += uring_event(u, cqe, &done[n]);
		events++;
	}
	if (events)
		io_uring_cq_advance(&u->ring, events);
	u->in_kernel -= events;
	n += io_helper_reap(e->helper, done + n, max - n, &e->stats);
	count_add(&e->stats.completions, n);
	return n;
}

static int uring_wait_fd(struct io_engine *e)
{
	return container_of(e, struct uring, engine)->event_fd;
}

static void uring_wait_word(struct io_engine *e, struct eventfd_poll_info *word)
{
	struct uring *u = container_of(e, struct uring, engine);

	*word = (struct eventfd_poll_info){
		.addr = (uintptr_t)u->ring.cq.ktail,
		.size = sizeof(*u->ring.cq.ktail),
		.op = EVENTFD_POLL_OP_NOT_EQUAL_PTR,
		.val = (uintptr_t)u->ring.cq.khead, /* ours alone to move */
	};
}

/* The registered file is the old one for as long as nobody says otherwise. */
static void uring_reopened(struct io_engine *e)
{
	struct uring *u = container_of(e, struct uring, engine);

	/* Should it fail, requests go on failing, which is what they did. */
	io_uring_register_files_update(&u->ring, 0, &e->target->fd, 1);
}

static void uring_destroy(struct io_engine *e)
{
	struct uring *u = container_of(e, struct uring, engine);

	io_helper_destroy(e->helper);
	if (u->ring_open) {
		/* The kernel takes a ring down some time after its close: without this the file would stay open until then. */
		io_uring_unregister_files(&u->ring);
		io_uring_queue_exit(&u->ring);
	}
	if (u->event_fd >= 0)
		close(u->event_fd);
	free(u);
}

static const struct io_ops uring_ops = {
	.name = "io_uring",
	.queue = uring_queue,
	.submit = uring_submit,
	.reap = uring_reap,
	.wait_fd = uring_wait_fd,
	.wait_word = uring_wait_word,
	.reopened = uring_reopened,
	.destroy = uring_destroy,
};

static int uring_open(struct uring *u, struct io_target *t)
{
	struct io_uring_params params = { .flags = IORING_SETUP_CQSIZE, .cq_entries = u->depth };
	unsigned entries = u->depth < SQ_ENTRIES_MAX ? u->depth : SQ_ENTRIES_MAX;
	int ret = io_helper_create(&u->engine.helper, t);

	if (ret)
		return ret;
	u->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC); /* never read, as in aio.c */
	if (u->event_fd < 0)
		return -errno;
	ret = io_uring_queue_init_params(entries, &u->ring, &params);
	if (ret)
		return ret;
	u->ring_open = true;
	ret = io_uring_register_files(&u->ring, &t->fd, 1);
	if (ret)
		return ret;
	return io_uring_register_eventfd(&u->ring, u->event_fd);
}

int uring_create(struct io_engine **out, struct io_target *t, uint32_t depth)
{
	struct uring *u = calloc(1, sizeof(*u));
	int ret;

	if (!u)
		return -ENOMEM;
	u->engine = (struct io_engine){ .ops = &uring_ops, .target = t };
	u->event_fd = -1;
	u->depth = depth;
	ret = uring_open(u, t);
	if (ret) {
		uring_destroy(&u->engine);
		return ret;
	}
	*out = &u->engine;
	return 0;
}
