/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_blk.h - a closed-loop load generator for a virtio block device: the C half of `kpoll bench blk`
 *
 * One thread drives all queues: each keeps `iodepth` requests in flight and sends a new one for every one that
 * comes back, until time or number is up; then it waits for the rest. Python prepares memory and queues, calls
 * bench_run() once per phase (lay out, warm up, measure, read back) and may stop it from another thread.
 */
#ifndef KPOLL_BENCH_BLK_H
#define KPOLL_BENCH_BLK_H

#include <stdbool.h>
#include <stdint.h>

#include "../../vhost/c/driver.h"
#include "bench_buckets.h"

#define BENCH_QUEUES_MAX 256

enum bench_rw { BENCH_READ, BENCH_WRITE, BENCH_RANDREAD, BENCH_RANDWRITE, BENCH_RANDRW };

struct bench_config {
	uint32_t queues, iodepth; /* iodepth is per queue */
	uint32_t block_size;      /* bytes of a request, a multiple of 512 */
	uint32_t segment_max;     /* bytes of one buffer at most (VIRTIO_BLK_F_SIZE_MAX), a multiple of 512 */
	uint64_t blocks;          /* of block_size, from the disk's start, that may be touched */
	uint64_t seed;            /* of offsets and contents */
	uint64_t stall_ns;        /* no answer for so long, with requests in flight: -ETIMEDOUT */
	bool verify;              /* writes carry a pattern of (block, generation, seed), reads check it */
	bool sleep;               /* wait for interrupts instead of spinning on the used rings */
	uint8_t *area;            /* page-aligned, bench_area_bytes() long: headers, data, status bytes */
	uint64_t area_gpa;
};

struct bench_load {
	int rw;              /* enum bench_rw; sequential ones start at block 0 */
	uint64_t runtime_ns; /* send for so long; 0: no bound */
	uint64_t requests;   /* send so many; 0: no bound */
	uint64_t think_ns;   /* from answers to the requests that replace them: 1/2 to 3/2 of this, evenly */
};

struct bench_result {
	uint64_t reads, writes;                   /* requests that came back, failed ones too */
	uint64_t errors;                          /* of these, with a status other than OK */
	uint64_t checked;                         /* reads whose contents were known */
	uint64_t mismatches;                      /* of these, with other contents */
	uint64_t mismatch_block, mismatch_offset; /* the first one: block number, byte in it */
	uint64_t elapsed_ns, latency_sum_ns, latency_max_ns;
	uint64_t kicks, calls; /* notifications sent; signals of the call descriptors */
	uint64_t latency[BENCH_BUCKETS];
};

struct bench;

/* bench_area_bytes() - The memory that the requests of @cfg need, without the queues' own */
uint64_t bench_area_bytes(const struct bench_config *cfg);

/* bench_chain_max() - Buffers of one request: header, data segments, status */
uint32_t bench_chain_max(const struct bench_config *cfg);

/* bench_create() - Return: 0; -EINVAL for a configuration that cannot be; -ENOMEM; -errno of epoll_create1, eventfd */
int bench_create(struct bench **out, const struct bench_config *cfg);
void bench_destroy(struct bench *b);

/**
 * bench_add_queue() - Hand over the next queue, until there are cfg.queues of them
 * @d:		Empty, with room for iodepth requests; stays the caller's to destroy, after bench_destroy()
 * @call_fd:	Non-blocking eventfd that the device signals; not owned
 *
 * Return: 0; -EINVAL when there is no place for it; -errno of epoll_ctl(2)
 */
int bench_add_queue(struct bench *b, struct driver *d, int call_fd);

/**
 * bench_run() - Generate a load and count
 *
 * After an error other than -EINVAL requests may still be in flight: destroy, don't run again.
 *
 * Return: 0; -EINVAL (no bound, verify with fewer blocks than requests in flight); -EPROTO when the device returned
 * what it was not given; -ETIMEDOUT when it fell silent; -ECANCELED after bench_stop()
 */
int bench_run(struct bench *b, const struct bench_load *load, struct bench_result *out);

/* bench_stop() - Make bench_run() return at once. From any thread. */
void bench_stop(struct bench *b);

#endif
