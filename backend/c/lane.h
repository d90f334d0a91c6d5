/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lane.h - what a worker knows of a device: its lanes, and the virtqueues on them
 *
 * A device embeds struct queue first in its own queue and struct lane first in its own lane, and gives lane_ops.
 * A queue is Python's while it is STOPPED; from START until it is STOPPED again it is on a lane, and the worker's.
 */
#ifndef KPOLL_LANE_H
#define KPOLL_LANE_H

#include <stdbool.h>
#include <stdint.h>

#include "../../kernel/c/atomics.h"
#include "../../kernel/c/wait.h"
#include "../../vhost/c/virtq.h"

#define LANE_QUEUES 256

/* Who may touch a queue, and what it does; changes are announced through the worker's event fd. */
enum queue_state {
	QUEUE_STOPPED = 0, /* Python's: may be bound anew, its memory unmapped */
	QUEUE_RUNNING = 1,
	QUEUE_STOPPING = 2, /* no more pops; waits for its chains in flight */
	QUEUE_BROKEN = 3,   /* a fault: no more pops; still the worker's until stopped */
};

/* A virtqueue that a worker can hold. */
struct queue {
	struct virtq vq;
	uint32_t state;     /* enum queue_state, atomic */
	uint32_t in_flight; /* chains popped and not yet pushed; atomic: Python reads it */
	uint16_t index;
	bool broke; /* since the worker last asked */
};

struct lane;

/* What a device does for its worker, always in the worker's thread, but for the first join(). */
struct lane_ops {
	/* One turn. Return: what moved; 0 means that there is nothing to do but wait */
	unsigned (*poll)(struct lane *lane);
	/*
	 * Add to the wait set what wakes the lane beside its queues' doorbells, with the lane as cookie: before the first
	 * turn, and anew, between two turns, whenever Python has prepared something else (worker_join_lane()). Return: 0 or
	 * -errno; the worker then takes back what was added
	 */
	int (*join)(struct lane *lane, struct wait_set *ws);
	/* Longest sleep that the lane can afford now, in ns, or -1; 0: only its next turn finds what it waits for. NULL: always -1 */
	int64_t (*sleep_timeout_ns)(struct lane *lane);
	/* The queue is about to be STOPPED, nothing of it is in flight: give back what it made. NULL: nothing */
	void (*release)(struct lane *lane, struct queue *q);
};

/* One worker's share of a device. */
struct lane {
	const struct lane_ops *ops;
	unsigned count;
	uint32_t broken_seen; /* mem_broken_count() when the queues' memory was last looked at */
	bool broke;           /* a queue broke since the worker last asked */
	uint32_t joined;      /* atomic: how often worker_join_lane() was heeded */
	int join_error;       /* of the last time; written before joined */
	struct queue *queues[LANE_QUEUES];
};

/* lane_init() - Make an empty lane */
void lane_init(struct lane *lane, const struct lane_ops *ops);

/* The worker's hold on a lane's queues. lane_add(): the queue is bound and becomes RUNNING. Return: 0 or -ENOMEM */
int lane_add(struct lane *lane, struct queue *q);
void lane_remove(struct lane *lane, struct queue *q);
/* lane_joined() - The answer to worker_join_lane(): it counts up, and *@error is how that went, 0 or -errno */
static inline uint32_t lane_joined(const struct lane *lane, int *error)
{
	uint32_t joined = load_acquire(&lane->joined);

	*error = lane->join_error;
	return joined;
}

/* lane_broken() - The next queue that broke since the last call, or NULL */
struct queue *lane_broken(struct lane *lane);
/* lane_notify_off() - After a sleep: ask the drivers of all running queues not to kick */
void lane_notify_off(struct lane *lane);

/* lane_fail() - Break one queue. @fault: NONE when virtq.c found it, and the virtq says which */
void lane_fail(struct lane *lane, struct queue *q, enum virtq_fault fault);

/* lane_check_memory() - Each turn, before popping: break the queues whose memory was truncated. Cheap while none is. */
void lane_look_at_memory(struct lane *lane);
static inline void lane_check_memory(struct lane *lane)
{
	if (unlikely(lane->broken_seen != mem_broken_count()))
		lane_look_at_memory(lane);
}

/* queue_bind() - Bind to rings, between two starts; counters go on. Return: 0, or virtq_init()'s errors */
int queue_bind(struct queue *q, const struct virtq_config *cfg, const struct mem_table *mem);

/* queue_state() - enum queue_state; what the worker did before the change is visible: the acquire pairs with its release */
static inline int queue_state(const struct queue *q)
{
	return (int)load_acquire(&q->state);
}

static inline void queue_set_state(struct queue *q, enum queue_state state)
{
	store_release(&q->state, (uint32_t)state);
}

static inline uint32_t queue_in_flight(const struct queue *q)
{
	return load_relaxed(&q->in_flight);
}

#endif
