/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_io.h - what the tests of the I/O engines share: a file with known bytes, one target of each kind, a request
 *
 * Every byte of a test file is a function of its offset and a seed, so that data can be verified without a copy.
 */
#ifndef KPOLL_TEST_IO_H
#define KPOLL_TEST_IO_H

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "check.h"
#include "nvme/c/io.h"

#define KIB 1024ull
#define MIB (KIB * KIB)
#define FILE_SIZE (4 * MIB)

static inline uint8_t pattern(uint64_t offset, uint8_t seed)
{
	return (uint8_t)(offset ^ offset >> 8 ^ offset >> 16 ^ seed);
}

static inline void pattern_fill(uint8_t *buf, size_t len, uint64_t offset, uint8_t seed)
{
	for (size_t i = 0; i < len; i++)
		buf[i] = pattern(offset + i, seed);
}

static inline bool pattern_is(const uint8_t *buf, size_t len, uint64_t offset, uint8_t seed)
{
	for (size_t i = 0; i < len; i++)
		if (buf[i] != pattern(offset + i, seed))
			return false;
	return true;
}

static inline bool zeros(const uint8_t *buf, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (buf[i])
			return false;
	return true;
}

/* A path in $TMPDIR (a disk's filesystem) or /dev/shm (tmpfs), removed by the caller. */
static inline void scratch_path(char path[PATH_MAX], bool tmpfs)
{
	const char *dir = tmpfs ? "/dev/shm" : getenv("TMPDIR");
	int fd;

	snprintf(path, PATH_MAX, "%s/kpoll-test-XXXXXX", dir ? dir : "/var/tmp");
	fd = mkstemp(path);
	CHECK(fd >= 0);
	close(fd);
}

/* A file of FILE_SIZE bytes, all written, with seed 0. */
static inline void scratch_file(char path[PATH_MAX], bool tmpfs)
{
	static uint8_t data[FILE_SIZE];
	int fd;

	scratch_path(path, tmpfs);
	pattern_fill(data, sizeof(data), 0, 0);
	fd = open(path, O_WRONLY);
	CHECK_EQ(write(fd, data, sizeof(data)), (ssize_t)sizeof(data));
	CHECK_EQ(fsync(fd), 0);
	close(fd);
}

/* The disk that KPOLL_TEST_DISK names, whose contents go; else a file. Return: whether it is a file, the caller's to remove */
static inline bool disk_or_scratch_file(char path[PATH_MAX])
{
	const char *disk = getenv("KPOLL_TEST_DISK");

	if (disk)
		snprintf(path, PATH_MAX, "%s", disk);
	else
		scratch_file(path, false);
	return !disk;
}

/* What the file holds according to anybody else. */
static inline void file_read(const char *path, void *buf, size_t len, uint64_t offset)
{
	int fd = open(path, O_RDONLY);

	CHECK(fd >= 0);
	CHECK_EQ(pread(fd, buf, len, (off_t)offset), (ssize_t)len);
	close(fd);
}

static inline uint64_t file_allocated(const char *path)
{
	struct stat st;

	CHECK_EQ(stat(path, &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

/* Has the file given back @len bytes since @before? A new hole may cost the filesystem a block of its own metadata. */
static inline bool file_gave_back(const char *path, uint64_t before, uint64_t len)
{
	return file_allocated(path) <= before - len + 64 * KIB;
}

/* The same file as a filesystem without O_DIRECT would give it. */
static inline void target_make_buffered(struct io_target *t)
{
	if (!t->direct)
		return;
	close(t->fd);
	t->fd = t->fd_buffered;
	t->fd_buffered = -1;
	t->direct = false;
	t->mem_align = t->offset_align = 1;
}

static inline bool kernel_since(unsigned major, unsigned minor)
{
	struct utsname name;
	unsigned is_major, is_minor;

	CHECK_EQ(uname(&name), 0);
	CHECK_EQ(sscanf(name.release, "%u.%u", &is_major, &is_minor), 2);
	return is_major > major || (is_major == major && is_minor >= minor);
}

/* Since 6.12 Linux discards blocks of a device by a command of io_uring's. */
static inline bool kernel_discards_by_ring(void)
{
	return kernel_since(6, 12);
}

/* Before, polling a device that has no queues for it was no mistake: it raised interrupts. */
static inline bool kernel_refuses_to_poll(void)
{
	return kernel_since(6, 12);
}

static inline void *pages(size_t len)
{
	void *p = aligned_alloc(4096, (len + 4095) & ~(size_t)4095);

	CHECK(p);
	return p;
}

/* Sleep until one of the engine's descriptors says that something is here, then collect. Fails after 20 s of nothing. */
static inline unsigned reap_some(struct io_engine *e, struct io_req **done, unsigned max)
{
	unsigned n = io_reap(e, done, max);

	while (!n) {
		struct io_wait waits[IO_WAITS_MAX];
		struct pollfd fds[IO_WAITS_MAX];
		unsigned count = io_waits(e, waits);

		CHECK(e->in_flight > 0);
		for (unsigned i = 0; i < count; i++)
			fds[i] = (struct pollfd){ .fd = waits[i].fd, .events = POLLIN };
		/* The descriptors are never read, so once written poll() returns at once: a slow spin that ends. */
		CHECK(poll(fds, count, io_sleep_timeout_ns(e) < 0 ? 20000 : 1) >= 0);
		io_submit_all(e);
		n = io_reap(e, done, max);
	}
	return n;
}

/* Collect so many. */
static inline void reap_all(struct io_engine *e, struct io_req **done, unsigned count)
{
	for (unsigned n = 0; n < count;)
		n += reap_some(e, done + n, count - n);
}

/* Put @count reads of 4 KiB in line, from the file's begin on. */
static inline void queue_reads(struct io_engine *e, struct io_req *r, struct iovec *iov, uint8_t *buf, unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		iov[i] = (struct iovec){ buf + i * 4 * KIB, 4 * KIB };
		r[i] = (struct io_req){ .op = IO_READ, .iov = &iov[i], .iovcnt = 1, .offset = i * 4 * KIB };
		r[i].len = 4 * KIB;
		io_queue(e, &r[i]);
	}
}

/* They came back whole. */
static inline void check_reads(const struct io_req *r, unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		CHECK_EQ(r[i].res, 0);
		CHECK(pattern_is(r[i].iov->iov_base, 4 * KIB, r[i].offset, 0));
	}
}

/* One request, from io_queue() to io_reap(). Return: its result */
static inline int run(struct io_engine *e, struct io_req *r)
{
	struct io_req *done[1];

	io_queue(e, r);
	CHECK_EQ(e->in_flight, 1);
	CHECK_EQ(io_submit_all(e) >= 0, 1);
	CHECK_EQ(reap_some(e, done, 1), 1);
	CHECK(done[0] == r);
	CHECK_EQ(e->in_flight, 0);
	return r->res;
}

static inline int run_rw(struct io_engine *e, enum io_op op, uint8_t flags, void *buf, size_t len, uint64_t offset)
{
	struct iovec iov = { buf, len };
	struct io_req r = { .op = op, .flags = flags, .iov = &iov, .iovcnt = 1, .offset = offset, .len = len };

	return run(e, &r);
}

static inline int run_extent(struct io_engine *e, enum io_op op, uint8_t flags, uint64_t offset, uint64_t len)
{
	struct io_req r = { .op = op, .flags = flags, .offset = offset, .len = len };

	return run(e, &r);
}

#endif
