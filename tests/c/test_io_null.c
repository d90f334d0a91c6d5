// SPDX-License-Identifier: Apache-2.0
/*
 * test_io_null.c - the null engine: all is done at the submit, in order, and nothing is touched
 */
#include "test_io.h"

static struct io_engine *e;
static struct io_target t;

static void nothing_is_done_before_the_submit(void)
{
	struct io_req r = { .op = IO_FLUSH, .res = 1 }, *done[1];

	io_queue(e, &r);
	CHECK_EQ(e->in_flight, 1);
	CHECK_EQ(io_reap(e, done, 1), 0);
	CHECK_EQ(io_submit_all(e), 1);
	CHECK_EQ(io_reap(e, done, 1), 1);
	CHECK(done[0] == &r);
	CHECK_EQ(r.res, 0);
	CHECK_EQ(e->in_flight, 0);
}

static void requests_come_back_in_order_however_they_are_reaped(void)
{
	enum { COUNT = 100 };
	struct io_req r[COUNT] = { 0 }, *done[COUNT];
	unsigned n = 0;

	for (unsigned i = 0; i < COUNT; i++) {
		io_queue(e, &r[i]);
		if (i % 7 == 6)
			io_submit_all(e);
	}
	io_submit_all(e);
	for (unsigned max = 1; n < COUNT; max = max % 9 + 1)
		n += io_reap(e, done + n, max < COUNT - n ? max : COUNT - n);
	for (unsigned i = 0; i < COUNT; i++)
		CHECK(done[i] == &r[i]);
	CHECK_EQ(e->in_flight, 0);
}

static void a_submit_behind_unreaped_requests_keeps_both(void)
{
	struct io_req r[4] = { 0 }, *done[4];

	io_queue(e, &r[0]);
	io_queue(e, &r[1]);
	io_submit_all(e);
	CHECK_EQ(io_reap(e, done, 1), 1);
	io_queue(e, &r[2]);
	io_submit_all(e);
	io_queue(e, &r[3]); /* staged only */
	CHECK_EQ(io_reap(e, done + 1, 3), 2);
	CHECK(done[1] == &r[1] && done[2] == &r[2]);
	CHECK_EQ(io_reap(e, done + 3, 1), 0);
	io_submit_all(e);
	CHECK_EQ(io_reap(e, done + 3, 1), 1);
}

static void no_data_is_touched(void)
{
	struct iovec iov = { (void *)8, 4 * KIB };
	struct io_req r = { .op = IO_READ, .iov = &iov, .iovcnt = 1, .len = 4 * KIB }, *done[1];

	io_queue(e, &r);
	io_submit_all(e);
	CHECK_EQ(io_reap(e, done, 1), 1);
	CHECK_EQ(r.res, 0);
	CHECK(iov.iov_base == (void *)8 && iov.iov_len == 4 * KIB);
}

static void there_is_nothing_to_wait_for(void)
{
	struct io_wait waits[IO_WAITS_MAX];

	CHECK_EQ(io_waits(e, waits), 0);
	CHECK_EQ(io_sleep_timeout_ns(e), -1);
	CHECK(e->completes_inline);
}

int main(void)
{
	io_target_null(&t, MIB);
	CHECK_EQ(io_engine_create(&e, "null", &t, 4), 0);
	RUN(nothing_is_done_before_the_submit);
	RUN(requests_come_back_in_order_however_they_are_reaped);
	RUN(a_submit_behind_unreaped_requests_keeps_both);
	RUN(no_data_is_touched);
	RUN(there_is_nothing_to_wait_for);
	CHECK_EQ(e->stats.submits, 0);
	CHECK_EQ(e->stats.completions, e->stats.inline_done);
	io_engine_destroy(e);
	return 0;
}
