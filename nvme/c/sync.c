// SPDX-License-Identifier: Apache-2.0
/*
 * sync.c - carry out one request with blocking system calls
 *
 * Reads and writes go through whichever of three ways can take them: straight from the guest's buffers; through an
 * aligned bounce buffer, when O_DIRECT can't take those buffers; through the page cache, when it can't take the range
 * (files only: the kernel keeps page cache and O_DIRECT of one inode coherent). Each loops until all is transferred.
 *
 * The extent requests prefer what keeps a sparse file sparse and fall back, at the end, to writing zeros.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include "engine.h"
#include "sync.h"

#define min(a, b) ((a) < (b) ? (a) : (b))

static ssize_t transfer(int fd, bool write, const struct iovec *iov, uint32_t count, uint64_t offset, int flags)
{
	int n = (int)min(count, (uint32_t)IOV_MAX);
	ssize_t ret;

	do {
		ret = write ? pwritev2(fd, iov, n, (off_t)offset, flags) : preadv2(fd, iov, n, (off_t)offset, flags);
	} while (ret < 0 && errno == EINTR);
	if (ret == 0)
		return -EIO; /* the file ends here: it shrank, or was never as long as the guest was told */
	return ret < 0 ? -errno : ret;
}

static int rwf(const struct io_req *r)
{
	return r->op == IO_WRITE && (r->flags & IO_F_DSYNC) ? RWF_DSYNC : 0;
}

/* What of a request's buffers is left. The one that is partly done is shorter than it was, for as long as it takes. */
struct rest {
	struct iovec *iov;
	uint32_t count;
	size_t taken; /* off the first one */
};

static void iov_take(struct rest *rest, size_t bytes)
{
	rest->iov->iov_base = (uint8_t *)rest->iov->iov_base + bytes;
	rest->iov->iov_len -= bytes;
	rest->taken = bytes;
}

/* The request may be tried again, from its first byte (blk_errors.c): its buffers have to be as they were. */
static void iov_restore(struct rest *rest)
{
	if (!rest->taken)
		return;
	rest->iov->iov_base = (uint8_t *)rest->iov->iov_base - rest->taken;
	rest->iov->iov_len += rest->taken;
	rest->taken = 0;
}

/* Step over what is done. */
static void iov_advance(struct rest *rest, size_t bytes)
{
	bytes += rest->taken;
	iov_restore(rest);
	while (rest->count && bytes >= rest->iov->iov_len) {
		bytes -= rest->iov->iov_len;
		rest->iov++;
		rest->count--;
	}
	if (bytes)
		iov_take(rest, bytes);
}

static int rw_straight(int fd, struct io_req *r, struct rest *rest)
{
	while (r->done < r->len) {
		ssize_t n = transfer(fd, r->op == IO_WRITE, rest->iov, rest->count, r->offset + r->done, rwf(r));

		if (n < 0)
			return (int)n;
		r->done += (uint64_t)n;
		iov_advance(rest, (size_t)n);
	}
	return 0;
}

/* Copy between the bounce buffer and the iovecs, from the first on; the iovecs hold at least @len. */
static void bounce_copy(uint8_t *buf, const struct iovec *iov, size_t len, bool to_iov)
{
	for (; len; iov++) {
		size_t part = min(len, iov->iov_len);

		if (to_iov)
			memcpy(iov->iov_base, buf, part);
		else
			memcpy(buf, iov->iov_base, part);
		buf += part;
		len -= part;
	}
}

static int rw_bounced(const struct io_target *t, struct io_req *r, struct rest *rest, struct io_bounce *b)
{
	bool write = r->op == IO_WRITE;

	if (!b->buf) {
		/* 4096 is more than any device's dma_alignment that O_DIRECT has been seen to ask for. */
		size_t align = t->mem_align > 4096 ? t->mem_align : 4096;

		b->buf = aligned_alloc(align, IO_BOUNCE_SIZE);
		if (!b->buf)
			return -ENOMEM;
	}
	while (r->done < r->len) {
		struct iovec chunk = { b->buf, min(r->len - r->done, (uint64_t)IO_BOUNCE_SIZE) };
		ssize_t n;

		if (write)
			bounce_copy(b->buf, rest->iov, chunk.iov_len, false);
		n = transfer(t->fd, write, &chunk, 1, r->offset + r->done, rwf(r));
		if (n < 0)
			return (int)n;
		if (!write)
			bounce_copy(b->buf, rest->iov, (size_t)n, true);
		r->done += (uint64_t)n;
		iov_advance(rest, (size_t)n);
	}
	return 0;
}

static int sync_rw(struct io_target *t, struct io_req *r, struct io_bounce *b)
{
	struct rest rest = { r->iov, r->iovcnt, 0 };
	int ret = -EINVAL;

	iov_advance(&rest, r->done);
	if (!io_range_misaligned(t, r->offset + r->done, r->len - r->done)) {
		if (!io_iov_misaligned(t, rest.iov, rest.count))
			ret = rw_straight(t->fd, r, &rest);
		/* -EINVAL although all is aligned: a layer below asks for more than it told statx(2). */
		if (ret == -EINVAL && t->direct)
			ret = rw_bounced(t, r, &rest, b);
	}
	/* Here also ends a file whose size is no multiple of the alignment: the last piece of a short transfer. */
	if (ret == -EINVAL && t->fd_buffered >= 0) {
		if (r->op == IO_WRITE)
			store_relaxed(&t->cached_writes, true);
		ret = rw_straight(t->fd_buffered, r, &rest);
	}
	iov_restore(&rest);
	return ret;
}

static int write_zeros(const struct io_target *t, const struct io_req *r)
{
	static uint8_t zeros[1 << 16] __attribute__((aligned(4096))); /* never written */
	int fd = t->fd_buffered >= 0 && io_range_misaligned(t, r->offset, r->len) ? t->fd_buffered : t->fd;
	struct iovec iov[16];

	for (uint64_t done = 0; done < r->len;) {
		uint64_t left = min(r->len - done, (uint64_t)sizeof(iov) / sizeof(iov[0]) * sizeof(zeros));
		uint32_t count = 0;
		ssize_t n;

		for (; left; left -= iov[count++].iov_len)
			iov[count] = (struct iovec){ zeros, min(left, (uint64_t)sizeof(zeros)) };
		n = transfer(fd, true, iov, count, r->offset + done, 0);
		if (n < 0)
			return (int)n;
		done += (uint64_t)n;
	}
	return 0;
}

static int sys_fallocate(const struct io_target *t, int mode, const struct io_req *r)
{
	int ret;

	do {
		ret = fallocate(t->fd, mode | FALLOC_FL_KEEP_SIZE, (off_t)r->offset, (off_t)r->len);
	} while (ret < 0 && errno == EINTR);
	return ret < 0 ? -errno : 0;
}

static int block_ioctl(const struct io_target *t, unsigned long request, const struct io_req *r)
{
	uint64_t range[2] = { r->offset, r->len };

	return ioctl(t->fd, request, range) < 0 ? -errno : 0;
}

static int sync_discard(const struct io_target *t, const struct io_req *r)
{
	/* On a block device PUNCH_HOLE means "zero, and deallocate if that zeroes", which is not what a discard promises. */
	if (t->block_device)
		return block_ioctl(t, BLKDISCARD, r);
	return sys_fallocate(t, FALLOC_FL_PUNCH_HOLE, r);
}

static int sync_write_zeroes(const struct io_target *t, const struct io_req *r)
{
	int ret = -EOPNOTSUPP;

	if (r->flags & IO_F_UNMAP)
		ret = sys_fallocate(t, FALLOC_FL_PUNCH_HOLE, r);
	if (ret == -EOPNOTSUPP) {
		/* Both keep the space allocated. BLKZEROOUT has its own fallback inside the kernel. */
		if (t->block_device)
			return block_ioctl(t, BLKZEROOUT, r);
		ret = sys_fallocate(t, FALLOC_FL_ZERO_RANGE, r);
	}
	if (ret == -EOPNOTSUPP)
		ret = write_zeros(t, r);
	return ret;
}

int io_sync(struct io_target *t, struct io_req *r, struct io_bounce *bounce)
{
	int ret;

	if (r->op == IO_FLUSH)
		return io_target_flush(t);
	if (r->len == 0) /* fallocate(2) would say EINVAL */
		return 0;
	switch (r->op) {
	case IO_READ:
	case IO_WRITE: /* pwritev2() itself keeps IO_F_DSYNC */
		return sync_rw(t, r, bounce);
	case IO_DISCARD:
		ret = sync_discard(t, r);
		break;
	case IO_WRITE_ZEROES:
		ret = sync_write_zeroes(t, r);
		break;
	default:
		return -EINVAL;
	}
	if (!ret && (r->flags & IO_F_DSYNC))
		ret = io_target_flush(t);
	return ret;
}

void io_bounce_free(struct io_bounce *bounce)
{
	free(bounce->buf);
}
