// SPDX-License-Identifier: Apache-2.0
/*
 * test_io_signal.c - how an engine's owner learns that a request is done: eventfds, words in memory, short sleeps
 */
#include <errno.h>

#include "kernel/c/wait.h"
#include "test_io.h"

#define HOLE (16 * MIB) /* where the test file has no blocks */
#define BATCH 16

static struct io_engine *e;
static struct io_target t;
static char path[PATH_MAX];
static uint8_t *buf;
static struct iovec iov[BATCH];
static struct io_req req[BATCH];

static bool signalled(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	CHECK(poll(&p, 1, 0) >= 0);
	return p.revents & POLLIN;
}

/* Only the tests read the eventfds; their owner never does. */
static void drain(void)
{
	struct io_wait waits[IO_WAITS_MAX];
	unsigned n = io_waits(e, waits);

	for (unsigned i = 0; i < n; i++) {
		uint64_t count;

		if (read(waits[i].fd, &count, sizeof(count)) < 0)
			CHECK_EQ(errno, EAGAIN);
		CHECK(!signalled(waits[i].fd));
	}
}

static void queue_read(unsigned i, uint64_t offset, size_t len)
{
	iov[i] = (struct iovec){ buf + i * 64 * KIB, len };
	req[i] = (struct io_req){ .op = IO_READ, .iov = &iov[i], .iovcnt = 1, .offset = offset, .len = len };
	io_queue(e, &req[i]);
}

static void each_wait_has_a_descriptor_and_a_well_formed_word(void)
{
	struct io_wait waits[IO_WAITS_MAX];
	unsigned n = io_waits(e, waits);

	CHECK_EQ(n, 2);
	for (unsigned i = 0; i < n; i++) {
		CHECK(fcntl(waits[i].fd, F_GETFD) & FD_CLOEXEC);
		CHECK(fcntl(waits[i].fd, F_GETFL) & O_NONBLOCK);
		CHECK(waits[i].has_word);
		CHECK_EQ(wait_word_check(&waits[i].word), 0);
		CHECK(!wait_word_true(&waits[i].word));
	}
	CHECK_EQ(io_sleep_timeout_ns(e), -1);
}

/* From before the submit until it is reaped: the word is true exactly while io_reap() has something. */
static void completion_shows(struct io_req *r, unsigned which)
{
	struct io_wait waits[IO_WAITS_MAX];
	struct io_req *done[1];
	struct pollfd p;

	drain();
	io_waits(e, waits);
	CHECK(!wait_word_true(&waits[which].word));
	io_queue(e, r);
	io_submit_all(e);
	p = (struct pollfd){ .fd = waits[which].fd, .events = POLLIN };
	CHECK_EQ(poll(&p, 1, 20000), 1); /* this descriptor alone wakes a sleeper */
	CHECK(wait_word_true(&waits[which].word));
	CHECK_EQ(io_reap(e, done, 1), 1);
	CHECK(done[0] == r);
	CHECK_EQ(r->res, 0);
	CHECK(!wait_word_true(&waits[which].word));
	CHECK_EQ(io_reap(e, done, 1), 0);
}

static void a_read_shows_in_the_rings_word_and_descriptor(void)
{
	struct iovec one = { buf, 4 * KIB };
	struct io_req r = { .op = IO_READ, .iov = &one, .iovcnt = 1, .len = 4 * KIB };

	completion_shows(&r, 0);
	CHECK(!r.in_helper);
}

static void a_flush_shows_in_the_helpers_word_and_descriptor(void)
{
	struct io_req r = { .op = IO_FLUSH };

	completion_shows(&r, 1);
	CHECK(r.in_helper);
}

static void a_word_stays_true_while_something_is_left_to_reap(void)
{
	struct io_req r[3] = { { .op = IO_FLUSH }, { .op = IO_FLUSH }, { .op = IO_FLUSH } }, *done[3];
	struct io_wait waits[IO_WAITS_MAX];

	io_waits(e, waits);
	for (unsigned i = 0; i < 3; i++)
		io_queue(e, &r[i]);
	CHECK_EQ(reap_some(e, done, 1), 1);
	CHECK_EQ(reap_some(e, done, 1), 1);
	CHECK_EQ(e->in_flight, 1);
	while (!wait_word_true(&waits[1].word)) /* the third is on its way, or here */
		CHECK(e->in_flight == 1);
	CHECK_EQ(io_reap(e, done, 3), 1);
	CHECK(!wait_word_true(&waits[1].word));
}

/* On aio only: reads of a hole complete inside io_submit(2), reads of data don't. */
static void what_completes_inline_signals_nobody_until_it_stops_to(void)
{
	struct io_engine *others = e;
	struct io_wait waits[IO_WAITS_MAX];
	struct io_req *done[BATCH];

	CHECK_EQ(io_engine_create(&e, "aio", &t, BATCH), 0); /* one that has seen nothing yet */
	io_waits(e, waits);
	for (unsigned i = 0; i < 64; i++) {
		CHECK(!e->completes_inline);
		CHECK_EQ(run_rw(e, IO_READ, 0, buf, 4 * KIB, HOLE), 0);
	}
	if (!e->completes_inline) {
		printf("skip: reads of holes don't complete inline here\n");
		goto out;
	}
	drain();
	CHECK_EQ(run_rw(e, IO_READ, 0, buf, 4 * KIB, HOLE), 0);
	CHECK(!signalled(waits[0].fd));
	CHECK_EQ(e->unsignalled, 0);
	CHECK_EQ(io_sleep_timeout_ns(e), -1);

	for (unsigned i = 0; i < BATCH; i++)
		queue_read(i, i * 64 * KIB, 64 * KIB);
	CHECK_EQ(io_submit_all(e), BATCH);
	if (e->completes_inline) {
		printf("skip: reads of data complete inline here\n");
	} else {
		CHECK_EQ(e->unsignalled, BATCH); /* none was reaped yet, and none has a signal */
		CHECK_EQ(io_sleep_timeout_ns(e), 100000);
	}
	reap_all(e, done, BATCH);
	for (unsigned i = 0; i < BATCH; i++)
		CHECK(pattern_is(buf + i * 64 * KIB, 64 * KIB, i * 64 * KIB, 0));
	CHECK_EQ(e->unsignalled, 0);
	CHECK_EQ(io_sleep_timeout_ns(e), -1);
	if (!e->completes_inline)
		a_read_shows_in_the_rings_word_and_descriptor();
out:
	io_engine_destroy(e);
	e = others;
}

/* The 64th completes with a signal and is still in the ring when the next submit ends the run. */
static void a_signalled_completion_left_in_the_ring_does_not_shorten_sleeps_for_ever(void)
{
	struct io_engine *others = e;
	struct io_req last = { .op = IO_READ, .iovcnt = 1, .offset = HOLE, .len = 4 * KIB }, *done[BATCH];
	struct iovec one = { buf + (BATCH - 1) * 64 * KIB, 4 * KIB };
	unsigned n = 0;

	last.iov = &one;
	CHECK_EQ(io_engine_create(&e, "aio", &t, BATCH), 0);
	for (unsigned i = 0; i < 63; i++)
		CHECK_EQ(run_rw(e, IO_READ, 0, buf, 4 * KIB, HOLE), 0);
	io_queue(e, &last);
	io_submit_all(e);
	if (!e->completes_inline)
		printf("skip: reads of holes don't complete inline here\n");
	for (unsigned i = 0; i < BATCH - 1; i++)
		queue_read(i, i * 64 * KIB, 64 * KIB);
	io_submit_all(e);
	while (n < BATCH)
		n += reap_some(e, done, BATCH);
	CHECK_EQ(e->in_flight, 0);
	CHECK_EQ(e->unsignalled, 0);
	CHECK_EQ(io_sleep_timeout_ns(e), -1);
	io_engine_destroy(e);
	e = others;
}

/* A kernel that polls for us wakes whoever watches the tail: neither signals nor short sleeps, whatever completes how. */
static void where_the_ring_wakes_nothing_signals(void)
{
	struct io_engine *others = e;
	struct io_wait waits[IO_WAITS_MAX];
	struct io_req *done[BATCH];
	unsigned n = 0;

	CHECK_EQ(io_engine_create(&e, "aio", &t, BATCH), 0);
	io_engine_ring_wakes(e);
	io_waits(e, waits);
	for (unsigned i = 0; i < 64; i++) {
		queue_read(0, HOLE, 4 * KIB);
		io_submit_all(e);
		while (io_reap(e, done, 1) == 0)
			CHECK_EQ(io_sleep_timeout_ns(e), -1);
	}
	for (unsigned i = 0; i < BATCH; i++) /* these don't complete inline any more */
		queue_read(i, i * 64 * KIB, 64 * KIB);
	CHECK_EQ(io_submit_all(e), BATCH);
	CHECK_EQ(io_sleep_timeout_ns(e), -1);
	while (n < BATCH)
		n += io_reap(e, done + n, BATCH - n);
	CHECK_EQ(e->unsignalled, 0);
	CHECK(!signalled(waits[0].fd));
	io_engine_destroy(e);
	e = others;
}

static void every_completion_is_counted_once(void)
{
	struct io_stats before = e->stats;

	CHECK_EQ(run_rw(e, IO_READ, 0, buf, 4 * KIB, 0), 0);
	CHECK_EQ(run_extent(e, IO_FLUSH, 0, 0, 0), 0);
	CHECK_EQ(e->stats.submits - before.submits, 1);
	CHECK_EQ(e->stats.completions - before.completions, 2);
	CHECK_EQ(e->stats.helped - before.helped, 1);
}

static void create_and_destroy_leave_no_descriptor(void)
{
	int before = open("/dev/null", O_RDONLY), after;
	struct io_engine *other;
	struct io_req r = { .op = IO_FLUSH };

	close(before);
	for (unsigned i = 0; i < 20; i++) {
		CHECK_EQ(io_engine_create(&other, e->ops->name, &t, 8), 0);
		CHECK_EQ(run(other, &r), 0);
		io_engine_destroy(other);
	}
	after = open("/dev/null", O_RDONLY);
	close(after);
	CHECK_EQ(after, before);
}

static void engine_on(const char *engine)
{
	int ret;

	scratch_file(path, false);
	CHECK_EQ(truncate(path, 2 * HOLE), 0);
	CHECK_EQ(io_target_open(&t, path, false), 0);
	ret = io_engine_create(&e, engine, &t, BATCH);
	printf("# %s\n", engine);
	if (ret) {
		printf("skip: no %s here: %s\n", engine, strerror(-ret));
	} else {
		RUN(each_wait_has_a_descriptor_and_a_well_formed_word);
		RUN(a_read_shows_in_the_rings_word_and_descriptor);
		RUN(a_flush_shows_in_the_helpers_word_and_descriptor);
		RUN(a_word_stays_true_while_something_is_left_to_reap);
		RUN(every_completion_is_counted_once);
		RUN(create_and_destroy_leave_no_descriptor);
		if (!strcmp(engine, "aio")) {
			RUN(what_completes_inline_signals_nobody_until_it_stops_to);
			RUN(where_the_ring_wakes_nothing_signals);
			RUN(a_signalled_completion_left_in_the_ring_does_not_shorten_sleeps_for_ever);
		}
		io_engine_destroy(e);
	}
	io_target_close(&t);
	unlink(path);
}

int main(void)
{
	buf = pages(BATCH * 64 * KIB);
	engine_on("aio");
	engine_on("io_uring");
	free(buf);
	return 0;
}
