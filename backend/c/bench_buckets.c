/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_buckets.c - which bucket a latency falls into, and what a bucket stands for
 */
#include "bench_buckets.h"

#define SUB_BITS 7 /* 128 buckets per power of two */

uint32_t bench_bucket_of(uint64_t ns)
{
	uint32_t shift;

	if (ns < 1u << SUB_BITS)
		return (uint32_t)ns;
	shift = 63 - (uint32_t)__builtin_clzll(ns) - SUB_BITS;
	if (shift > 39 - SUB_BITS)
		return BENCH_BUCKETS - 1;
	return (shift << SUB_BITS) + (uint32_t)(ns >> shift);
}

double bench_bucket_ns(uint32_t bucket)
{
	uint32_t shift;

	if (bucket < 1u << SUB_BITS)
		return bucket;
	shift = (bucket >> SUB_BITS) - 1;
	return ((double)(bucket - (shift << SUB_BITS)) + 0.5) * (double)(1ull << shift);
}
