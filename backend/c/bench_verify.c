/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_verify.c - patterns of (seed, block, generation), and the book-keeping that makes them comparable
 */
#include <errno.h>
#include <stdlib.h>

#include "bench_verify.h"

int bench_verify_init(struct bench_verify *v, uint64_t blocks, uint32_t block_size, uint64_t seed)
{
	v->blocks = blocks;
	v->block_size = block_size;
	v->seed = seed;
	v->generations = calloc(blocks, sizeof(*v->generations));
	v->claimed = calloc(blocks, sizeof(*v->claimed));
	if (v->generations && v->claimed)
		return 0;
	bench_verify_fini(v);
	return -ENOMEM;
}

void bench_verify_fini(struct bench_verify *v)
{
	free(v->generations);
	free(v->claimed);
	v->generations = NULL;
	v->claimed = NULL;
}

/* Where a pattern starts: neighbours, generations and seeds have nothing in common, and none is xorshift's fixed point 0. */
static uint64_t pattern_state(const struct bench_verify *v, uint64_t block, uint32_t generation)
{
	uint64_t x = v->seed ^ (block + 1) * 0x9e3779b97f4a7c15u ^ (uint64_t)generation * 0xbf58476d1ce4e5b9u;

	x = (x ^ x >> 30) * 0x94d049bb133111ebu;
	return (x ^ x >> 31) | 1;
}

uint64_t bench_verify_claim(struct bench_verify *v, uint64_t block)
{
	while (v->claimed[block])
		block = block + 1 == v->blocks ? 0 : block + 1;
	v->claimed[block] = 1;
	return block;
}

uint32_t bench_verify_fill(const struct bench_verify *v, uint64_t block, uint64_t *words)
{
	uint32_t generation = v->generations[block] + 1;
	uint64_t state = pattern_state(v, block, generation);

	for (uint32_t i = 0; i < v->block_size / sizeof(*words); i++)
		words[i] = bench_random(&state);
	return generation;
}

void bench_verify_written(struct bench_verify *v, uint64_t block, uint32_t generation, bool ok)
{
	v->generations[block] = ok ? generation : 0;
	v->claimed[block] = 0;
}

int bench_verify_read(struct bench_verify *v, uint64_t block, const uint64_t *words, bool ok, uint64_t *wrong)
{
	uint64_t state = pattern_state(v, block, v->generations[block]);

	v->claimed[block] = 0;
	if (!ok || !v->generations[block])
		return 0;
	for (uint32_t i = 0; i < v->block_size / sizeof(*words); i++) {
		if (words[i] != bench_random(&state)) {
			*wrong = i * sizeof(*words);
			return -EILSEQ;
		}
	}
	return 1;
}
