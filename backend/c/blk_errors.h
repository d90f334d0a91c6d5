/* SPDX-License-Identifier: Apache-2.0 */
/*
 * blk_errors.h - what becomes of a request that the disk failed: --on-error
 */
#ifndef KPOLL_BLK_ERRORS_H
#define KPOLL_BLK_ERRORS_H

#include "blk_queue.h"

/* A lane's requests that failed, or came after one that did, and wait. */
struct blk_kept {
	struct blk_dev *dev;
	struct lane *lane;
	struct blk_req *first, *last; /* those that wait, in the order in which they are to be tried */
	struct blk_req *probe;        /* BLK_RETRY: the one of them that the engine has just now */
	uint32_t count;               /* failed and not answered yet: those that wait, and those being tried again */
	uint32_t resumes;             /* dev->resumes as last heeded */
	uint64_t pause_ns, retry_ns;  /* BLK_RETRY: how long it pauses, and when it tries next */
};

/* blk_kept_init() - Keep nothing yet */
void blk_kept_init(struct blk_kept *k, struct blk_dev *dev, struct lane *lane);

/*
 * blk_keep() - A request has failed with @req->io.res: is it to be kept, or answered?
 *
 * The failure is told to Python in either case. Return: true: it is ours, and will be tried again
 */
bool blk_keep(struct blk_kept *k, struct blk_req *req, uint64_t now);

/* blk_keep_back() - BLK_STOP: a chain was popped while the disk is stopped, and waits behind the others, unparsed */
void blk_keep_back(struct blk_kept *k, struct blk_req *req);

/* blk_kept_done() - A request that the engine had is about to be answered. Only while @k->count > 0 */
void blk_kept_done(struct blk_kept *k, struct blk_req *req, bool ok, struct io_engine *io);

/*
 * blk_kept_turn() - Queue again what is due, and let go of what belongs to a queue that stops; before io_submit_all()
 * Return: requests that moved
 */
unsigned blk_kept_turn(struct blk_kept *k, struct io_engine *io);

/* blk_kept_timeout_ns() - How long the lane may sleep for our sake, or -1 */
int64_t blk_kept_timeout_ns(const struct blk_kept *k);

#endif
