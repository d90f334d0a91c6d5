/* SPDX-License-Identifier: Apache-2.0 */
/*
 * blk.c - the block device's turn: pop, submit, reap, publish
 *
 * THEORY OF OPERATION
 *
 * One turn of a lane reaps what the engine finished, publishes it, then takes the queues in turn: pops a batch of
 * chains, parses them (blk_parse.c) and hands them to the engine. A device that completes asynchronously gets one
 * submission for all that was popped. One that completes inside the submit call (a RAM disk, the page cache) would
 * hold the first answer back until the last request is done, and starve the other queues; there batches are small, and
 * each is submitted, reaped and published before the next is popped.
 */
#include "blk.h"

#include <errno.h>
#include <stdlib.h>

#include "blk_errors.h"
#include "blk_queue.h"

#define BATCH 32       /* chains popped of one queue per turn */
#define BATCH_INLINE 8 /* the same where the device completes inside the submit call */
/* Of these, so that no single submission keeps a worker from its other queues and from its mailbox for long. */
#define BATCH_BYTES (32u << 20)
#define REAP 64

struct blk_lane {
	struct lane base;
	struct io_engine *io;
	struct blk_kept kept;
	uint32_t opened; /* dev->opened as last heeded */
};

struct blk_dev *blk_dev_create(void)
{
	struct blk_dev *dev = calloc(1, sizeof(*dev));

	if (dev)
		dev->target.fd = dev->target.fd_buffered = dev->target.unpolled_fd = dev->event_fd = -1;
	return dev;
}

void blk_dev_destroy(struct blk_dev *dev)
{
	free(dev);
}

/* Bucket i counts latencies below 1 µs << i. */
static unsigned bucket(uint64_t ns)
{
	uint64_t us = ns / 1000;
	unsigned i = us ? 64 - (unsigned)__builtin_clzll(us) : 0;

	return i < BLK_BUCKETS ? i : BLK_BUCKETS - 1;
}

/* The request used last is the one still in the cache; untouched ones come only when all others are in flight. */
static struct blk_req *get_req(struct blk_queue *q)
{
	struct blk_req *req = q->free;

	if (likely(req != NULL)) {
		q->free = req->free_next;
	} else if (q->reqs_used < q->reqs_count) {
		req = &q->reqs[q->reqs_used++];
		req->queue = q;
	}
	return req;
}

static void put_req(struct blk_req *req)
{
	req->free_next = req->queue->free;
	req->queue->free = req;
}

/* The driver may have made several buffers of one head: each has a request of its own, so freeing is always sound. */
static void finish(struct blk_req *req, uint8_t status, uint64_t len)
{
	struct blk_queue *q = req->queue;

	WRITE_ONCE(*req->status, status);
	virtq_push(&q->base.vq, &req->chain, (uint32_t)len);
	put_req(req);
	store_relaxed(&q->base.in_flight, q->base.in_flight - 1);
}

static inline void count_answer(struct blk_req *req, uint64_t now)
{
	struct blk_stats *stats = &req->queue->stats;
	uint64_t ns = now - req->start_ns;

	count_add(&stats->requests[req->op], 1);
	count_add(&stats->latency[req->op][bucket(ns)], 1);
	count_add(&stats->latency_sum_ns[req->op], ns);
}

void blk_finish(struct blk_req *req, uint8_t status, uint64_t now)
{
	count_answer(req, now);
	if (likely(status == VIRTIO_BLK_S_OK)) {
		if (req->op <= BLK_WRITE)
			count_add(&req->queue->stats.bytes[req->op], req->io.len);
		finish(req, status, req->op == BLK_READ ? req->chain.in_len : 1);
	} else {
		finish(req, status, 1);
	}
}

void blk_finish_bytes(struct blk_req *req, uint32_t len)
{
	count_answer(req, now_ns());
	finish(req, VIRTIO_BLK_S_OK, len + 1u);
}

void blk_reject(struct blk_req *req, uint8_t status, enum blk_metric_error kind)
{
	count_add(&req->queue->stats.errors[req->op][kind], 1);
	blk_finish(req, status, now_ns());
}

void blk_forget(struct blk_req *req)
{
	struct blk_queue *q = req->queue;

	put_req(req);
	store_relaxed(&q->base.in_flight, q->base.in_flight - 1);
}

void blk_unpop(struct blk_req *req)
{
	virtq_unpop(&req->queue->base.vq, &req->chain);
	blk_forget(req);
}

/*
 * Whose failure is it? Of a read or write the kernel says EFAULT when it can't reach the guest's memory: the front-end has
 * truncated it, and the kernel was the first to find that. (Of more than 256 pages on a block device it says EIO, Linux 6.1
 * block/fops.c: then the disk is taken to have failed.)
 */
static enum blk_metric_error blame(const struct blk_req *req)
{
	if (req->io.res == -EOPNOTSUPP)
		return BLK_E_UNSUPPORTED;
	return req->io.res == -EFAULT && req->op <= BLK_WRITE ? BLK_E_MEMORY : BLK_E_IO;
}

/* A request failed: it is kept, to be tried again, or answered. */
static void fail(struct blk_lane *lane, struct blk_req *req, uint64_t now)
{
	enum blk_metric_error kind = blame(req);

	if (kind == BLK_E_IO && blk_keep(&lane->kept, req, now))
		return;
	if (lane->kept.count > 0)
		blk_kept_done(&lane->kept, req, false, lane->io);
	if (kind == BLK_E_MEMORY && req->queue->base.state == QUEUE_RUNNING)
		lane_fail(&lane->base, &req->queue->base, VIRTQ_FAULT_MEMORY_GONE);
	count_add(&req->queue->stats.errors[req->op][kind], 1);
	blk_finish(req, kind == BLK_E_UNSUPPORTED ? VIRTIO_BLK_S_UNSUPP : VIRTIO_BLK_S_IOERR, now);
}

/* An I/O request came back from the engine: on to its next range, or answer it. */
static void complete(struct blk_lane *lane, struct blk_req *req, uint64_t now)
{
	if (likely(req->io.res == 0)) {
		if (unlikely(req->op == BLK_DISCARD || req->op == BLK_WRITE_ZEROES) && blk_next_range(req)) {
			io_queue(lane->io, &req->io);
			return;
		}
		if (unlikely(lane->kept.count > 0))
			blk_kept_done(&lane->kept, req, true, lane->io);
		blk_finish(req, VIRTIO_BLK_S_OK, now);
	} else {
		fail(lane, req, now);
	}
}

static unsigned reap(struct blk_lane *lane)
{
	struct io_req *done[REAP];
	unsigned n = io_reap(lane->io, done, REAP);
	uint64_t now;

	if (n == 0)
		return 0;
	now = now_ns();
	for (unsigned i = 0; i < n; i++)
		complete(lane, container_of(done[i], struct blk_req, io), now);
	for (unsigned i = 0; i < lane->base.count; i++)
		virtq_publish(&lane->base.queues[i]->vq);
	return n;
}

/* Pop up to @max chains. Two passes, so that one chain's header is on its way while the next is popped. */
static unsigned pop_batch(struct blk_lane *lane, struct blk_queue *q, unsigned max)
{
	struct blk_req *batch[BATCH];
	unsigned n = 0;
	uint64_t now, bytes = 0;
	int rc = 0;

	while (n < max && bytes < BATCH_BYTES) {
		struct blk_req *req;

		if (!virtq_more(&q->base.vq))
			break;
		req = get_req(q);
		/* As many requests as ring entries: a driver that has more in flight reuses buffers we still hold. */
		if (unlikely(!req)) {
			rc = virtq_fail(&q->base.vq, VIRTQ_FAULT_TOO_MANY);
			break;
		}
		rc = virtq_pop(&q->base.vq, &req->chain, req->iov, BLK_IOVS);
		if (rc <= 0) {
			put_req(req);
			break;
		}
		__builtin_prefetch(req->iov[0].iov_base);
		bytes += (uint64_t)req->chain.out_len + req->chain.in_len;
		batch[n++] = req;
	}
	if (n > 0) {
		bool stopped =
			load_relaxed(&q->dev->stopped); /* a failure that comes meanwhile stops what comes after it */

		store_relaxed(&q->base.in_flight, q->base.in_flight + n);
		now = now_ns();
		for (unsigned i = 0; i < n; i++) {
			int ready;

			batch[i]->start_ns = now;
			batch[i]->number = ++q->popped;
			if (unlikely(stopped)) {
				blk_keep_back(&lane->kept, batch[i]);
				continue;
			}
			ready = blk_parse(q, batch[i]);
			if (likely(ready > 0)) {
				io_queue(lane->io, &batch[i]->io);
			} else if (ready < 0) {
				/* No status byte to write: this one is never answered, only forgotten. */
				blk_forget(batch[i]);
				rc = ready;
			}
		}
	}
	if (unlikely(rc < 0))
		lane_fail(&lane->base, &q->base, VIRTQ_FAULT_NONE);
	return n;
}

static unsigned poll_lane(struct lane *base)
{
	struct blk_lane *lane = container_of(base, struct blk_lane, base);
	unsigned work = reap(lane);

	lane_check_memory(base);
	for (unsigned i = 0; i < base->count; i++) {
		struct blk_queue *q = container_of(base->queues[i], struct blk_queue, base);
		bool small = lane->io->completes_inline;
		unsigned n;

		if (q->base.state != QUEUE_RUNNING)
			continue;
		n = pop_batch(lane, q, small ? BATCH_INLINE : BATCH);
		if (n > 0 && small) {
			io_submit_all(lane->io);
			reap(lane);
		}
		virtq_publish(&q->base.vq); /* what was answered without any I/O */
		work += n;
	}
	if (unlikely(lane->kept.count > 0))
		work += blk_kept_turn(&lane->kept, lane->io);
	if (lane->io->in_flight > 0) {
		io_submit_all(lane->io);
		work += reap(lane);
	}
	return work;
}

unsigned blk_lane_poll(struct blk_lane *lane)
{
	return poll_lane(&lane->base);
}

/* Completions wake the worker, however the engine tells of them. */
static int join(struct lane *lane, struct wait_set *ws)
{
	struct blk_lane *l = container_of(lane, struct blk_lane, base);
	uint32_t opened = load_acquire(&l->kept.dev->opened); /* pairs with the release in blk_dev_reopened() */
	struct io_engine *io = l->io;
	struct io_wait waits[IO_WAITS_MAX];
	unsigned n = io_waits(io, waits);

	if (opened != l->opened) {
		l->opened = opened;
		io_engine_reopened(io);
	}
	for (unsigned i = 0; i < n; i++) {
		int rc = wait_set_add(ws, waits[i].fd, waits[i].has_word ? &waits[i].word : NULL, lane, NULL);

		if (rc < 0)
			return rc;
		if (waits[i].has_word && wait_set_word_wakes(ws, waits[i].word.addr))
			io_engine_ring_wakes(io);
	}
	return 0;
}

static int64_t sleep_timeout_ns(struct lane *base)
{
	const struct blk_lane *lane = container_of(base, struct blk_lane, base);
	int64_t io = io_sleep_timeout_ns(lane->io), kept = blk_kept_timeout_ns(&lane->kept);

	if (io < 0 || kept < 0)
		return io < 0 ? kept : io;
	return io < kept ? io : kept;
}

static const struct lane_ops lane_ops = {
	.poll = poll_lane,
	.join = join,
	.sleep_timeout_ns = sleep_timeout_ns,
	.release = blk_queue_release,
};

int blk_lane_create(struct blk_lane **out, struct blk_dev *dev, const char *engine, uint32_t depth)
{
	struct blk_lane *lane = calloc(1, sizeof(*lane));
	int rc;

	if (!lane)
		return -ENOMEM;
	lane_init(&lane->base, &lane_ops);
	blk_kept_init(&lane->kept, dev, &lane->base);
	rc = io_engine_create(&lane->io, engine, &dev->target, depth);
	if (rc < 0) {
		free(lane);
		return rc;
	}
	*out = lane;
	return 0;
}

void blk_lane_destroy(struct blk_lane *lane)
{
	if (!lane)
		return;
	io_engine_destroy(lane->io);
	free(lane);
}

struct lane *blk_lane_base(struct blk_lane *lane)
{
	return &lane->base;
}

struct io_engine *blk_lane_engine(struct blk_lane *lane)
{
	return lane->io;
}
