/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_buckets.h - the histogram in which every load generator counts latencies
 */
#ifndef KPOLL_BENCH_BUCKETS_H
#define KPOLL_BENCH_BUCKETS_H

#include <stdint.h>

/*
 * Latency histogram, log-linear: values below 128 ns have a bucket each, every further power of two has 128, so a
 * bucket is never wider than 1/128 of what it counts. The last one takes all from 2^40 ns (18 minutes) on.
 */
#define BENCH_BUCKETS 4353

/* bench_bucket_of(), bench_bucket_ns() - A value's bucket; a bucket's middle, in nanoseconds */
uint32_t bench_bucket_of(uint64_t ns);
double bench_bucket_ns(uint32_t bucket);

#endif
