/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_datagrams.h - a batch of equal datagrams, laid out once and sent again and again
 */
#ifndef KPOLL_BENCH_DATAGRAMS_H
#define KPOLL_BENCH_DATAGRAMS_H

#include <stdint.h>

#define BENCH_DATAGRAMS_MAX 64u /* what the kernel cuts one message into (UDP_MAX_SEGMENTS) */

struct bench_datagrams;

/**
 * bench_datagrams_create() - Lay a batch out; each of its datagrams has memory of its own, as a guest's frames have
 * @bytes:	What is in each of them
 * @size:	How long that is
 * @count:	Datagrams of the batch, 1..BENCH_DATAGRAMS_MAX
 * @each:	At most so many in one message, which the kernel cuts (UDP_SEGMENT); 1: none is cut. Fewer where they
 *		would be more than IP has room for
 *
 * Return: 0; -EINVAL for what can't be; -ENOMEM
 */
int bench_datagrams_create(struct bench_datagrams **out, const uint8_t *bytes, uint32_t size, uint32_t count,
			   uint32_t each);
void bench_datagrams_destroy(struct bench_datagrams *d);

/* bench_datagrams_send() - Send the batch; adds to @sent what went out. Return: 0 or -errno of sendmmsg(2) */
int bench_datagrams_send(struct bench_datagrams *d, int fd, uint64_t *sent);

/* bench_datagrams_count() - How many a batch has */
uint32_t bench_datagrams_count(const struct bench_datagrams *d);

#endif
