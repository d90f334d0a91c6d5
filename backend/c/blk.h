/* SPDX-License-Identifier: Apache-2.0 */
/*
 * blk.h - the virtio block device's data path (virtio 1.2 §5.2): chains in, I/O requests out, status bytes back
 *
 * blk_dev is the disk; blk_lane is one worker's share of it: an I/O engine and the virtqueues that this worker
 * serves. Both begin with what the worker knows of them (lane.h). Nothing here blocks, allocates per request or logs.
 */
#ifndef KPOLL_BLK_H
#define KPOLL_BLK_H

#include <stdint.h>

#include "../../nvme/c/io.h"
#include "lane.h"

#define BLK_SECTOR 512u
#define BLK_SERIAL_LEN 20
#define BLK_SEG_MAX 126         /* data segments of one request: what fits beside header and status in 128 */
#define BLK_SIZE_MAX (1u << 20) /* bytes of one segment; the size_max that is offered is this or less */
#define BLK_RANGES_MAX 16       /* max_discard_seg, max_write_zeroes_seg */

enum blk_metric_op { BLK_READ, BLK_WRITE, BLK_FLUSH, BLK_DISCARD, BLK_WRITE_ZEROES, BLK_GET_ID, BLK_OTHER, BLK_OPS };
enum blk_metric_error { BLK_E_IO, BLK_E_UNSUPPORTED, BLK_E_RANGE, BLK_E_READ_ONLY, BLK_E_MEMORY, BLK_ERRORS };
#define BLK_BUCKETS 24 /* latency histogram: bucket i counts < 1 µs << i; the last one the rest */

struct blk_stats {
	uint64_t requests[BLK_OPS];
	uint64_t bytes[BLK_OPS];
	uint64_t errors[BLK_OPS][BLK_ERRORS];
	uint64_t latency[BLK_OPS][BLK_BUCKETS];
	uint64_t latency_sum_ns[BLK_OPS];
	uint64_t failures[BLK_OPS]; /* that the guest wasn't told of: the request was kept, to be tried again */
	uint64_t kept;              /* now: failed, or came after one that did, and not answered yet */
};

/* What becomes of a request that the disk failed (blk_errors.c). */
enum blk_on_error { BLK_REPORT, BLK_RETRY, BLK_STOP };

struct blk_dev {
	struct io_target target;
	uint64_t capacity; /* sectors; atomic: Python raises it when the file grows */
	bool read_only;
	uint8_t write_back; /* atomic: CONFIG_WCE's writeback, or FLUSH negotiated without it */
	uint32_t max_discard_sectors, max_write_zeroes_sectors;
	uint64_t lifetime; /* atomic: what GET_LIFETIME answers, in its first six bytes; 0: it isn't offered */
	uint8_t serial[BLK_SERIAL_LEN];
	uint8_t on_error; /* enum blk_on_error; constant while workers run */
	/* Atomic, each. */
	uint8_t stopped; /* BLK_STOP: from the first failure until blk_dev_resume(), whatever is kept */
	uint8_t told; /* 1: a failure was told by event_fd, or a stop anew; Python makes it 2 when it has heard, 0 when all is well */
	int error;        /* that failure: an errno */
	uint32_t resumes; /* calls of blk_dev_resume() */
	uint32_t opened;  /* calls of blk_dev_reopened() */
	int event_fd; /* Python's; written when failures begin, and when no lane keeps a request any more; -1: none */
};

struct blk_lane;
struct blk_queue;

struct blk_dev *blk_dev_create(void);
void blk_dev_destroy(struct blk_dev *dev);
/* blk_dev_resume() - Have all that waits tried again now; each worker has to be woken after it (worker_wake()) */
void blk_dev_resume(struct blk_dev *dev);
/*
 * blk_dev_calm() - Have the next failure told: all was well at the last look
 * Return: false: the disk is stopped all the same; that may have been told a moment ago, and the telling is lost
 */
bool blk_dev_calm(struct blk_dev *dev);
/* blk_dev_reopened() - target.fd is another open file now: an engine that holds on to the old one takes the new one when its lane is joined anew */
void blk_dev_reopened(struct blk_dev *dev);

int blk_lane_create(struct blk_lane **out, struct blk_dev *dev, const char *engine, uint32_t depth);
void blk_lane_destroy(struct blk_lane *lane);

/* blk_lane_base(), blk_queue_base() - What a worker knows of them */
struct lane *blk_lane_base(struct blk_lane *lane);
struct queue *blk_queue_base(struct blk_queue *q);

/*
 * blk_lane_poll() - One turn: reap, publish, pop a batch of each running queue, submit
 * Return: requests that moved; 0 means that there is nothing to do but wait
 */
unsigned blk_lane_poll(struct blk_lane *lane);
struct io_engine *blk_lane_engine(struct blk_lane *lane);

/* blk_lane_pin() - io_engine_pin() with all regions of a table, or none for NULL. No queue of the lane may run. Return: as that */
int blk_lane_pin(struct blk_lane *lane, const struct mem_table *mem);

/* blk_queue_create() - A virtqueue's place in the disk; bound to rings by blk_queue_bind() before each start. */
struct blk_queue *blk_queue_create(struct blk_dev *dev, uint16_t index);
void blk_queue_destroy(struct blk_queue *q);
/* blk_queue_bind() - Return: 0; virtq_init()'s errors; -ENOMEM */
int blk_queue_bind(struct blk_queue *q, const struct virtq_config *cfg, const struct mem_table *mem);
const struct blk_stats *blk_queue_stats(const struct blk_queue *q);

#endif
