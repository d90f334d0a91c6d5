// SPDX-License-Identifier: Apache-2.0
/*
 * target.c - open what the disk is made of, and learn what it can do
 *
 * Facts come from where the kernel keeps them: ioctls and sysfs's queue/ folder for block devices, statx(2) for the
 * alignment of direct I/O. What no interface tells is tried out, on this very file and without changing it:
 * direct I/O and RWF_NOWAIT by a read, hole punching beyond the file's end.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

#include "../../kernel/c/atomics.h"
#include "io.h"

#define SECTOR 512u
#define PROBE_SIZE 65536u /* no less than any logical block size: the kernel's own limit (BLK_MAX_BLOCK_SIZE) */
#define FILE_EXTENT_MAX (UINT64_C(1) << 31) /* what one discard of a file may cover: a bound on how long it takes */

/* What sysfs tells of a block device's queue; a partition has it in its parent's folder. Return: NULL where it doesn't */
static FILE *open_queue(dev_t dev, const char *name)
{
	static const char *const formats[] = { "/sys/dev/block/%u:%u/queue/%s", "/sys/dev/block/%u:%u/../queue/%s" };
	char path[128];
	FILE *f = NULL;

	for (unsigned i = 0; !f && i < sizeof(formats) / sizeof(formats[0]); i++) {
		snprintf(path, sizeof(path), formats[i], major(dev), minor(dev), name);
		f = fopen(path, "re");
	}
	return f;
}

static uint64_t queue_limit(dev_t dev, const char *name)
{
	FILE *f = open_queue(dev, name);
	uint64_t value = 0;

	if (!f)
		return 0;
	if (fscanf(f, "%" SCNu64, &value) != 1)
		value = 0;
	fclose(f);
	return value;
}

/*
 * Is what was written durable once it was answered? The kernel drops flushes and FUA to a device of which it says so,
 * whoever asks, so it is believed.
 */
static bool writes_through(dev_t dev)
{
	FILE *f = open_queue(dev, "write_cache");
	char mode[16] = "";

	if (!f)
		return false;
	if (!fgets(mode, sizeof(mode), f))
		mode[0] = '\0';
	fclose(f);
	return !strcmp(mode, "write through\n");
}

/* O_NOATIME saves the kernel touch_atime() on every read; only the owner may ask for it. */
static int open_noatime(const char *path, int flags)
{
	int fd = open(path, flags | O_NOATIME);

	if (fd < 0 && errno == EPERM)
		fd = open(path, flags);
	return fd < 0 ? -errno : fd;
}

static bool probe_read(int fd, size_t len, int flags, void *buf)
{
	struct iovec iov = { buf, len };

	/* EAGAIN is what RWF_NOWAIT says where it is understood; an empty file reads 0 bytes. */
	return preadv2(fd, &iov, 1, 0, flags) >= 0 || errno == EAGAIN;
}

static uint32_t power_of_two_or(uint64_t value, uint32_t otherwise)
{
	return value && !(value & (value - 1)) && value <= PROBE_SIZE ? (uint32_t)value : otherwise;
}

/* What O_DIRECT wants of buffers and ranges; the read that follows finds out whether it was enough. */
static void learn_alignment(struct io_target *t, const struct stat *st)
{
#ifdef STATX_DIOALIGN
	struct statx stx;

	if (!statx(t->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) && (stx.stx_mask & STATX_DIOALIGN)) {
		t->direct = stx.stx_dio_offset_align != 0;
		t->mem_align = power_of_two_or(stx.stx_dio_mem_align, PROBE_SIZE);
		t->offset_align = power_of_two_or(stx.stx_dio_offset_align, PROBE_SIZE);
		return;
	}
#endif
	/* Linux before 6.1, or a filesystem that doesn't say: the device's block, or the largest that devices have. */
	t->offset_align = t->block_device ? t->logical_block :
					    power_of_two_or(queue_limit(st->st_dev, "logical_block_size"), 4096);
	t->mem_align = t->offset_align;
}

static void learn_direct(struct io_target *t, const struct stat *st)
{
	void *buf = aligned_alloc(PROBE_SIZE, PROBE_SIZE);

	if (t->direct)
		learn_alignment(t, st);
	if (!buf || !probe_read(t->fd, t->offset_align, 0, buf))
		t->direct = false;
	if (!t->direct) {
		int flags = fcntl(t->fd, F_GETFL);

		fcntl(t->fd, F_SETFL, flags & ~O_DIRECT);
		t->mem_align = t->offset_align = 1;
		t->write_cache = true; /* the kernel's: pages */
	}
	t->nowait = buf && probe_read(t->fd, t->direct ? t->offset_align : 1, RWF_NOWAIT, buf);
	free(buf);
}

static int learn_block_device(struct io_target *t, dev_t dev)
{
	unsigned int physical = 0, io_min = 0, io_opt = 0;
	int logical = 0, protected = 0, alignment = 0;

	if (ioctl(t->fd, BLKGETSIZE64, &t->size) < 0 || ioctl(t->fd, BLKSSZGET, &logical) < 0)
		return -errno;
	/* open(2) with O_RDWR succeeds; it's each write that would fail. */
	if (!t->read_only && !ioctl(t->fd, BLKROGET, &protected) && protected)
		return -EROFS;
	t->logical_block = power_of_two_or((uint64_t)logical, SECTOR);
	ioctl(t->fd, BLKPBSZGET, &physical);
	ioctl(t->fd, BLKIOMIN, &io_min);
	ioctl(t->fd, BLKIOOPT, &io_opt);
	ioctl(t->fd, BLKALIGNOFF, &alignment); /* -1: what it is stacked of is aligned in no one way */
	t->physical_block = physical > t->logical_block ? physical : t->logical_block;
	t->io_min = io_min > t->logical_block ? io_min : t->logical_block;
	t->io_opt = io_opt;
	t->alignment_offset = alignment > 0 ? (uint32_t)alignment : 0;
	t->max_segments = (uint32_t)queue_limit(dev, "max_segments");
	t->max_bytes = queue_limit(dev, "max_sectors_kb") * 1024;
	t->polls = queue_limit(dev, "io_poll") != 0;
	t->write_cache = !writes_through(dev);
	if (t->read_only)
		return 0;
	/* The kernel's "no limit" is UINT32_MAX sectors of 512 bytes, which larger blocks don't divide. */
	t->discard_max = queue_limit(dev, "discard_max_bytes") & ~(uint64_t)(t->logical_block - 1);
	t->discard_granularity = queue_limit(dev, "discard_granularity");
	t->write_zeroes_max = queue_limit(dev, "write_zeroes_max_bytes") & ~(uint64_t)(t->logical_block - 1);
	return 0;
}

/*
 * A file keeps 512-byte blocks whatever it lies on: an image's partition table counts in them, and the image may have
 * been made elsewhere. The filesystem's block is told as the physical one, so that guests align to it.
 */
static void learn_file(struct io_target *t, const struct stat *st)
{
	const int punch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
	off_t beyond = (st->st_size | (PROBE_SIZE - 1)) + 1;

	t->size = (uint64_t)st->st_size;
	t->logical_block = SECTOR;
	t->physical_block = power_of_two_or((uint64_t)st->st_blksize, 4096);
	if (t->physical_block < SECTOR)
		t->physical_block = SECTOR;
	t->io_min = t->physical_block;
	if (t->read_only)
		return;
	t->write_zeroes_max = FILE_EXTENT_MAX; /* at worst by writing them */
	if (!fallocate(t->fd, punch, beyond, PROBE_SIZE)) {
		t->discard_max = FILE_EXTENT_MAX;
		t->discard_granularity = t->physical_block;
	}
}

static int learn(struct io_target *t)
{
	struct stat st;
	int ret;

	if (fstat(t->fd, &st) < 0)
		return -errno;
	if (S_ISDIR(st.st_mode))
		return -EISDIR;
	t->block_device = S_ISBLK(st.st_mode);
	if (t->block_device) {
		ret = learn_block_device(t, st.st_rdev);
		if (ret)
			return ret;
	} else if (S_ISREG(st.st_mode)) {
		learn_file(t, &st);
	} else {
		return -ENOTBLK;
	}
	learn_direct(t, &st);
	return 0;
}

int io_target_open(struct io_target *t, const char *path, bool read_only)
{
	int flags = (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC;
	struct stat st;
	int ret;

	*t = (struct io_target){
		.fd = -1,
		.fd_buffered = -1,
		.unpolled_fd = -1,
		.read_only = read_only,
		.direct = true,
		.write_cache = true,
		.mem_align = 1,
		.offset_align = 1,
	};
	/* Before open(2), which would block on a FIFO and rewind a tape. */
	if (stat(path, &st) < 0)
		return -errno;
	if (S_ISDIR(st.st_mode))
		return -EISDIR;
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return -ENOTBLK;
	t->fd = open_noatime(path, flags | O_DIRECT);
	if (t->fd == -EINVAL) { /* the filesystem has no O_DIRECT */
		t->direct = false;
		t->fd = open_noatime(path, flags);
	}
	if (t->fd < 0) {
		ret = t->fd;
		t->fd = -1;
		return ret;
	}
	t->cached_writes = !t->direct;
	ret = learn(t);
	if (!ret && t->direct && !t->block_device) {
		t->fd_buffered = open_noatime(path, flags);
		if (t->fd_buffered < 0)
			ret = t->fd_buffered;
	}
	if (ret)
		io_target_close(t);
	return ret;
}

void io_target_null(struct io_target *t, uint64_t size)
{
	*t = (struct io_target){
		.fd = -1,
		.fd_buffered = -1,
		.unpolled_fd = -1,
		.write_cache = true,
		.mem_align = 1,
		.offset_align = 1,
		.logical_block = SECTOR,
		.physical_block = SECTOR,
		.io_min = SECTOR,
		.size = size,
		.discard_max = FILE_EXTENT_MAX,
		.discard_granularity = SECTOR,
		.write_zeroes_max = FILE_EXTENT_MAX,
	};
}

void io_target_close(struct io_target *t)
{
	if (t->fd >= 0)
		close(t->fd);
	if (t->fd_buffered >= 0)
		close(t->fd_buffered);
	t->fd = t->fd_buffered = -1;
}

int64_t io_target_size(const struct io_target *t)
{
	struct stat st;
	uint64_t size;

	if (t->fd < 0)
		return (int64_t)t->size;
	if (t->block_device)
		return ioctl(t->fd, BLKGETSIZE64, &size) < 0 ? -errno : (int64_t)size;
	return fstat(t->fd, &st) < 0 ? -errno : (int64_t)st.st_size;
}

int io_target_flush(struct io_target *t)
{
	int error = load_relaxed(&t->flush_error);

	if (!error && t->fd >= 0 && fdatasync(t->fd) < 0) {
		error = -errno;
		if (load_relaxed(&t->cached_writes))
			store_relaxed(&t->flush_error, error);
	}
	return error;
}
