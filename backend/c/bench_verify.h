/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_verify.h - what the load generator knows of the disk's contents: a generation per block, and patterns to match
 *
 * A block's contents follow from (seed, block, generation), so a read tells whether it got the newest write of that
 * very block: stale, misplaced, torn and lost data all differ. While a request for a block is in flight the block is
 * claimed, because two at once may be carried out in any order.
 */
#ifndef KPOLL_BENCH_VERIFY_H
#define KPOLL_BENCH_VERIFY_H

#include <stdbool.h>
#include <stdint.h>

struct bench_verify {
	uint64_t blocks, seed;
	uint32_t block_size;   /* bytes */
	uint32_t *generations; /* what the disk holds; 0: not known */
	uint8_t *claimed;
};

/* xorshift64: cheap pseudo-random numbers, for offsets and contents. *@state is never 0. */
static inline uint64_t bench_random(uint64_t *state)
{
	uint64_t x = *state;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return *state = x;
}

/* A pause: 1/2 to 3/2 of @mean_ns, evenly. */
static inline uint64_t bench_pause_ns(uint64_t *state, uint64_t mean_ns)
{
	return mean_ns / 2 + (mean_ns ? bench_random(state) % mean_ns : 0);
}

/* bench_verify_init() - Nothing is known, nothing claimed. Return: 0 or -ENOMEM */
int bench_verify_init(struct bench_verify *v, uint64_t blocks, uint32_t block_size, uint64_t seed);
void bench_verify_fini(struct bench_verify *v);

/* bench_verify_claim() - Return: @block, or the next one that nobody has claimed; there must be one */
uint64_t bench_verify_claim(struct bench_verify *v, uint64_t block);

/* bench_verify_fill() - The contents that the next write of a claimed block shall carry. Return: their generation */
uint32_t bench_verify_fill(const struct bench_verify *v, uint64_t block, uint64_t *words);

/* bench_verify_written() - A write came back: note what the block holds, release it. A failed one may have done anything. */
void bench_verify_written(struct bench_verify *v, uint64_t block, uint32_t generation, bool ok);

/*
 * bench_verify_read() - A read came back: compare, release the block
 * @wrong:	Receives the first wrong byte, to 8 bytes
 *
 * Return: 1 right; 0 not known; -EILSEQ wrong
 */
int bench_verify_read(struct bench_verify *v, uint64_t block, const uint64_t *words, bool ok, uint64_t *wrong);

#endif
