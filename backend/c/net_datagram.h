/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net_datagram.h - what the ports on a UDP socket share: each datagram is a frame, with or without a header in front
 *
 * Many datagrams go through the kernel in one piece: to send, a message with UDP_SEGMENT, which the kernel or the card cuts up
 * (net_datagram_tx.c); to receive, what UDP_GRO put together (net_datagram_rx.c). On the wire each frame is a datagram of its
 * own all the same. Offloads are done in software (net_soft.h).
 */
#ifndef KPOLL_NET_DATAGRAM_H
#define KPOLL_NET_DATAGRAM_H

#include <netinet/in.h>
#include <sys/socket.h>

#include "../../kernel/c/atomics.h"
#include "net_port.h"

#define NET_ENCAP 8u /* most bytes in front of a frame: VXLAN's header */

#define TX_MESSAGES 64u
#define TX_IOVS 2048u
#define TX_HEADERS 65536u /* bytes of headers that net_soft.c writes, and of datagrams that are copied */

/* Frames of one size in a message; the last may be shorter. */
struct tx_message {
	unsigned first, last; /* of the frames in it */
	unsigned pieces;
	uint32_t size; /* of each */
	uint32_t len;  /* of all */
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(uint16_t))];
	} control;
};

struct rx_message {
	struct sockaddr_storage from;
	struct iovec iov;
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control;
};

struct net_datagram {
	struct net_port port;
	uint8_t encap[NET_ENCAP]; /* what is sent in front of each frame */
	uint32_t encap_len;
	struct sockaddr_storage peer;
	socklen_t peer_len; /* 0: the socket is connected, and others are not heard */

	/* tx: messages that are being made */
	uint32_t segment_max; /* bytes of the largest datagram that UDP_SEGMENT may cut off; 0: it can't be used */
	uint64_t again_ns;    /* when what was found out about that is forgotten; 0: nothing was */
	unsigned messages, iovs;
	uint32_t headers_len;
	struct mmsghdr tx_hdrs[TX_MESSAGES];
	struct tx_message tx[TX_MESSAGES];
	struct iovec tx_iov[TX_IOVS];
	uint8_t headers[TX_HEADERS];

	/* rx: messages that were received, and how many bytes of the next of them have been handed out */
	unsigned received, next;
	uint32_t at;
	uint32_t size;    /* of each datagram in it, but the last */
	bool foreign;     /* it isn't from the peer */
	uint8_t *buffers; /* in untouched pages until first used */
	struct mmsghdr rx_hdrs[NET_BATCH];
	struct rx_message rx[NET_BATCH];
};

/* net_datagram_create() - On a datagram socket, nothing in front of frames yet. Return: 0; -EINVAL for another type; -ENOMEM; -errno */
int net_datagram_create(struct net_datagram **out, int fd);

/* The port's operations. */
void net_datagram_tx(struct net_port *port, struct net_frame *frames, unsigned n);
int net_datagram_rx(struct net_port *port, struct net_frame *frames, unsigned n);

static inline struct net_datagram *net_datagram_of(struct net_port *port)
{
	return container_of(port, struct net_datagram, port);
}

/* net_datagram_map_buffers() - Room for a batch of messages to receive. Return: 0 or -ENOMEM */
int net_datagram_map_buffers(struct net_datagram *dg);
void net_datagram_unmap_buffers(struct net_datagram *dg);

#endif
