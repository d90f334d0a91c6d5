// SPDX-License-Identifier: Apache-2.0
/*
 * uring_ring.c - one io_uring with the target's file
 *
 * The steering thread creates the ring and a worker uses it, so no SINGLE_ISSUER. No COOP_TASKRUN either: the worker
 * watches the completion queue's tail in memory, and that moves without a system call of ours only if the kernel may
 * interrupt us to run the completion's task work. On a polled ring none of them saves anything (docs/benchmarks.md).
 *
 * The submission queue is short and the completion queue as long as the ring is deep, so that it can't overflow.
 */
#include "uring_ring.h"

#include <sys/ioctl.h>

#include "uring_buffers.h"

#ifndef BLOCK_URING_CMD_DISCARD
#define BLOCK_URING_CMD_DISCARD _IO(0x12, 0) /* linux/blkdev.h, of Linux 6.12 */
#endif

#define SQ_ENTRIES_MAX 256

int uring_ring_open(struct uring_ring *r, const struct io_target *t, uint32_t depth, unsigned flags)
{
	struct io_uring_params params = { .flags = flags | IORING_SETUP_CQSIZE, .cq_entries = depth };
	int ret = io_uring_queue_init_params(depth < SQ_ENTRIES_MAX ? depth : SQ_ENTRIES_MAX, &r->ring, &params);

	if (ret)
		return ret;
	r->open = true;
	r->polled = flags & IORING_SETUP_IOPOLL;
	r->depth = depth;
	return io_uring_register_files(&r->ring, &t->fd, 1);
}

void uring_ring_close(struct uring_ring *r)
{
	if (!r->open)
		return;
	/* The kernel takes a ring down some time after its close: without this the file would stay open until then. */
	io_uring_unregister_files(&r->ring);
	io_uring_queue_exit(&r->ring);
	r->open = false;
}

bool uring_ring_knows(struct uring_ring *r, int op)
{
	struct io_uring_probe *probe = io_uring_get_probe_ring(&r->ring);
	bool knows = probe && io_uring_opcode_supported(probe, op);

	io_uring_free_probe(probe);
	return knows;
}

/* blkdev_uring_cmd() wants the range in addr and addr3, and 0 in whatever else there is. */
static void prep_discard(struct io_uring_sqe *sqe, const struct io_req *req)
{
	io_uring_prep_rw(IORING_OP_URING_CMD, sqe, 0, NULL, 0, 0);
	sqe->cmd_op = BLOCK_URING_CMD_DISCARD;
	sqe->addr = req->offset;
	sqe->addr3 = req->len;
}

static void prep_rw(const struct uring_ring *r, struct io_uring_sqe *sqe, const struct io_req *req)
{
	bool read = req->op == IO_READ, one = req->iovcnt == 1;
	int buffer = one && r->buffers ? uring_buffers_find(r->buffers, req->iov->iov_base, req->len) : -1;

	if (!one)
		io_uring_prep_rw(read ? IORING_OP_READV : IORING_OP_WRITEV, sqe, 0, req->iov, req->iovcnt, req->offset);
	else if (buffer < 0)
		io_uring_prep_rw(read ? IORING_OP_READ : IORING_OP_WRITE, sqe, 0, req->iov->iov_base,
				 (unsigned)req->len, req->offset);
	else
		io_uring_prep_rw(read ? IORING_OP_READ_FIXED : IORING_OP_WRITE_FIXED, sqe, 0, req->iov->iov_base,
				 (unsigned)req->len, req->offset);
	if (buffer >= 0)
		sqe->buf_index = (uint16_t)buffer;
	sqe->rw_flags = (r->polled ? RWF_NOWAIT : 0) | (!read && (req->flags & IO_F_DSYNC) ? RWF_DSYNC : 0);
}

/* File 0 is the registered one: spares a reference on the file for each request. */
static void prep(const struct uring_ring *r, struct io_uring_sqe *sqe, struct io_req *req)
{
	if (unlikely(req->op == IO_DISCARD))
		prep_discard(sqe, req);
	else
		prep_rw(r, sqe, req);
	sqe->flags |= IOSQE_FIXED_FILE;
	io_uring_sqe_set_data(sqe, req);
}

void uring_ring_submit(struct uring_ring *r, struct io_stats *stats)
{
	bool full;

	do {
		struct io_uring_sqe *sqe;

		full = false;
		while (r->staged.first && r->in_kernel < r->depth) {
			sqe = io_uring_get_sqe(&r->ring);
			full = !sqe;
			if (full)
				break;
			prep(r, sqe, io_list_pop(&r->staged));
			r->staged_count--;
			r->in_kernel++;
		}
		if (io_uring_sq_ready(&r->ring))
			count_add(&stats->submits, 1);
		else if (!r->polled || !r->in_kernel)
			break; /* nothing to hand over: the kernel has as many as the completion queue holds */
		/* liburing asks a polled ring for completions each time: IORING_ENTER_GETEVENTS, of which at least none. */
		if (io_uring_submit(&r->ring) < 0)
			break; /* EAGAIN, EBUSY: entries stay where they are, for the next time */
	} while (full);
}
