/* SPDX-License-Identifier: Apache-2.0 */
/*
 * blk_queue.h - what the block device's own files know of a queue and its requests
 */
#ifndef KPOLL_BLK_QUEUE_H
#define KPOLL_BLK_QUEUE_H

#include <linux/virtio_blk.h>

#include "../../kernel/c/atomics.h"
#include "blk.h"

#define VIRTIO_BLK_T_GET_LIFETIME 10 /* virtio 1.2 §5.2.6; not in Linux' header */
#define BLK_LIFETIME_LEN 6           /* struct virtio_blk_lifetime */

/* Header, data, status, and some to spare for buffers that cross memory regions. */
#define BLK_IOVS (BLK_SEG_MAX + 10)

/* What DISCARD and WRITE_ZEROES name, checked and copied out of guest memory. */
struct blk_range {
	uint64_t offset, len; /* bytes */
	uint32_t flags;       /* IO_F_* */
};
_Static_assert(sizeof(struct blk_range) * BLK_RANGES_MAX <= sizeof(struct iovec) * BLK_IOVS, "ranges overlay iovecs");

struct blk_req {
	struct io_req io;
	struct virtq_chain chain;
	struct blk_queue *queue;
	struct blk_req *free_next;
	uint8_t *status; /* in guest memory: the chain's last byte */
	uint64_t start_ns;
	struct blk_req *popped_last; /* blk_errors.c's, of another request */
	uint32_t number;             /* the queue's `popped` when it was */
	bool kept;                   /* failed once, and wasn't answered (blk_errors.h) */
	bool unparsed;               /* kept back as it was popped; blk_parse() comes later */
	uint8_t op;                  /* enum blk_metric_op */
	uint8_t range, ranges;       /* the current one and how many, when the overlay below holds them */
	union {
		struct iovec iov[BLK_IOVS];
		struct blk_range range_list[BLK_RANGES_MAX];
	};
};

struct blk_queue {
	struct queue base;
	struct blk_dev *dev;
	struct blk_req *reqs; /* as many as the queue has entries, all in untouched pages until first used */
	struct blk_req *free;
	uint32_t reqs_count, reqs_used;
	uint32_t popped;  /* chains, modulo 2^32 */
	uint32_t waiting; /* of those in flight: in a lane's struct blk_kept, not in the engine */
	struct blk_stats stats;
};

/* blk_queue_release() - struct lane_ops' release() */
void blk_queue_release(struct lane *lane, struct queue *queue);

/*
 * blk_parse() - Turn a popped chain into an I/O request, or answer it
 *
 * Return: 1 when @req->io is ready to be queued; 0 when it was finished on the spot (its status byte is written and
 * the chain pushed); -EPROTO when the chain can't be a request: the queue is broken
 */
int blk_parse(struct blk_queue *q, struct blk_req *req);

/* blk_next_range() - Load the next extent of a DISCARD or WRITE_ZEROES into @req->io. Return: false when all are done */
bool blk_next_range(struct blk_req *req);

/* blk_finish() - Write the status byte, count, push the chain, free the request. @status: VIRTIO_BLK_S_* */
void blk_finish(struct blk_req *req, uint8_t status, uint64_t now);

/* blk_finish_bytes() - As blk_finish() with VIRTIO_BLK_S_OK, for @len bytes that were written without any I/O */
void blk_finish_bytes(struct blk_req *req, uint32_t len);

/* blk_reject() - As blk_finish() for a request that was refused before any I/O */
void blk_reject(struct blk_req *req, uint8_t status, enum blk_metric_error kind);

/* blk_forget() - Free a request that blk_parse() could not make anything of: it is never answered, its queue is broken */
void blk_forget(struct blk_req *req);

/* blk_unpop() - Free a request unanswered: its chain is the next to be popped. See virtq_unpop() for which ones */
void blk_unpop(struct blk_req *req);

#endif
