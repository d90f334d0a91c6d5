/* SPDX-License-Identifier: Apache-2.0 */
/*
 * blk_queue.c - a virtqueue of the block device, and memory for its requests: as many as its ring has entries
 */
#include "blk_queue.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#define REQS_KEPT 128 /* requests' memory that a stopped queue may keep: rings are stopped and started now and then */

struct blk_queue *blk_queue_create(struct blk_dev *dev, uint16_t index)
{
	struct blk_queue *q = calloc(1, sizeof(*q));

	if (q) {
		q->dev = dev;
		q->base.index = index;
	}
	return q;
}

static void free_reqs(struct blk_queue *q)
{
	if (q->reqs)
		munmap(q->reqs, q->reqs_count * sizeof(*q->reqs));
	q->reqs = NULL;
	q->free = NULL;
	q->reqs_count = q->reqs_used = 0;
}

void blk_queue_destroy(struct blk_queue *q)
{
	if (!q)
		return;
	free_reqs(q);
	free(q);
}

/* Requests come from untouched pages: a queue of 32768 entries costs what its depth in use costs. */
static int make_reqs(struct blk_queue *q, uint32_t count)
{
	void *at;

	if (q->reqs_count == count)
		return 0;
	free_reqs(q);
	at = mmap(NULL, count * sizeof(*q->reqs), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		  -1, 0);
	if (at == MAP_FAILED)
		return -ENOMEM;
	q->reqs = at;
	q->reqs_count = count;
	return 0;
}

int blk_queue_bind(struct blk_queue *q, const struct virtq_config *cfg, const struct mem_table *mem)
{
	int rc = queue_bind(&q->base, cfg, mem);

	return rc < 0 ? rc : make_reqs(q, cfg->size);
}

struct queue *blk_queue_base(struct blk_queue *q)
{
	return &q->base;
}

const struct blk_stats *blk_queue_stats(const struct blk_queue *q)
{
	return &q->stats;
}

/* Requests' memory may have come from as many pages as the queue is deep. */
void blk_queue_release(struct lane *lane, struct queue *queue)
{
	struct blk_queue *q = container_of(queue, struct blk_queue, base);

	(void)lane;
	if (q->reqs_used <= REQS_KEPT)
		return;
	madvise(q->reqs, q->reqs_count * sizeof(*q->reqs), MADV_DONTNEED);
	q->free = NULL;
	q->reqs_used = 0;
}
