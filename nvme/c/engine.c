// SPDX-License-Identifier: Apache-2.0
/*
 * engine.c - choose an I/O engine by name, and describe what its owner can wait on
 */
#include <errno.h>
#include <string.h>

#include "engine.h"
#include "helper.h"

#define IO_DEPTH_MAX 65536
#define IO_UNSIGNALLED_SLEEP_NS 100000

int io_engine_create(struct io_engine **out, const char *name, struct io_target *t, uint32_t depth)
{
	static const struct {
		const char *name;
		int (*create)(struct io_engine **out, struct io_target *t, uint32_t depth);
	} engines[] = {
		{ "aio", aio_create },        { "aio_iopoll", aio_iopoll_create },
		{ "io_uring", uring_create }, { "io_uring_iopoll", uring_iopoll_create },
		{ "null", null_create },
	};

	if (depth == 0 || depth > IO_DEPTH_MAX)
		return -EINVAL;
	for (size_t i = 0; i < sizeof(engines) / sizeof(engines[0]); i++)
		if (!strcmp(engines[i].name, name))
			return engines[i].create(out, t, depth);
	return -EINVAL;
}

void io_engine_destroy(struct io_engine *e)
{
	if (e)
		e->ops->destroy(e);
}

unsigned io_waits(struct io_engine *e, struct io_wait waits[IO_WAITS_MAX])
{
	struct io_wait *w = &waits[0];

	*w = (struct io_wait){ .fd = e->ops->wait_fd(e) };
	e->ops->wait_word(e, &w->word);
	w->has_word = w->word.op != EVENTFD_POLL_OP_NONE;
	if (w->fd >= 0 || w->has_word)
		w++;
	if (e->helper)
		io_helper_wait(e->helper, w++);
	return (unsigned)(w - waits);
}

void io_engine_ring_wakes(struct io_engine *e)
{
	if (e->ops->ring_wakes)
		e->ops->ring_wakes(e);
}

void io_engine_reopened(struct io_engine *e)
{
	if (e->ops->reopened)
		e->ops->reopened(e);
}

int io_engine_pin(struct io_engine *e, const struct iovec *memory, unsigned count)
{
	return e->ops->pin ? e->ops->pin(e, memory, count) : -EOPNOTSUPP;
}

int64_t io_sleep_timeout_ns(const struct io_engine *e)
{
	if (e->polled)
		return 0;
	return e->unsignalled || e->held ? IO_UNSIGNALLED_SLEEP_NS : -1;
}
