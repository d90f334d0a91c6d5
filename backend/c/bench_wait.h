/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_wait.h - what waiting costs and how fast it ends: the C half of `kpoll bench wait`
 *
 * A waiter thread waits in a real wait set for one virtqueue's worth of word and doorbell; the calling thread plays
 * the virtio driver on another CPU. Python calls bench_wait_run() once per strategy and kind of measurement.
 */
#ifndef KPOLL_BENCH_WAIT_H
#define KPOLL_BENCH_WAIT_H

#include <stdbool.h>
#include <stdint.h>

#include "../../kernel/c/wait.h"
#include "bench_buckets.h"

/* Beside enum wait_strategy: spin whatever happens, as polling daemons do. The bad example; no worker can wait so. */
#define BENCH_WAIT_BLIND (-1)

struct bench_wait_config {
	int strategy;        /* enum wait_strategy, or BENCH_WAIT_BLIND */
	uint32_t max_us;     /* longest spin */
	int waiter_cpu;      /* the waiter's, and the hog's */
	int driver_cpu;      /* another one: the calling thread's */
	bool idle;           /* no requests while measuring, and one afterwards */
	bool hog;            /* a thread on the waiter's CPU that computes all the time */
	uint64_t warmup_ns;  /* the same before that, not counted */
	uint64_t runtime_ns; /* measure for so long */
	uint64_t think_ns;   /* from an answer to the next request: 1/2 to 3/2 of this, evenly */
	uint64_t seed;       /* of these times */
	uint64_t stall_ns;   /* no answer for so long: -ETIMEDOUT, a lost wake-up */
	uint32_t stopped;    /* atomic: set by bench_wait_stop() */
};

struct bench_wait_result {
	uint64_t requests, kicks; /* all were answered; of these the driver had to signal */
	uint64_t elapsed_ns;      /* of the measurement */
	uint64_t waiter_ns;       /* CPU time of the waiter in it */
	uint64_t hog_ns;          /* likewise of the hog */
	struct wait_stats wait;   /* of the wait set, likewise */
	uint64_t latency_max_ns;
	uint64_t latency[BENCH_BUCKETS]; /* wake-ups: from before the store until the waiter has seen it */
};

/**
 * bench_wait_run() - Measure one strategy in one situation
 *
 * Blocks for warm-up and runtime, and at most the stall time more.
 *
 * Return: 0; -EINVAL for a configuration that cannot be (CPUs that this process may not use, too); -errno of
 * wait_set_init() and wait_set_add() (the host lacks the strategy), of eventfd(2) and of making threads; -ENODATA when
 * /proc tells no CPU times; -ETIMEDOUT after a lost wake-up; -ECANCELED after bench_wait_stop()
 */
int bench_wait_run(struct bench_wait_config *cfg, struct bench_wait_result *out);

/* bench_wait_stop() - Make bench_wait_run() return soon. From any thread. */
void bench_wait_stop(struct bench_wait_config *cfg);

#endif
