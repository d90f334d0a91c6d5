// SPDX-License-Identifier: Apache-2.0
/*
 * test_io_uring.c - what io_uring alone can: memory registered as fixed buffers, and a ring whose completions are polled
 *
 * The test file's disk (or the one that KPOLL_TEST_DISK names, whose contents go) need not have poll queues: a device that
 * refuses to be polled is served all the same.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>

#include "nvme/c/uring_buffers.h"
#include "test_io.h"

#define AREA (2 * MIB)

static struct io_engine *e;
static struct io_target t;
static const char *engine;
static char path[PATH_MAX];

static uint8_t *area_map(void)
{
	uint8_t *area = mmap(NULL, AREA, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	CHECK(area != MAP_FAILED);
	return area;
}

/* Reads and writes of @area, in one buffer and in two, do what they should. */
static void served(uint8_t *area, uint8_t seed)
{
	uint8_t *seen = pages(64 * KIB);
	struct iovec two[2] = { { area + MIB, 4 * KIB }, { area + 64 * KIB, 4 * KIB } };
	struct io_req r = { .op = IO_READ, .iov = two, .iovcnt = 2, .offset = MIB + 8 * KIB, .len = 8 * KIB };

	pattern_fill(area + 16 * KIB, 64 * KIB, MIB, seed);
	CHECK_EQ(run_rw(e, IO_WRITE, 0, area + 16 * KIB, 64 * KIB, MIB), 0);
	file_read(path, seen, 64 * KIB, MIB);
	CHECK(pattern_is(seen, 64 * KIB, MIB, seed));
	memset(area, 0, 64 * KIB);
	CHECK_EQ(run_rw(e, IO_READ, 0, area, 64 * KIB, MIB), 0);
	CHECK(pattern_is(area, 64 * KIB, MIB, seed));
	CHECK_EQ(run_rw(e, IO_WRITE, IO_F_DSYNC, area, 64 * KIB, MIB), 0);
	CHECK_EQ(run(e, &r), 0);
	CHECK(pattern_is(area + MIB, 4 * KIB, MIB + 8 * KIB, seed));
	CHECK(pattern_is(area + 64 * KIB, 4 * KIB, MIB + 12 * KIB, seed));
	free(seen);
}

static void memory_is_served_whether_it_is_registered_or_not(void)
{
	uint8_t *a = area_map(), *b = area_map(), *other = area_map();
	/* The second begins and ends anywhere. */
	struct iovec memory[2] = { { a, AREA }, { b + 100, AREA - 8292 } };

	served(a, 1);
	CHECK_EQ(io_engine_pin(e, memory, 2), 0);
	served(a, 2);
	served(b, 3); /* its first page is registered in part */
	served(other, 4);
	CHECK_EQ(io_engine_pin(e, memory, 1), 0);
	served(a, 5);
	served(b, 6);
	CHECK_EQ(io_engine_pin(e, NULL, 0), 0);
	served(a, 7);
	munmap(a, AREA);
	munmap(b, AREA);
	munmap(other, AREA);
}

/* What is registered is the pages, not the address: had the first ones stayed, I/O would go to memory that is gone. */
static void other_memory_at_the_same_address_is_what_is_served(void)
{
	uint8_t *a = area_map();
	struct iovec memory = { a, AREA };

	CHECK_EQ(io_engine_pin(e, &memory, 1), 0);
	served(a, 1);
	CHECK_EQ(io_engine_pin(e, NULL, 0), 0);
	CHECK(mmap(a, AREA, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == a);
	CHECK_EQ(io_engine_pin(e, &memory, 1), 0);
	served(a, 2);
	CHECK_EQ(io_engine_pin(e, NULL, 0), 0);
	munmap(a, AREA);
}

/* The kernel really goes to the pages that were registered: seen by replacing them, which nobody else should do. */
static void a_registered_buffer_is_not_looked_up_again(void)
{
	uint8_t *a = area_map();
	struct iovec memory = { a, AREA };

	pattern_fill(a, 4 * KIB, 0, 9);
	CHECK_EQ(io_engine_pin(e, &memory, 1), 0);
	CHECK(mmap(a, AREA, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == a);
	/* What the page cache has, file_read()'s doing, can't be written past without waiting: the polled ring would refuse. */
	CHECK_EQ(posix_fadvise(t.fd, 0, 0, POSIX_FADV_DONTNEED), 0);
	CHECK_EQ(run_rw(e, IO_WRITE, 0, a, 4 * KIB, 0), 0);
	memset(a, 1, 4 * KIB);
	file_read(path, a, 4 * KIB, 0);
	CHECK(pattern_is(a, 4 * KIB, 0, 9));
	CHECK_EQ(io_engine_pin(e, NULL, 0), 0);
	munmap(a, AREA);
}

static void memory_that_cannot_be_registered_is_served(void)
{
	struct iovec memory[2] = { { (void *)4096, AREA }, { area_map(), AREA } };

	CHECK_EQ(io_engine_pin(e, memory, 2), -EFAULT);
	CHECK_EQ(run_rw(e, IO_READ, 0, (void *)4096, 4 * KIB, 0), -EFAULT);
	served(memory[1].iov_base, 1);
	CHECK_EQ(io_engine_pin(e, NULL, 0), 0);
	munmap(memory[1].iov_base, AREA);
}

static void requests_in_flight_are_counted_as_polled_or_signalled(void)
{
	uint8_t *buf = pages(4 * KIB);
	struct iovec iov = { buf, 4 * KIB };
	struct io_req r = { .op = IO_READ, .iov = &iov, .iovcnt = 1, .len = 4 * KIB }, *done[1];

	io_queue(e, &r);
	CHECK_EQ(io_submit_all(e), 1);
	CHECK_EQ(io_sleep_timeout_ns(e), e->polled ? 0 : -1);
	CHECK(e->polled <= 1);
	CHECK_EQ(reap_some(e, done, 1), 1);
	CHECK_EQ(r.res, 0);
	CHECK_EQ(e->polled, 0);
	CHECK_EQ(io_sleep_timeout_ns(e), -1);
	free(buf);
}

static void what_else_there_is_works_beside_polled_reads(void)
{
	enum { READS = 64 };
	uint8_t *buf = pages(READS * 4 * KIB);
	struct iovec iov[READS], odd = { buf + 1, 512 };
	struct io_req r[READS + 2] = { 0 }, *done[READS + 2];

	for (unsigned i = 0; i < READS; i++) {
		iov[i] = (struct iovec){ buf + i * 4 * KIB, 4 * KIB };
		r[i] = (struct io_req){
			.op = IO_READ, .iov = &iov[i], .iovcnt = 1, .offset = i * 4 * KIB, .len = 4 * KIB
		};
		io_queue(e, &r[i]);
	}
	r[READS] = (struct io_req){ .op = IO_FLUSH };
	io_queue(e, &r[READS]);
	CHECK(io_submit_all(e) >= 0);
	reap_all(e, done, READS + 1);
	r[READS + 1] = (struct io_req){ .op = IO_READ, .iov = &odd, .iovcnt = 1, .len = 512 };
	CHECK_EQ(run(e, &r[READS + 1]), 0);
	for (unsigned i = 0; i < READS + 2; i++)
		CHECK_EQ(r[i].res, 0);
	free(buf);
}

/* As it was discarded, so it is written again. Twice: a kernel that has no command for it says so but once. */
static void blocks_are_discarded_by_the_ring_or_a_helper(void)
{
	uint64_t helped = e->stats.helped;
	uint8_t *area = area_map();

	for (unsigned i = 0; i < 2; i++) {
		CHECK_EQ(run_extent(e, IO_DISCARD, 0, MIB, MIB), 0);
		CHECK_EQ(e->polled, 0);
		served(area, (uint8_t)(i + 1));
	}
	CHECK_EQ(e->stats.helped - helped, kernel_discards_by_ring() ? 0 : 2);
	munmap(area, AREA);
}

/* The kernel registers no more than 1 GiB at once. */
static void a_gigabyte_and_more_is_registered_in_pieces(void)
{
	const size_t gib = 1024 * MIB, len = gib + AREA;
	uint8_t *a = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	struct iovec memory = { a, len };

	CHECK(a != MAP_FAILED);
	CHECK_EQ(io_engine_pin(e, &memory, 1), 0);
	served(a, 1);
	served(a + gib, 2);
	served(a + gib - 32 * KIB, 3); /* in neither piece */
	CHECK_EQ(io_engine_pin(e, NULL, 0), 0);
	munmap(a, len);
}

static void other_engines_have_no_use_for_it(void)
{
	struct iovec memory = { &memory, sizeof(memory) };
	struct io_engine *null;

	CHECK_EQ(io_engine_create(&null, "null", &t, 4), 0);
	CHECK_EQ(io_engine_pin(null, &memory, 1), -EOPNOTSUPP);
	io_engine_destroy(null);
}

static void a_buffer_is_found_by_what_it_holds(void)
{
	static struct uring_buffers b = {
		.count = 3, .buffers = { { 0x1000, 0x1000, 7 }, { 0x2000, 0x2000, 5 }, { 0x8000, 0x10, 6 } }
	};

	CHECK_EQ(uring_buffers_find(&b, (void *)0xfff, 1), -1);
	CHECK_EQ(uring_buffers_find(&b, (void *)0xfff, 2), -1);
	CHECK_EQ(uring_buffers_find(&b, (void *)0x1000, 0x1000), 7);
	CHECK_EQ(uring_buffers_find(&b, (void *)0x1fff, 1), 7);
	CHECK_EQ(uring_buffers_find(&b, (void *)0x1fff, 2), -1); /* in two */
	CHECK_EQ(uring_buffers_find(&b, (void *)0x3fff, 1), 5);
	CHECK_EQ(uring_buffers_find(&b, (void *)0x4000, 1), -1);
	CHECK_EQ(uring_buffers_find(&b, (void *)0x800f, 1), 6);
	CHECK_EQ(uring_buffers_find(&b, (void *)0x8010, 1), -1);
	CHECK_EQ(uring_buffers_find(&b, (void *)0x8000, SIZE_MAX), -1);
	b.count = 0;
	CHECK_EQ(uring_buffers_find(&b, (void *)0x1000, 1), -1);
}

static void all(void)
{
	int ret;

	printf("# %s on %s (direct %d, polls %d)\n", engine, path, t.direct, t.polls);
	ret = io_engine_create(&e, engine, &t, 32);
	if (ret == -ENOSYS || ret == -EPERM) {
		printf("skip: this kernel or container has no io_uring\n");
		return;
	}
	CHECK_EQ(ret, 0);
	RUN(requests_in_flight_are_counted_as_polled_or_signalled);
	RUN(what_else_there_is_works_beside_polled_reads);
	if (t.block_device)
		RUN(blocks_are_discarded_by_the_ring_or_a_helper);
	RUN(memory_is_served_whether_it_is_registered_or_not);
	RUN(other_memory_at_the_same_address_is_what_is_served);
	RUN(memory_that_cannot_be_registered_is_served);
	if (t.polls ||
	    strcmp(engine, "io_uring_iopoll") != 0) /* a device that won't be polled leaves its buffers unused */
		RUN(a_registered_buffer_is_not_looked_up_again);
	RUN(a_gigabyte_and_more_is_registered_in_pieces);
	RUN(other_engines_have_no_use_for_it);
	CHECK_EQ(e->in_flight, 0);
	CHECK_EQ(e->held, 0);
	io_engine_destroy(e);
}

int main(void)
{
	static const char *const engines[] = { "io_uring", "io_uring_iopoll" };

	RUN(a_buffer_is_found_by_what_it_holds);
	for (unsigned i = 0; i < 2; i++) {
		bool ours = disk_or_scratch_file(path);

		engine = engines[i];
		CHECK_EQ(io_target_open(&t, path, false), 0);
		all();
		io_target_close(&t);
		if (ours)
			unlink(path);
	}
	return 0;
}
