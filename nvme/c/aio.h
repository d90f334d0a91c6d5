/* SPDX-License-Identifier: Apache-2.0 */
/*
 * aio.h - Linux AIO's engine, and what it learns of kernel and device as it goes
 *
 * Private to nvme/c/aio*.c.
 */
#ifndef KPOLL_AIO_H
#define KPOLL_AIO_H

#include "aio_ring.h"
#include "engine.h"

#define AIO_INLINE_RUN 64

struct aio {
	struct io_engine engine;
	struct aio_ring *ring; /* NULL: not one that we know, use io_getevents(2) */
	aio_context_t ctx;
	int event_fd;
	bool iopoll;         /* reads and writes are to be polled for, where the ring wakes */
	uint32_t signal;     /* aio_flags: IOCB_FLAG_RESFD; where the ring itself wakes IOCB_FLAG_HIPRI, or 0 */
	uint32_t iocb_flags; /* of the next iocbs: signal or 0 */
	uint32_t in_kernel;  /* submitted and not reaped */
	uint32_t reaps;      /* since the last look into the poll queues */
	uint32_t inline_run; /* submits in a row that left nothing under way, up to AIO_INLINE_RUN */
	uint32_t helper_ops; /* bit 1 << enum io_op: goes to the helper without asking */
	int nowait[2];       /* by IO_READ, IO_WRITE: RWF_NOWAIT or 0 */
	bool queues;         /* a request was resubmitted: this is no device that completes inside the submit call */
	uint32_t depth, staged;
	struct io_list waiting; /* behind them, when there is no room */
	struct iocb *iocbs[];   /* [0 .. staged) */
};

/* What is to be cut in pieces can't be polled for; it would come back with -EAGAIN, as what is @unpolled did. */
static inline uint32_t aio_flags(const struct aio *a, const struct io_req *r, uint32_t flags)
{
	bool unpolled = unlikely(flags & IOCB_FLAG_HIPRI) && (r->unpolled || !io_in_one_piece(a->engine.target, r));

	return unpolled ? 0 : flags;
}

/* aio_forget_nowait() - RWF_NOWAIT was refused for this direction: do without, where that can block only for a moment */
void aio_forget_nowait(struct aio *a, unsigned op);

/* aio_forget_polling() - A layer above the device, which has poll queues, won't have it: dm-crypt, for one, knows no RWF_NOWAIT */
void aio_forget_polling(struct aio *a);

/* aio_learn() - So many were @sent just now: are they complete already? */
void aio_learn(struct aio *a, unsigned sent);

/* aio_queues() - A request is submitted again: this is no device that completes inside the submit call */
void aio_queues(struct aio *a);

#endif
