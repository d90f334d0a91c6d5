/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_net.h - a load generator for a virtio network card: the C half of `kpoll bench net`
 *
 * One thread drives all queue pairs and spins on their used rings. It sends as fast as the device takes frames, receives as
 * fast as it gives them, or sends and waits for each frame to come back, `depth` of them under way per pair. Every frame
 * that we send carries a number, so that one which comes back is known to be that very one, and a missing one is missed.
 */
#ifndef KPOLL_BENCH_NET_H
#define KPOLL_BENCH_NET_H

#include <stdbool.h>
#include <stdint.h>

#include "../../vhost/c/driver.h"
#include "bench_buckets.h"
#include "bench_datagrams.h"
#include "net_hdr.h"

#define BENCH_NET_PAIRS_MAX 128
#define BENCH_NET_BATCH_MAX 256
#define BENCH_NET_FRAME_MIN 60 /* the smallest Ethernet frame, its check sequence apart */
#define BENCH_NET_FRAME_MAX NET_FRAME_MAX

enum bench_net_mode { BENCH_NET_TX, BENCH_NET_RX, BENCH_NET_ECHO };

struct bench_net_config {
	uint32_t pairs, queue_size; /* of each queue: so many frames, or buffers to receive, at most */
	uint32_t size;              /* bytes of a frame that we send, its header apart */
	uint32_t rx_buffer;         /* bytes of a buffer to receive into */
	uint32_t batch;             /* most frames per publication */
	uint32_t depth;             /* echo: frames under way per pair; rx: of `feed`; at most queue_size */
	bool mrg_rxbuf;             /* negotiated: a frame may come in several buffers */
	bool verify;                /* every frame's bytes follow from its number, and are compared */
	uint64_t seed;              /* of these bytes */
	uint64_t stall_ns;          /* nothing comes for so long: -ETIMEDOUT */
	int reflect_fd; /* datagrams that come here are sent back, between two looks at the queues; -1: none. Not owned */
	struct bench_datagrams
		*feed; /* rx: what comes is what we send to the other end of the path; NULL: others do. Not owned */
	int feed_fd;   /* a connected socket there. Not owned */
	uint8_t *area; /* page-aligned, bench_net_area_bytes() long */
	uint64_t area_gpa;
};

struct bench_net_load {
	int mode;            /* enum bench_net_mode */
	uint64_t runtime_ns; /* for so long; 0: no bound */
	uint64_t frames;     /* so many; 0: no bound */
};

struct bench_net_result {
	uint64_t sent;                   /* frames that the device took */
	uint64_t received, bytes;        /* echo: of ours, back, once; rx: all */
	uint64_t lost;                   /* of ours; rx: gaps between the numbers of those that came */
	uint64_t foreign;                /* frames that aren't ours, or that came before */
	uint64_t mismatches;             /* ours, with another length or other bytes */
	uint64_t mismatch_number;        /* the first one */
	uint64_t elapsed_ns;             /* to the last frame that came */
	uint64_t rtt_sum_ns, rtt_max_ns; /* echo: from before a batch is published until its frames are found */
	uint64_t kicks, calls;
	uint64_t rtt[BENCH_BUCKETS];
};

struct bench_net;

/* bench_net_area_bytes() - The memory that the frames and buffers of @cfg need, without the queues' own */
uint64_t bench_net_area_bytes(const struct bench_net_config *cfg);

/* bench_net_create() - Return: 0; -EINVAL for a configuration that cannot be; -ENOMEM */
int bench_net_create(struct bench_net **out, const struct bench_net_config *cfg);
void bench_net_destroy(struct bench_net *b);

/**
 * bench_net_add_pair() - Hand over the next pair of queues, until there are cfg.pairs of them
 * @rx, @tx:	Empty, of queue_size entries; stay the caller's to destroy, after bench_net_destroy()
 * @rx_call_fd, @tx_call_fd: Non-blocking eventfds that the device signals; not owned
 *
 * All buffers to receive into are made available at once.
 *
 * Return: 0; -EINVAL when there is no place for it; -ENOSPC: the queues are too small; -errno of write(2)
 */
int bench_net_add_pair(struct bench_net *b, struct driver *rx, struct driver *tx, int rx_call_fd, int tx_call_fd);

/**
 * bench_net_run() - Generate a load and count
 *
 * Return: 0; -EINVAL (no bound, no such mode, pairs missing); -EPROTO when the device returned what it was not given;
 * -EBADMSG when it filled a buffer with what can't be a frame; -ETIMEDOUT when nothing comes; -ECANCELED after
 * bench_net_stop(). After an error other than -EINVAL destroy, don't run again.
 */
int bench_net_run(struct bench_net *b, const struct bench_net_load *load, struct bench_net_result *out);

/* bench_net_stop() - Make bench_net_run() return at once. From any thread. */
void bench_net_stop(struct bench_net *b);

#endif
