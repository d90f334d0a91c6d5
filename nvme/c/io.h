/* SPDX-License-Identifier: Apache-2.0 */
/*
 * io.h - the I/O engines' one interface: stage requests, submit the batch, reap completions
 *
 * An engine belongs to one worker thread. Requests are the caller's memory (no allocation here per request). Reads and
 * writes go the engine's way (Linux AIO, io_uring, null); whatever would block a worker - flush, discard, write
 * zeroes, a read or write that the kernel refuses without waiting, buffers that O_DIRECT can't take - goes to the
 * engine's helper threads (helper.c) and comes back through the same io_reap(). Only io_uring discards by itself, on block
 * devices, where the kernel can.
 */
#ifndef KPOLL_IO_H
#define KPOLL_IO_H

#include <linux/aio_abi.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "../../kernel/uapi/eventfd_poll.h"

enum io_op { IO_READ, IO_WRITE, IO_FLUSH, IO_DISCARD, IO_WRITE_ZEROES };

#define IO_F_DSYNC 1 /* IO_WRITE, IO_WRITE_ZEROES: durable before it completes (write-through) */
#define IO_F_UNMAP 2 /* IO_WRITE_ZEROES: the space may be given back */

/* What the disk is made of. Filled by io_target_open(), constant after that. */
struct io_target {
	int fd;          /* O_DIRECT if `direct` */
	int fd_buffered; /* the same file through the page cache: for what O_DIRECT's alignment refuses (files only), else -1 */
	bool direct, block_device, read_only;
	bool nowait;        /* RWF_NOWAIT is understood for reads and writes */
	bool polls;         /* a block device whose driver has queues to poll: sysfs queue/io_poll */
	bool write_cache;   /* what was written may be lost until it is flushed; not so: sysfs queue/write_cache */
	uint32_t mem_align; /* O_DIRECT's demands in bytes, powers of two; 1 when not direct */
	uint32_t offset_align;
	uint32_t logical_block, physical_block, io_min, io_opt;      /* bytes */
	uint32_t alignment_offset;                                   /* bytes before the first whole physical block */
	uint64_t size;                                               /* bytes at open */
	uint64_t discard_max, discard_granularity, write_zeroes_max; /* bytes; 0: not offered by the device */
	uint32_t max_segments;                                       /* of one device request; 0: unknown */
	uint64_t max_bytes;                                          /* of one device request; 0: unknown */
	/*
	 * Both atomic. The page cache tells of a write that it lost once, and then calls the pages clean: where it has been
	 * in play, every flush after a failed one has to fail as well, or the guest would believe the second one.
	 */
	bool cached_writes;
	int flush_error;
	/* Python's, of before the first request: signalled when a device refuses to be polled, which its engine then does without */
	int unpolled_fd;
};

/**
 * io_target_open() - Open a regular file or block device and learn its limits
 * Return: 0; -EISDIR, -ENOTBLK (neither file nor block device), -EROFS (a read-only device), -errno of open(2)/statx(2)
 */
int io_target_open(struct io_target *t, const char *path, bool read_only);
/* io_target_null() - A target without a device, for the null engine */
void io_target_null(struct io_target *t, uint64_t size);
void io_target_close(struct io_target *t);
/* io_target_size() - The file's or device's size now, in bytes, or -errno */
int64_t io_target_size(const struct io_target *t);
/*
 * io_target_flush() - Make all that was written durable; blocks. From any thread. Return: 0, or -errno of fdatasync(2)
 *
 * The only way to do so: a failure that went to somebody else's fdatasync(2) would not come again, see flush_error.
 */
int io_target_flush(struct io_target *t);

struct io_req {
	struct io_req *next;  /* the engine's, between staging and io_reap() */
	uint64_t offset, len; /* bytes; len is the sum of iov (IO_READ, IO_WRITE) or the extent */
	struct iovec *iov;    /* the engine may modify it meanwhile; on io_reap() it is as it was */
	uint32_t iovcnt;
	uint8_t op, flags;
	bool in_helper;
	bool resubmit;    /* aio's: the helper is to submit it again, where that may block */
	bool unpolled;    /* aio's: it can't be polled for, the kernel says */
	int32_t res;      /* on io_reap(): 0 (all of len done) or -errno */
	uint64_t done;    /* the engine's: bytes already transferred when it hands a rest on */
	struct iocb iocb; /* aio's */
};

struct io_stats {
	uint64_t submits;     /* submission syscalls */
	uint64_t completions; /* requests that came back */
	uint64_t helped;      /* of these, through a helper thread */
	uint64_t inline_done; /* completed inside the submit call */
};

struct io_engine;
struct io_helper;

struct io_ops {
	const char *name;
	void (*queue)(struct io_engine *e, struct io_req *r);
	int (*submit)(struct io_engine *e);
	unsigned (*reap)(struct io_engine *e, struct io_req **done, unsigned max);
	int (*wait_fd)(struct io_engine *e);
	void (*wait_word)(struct io_engine *e, struct eventfd_poll_info *word);
	void (*ring_wakes)(struct io_engine *e); /* NULL: nothing changes */
	void (*reopened)(struct io_engine *e);   /* NULL: it takes the descriptor anew for each request */
	/* NULL: it has no use for that */
	int (*pin)(struct io_engine *e, const struct iovec *memory, unsigned count);
	void (*destroy)(struct io_engine *e);
};

struct io_engine {
	const struct io_ops *ops;
	struct io_target *target;
	struct io_helper *helper;
	unsigned in_flight;   /* staged, submitted or with a helper, not yet reaped */
	unsigned unsignalled; /* of these: in the kernel, and their completion will write no eventfd */
	unsigned held;        /* of these: what the last submit could not hand over */
	unsigned polled; /* of these: in the kernel, and only io_submit_all() finds out whether they are complete */
	bool completes_inline; /* the device finishes inside the submit call: keep batches small */
	struct io_stats stats;
};

/**
 * io_engine_create() - Make an engine
 * @name:	"aio", "io_uring", "null"; for targets that poll "aio_iopoll", "io_uring_iopoll"
 * @depth:	Most requests that the kernel is to hold at once (1..65536); more of them wait in the engine
 *
 * Return: 0; -EINVAL for an unknown name or depth; -ENOSYS/-EPERM where the kernel or a container's policy has no io_uring;
 * -EAGAIN when fs.aio-max-nr is used up; -EOPNOTSUPP when this kernel's AIO can't poll; -ENOMEM
 */
int io_engine_create(struct io_engine **out, const char *name, struct io_target *t, uint32_t depth);
void io_engine_destroy(struct io_engine *e); /* in_flight must be 0 */

/* io_queue() - Stage a request */
static inline void io_queue(struct io_engine *e, struct io_req *r)
{
	e->in_flight++;
	e->ops->queue(e, r);
}

/*
 * io_submit_all() - Hand what is staged to the kernel; what it won't take now stays staged. While any request is `polled`
 * it also looks once for those that are complete, which io_reap() then has. Return: requests handed over
 */
static inline int io_submit_all(struct io_engine *e)
{
	return e->ops->submit(e);
}

/*
 * io_reap() - Collect finished requests, at most @max; never blocks, no syscall on the usual way
 *
 * What io_submit_all() itself finished is told by nothing but this: before its owner sleeps, io_reap() must have
 * returned less than @max since the last io_submit_all().
 */
static inline unsigned io_reap(struct io_engine *e, struct io_req **done, unsigned max)
{
	unsigned n = e->ops->reap(e, done, max);

	e->in_flight -= n;
	return n;
}

/*
 * What a worker waits on, from io_waits(): the engine's completion eventfd with its ring's tail, and the helpers' eventfd
 * with their list of finished requests. Any of these descriptors or memory words tells that io_reap() has something.
 */
struct io_wait {
	int fd; /* -1: none */
	bool has_word;
	struct eventfd_poll_info word;
};
#define IO_WAITS_MAX 2
unsigned io_waits(struct io_engine *e, struct io_wait waits[IO_WAITS_MAX]);

/*
 * io_engine_ring_wakes() - Whoever watches the ring's word is woken by its change: completions need no signal beside it
 *
 * For a kernel that polls for us (the wait set knows). Before the first request.
 */
void io_engine_ring_wakes(struct io_engine *e);

/* io_engine_reopened() - The target's fd is another open file than it was. What is in flight stays with the old one. */
void io_engine_reopened(struct io_engine *e);

/*
 * io_sleep_timeout_ns() - Longest sleep that is safe now: -1 (completions will signal), or a short time while
 * requests are in flight whose completion signals nobody (aio leaves RESFD out on devices that complete inline), or
 * that the kernel would not take yet; or 0 while any is polled: call io_submit_all() soon again.
 */
int64_t io_sleep_timeout_ns(const struct io_engine *e);

/**
 * io_engine_pin() - Have memory registered with the kernel, so that reads and writes of one buffer within it are cheaper
 * @memory:	Of requests to come, replacing what was given last; page-aligned or not, no part overlaps another
 *
 * Its pages are pinned until then or until the engine is destroyed: before it is unmapped, it has to be taken back like
 * this. From any thread, while no request is in flight and nobody calls io_queue(). Blocks while pages are pinned.
 *
 * Return: 0; -EOPNOTSUPP: not this engine, or (a part of) the memory is of a kind that can't be; -EINVAL: Linux before 5.19;
 * -ENOMEM: RLIMIT_MEMLOCK; -ENOSPC: too much of it. Requests work whatever it says.
 */
int io_engine_pin(struct io_engine *e, const struct iovec *memory, unsigned count);

#endif
