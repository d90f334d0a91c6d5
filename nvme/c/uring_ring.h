/* SPDX-License-Identifier: Apache-2.0 */
/*
 * uring_ring.h - one io_uring with the target's file: requests wait in a list, become entries, and are in the kernel
 *
 * Private to nvme/c/uring*.c.
 */
#ifndef KPOLL_URING_RING_H
#define KPOLL_URING_RING_H

#include <liburing.h>

#include "engine.h"

struct uring_buffers;

struct uring_ring {
	struct io_uring ring;
	bool open;
	bool polled; /* IORING_SETUP_IOPOLL: it moves only inside io_uring_enter(2) */
	uint32_t depth;
	uint32_t in_kernel; /* entries made and not reaped, at most depth */
	uint32_t staged_count;
	struct io_list staged;
	const struct uring_buffers *buffers; /* that are registered with it, or NULL */
};

/*
 * uring_ring_open() - Make it for @depth requests: IO_READ, IO_WRITE, and IO_DISCARD on a block device. @flags: IORING_SETUP_*
 * Return: 0 or -errno; uring_ring_close() in any case
 */
int uring_ring_open(struct uring_ring *r, const struct io_target *t, uint32_t depth, unsigned flags);
void uring_ring_close(struct uring_ring *r);

static inline void uring_ring_stage(struct uring_ring *r, struct io_req *req)
{
	r->staged_count++;
	io_list_push(&r->staged, req);
}

/* uring_ring_knows() - Has its kernel this operation? @op: IORING_OP_*. It may still refuse it to some files */
bool uring_ring_knows(struct uring_ring *r, int op);

/* Requests that are here and that the kernel doesn't have. */
static inline unsigned uring_ring_held(const struct uring_ring *r)
{
	return r->staged_count + io_uring_sq_ready(&r->ring);
}

/* uring_ring_submit() - Hand over what is staged; on a polled ring, also look for completions once */
void uring_ring_submit(struct uring_ring *r, struct io_stats *stats);

#endif
