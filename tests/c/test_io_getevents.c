// SPDX-License-Identifier: Apache-2.0
/*
 * test_io_getevents.c - aio where the ring is not one that we know: io_getevents(2) collects, the eventfd tells
 *
 * No kernel has such a ring yet, so the test takes the engine's source and blinds it to the one that is there.
 */
#include "nvme/c/aio.c"

#include "test_io.h"

static struct io_engine *e;
static struct io_target t;
static char path[PATH_MAX];

static void the_eventfd_alone_tells(void)
{
	struct io_wait waits[IO_WAITS_MAX];

	CHECK_EQ(io_waits(e, waits), 2);
	CHECK(!waits[0].has_word);
	CHECK(waits[0].fd >= 0);
	CHECK(waits[1].has_word); /* the helpers' */
}

static void batches_larger_than_one_call_collects_come_back_whole(void)
{
	enum { COUNT = 200 };
	uint8_t *buf = pages(COUNT * 4 * KIB);
	struct iovec iov[COUNT];
	struct io_req r[COUNT] = { 0 }, *done[COUNT];

	queue_reads(e, r, iov, buf, COUNT);
	io_submit_all(e);
	reap_all(e, done, COUNT);
	check_reads(r, COUNT);
	CHECK_EQ(io_reap(e, done, COUNT), 0);
	free(buf);
}

static void every_completion_keeps_its_signal(void)
{
	uint8_t *buf = pages(4 * KIB);

	CHECK_EQ(truncate(path, 4 * FILE_SIZE), 0);
	for (unsigned i = 0; i < 2 * AIO_INLINE_RUN; i++) { /* of a hole: complete when io_submit(2) returns */
		CHECK_EQ(run_rw(e, IO_READ, 0, buf, 4 * KIB, 2 * FILE_SIZE), 0);
		CHECK(!e->completes_inline);
		CHECK_EQ(io_sleep_timeout_ns(e), -1);
	}
	free(buf);
}

int main(void)
{
	scratch_file(path, false);
	CHECK_EQ(io_target_open(&t, path, false), 0);
	CHECK_EQ(io_engine_create(&e, "aio", &t, 256), 0);
	container_of(e, struct aio, engine)->ring = NULL;
	RUN(the_eventfd_alone_tells);
	RUN(batches_larger_than_one_call_collects_come_back_whole);
	RUN(every_completion_keeps_its_signal);
	io_engine_destroy(e);
	io_target_close(&t);
	unlink(path);
	return 0;
}
