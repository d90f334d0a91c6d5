// SPDX-License-Identifier: Apache-2.0
/*
 * test_io_extent.c - flush, discard and write zeroes on files: space comes back, and comes back only when it may
 */
#include "test_io.h"

static struct io_engine *e;
static struct io_target t;
static char path[PATH_MAX];
static uint8_t *seen;

/* Bytes [offset, offset + len) are zeros now, and their neighbours are what they were. */
static void check_zeroed(uint64_t offset, uint64_t len)
{
	file_read(path, seen, FILE_SIZE, 0);
	CHECK(pattern_is(seen, offset, 0, 0));
	CHECK(zeros(seen + offset, len));
	CHECK(pattern_is(seen + offset + len, FILE_SIZE - offset - len, offset + len, 0));
}

static void a_flush_succeeds(void)
{
	CHECK_EQ(run_extent(e, IO_FLUSH, 0, 0, 0), 0);
}

static void a_discard_leaves_a_hole(void)
{
	uint64_t before = file_allocated(path);

	CHECK(t.discard_max >= MIB);
	CHECK_EQ(run_extent(e, IO_DISCARD, 0, MIB, MIB), 0);
	CHECK(file_gave_back(path, before, MIB));
	check_zeroed(MIB, MIB);
}

static void write_zeroes_with_unmap_leaves_a_hole(void)
{
	uint64_t before = file_allocated(path);

	CHECK_EQ(run_extent(e, IO_WRITE_ZEROES, IO_F_UNMAP, 2 * MIB, 512 * KIB), 0);
	CHECK(file_gave_back(path, before, 512 * KIB));
	check_zeroed(2 * MIB, 512 * KIB);
}

static void write_zeroes_without_unmap_keeps_the_space(void)
{
	uint64_t before = file_allocated(path);

	CHECK_EQ(run_extent(e, IO_WRITE_ZEROES, 0, 3 * MIB, 512 * KIB), 0);
	CHECK(file_allocated(path) >= before);
	check_zeroed(3 * MIB, 512 * KIB);
}

static void write_zeroes_takes_odd_ranges(void)
{
	CHECK_EQ(run_extent(e, IO_WRITE_ZEROES, 0, 512 * 3, 512 * 5), 0);
	check_zeroed(512 * 3, 512 * 5);
}

static void write_zeroes_with_unmap_takes_odd_ranges(void)
{
	CHECK_EQ(run_extent(e, IO_WRITE_ZEROES, IO_F_UNMAP, 512 * 3, 512 * 5), 0);
	check_zeroed(512 * 3, 512 * 5);
}

static void write_zeroes_covers_more_than_one_system_call(void)
{
	CHECK_EQ(run_extent(e, IO_WRITE_ZEROES, IO_F_DSYNC, 4 * KIB, 3 * MIB + 8 * KIB), 0);
	check_zeroed(4 * KIB, 3 * MIB + 8 * KIB);
}

static void extents_never_grow_the_file(void)
{
	struct stat st;

	CHECK_EQ(run_extent(e, IO_DISCARD, 0, FILE_SIZE, MIB), 0);
	CHECK_EQ(run_extent(e, IO_WRITE_ZEROES, IO_F_UNMAP, FILE_SIZE, MIB), 0);
	CHECK_EQ(stat(path, &st), 0);
	CHECK_EQ(st.st_size, FILE_SIZE);
}

static void an_extent_of_nothing_is_done(void)
{
	CHECK_EQ(run_extent(e, IO_DISCARD, 0, MIB, 0), 0);
	CHECK_EQ(run_extent(e, IO_WRITE_ZEROES, 0, MIB, 0), 0);
	check_zeroed(0, 0);
}

/* More of them than there are helper threads, of all kinds, in one batch with reads. */
static void a_crowd_of_slow_requests_all_come_back(void)
{
	enum { COUNT = 60 };
	uint8_t *buf = pages(COUNT * 4 * KIB);
	struct iovec iov[COUNT];
	struct io_req r[COUNT] = { 0 }, *done[COUNT];
	uint64_t helped = e->stats.helped, completions = e->stats.completions;
	unsigned n = 0;

	for (unsigned i = 0; i < COUNT; i++) {
		static const uint8_t ops[] = { IO_FLUSH, IO_READ, IO_WRITE_ZEROES, IO_READ, IO_DISCARD };
		uint64_t block = i % 5 == 1 || i % 5 == 3 ? 512 + i : i; /* reads stay out of the others' way */

		iov[i] = (struct iovec){ buf + i * 4 * KIB, 4 * KIB };
		r[i] = (struct io_req){ .op = ops[i % 5], .offset = block * 4 * KIB, .len = 4 * KIB };
		r[i].iov = &iov[i];
		r[i].iovcnt = 1;
		io_queue(e, &r[i]);
	}
	CHECK_EQ(e->in_flight, COUNT);
	io_submit_all(e);
	while (n < COUNT)
		n += reap_some(e, done + n, 7 < COUNT - n ? 7 : COUNT - n);
	CHECK_EQ(e->in_flight, 0);
	CHECK(e->stats.helped - helped >= COUNT / 5 * 3);
	CHECK_EQ(e->stats.completions - completions, COUNT);
	for (unsigned i = 0; i < COUNT; i++) {
		CHECK_EQ(r[i].res, 0);
		if (r[i].op == IO_READ)
			CHECK(pattern_is(iov[i].iov_base, 4 * KIB, r[i].offset, 0));
	}
	free(buf);
}

static void with_fresh_file(const char *engine, const char *kind, void (*behaviour)(void))
{
	int ret;

	scratch_file(path, !strcmp(kind, "tmpfs"));
	CHECK_EQ(io_target_open(&t, path, false), 0);
	if (!strcmp(kind, "buffered"))
		target_make_buffered(&t);
	ret = io_engine_create(&e, engine, &t, 64);
	if (ret)
		printf("skip: no %s here: %s\n", engine, strerror(-ret));
	else
		behaviour();
	if (!ret)
		io_engine_destroy(e);
	io_target_close(&t);
	unlink(path);
}

#define SHOW(behaviour)                                             \
	do {                                                        \
		printf("%s on %s: %s\n", engine, kind, #behaviour); \
		fflush(stdout);                                     \
		with_fresh_file(engine, kind, behaviour);           \
	} while (0)

static void all_on(const char *engine, const char *kind)
{
	SHOW(a_flush_succeeds);
	SHOW(a_discard_leaves_a_hole);
	SHOW(write_zeroes_with_unmap_leaves_a_hole);
	SHOW(write_zeroes_without_unmap_keeps_the_space);
	SHOW(write_zeroes_takes_odd_ranges);
	SHOW(write_zeroes_with_unmap_takes_odd_ranges);
	SHOW(write_zeroes_covers_more_than_one_system_call);
	SHOW(extents_never_grow_the_file);
	SHOW(an_extent_of_nothing_is_done);
	SHOW(a_crowd_of_slow_requests_all_come_back);
}

int main(void)
{
	static const char *const engines[] = { "aio", "io_uring" }, *const kinds[] = { "direct", "buffered", "tmpfs" };

	seen = pages(FILE_SIZE);
	for (unsigned i = 0; i < 2; i++)
		for (unsigned k = 0; k < 3; k++)
			all_on(engines[i], kinds[k]);
	free(seen);
	return 0;
}
