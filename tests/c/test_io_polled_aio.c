// SPDX-License-Identifier: Apache-2.0
/*
 * test_io_polled_aio.c - aio under a kernel that polls, and that can't poll for everything
 *
 * Such a kernel runs in the test VM alone, and when it refuses is its device's to say. So the test takes the engine's source
 * and is that kernel itself: a ring, and reads that are done when they are submitted, or refused as the test wants.
 */
#define syscall fake_syscall
#include "nvme/c/aio.c"
#undef syscall

#include <pthread.h>
#include <stdarg.h>

#include "test_io.h"

#define DEPTH 8
#define EVENTS (4 * DEPTH)
#define COUNT 64

static struct io_engine *e;
static struct io_target t;
static char path[PATH_MAX];

/* The kernel: what it answers to iocbs with the flag, 0 being what was asked for; and what it was asked. */
static int polled_error, nowait_error;
static unsigned polled, nowait, waited;
static struct aio_ring *ring;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* helpers submit too */

static int64_t carry_out(const struct iocb *iocb)
{
	void *buf = (void *)(uintptr_t)iocb->aio_buf;

	if (iocb->aio_flags & IOCB_FLAG_HIPRI) {
		polled++;
		if (polled_error)
			return polled_error;
	} else if (iocb->aio_rw_flags & RWF_NOWAIT) {
		nowait++;
		if (nowait_error)
			return nowait_error;
	} else {
		waited++;
	}
	return iocb->aio_lio_opcode == IOCB_CMD_PREAD ?
		       pread((int)iocb->aio_fildes, buf, iocb->aio_nbytes, iocb->aio_offset) :
		       preadv((int)iocb->aio_fildes, buf, (int)iocb->aio_nbytes, iocb->aio_offset);
}

static long fake_submit(long n, struct iocb **iocbs)
{
	pthread_mutex_lock(&lock);
	for (long i = 0; i < n; i++) {
		unsigned tail = ring->tail, next = tail + 1 == EVENTS ? 0 : tail + 1;

		CHECK(next != load_acquire(&ring->head));
		ring->events[tail] = (struct io_event){ .data = iocbs[i]->aio_data, .res = carry_out(iocbs[i]) };
		store_release(&ring->tail, next);
	}
	pthread_mutex_unlock(&lock);
	return n;
}

long fake_syscall(long number, ...)
{
	va_list args;
	long first, ret = 0;

	va_start(args, number);
	switch (number) {
	case SYS_io_setup:
		ring = calloc(1, sizeof(*ring) + EVENTS * sizeof(ring->events[0]));
		CHECK(ring != NULL);
		ring->nr = EVENTS;
		ring->magic = AIO_RING_MAGIC;
		ring->compat_features = 1 | AIO_RING_COMPAT_HIPRI;
		ring->header_length = sizeof(*ring);
		va_arg(args, unsigned);
		*va_arg(args, aio_context_t *) = (uintptr_t)ring;
		break;
	case SYS_io_submit:
		CHECK_EQ(va_arg(args, aio_context_t), (uintptr_t)ring);
		first = va_arg(args, long);
		ret = fake_submit(first, va_arg(args, struct iocb **));
		break;
	case SYS_io_getevents: /* a look, with nothing to find */
		break;
	case SYS_io_destroy:
		free(ring);
		break;
	default:
		CHECK(!"a system call that this kernel has");
	}
	va_end(args);
	return ret;
}

/* Read @count times 4 KiB, from the file's begin on, with one io_submit_all() where they fit the ring. */
static void reads_come_back_right(unsigned count)
{
	uint8_t *buf = pages(COUNT * 4 * KIB);
	struct iovec iov[COUNT];
	struct io_req r[COUNT] = { 0 }, *done[COUNT];

	polled = nowait = waited = 0;
	queue_reads(e, r, iov, buf, count);
	io_submit_all(e);
	for (unsigned n = 0; n < count;) {
		n += io_reap(e, done, COUNT);
		if (e->held)
			io_submit_all(e);
	}
	check_reads(r, count);
	CHECK_EQ(e->in_flight, 0);
	free(buf);
}

static void what_can_be_polled_for_is(void)
{
	reads_come_back_right(DEPTH);
	CHECK_EQ(polled, DEPTH);
	CHECK_EQ(nowait + waited, 0);
}

static void what_can_not_be_is_submitted_again_at_once_and_needs_no_helper(void)
{
	polled_error = -EAGAIN;
	reads_come_back_right(DEPTH);
	CHECK_EQ(polled, DEPTH);
	CHECK_EQ(nowait, DEPTH); /* still without waiting */
	CHECK_EQ(waited, 0);
	CHECK_EQ(e->stats.helped, 0);
}

static void each_is_tried_once_however_many_wait_behind_it(void)
{
	polled_error = -EAGAIN;
	reads_come_back_right(COUNT);
	CHECK_EQ(polled, COUNT);
	CHECK_EQ(nowait, COUNT);
	CHECK_EQ(e->stats.helped, 0);
}

static void the_next_one_is_polled_for_again(void)
{
	polled_error = -EAGAIN;
	reads_come_back_right(1);
	polled_error = 0;
	reads_come_back_right(1);
	CHECK_EQ(polled, 1);
	CHECK_EQ(nowait, 0);
}

static void what_would_have_to_wait_then_is_a_helpers(void)
{
	polled_error = nowait_error = -EAGAIN;
	reads_come_back_right(DEPTH);
	CHECK_EQ(polled, DEPTH);
	CHECK_EQ(nowait, DEPTH);
	CHECK_EQ(waited, DEPTH);
	CHECK_EQ(e->stats.helped, DEPTH);
}

/* As by a layer that knows no RWF_NOWAIT. */
static void where_nothing_can_be_polled_for_that_is_tried_once(void)
{
	polled_error = -EOPNOTSUPP;
	reads_come_back_right(1);
	CHECK_EQ(polled, 1);
	reads_come_back_right(COUNT);
	CHECK_EQ(polled, 0);
	CHECK_EQ(nowait, COUNT);
	CHECK_EQ(e->stats.helped, 0);
}

static void what_is_to_be_cut_in_pieces_is_not_polled_for(void)
{
	t.max_bytes = 2 * KIB;
	reads_come_back_right(DEPTH);
	CHECK_EQ(polled, 0);
	CHECK_EQ(nowait, DEPTH);
	CHECK_EQ(e->stats.helped, 0);
}

static void with_engine(void (*behaviour)(void))
{
	CHECK_EQ(io_target_open(&t, path, false), 0);
	t.nowait = true; /* whatever this file's filesystem says */
	CHECK_EQ(io_engine_create(&e, "aio_iopoll", &t, DEPTH), 0);
	io_engine_ring_wakes(e);
	polled_error = nowait_error = 0;
	behaviour();
	io_engine_destroy(e);
	io_target_close(&t);
}

#define SHOW(behaviour)                     \
	do {                                \
		printf("%s\n", #behaviour); \
		fflush(stdout);             \
		with_engine(behaviour);     \
	} while (0)

int main(void)
{
	scratch_file(path, false);
	alarm(60);
	SHOW(what_can_be_polled_for_is);
	SHOW(what_can_not_be_is_submitted_again_at_once_and_needs_no_helper);
	SHOW(each_is_tried_once_however_many_wait_behind_it);
	SHOW(the_next_one_is_polled_for_again);
	SHOW(what_would_have_to_wait_then_is_a_helpers);
	SHOW(where_nothing_can_be_polled_for_that_is_tried_once);
	SHOW(what_is_to_be_cut_in_pieces_is_not_polled_for);
	unlink(path);
	return 0;
}
