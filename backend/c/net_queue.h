/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net_queue.h - what the network device's own files know of a queue and of a lane
 */
#ifndef KPOLL_NET_QUEUE_H
#define KPOLL_NET_QUEUE_H

#include <stdbool.h>

#include "../../kernel/c/atomics.h"
#include "net.h"

#define NET_LANE_IOVS 2048 /* of all frames of one batch */

/* A chain that was popped to be received into. */
struct net_buf {
	struct virtq_chain chain;
	uint32_t turn;    /* how many were popped before it */
	struct iovec iov; /* its buffer; of more than one, all are in net_queue.pieces */
};

struct net_queue {
	struct queue queue;
	uint64_t features; /* negotiated */
	bool discard;      /* tx: it is disabled, and nothing that is sent may leave */
	struct net_stats stats;

	/* rx: what was popped and not yet filled: a ring in the order in which it will be filled. queue.in_flight counts it. */
	struct net_buf *bufs; /* as many as the queue has entries, in untouched pages until first used */
	struct iovec (
		*pieces)[NET_RX_SEG_MAX]; /* likewise, one for each of bufs: apart, since few chains have several */
	uint32_t bufs_count;
	uint32_t first;
	uint32_t popped;   /* chains so far, modulo 2^32 */
	uint32_t last_len; /* bytes of the last frame: a hint of what the next one needs */
};

struct net_lane {
	struct lane lane;
	struct net_port *port;
	struct net_port *next; /* the port to be, or NULL; Python's until the worker joins the lane anew */
	struct wait_set *ws;   /* where the port's descriptor is waited for; NULL: it isn't */
	bool muted;            /* it is not waited for at present */
	bool failing;          /* the port could not receive when it was last asked */
	uint8_t *spill;        /* NET_BATCH times NET_ROOM, in untouched pages until first used */
	struct net_frame frames[NET_BATCH];
	struct virtq_chain chains[NET_BATCH]; /* of one batch */
	struct iovec iov[NET_LANE_IOVS];
};

static inline void net_drop(struct net_queue *q, enum net_drop reason)
{
	count_add(&q->stats.drops[reason], 1);
}

/* net_tx_poll() - Pop a batch of a running tx queue, send it, give it back. Return: chains that moved */
unsigned net_tx_poll(struct net_lane *lane, struct net_queue *q);

/* net_rx_poll() - Pop what is available of a running rx queue, receive a batch. Return: chains popped and frames received */
unsigned net_rx_poll(struct net_lane *lane, struct net_queue *q);
/* net_rx_give_back() - Leave nothing in flight. Return: chains that were */
unsigned net_rx_give_back(struct net_queue *q);

#endif
