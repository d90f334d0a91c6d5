/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_net_load.h - what the two halves of the load generator for network cards share
 */
#ifndef KPOLL_BENCH_NET_LOAD_H
#define KPOLL_BENCH_NET_LOAD_H

#include <string.h>

#include "bench_net.h"
#include "bench_verify.h"

#define BENCH_NET_LINE 64u                 /* of the cache */
#define BENCH_NET_MAGIC 0x6b706f6c6c6e6574 /* "kpollnet" */

/* What our frames begin with: broadcast, of the Ethertype 0x88b5 (IEEE 802, Local Experimental 1). */
struct bench_head {
	uint8_t dst[6], src[6], type[2];
	uint64_t magic;
	uint32_t pair;
	uint64_t number; /* from 0 on, for each pair; never repeated */
} __attribute__((packed));

_Static_assert(sizeof(struct bench_head) <= BENCH_NET_FRAME_MIN, "every frame has room for it");

struct bench_sent {
	uint64_t number, ns;
	bool under_way;
};

struct bench_pair {
	struct driver *rx, *tx;
	int call_fds[2];
	uint8_t *tx_places, *rx_places;
	uint64_t tx_gpa, rx_gpa;
	struct driver_used *idle; /* places of frames that the device doesn't have */
	uint32_t idle_count;
	uint64_t next, awaited;  /* numbers: of the frame to send next; of the first one that may still come back */
	struct bench_sent *sent; /* echo: the last `window` frames, by number */
	uint64_t came;           /* rx: the number after the last one that came; 0: none did */
	uint32_t pieces, length; /* of the frame that is being received: buffers to come; bytes so far */
	struct bench_head head;  /* its beginning */
	uint8_t *whole;          /* verify: all of it */
};

struct bench_net {
	struct bench_net_config cfg;
	uint32_t pair_count, window;
	struct bench_pair *pairs;
	uint8_t *expected; /* verify: what it should be */
	uint32_t stopped;  /* atomic: set by bench_net_stop() */

	/* of the run under way */
	struct bench_net_result *result;
	int mode;
	uint64_t left, deadline_ns;
	uint64_t fed; /* datagrams that were sent to the other end, those that were lost apart */
};

/* Bytes from one place to the next. */
static inline uint64_t bench_net_stride(uint64_t bytes)
{
	return ((bytes + BENCH_NET_LINE - 1) / BENCH_NET_LINE | 1) * BENCH_NET_LINE;
}

/* What follows a frame's head: the same in all frames, or bytes of its own. */
static inline void bench_net_fill(const struct bench_net *b, uint64_t number, uint8_t *frame)
{
	uint64_t state = (b->cfg.seed ^ (number + 1) * 0x9e3779b97f4a7c15u) | 1; /* never 0 */

	for (uint32_t at = sizeof(struct bench_head); at < b->cfg.size; at += sizeof(state)) {
		uint64_t word = bench_random(&state);

		memcpy(frame + at, &word, b->cfg.size - at < sizeof(word) ? b->cfg.size - at : sizeof(word));
	}
}

/* bench_net_offer() - Make a buffer to receive into available. Return: as of driver_add() */
int bench_net_offer(struct bench_net *b, struct bench_pair *p, uint64_t place);

/* bench_net_receive() - Look at what came to a pair, a batch at most. Return: buffers; -EPROTO, -EBADMSG; -errno of write(2) */
int bench_net_receive(struct bench_net *b, struct bench_pair *p);

#endif
