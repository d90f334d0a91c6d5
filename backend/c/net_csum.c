/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net_csum.c - the Internet checksum, eight bytes at a time
 *
 * THEORY OF OPERATION
 *
 * Words of any size may be added up as long as carries go back in at the low end: 2^64 - 1 is a multiple of 2^16 - 1 (RFC
 * 1071 §2 (A), (C)). Four sums side by side keep the CPU from waiting for one carry after another. A piece that begins in the
 * midst of a 16-bit word is summed up as if it did not, and its sum then turned by one byte.
 *
 * The memory may be a guest's that writes to it meanwhile. It then gets a checksum that is wrong, which is its own loss.
 */
#include "net_csum.h"

#include <string.h>

static inline uint64_t add(uint64_t sum, uint64_t word)
{
	sum += word;
	return sum + (sum < word);
}

static inline uint64_t load(const uint8_t *at)
{
	uint64_t word;

	memcpy(&word, at, sizeof(word));
	return word;
}

static uint64_t sum_up(const uint8_t *at, size_t len)
{
	uint64_t a = 0, b = 0, c = 0, d = 0, rest = 0;

	for (; len >= 32; len -= 32, at += 32) {
		a = add(a, load(at));
		b = add(b, load(at + 8));
		c = add(c, load(at + 16));
		d = add(d, load(at + 24));
	}
	for (; len >= 8; len -= 8, at += 8)
		a = add(a, load(at));
	memcpy(&rest, at, len);
	return add(add(a, b), add(add(c, d), rest));
}

void net_csum_add(struct net_csum *csum, const void *at, size_t len)
{
	uint64_t sum = sum_up(at, len);

	if (csum->odd)
		sum = sum << 8 | sum >> 56;
	csum->sum = add(csum->sum, sum);
	csum->odd ^= len & 1;
}

uint16_t net_csum_sum(const struct net_csum *csum)
{
	uint64_t sum = csum->sum;

	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)((sum & 0xffff) + (sum >> 16));
}
