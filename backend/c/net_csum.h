/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net_csum.h - the Internet checksum (RFC 1071), over memory that lies in pieces
 *
 * What is summed up are the 16-bit words as they lie in memory. The sum doesn't depend on byte order (RFC 1071 §2 (B)), so
 * a result is stored as it is, with memcpy().
 */
#ifndef KPOLL_NET_CSUM_H
#define KPOLL_NET_CSUM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct net_csum {
	uint64_t sum; /* modulo 2^64 - 1, a multiple of 2^16 - 1 */
	bool odd;     /* an odd number of bytes so far: the next one is the second of a word */
};

/* net_csum_add() - Go on with the next piece */
void net_csum_add(struct net_csum *csum, const void *at, size_t len);

/* net_csum_sum() - The sum so far in 16 bits, not complemented: what a pseudo-header leaves in a checksum field */
uint16_t net_csum_sum(const struct net_csum *csum);

/* net_csum_field() - What to store in the field, which was zero, or held the sum of a pseudo-header, when it was summed up */
static inline uint16_t net_csum_field(const struct net_csum *csum)
{
	return (uint16_t)~net_csum_sum(csum);
}

#endif
