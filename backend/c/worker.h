/* SPDX-License-Identifier: Apache-2.0 */
/*
 * worker.h - a thread that serves virtqueues, and the mailbox through which Python tells it what to do
 *
 * Python calls worker_run() in a thread of its own with the GIL released; it returns after worker_stop(). All other
 * functions are called from the steering thread. A queue is Python's while it is STOPPED and the worker's from
 * worker_start_queue() until its state is STOPPED again; the worker announces every change of state by writing
 * event_fd (an eventfd that the steering thread polls).
 */
#ifndef KPOLL_WORKER_H
#define KPOLL_WORKER_H

#include <stdint.h>

#include "../../kernel/c/wait.h"
#include "lane.h"

struct worker;

struct worker_stats {
	struct wait_stats wait;
	uint64_t kicks;  /* kick descriptors found signalled */
	uint64_t cpu_ns; /* CPU time of the thread; refreshed by worker_stats() */
};

/**
 * worker_create() - Prepare a worker
 * @strategy:	enum wait_strategy
 * @max_us:	Longest spin
 *
 * Return: 0; -EINVAL for an unknown strategy; -ENOMEM; -errno of what wait_set_init() and wait_set_add() need
 */
int worker_create(struct worker **out, int strategy, uint32_t max_us);
void worker_destroy(struct worker *w); /* after worker_run() returned */

/* worker_run() - Serve until worker_stop() and until every queue is STOPPED. Return: 0 or -errno */
int worker_run(struct worker *w);

/* worker_event_fd() - Readable after any queue changed state */
int worker_event_fd(const struct worker *w);

/* worker_add_lane() - Give the worker its share of a device; before worker_run(). Return: 0; -ENOMEM; join()'s errors */
int worker_add_lane(struct worker *w, struct lane *lane);

/*
 * worker_start_queue(), worker_stop_queue() - Ask; the answer is the queue's state (queue_state()). A queue whose
 * kick_fd can't be watched becomes BROKEN. Return: 0 or -ENOMEM
 * @kick_fd: watched edge-triggered, never read; -1 when the driver is to be polled. Must stay open until STOPPED.
 */
int worker_start_queue(struct worker *w, struct lane *lane, struct queue *q, int kick_fd);
int worker_stop_queue(struct worker *w, struct queue *q);
int worker_stop(struct worker *w);
/* worker_wake() - Have it take another turn, whatever it waits for */
void worker_wake(struct worker *w);
/* worker_join_lane() - Have a lane joined anew, as Python prepared it; the answer is lane_joined(). Return: 0 or -ENOMEM */
int worker_join_lane(struct worker *w, struct lane *lane);

void worker_stats(struct worker *w, struct worker_stats *out);

#endif
