/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lane.c - the virtqueues of a lane: they come, break, and go, whatever the device
 */
#include "lane.h"

#include <errno.h>

void lane_init(struct lane *lane, const struct lane_ops *ops)
{
	lane->ops = ops;
	lane->count = 0;
	lane->broken_seen = mem_broken_count();
	lane->broke = false;
	lane->joined = 0;
	lane->join_error = 0;
}

int lane_add(struct lane *lane, struct queue *q)
{
	if (lane->count == LANE_QUEUES)
		return -ENOMEM;
	lane->queues[lane->count++] = q;
	queue_set_state(q, QUEUE_RUNNING);
	if (mem_table_broken(q->vq.mem)) /* it may have broken before this lane began to look */
		lane_fail(lane, q, VIRTQ_FAULT_MEMORY_GONE);
	return 0;
}

void lane_remove(struct lane *lane, struct queue *q)
{
	for (unsigned i = 0; i < lane->count; i++) {
		if (lane->queues[i] == q) {
			lane->queues[i] = lane->queues[--lane->count];
			return;
		}
	}
}

struct queue *lane_broken(struct lane *lane)
{
	for (unsigned i = 0; lane->broke && i < lane->count; i++) {
		if (lane->queues[i]->broke) {
			lane->queues[i]->broke = false;
			return lane->queues[i];
		}
	}
	lane->broke = false;
	return NULL;
}

void lane_notify_off(struct lane *lane)
{
	for (unsigned i = 0; i < lane->count; i++)
		if (lane->queues[i]->state == QUEUE_RUNNING)
			virtq_notify_off(&lane->queues[i]->vq);
}

void lane_fail(struct lane *lane, struct queue *q, enum virtq_fault fault)
{
	if (fault != VIRTQ_FAULT_NONE)
		virtq_fail(&q->vq, fault);
	q->broke = lane->broke = true;
	queue_set_state(q, QUEUE_BROKEN);
}

void lane_look_at_memory(struct lane *lane)
{
	lane->broken_seen = mem_broken_count();
	for (unsigned i = 0; i < lane->count; i++) {
		struct queue *q = lane->queues[i];

		if (q->state == QUEUE_RUNNING && mem_table_broken(q->vq.mem))
			lane_fail(lane, q, VIRTQ_FAULT_MEMORY_GONE);
	}
}

int queue_bind(struct queue *q, const struct virtq_config *cfg, const struct mem_table *mem)
{
	uint64_t calls = q->vq.calls, suppressed = q->vq.calls_suppressed;
	int rc = virtq_init(&q->vq, cfg, mem);

	/* Counters of the device, not of this binding. */
	q->vq.calls = calls;
	q->vq.calls_suppressed = suppressed;
	q->broke = false;
	return rc;
}
