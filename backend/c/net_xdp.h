/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net_xdp.h - what a port on an AF_XDP socket is made of: its memory and rings, mapped by whoever opened it
 */
#ifndef KPOLL_NET_XDP_H
#define KPOLL_NET_XDP_H

#include <stdbool.h>
#include <stdint.h>

#include "net_port.h"

#define NET_XDP_RING 2048u  /* entries of each ring, and chunks for each direction */
#define NET_XDP_CHUNK 4096u /* bytes; a received frame has less, as the kernel keeps a headroom */
#define NET_XDP_UMEM (2u * NET_XDP_RING * NET_XDP_CHUNK) /* bytes */

struct net_xdp_ring {
	uint32_t *producer, *consumer, *flags; /* atomic: the kernel has the other side */
	void *entries;                         /* NET_XDP_RING of them */
};

struct net_xdp {
	int fd;
	bool busy_poll;     /* the card's interrupts are off for as long as we ask for frames ourselves */
	uint32_t frame_max; /* most bytes of a frame to send: what the interface is made for; at most NET_XDP_CHUNK */
	uint8_t *umem;      /* NET_XDP_UMEM bytes */
	struct net_xdp_ring rx, tx;           /* of struct xdp_desc */
	struct net_xdp_ring fill, completion; /* of offsets in the umem */
};

/* net_port_xdp() - A bound socket, whose rings nobody has touched; all of it stays who made it's. Return: 0 or -ENOMEM */
int net_port_xdp(struct net_port **out, const struct net_xdp *with);

#endif
