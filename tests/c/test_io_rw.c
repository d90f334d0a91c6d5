// SPDX-License-Identifier: Apache-2.0
/*
 * test_io_rw.c - reads and writes: every engine with data, on every kind of target, give the same answers
 */
#include <errno.h>

#include "test_io.h"

static struct io_engine *e;
static struct io_target t;
static char path[PATH_MAX];

/* The tests leave the file as they found it. */
static void restore(uint64_t offset, size_t len)
{
	uint8_t *buf = pages(len);

	pattern_fill(buf, len, offset, 0);
	CHECK_EQ(run_rw(e, IO_WRITE, 0, buf, len, offset), 0);
	free(buf);
}

static void an_aligned_read_returns_the_files_bytes(void)
{
	uint8_t *buf = pages(64 * KIB);

	CHECK_EQ(run_rw(e, IO_READ, 0, buf, 64 * KIB, MIB), 0);
	CHECK(pattern_is(buf, 64 * KIB, MIB, 0));
	free(buf);
}

static void an_aligned_write_is_what_others_read(void)
{
	uint8_t *buf = pages(64 * KIB), *seen = pages(64 * KIB);

	pattern_fill(buf, 64 * KIB, 2 * MIB, 1);
	CHECK_EQ(run_rw(e, IO_WRITE, 0, buf, 64 * KIB, 2 * MIB), 0);
	file_read(path, seen, 64 * KIB, 2 * MIB);
	CHECK(pattern_is(seen, 64 * KIB, 2 * MIB, 1));
	restore(2 * MIB, 64 * KIB);
	free(buf);
	free(seen);
}

static void a_write_through_completes_with_its_data(void)
{
	uint8_t *buf = pages(4 * KIB), *seen = pages(4 * KIB);

	pattern_fill(buf, 4 * KIB, 3 * MIB, 2);
	CHECK_EQ(run_rw(e, IO_WRITE, IO_F_DSYNC, buf, 4 * KIB, 3 * MIB), 0);
	file_read(path, seen, 4 * KIB, 3 * MIB);
	CHECK(pattern_is(seen, 4 * KIB, 3 * MIB, 2));
	restore(3 * MIB, 4 * KIB);
	free(buf);
	free(seen);
}

static void memory_at_odd_addresses_is_served(void)
{
	size_t len = 2 * MIB + 4 * KIB; /* more than one bounce buffer */
	uint8_t *buf = pages(len + 4096), *seen = pages(len);

	CHECK_EQ(run_rw(e, IO_READ, 0, buf + 1, 64 * KIB, MIB), 0);
	CHECK(pattern_is(buf + 1, 64 * KIB, MIB, 0));
	pattern_fill(buf + 3, len, 0, 3);
	CHECK_EQ(run_rw(e, IO_WRITE, 0, buf + 3, len, 0), 0);
	file_read(path, seen, len, 0);
	CHECK(pattern_is(seen, len, 0, 3));
	CHECK_EQ(run_rw(e, IO_READ, 0, buf + 7, len, 0), 0);
	CHECK(pattern_is(buf + 7, len, 0, 3));
	restore(0, len);
	free(buf);
	free(seen);
}

static void ranges_below_the_alignment_are_served_on_files(void)
{
	uint8_t *buf = pages(8 * KIB), *seen = pages(12 * KIB);

	CHECK_EQ(run_rw(e, IO_READ, 0, buf, 100, MIB + 3), 0);
	CHECK(pattern_is(buf, 100, MIB + 3, 0));
	pattern_fill(buf, 1000, MIB + 512 + 7, 4);
	CHECK_EQ(run_rw(e, IO_WRITE, 0, buf, 1000, MIB + 512 + 7), 0);
	/* Nothing beside it changed, and the engine's own aligned way sees it too. */
	CHECK_EQ(run_rw(e, IO_READ, 0, seen, 4 * KIB, MIB), 0);
	CHECK(pattern_is(seen, 519, MIB, 0));
	CHECK(pattern_is(seen + 519, 1000, MIB + 519, 4));
	CHECK(pattern_is(seen + 1519, 4096 - 1519, MIB + 1519, 0));
	restore(MIB, 4 * KIB);
	free(buf);
	free(seen);
}

/* Buffers as a guest scatters them: @n pieces of @piece bytes, in reverse order of address. */
static void scattered(unsigned n, size_t piece, uint64_t offset)
{
	struct iovec *iov = calloc(n, sizeof(*iov));
	uint8_t *buf = pages(n * piece), *seen = pages(n * piece);
	struct io_req r = { .iov = iov, .iovcnt = n, .offset = offset, .len = n * piece };

	for (unsigned i = 0; i < n; i++) {
		iov[i] = (struct iovec){ buf + (n - 1 - i) * piece, piece };
		pattern_fill(iov[i].iov_base, piece, offset + i * piece, 5);
	}
	r.op = IO_WRITE;
	CHECK_EQ(run(e, &r), 0);
	file_read(path, seen, n * piece, offset);
	CHECK(pattern_is(seen, n * piece, offset, 5));

	memset(buf, 0, n * piece);
	for (unsigned i = 0; i < n; i++)
		iov[i] = (struct iovec){ buf + (n - 1 - i) * piece, piece };
	r.op = IO_READ;
	CHECK_EQ(run(e, &r), 0);
	for (unsigned i = 0; i < n; i++)
		CHECK(pattern_is(buf + (n - 1 - i) * piece, piece, offset + i * piece, 5));

	restore(offset, n * piece);
	free(iov);
	free(buf);
	free(seen);
}

static void many_buffers_make_one_request(void)
{
	scattered(2, 4 * KIB, 0);
	scattered(126, 4 * KIB, 512 * KIB);
}

static void buffers_of_odd_lengths_are_served(void)
{
	scattered(128, 12, 8 * KIB); /* 1536 bytes: aligned in sum for a 512-byte block, not in its parts */
	scattered(64, 64, 12 * KIB);
}

static void more_buffers_than_iov_max_are_served(void)
{
	scattered(IOV_MAX + 500, 512, MIB);
}

static void a_read_beyond_the_end_is_an_error(void)
{
	uint8_t *buf = pages(8 * KIB);

	CHECK_EQ(run_rw(e, IO_READ, 0, buf, 4 * KIB, FILE_SIZE), -EIO);
	CHECK_EQ(run_rw(e, IO_READ, 0, buf, 8 * KIB, FILE_SIZE - 4 * KIB), -EIO);
	CHECK_EQ(truncate(path, FILE_SIZE - 4 * KIB + 1000), 0); /* an end in the middle of a block */
	CHECK_EQ(run_rw(e, IO_READ, 0, buf, 4 * KIB, FILE_SIZE - 4 * KIB), -EIO);
	CHECK_EQ(run_rw(e, IO_READ, 0, buf, 1000, FILE_SIZE - 4 * KIB), 0);
	CHECK(pattern_is(buf, 1000, FILE_SIZE - 4 * KIB, 0));
	CHECK_EQ(truncate(path, FILE_SIZE), 0);
	free(buf);
}

/* Who keeps a request that failed queues it again, as it is. */
static void a_request_that_failed_has_its_buffers_as_they_were(void)
{
	uint8_t *buf = pages(12 * KIB);
	struct iovec iov[3] = { { buf, 5 * KIB }, { buf + 5 * KIB, KIB }, { buf + 6 * KIB, 6 * KIB } }, before[3];
	struct io_req r = { .op = IO_READ, .iov = iov, .iovcnt = 3, .offset = FILE_SIZE - 12 * KIB, .len = 12 * KIB };

	memcpy(before, iov, sizeof(iov));
	for (uint64_t end = 512; end < 12 * KIB; end += 512) {
		CHECK_EQ(truncate(path, (off_t)(FILE_SIZE - 12 * KIB + end)), 0);
		CHECK_EQ(run(e, &r), -EIO);
		CHECK(memcmp(before, iov, sizeof(iov)) == 0);
	}
	CHECK_EQ(truncate(path, FILE_SIZE), 0);
	CHECK_EQ(run(e, &r), 0);
	restore(FILE_SIZE - 12 * KIB, 12 * KIB);
	free(buf);
}

static void a_buffer_that_is_no_memory_is_an_error(void)
{
	CHECK_EQ(run_rw(e, IO_READ, 0, (void *)4096, 4 * KIB, 0), -EFAULT);
	CHECK_EQ(run_rw(e, IO_WRITE, 0, (void *)4096, 4 * KIB, 0), -EFAULT);
}

static void one_bad_request_leaves_its_batch_alone(void)
{
	uint8_t *buf = pages(16 * 4 * KIB);
	struct iovec iov[16];
	struct io_req r[16] = { 0 }, *done[16];

	for (unsigned i = 0; i < 16; i++) {
		iov[i] = (struct iovec){ i % 5 == 2 ? (void *)4096 : buf + i * 4 * KIB, 4 * KIB };
		r[i] = (struct io_req){
			.op = IO_READ, .iov = &iov[i], .iovcnt = 1, .offset = i * 4 * KIB, .len = 4 * KIB
		};
		io_queue(e, &r[i]);
	}
	CHECK_EQ(io_submit_all(e) >= 0, 1);
	reap_all(e, done, 16);
	for (unsigned i = 0; i < 16; i++) {
		CHECK_EQ(r[i].res, i % 5 == 2 ? -EFAULT : 0);
		CHECK(i % 5 == 2 || pattern_is(buf + i * 4 * KIB, 4 * KIB, i * 4 * KIB, 0));
	}
	free(buf);
}

/* Batches of every size up to the depth, thousands of requests in all: rings wrap, places are used again. */
static void thousands_of_requests_keep_their_data_apart(void)
{
	enum { DEPTH = 32, ROUNDS = 300 };
	uint8_t *buf = pages(DEPTH * 4 * KIB);
	struct iovec iov[DEPTH];
	struct io_req r[DEPTH] = { 0 }, *done[DEPTH];

	for (unsigned round = 0; round < ROUNDS; round++) {
		unsigned batch = round % DEPTH + 1, n = 0;

		for (unsigned i = 0; i < batch; i++) {
			uint64_t block = (round * 37 + i * 11) % (FILE_SIZE / (4 * KIB));

			iov[i] = (struct iovec){ buf + i * 4 * KIB, 4 * KIB };
			r[i] = (struct io_req){
				.op = IO_READ, .iov = &iov[i], .iovcnt = 1, .offset = block * 4 * KIB, .len = 4 * KIB
			};
			io_queue(e, &r[i]);
			CHECK_EQ(e->in_flight, i + 1);
		}
		CHECK_EQ(io_submit_all(e) >= 0, 1);
		while (n < batch) {
			n += reap_some(e, done + n, 3); /* less than there is */
			CHECK_EQ(e->in_flight, batch - n);
		}
		for (unsigned i = 0; i < batch; i++) {
			CHECK_EQ(r[i].res, 0);
			CHECK(pattern_is(iov[i].iov_base, 4 * KIB, r[i].offset, 0));
		}
	}
	free(buf);
}

static void a_write_into_a_hole_is_served(void)
{
	uint8_t *buf = pages(4 * KIB), *seen = pages(4 * KIB);
	uint64_t before;

	CHECK_EQ(truncate(path, FILE_SIZE + 64 * MIB), 0);
	before = file_allocated(path);
	/* Needs a block allocated: under RWF_NOWAIT ext4 says EAGAIN, and a helper does it. */
	pattern_fill(buf, 4 * KIB, FILE_SIZE + 32 * MIB, 6);
	CHECK_EQ(run_rw(e, IO_WRITE, IO_F_DSYNC, buf, 4 * KIB, FILE_SIZE + 32 * MIB), 0);
	file_read(path, seen, 4 * KIB, FILE_SIZE + 32 * MIB);
	CHECK(pattern_is(seen, 4 * KIB, FILE_SIZE + 32 * MIB, 6));
	CHECK(file_allocated(path) > before);
	CHECK(file_allocated(path) < before + MIB);
	CHECK_EQ(run_rw(e, IO_READ, 0, seen, 4 * KIB, FILE_SIZE + 16 * MIB), 0);
	CHECK(zeros(seen, 4 * KIB));
	CHECK_EQ(truncate(path, FILE_SIZE), 0);
	free(buf);
	free(seen);
}

static void a_read_only_target_refuses_writes(void)
{
	struct io_target ro;
	struct io_engine *on_ro;
	uint8_t *buf = pages(4 * KIB);

	CHECK_EQ(io_target_open(&ro, path, true), 0);
	CHECK(ro.read_only);
	CHECK_EQ(ro.discard_max, 0);
	CHECK_EQ(ro.write_zeroes_max, 0);
	CHECK_EQ(io_engine_create(&on_ro, e->ops->name, &ro, 4), 0);
	CHECK_EQ(run_rw(on_ro, IO_READ, 0, buf, 4 * KIB, 0), 0);
	CHECK(pattern_is(buf, 4 * KIB, 0, 0));
	CHECK_EQ(run_rw(on_ro, IO_WRITE, 0, buf, 4 * KIB, 0), -EBADF);
	CHECK_EQ(run_extent(on_ro, IO_DISCARD, 0, 0, 4 * KIB), -EBADF);
	CHECK_EQ(run_extent(on_ro, IO_WRITE_ZEROES, 0, 0, 4 * KIB), -EBADF);
	CHECK_EQ(run_extent(on_ro, IO_FLUSH, 0, 0, 0), 0);
	io_engine_destroy(on_ro);
	io_target_close(&ro);
	file_read(path, buf, 4 * KIB, 0);
	CHECK(pattern_is(buf, 4 * KIB, 0, 0));
	free(buf);
}

static void more_than_the_depth_waits_its_turn(void)
{
	enum { COUNT = 400 };
	struct io_engine *two;
	uint8_t *buf = pages(COUNT * 4 * KIB);
	struct iovec iov[COUNT];
	struct io_req r[COUNT] = { 0 }, *done[COUNT];
	unsigned n = 0;

	CHECK_EQ(io_engine_create(&two, e->ops->name, &t, 2), 0);
	for (unsigned i = 0; i < COUNT; i++) {
		iov[i] = (struct iovec){ buf + i * 4 * KIB, 4 * KIB };
		r[i] = (struct io_req){
			.op = IO_READ, .iov = &iov[i], .iovcnt = 1, .offset = i * 4 * KIB, .len = 4 * KIB
		};
		io_queue(two, &r[i]);
		io_submit_all(two); /* nobody reaps: sooner or later the kernel says EAGAIN */
	}
	CHECK(two->held > 0);
	CHECK_EQ(io_sleep_timeout_ns(two), 100000); /* nothing may signal, so the owner is to come back by itself */
	while (n < COUNT)
		n += reap_some(two, done + n, COUNT - n);
	for (unsigned i = 0; i < COUNT; i++) {
		CHECK_EQ(r[i].res, 0);
		CHECK(pattern_is(buf + i * 4 * KIB, 4 * KIB, i * 4 * KIB, 0));
	}
	CHECK_EQ(two->in_flight, 0);
	CHECK_EQ(two->held, 0);
	io_engine_destroy(two);
	free(buf);
}

static void engine_on(const char *engine, const char *kind)
{
	int ret;

	scratch_file(path, !strcmp(kind, "tmpfs"));
	CHECK_EQ(io_target_open(&t, path, false), 0);
	if (!strcmp(kind, "buffered"))
		target_make_buffered(&t);
	printf("# %s on %s (direct %d, nowait %d)\n", engine, kind, t.direct, t.nowait);
	ret = io_engine_create(&e, engine, &t, 32);
	if (ret == -ENOSYS || ret == -EPERM) {
		printf("skip: this kernel or container has no %s\n", engine);
	} else {
		CHECK_EQ(ret, 0);
		RUN(an_aligned_read_returns_the_files_bytes);
		RUN(an_aligned_write_is_what_others_read);
		RUN(a_write_through_completes_with_its_data);
		RUN(memory_at_odd_addresses_is_served);
		RUN(ranges_below_the_alignment_are_served_on_files);
		RUN(many_buffers_make_one_request);
		RUN(buffers_of_odd_lengths_are_served);
		RUN(more_buffers_than_iov_max_are_served);
		RUN(a_buffer_that_is_no_memory_is_an_error);
		RUN(one_bad_request_leaves_its_batch_alone);
		RUN(thousands_of_requests_keep_their_data_apart);
		RUN(a_write_into_a_hole_is_served);
		RUN(a_read_beyond_the_end_is_an_error);
		RUN(a_request_that_failed_has_its_buffers_as_they_were);
		RUN(a_read_only_target_refuses_writes);
		RUN(more_than_the_depth_waits_its_turn);
		CHECK_EQ(e->in_flight, 0);
		CHECK_EQ(e->unsignalled, 0);
		CHECK_EQ(e->held, 0);
		io_engine_destroy(e);
	}
	io_target_close(&t);
	unlink(path);
}

int main(void)
{
	static const char *const engines[] = { "aio", "io_uring" }, *const kinds[] = { "direct", "buffered", "tmpfs" };

	for (unsigned i = 0; i < 2; i++)
		for (unsigned k = 0; k < 3; k++)
			engine_on(engines[i], kinds[k]);
	return 0;
}
