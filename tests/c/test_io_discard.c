// SPDX-License-Identifier: Apache-2.0
/*
 * test_io_discard.c - discards of a block device through io_uring's ring, and through the helper where that can't be
 */
#include <errno.h>
#include <linux/fs.h>

#include "loop.h"
#include "test_io.h"

static struct io_engine *e;
static struct io_target t;
static char device[PATH_MAX], file[PATH_MAX];
static int loop = -1;
static uint8_t *seen;

/* Of these requests, how many has the helper? */
static unsigned helped_of(unsigned discards)
{
	return kernel_discards_by_ring() ? 0 : discards;
}

static int discard(uint64_t offset, uint64_t len)
{
	return run_extent(e, IO_DISCARD, 0, offset, len);
}

/* Bytes [offset, offset + len) are zeros now, and their neighbours are what they were. */
static void check_zeroed(uint64_t offset, uint64_t len)
{
	CHECK_EQ(run_rw(e, IO_READ, 0, seen, FILE_SIZE, 0), 0);
	CHECK(pattern_is(seen, offset, 0, 0));
	CHECK(zeros(seen + offset, len));
	CHECK(pattern_is(seen + offset + len, FILE_SIZE - offset - len, offset + len, 0));
}

static void limit_discards(const char *bytes)
{
	char path[PATH_MAX + 64];
	int fd;

	snprintf(path, sizeof(path), "/sys/block/%s/queue/discard_max_bytes", strrchr(device, '/') + 1);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	CHECK(fd >= 0);
	CHECK(write(fd, bytes, strlen(bytes)) > 0);
	close(fd);
}

static void it_gives_space_back_without_a_helper(void)
{
	uint64_t before = file_allocated(file);

	CHECK_EQ(discard(MIB, MIB), 0);
	CHECK(file_gave_back(file, before, MIB));
	check_zeroed(MIB, MIB);
	CHECK_EQ(e->stats.helped, helped_of(1));
}

static void it_covers_one_block_or_all(void)
{
	CHECK_EQ(discard(3 * t.logical_block, t.logical_block), 0);
	check_zeroed(3 * t.logical_block, t.logical_block);
	CHECK_EQ(discard(0, FILE_SIZE), 0);
	check_zeroed(0, FILE_SIZE);
	CHECK_EQ(e->stats.helped, helped_of(2));
}

static void what_the_device_must_cut_up_is_done_whole(void)
{
	limit_discards("65536");
	CHECK_EQ(discard(MIB, 2 * MIB), 0);
	check_zeroed(MIB, 2 * MIB);
	CHECK_EQ(e->stats.helped, helped_of(1));
}

static void pages_that_somebody_else_wrote_are_gone_with_it(void)
{
	memset(seen, 0x5a, MIB);
	CHECK_EQ(pwrite(loop, seen, MIB, MIB), MIB);
	CHECK_EQ(discard(MIB, MIB), 0);
	CHECK_EQ(fsync(loop), 0);
	CHECK_EQ(pread(loop, seen, MIB, MIB), MIB);
	CHECK(zeros(seen, MIB));
	check_zeroed(MIB, MIB);
}

static void other_ranges_are_refused(void)
{
	CHECK_EQ(discard(t.logical_block / 2, t.logical_block), -EINVAL);
	CHECK_EQ(discard(0, t.logical_block / 2), -EINVAL);
	CHECK_EQ(discard(FILE_SIZE, MIB), -EINVAL);
	CHECK_EQ(discard(FILE_SIZE - MIB, 2 * MIB), -EINVAL);
	CHECK_EQ(discard(UINT64_MAX - MIB + 1, MIB), -EINVAL);
	CHECK_EQ(discard(0, 0), 0);
	check_zeroed(0, 0);
}

static void a_crowd_of_them_comes_back_beside_reads(void)
{
	enum { COUNT = 100 };
	uint8_t *buf = pages(COUNT * 4 * KIB);
	struct iovec iov[COUNT];
	struct io_req r[COUNT] = { 0 }, *done[COUNT];

	for (unsigned i = 0; i < COUNT; i++) {
		iov[i] = (struct iovec){ buf + i * 4 * KIB, 4 * KIB };
		r[i] = (struct io_req){ .op = i % 2 ? IO_READ : IO_DISCARD, .offset = i * 4 * KIB, .len = 4 * KIB };
		r[i].iov = &iov[i];
		r[i].iovcnt = 1;
		io_queue(e, &r[i]);
	}
	CHECK_EQ(e->in_flight, COUNT);
	io_submit_all(e);
	reap_all(e, done, COUNT);
	for (unsigned i = 0; i < COUNT; i++) {
		CHECK_EQ(r[i].res, 0);
		if (r[i].op == IO_READ)
			CHECK(pattern_is(iov[i].iov_base, 4 * KIB, r[i].offset, 0));
		CHECK_EQ(run_rw(e, IO_READ, 0, seen, 4 * KIB, i * 4 * KIB), 0);
		CHECK(i % 2 ? pattern_is(seen, 4 * KIB, r[i].offset, 0) : zeros(seen, 4 * KIB));
	}
	CHECK_EQ(e->stats.helped, helped_of(COUNT / 2));
	free(buf);
}

/* A device that has no file yet says what a kernel without the command does. */
static void once_refused_it_is_the_helpers_until_the_disk_is_another_one(void)
{
	CHECK_EQ(discard(MIB, MIB), -EOPNOTSUPP);
	CHECK_EQ(e->stats.helped, 1);
	CHECK(loop_bind(loop, file, 512));
	CHECK_EQ(discard(MIB, MIB), 0);
	CHECK_EQ(discard(2 * MIB, MIB), 0);
	check_zeroed(MIB, 2 * MIB);
	CHECK_EQ(e->stats.helped, 3);
	io_engine_reopened(e);
	CHECK_EQ(discard(3 * MIB, MIB / 2), 0);
	check_zeroed(MIB, 2 * MIB + MIB / 2);
	CHECK_EQ(e->stats.helped, 3 + helped_of(1));
}

/* A device that was made read-only says what a security module may: the helper finds out whether others may discard. */
static void one_that_is_not_permitted_is_the_helpers(void)
{
	int read_only = 1;

	CHECK_EQ(ioctl(loop, BLKROSET, &read_only), 0);
	CHECK_EQ(discard(MIB, MIB), -EPERM);
	CHECK_EQ(e->stats.helped, 1);
	read_only = 0;
	CHECK_EQ(ioctl(loop, BLKROSET, &read_only), 0);
	CHECK_EQ(discard(MIB, MIB), 0);
	check_zeroed(MIB, MIB);
}

/* Of a file it is a hole, which the kernel has no command for. */
static void a_file_is_the_helpers(void)
{
	CHECK_EQ(discard(MIB, MIB), 0);
	CHECK_EQ(e->stats.helped, 1);
}

/* A test that fails leaves nothing behind either. */
static void clean_up(void)
{
	io_engine_destroy(e);
	e = NULL;
	if (t.fd > 0)
		io_target_close(&t);
	if (loop >= 0)
		close(loop);
	loop = -1;
	loop_disown();
	unlink(file);
}

static void with_engine(const char *engine, const char *path, void (*behaviour)(void))
{
	CHECK_EQ(io_target_open(&t, path, false), 0);
	CHECK_EQ(io_engine_create(&e, engine, &t, 16), 0);
	behaviour();
	CHECK_EQ(e->in_flight, 0);
	CHECK_EQ(e->held, 0);
	io_engine_destroy(e);
	e = NULL;
	io_target_close(&t);
}

/* @block: bytes; 0: over no file */
static void with_fresh_loop(const char *engine, uint32_t block, void (*behaviour)(void))
{
	scratch_file(file, false);
	loop = loop_own(device);
	CHECK(loop >= 0);
	CHECK(!block || loop_bind(loop, file, block));
	with_engine(engine, device, behaviour);
	clean_up();
}

#define SHOW(behaviour)                                                      \
	do {                                                                 \
		printf("%s, blocks of %u: %s\n", engine, block, #behaviour); \
		fflush(stdout);                                              \
		with_fresh_loop(engine, block, behaviour);                   \
	} while (0)

static void all(const char *engine)
{
	for (uint32_t block = 512; block <= 4096; block *= 8) {
		SHOW(it_gives_space_back_without_a_helper);
		SHOW(it_covers_one_block_or_all);
		SHOW(what_the_device_must_cut_up_is_done_whole);
		SHOW(pages_that_somebody_else_wrote_are_gone_with_it);
		SHOW(other_ranges_are_refused);
		SHOW(one_that_is_not_permitted_is_the_helpers);
		SHOW(a_crowd_of_them_comes_back_beside_reads);
	}
	printf("%s: once_refused_it_is_the_helpers_until_the_disk_is_another_one\n", engine);
	with_fresh_loop(engine, 0, once_refused_it_is_the_helpers_until_the_disk_is_another_one);
}

/* Return: whether what it takes is here */
static bool can_run(void)
{
	int ret;

	io_target_null(&t, FILE_SIZE);
	ret = io_engine_create(&e, "io_uring", &t, 1);
	if (ret == -ENOSYS || ret == -EPERM) {
		printf("skip: this kernel or container has no io_uring\n");
		return false;
	}
	CHECK_EQ(ret, 0);
	io_engine_destroy(e);
	e = NULL;
	loop = loop_own(device);
	if (loop < 0)
		printf("skip: no loop device of our own (needs root, and a /dev that is the kernel's)\n");
	ret = loop;
	clean_up();
	return ret >= 0;
}

int main(void)
{
	atexit(clean_up);
	if (!can_run())
		return 0;
	seen = pages(FILE_SIZE);
	all("io_uring");
	all("io_uring_iopoll");
	scratch_file(file, false);
	with_engine("io_uring", file, a_file_is_the_helpers);
	free(seen);
	return 0;
}
