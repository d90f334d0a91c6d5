/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net_soft.h - a driver's offloads in software: from a frame that lacks a checksum, or is many segments in one, to frames
 * that can go over a wire (virtio 1.2 §5.1.6.2)
 *
 * For ports behind which nobody else does it. They walk through a frame's segments; each has headers of its own, and a
 * payload that stays where it is, in guest memory:
 *
 *	struct net_soft soft;
 *
 *	frame->error = net_soft_begin(&soft, frame);
 *	while (frame->error == 0 && soft.segments > 0) {
 *		... find room for net_soft_len(&soft) bytes of wire, soft.header_len of them for headers
 *		n = net_soft_next(&soft, headers, iov); // iov[0] are the headers, written; the others are the payload
 *	}
 *
 * Segments are all of one length, but for a last one that may be shorter.
 */
#ifndef KPOLL_NET_SOFT_H
#define KPOLL_NET_SOFT_H

#include "net_port.h"

#define NET_SOFT_HEADERS 256u   /* most bytes of headers, all layers together; a driver with more is refused */
#define NET_SOFT_SEGMENTS 2048u /* most segments of one frame: 64 KiB in pieces of 32 */

struct net_soft {
	uint32_t segments;   /* that are still to come; 0: that was all */
	uint32_t header_len; /* of each segment's own headers */

	/* net_soft.c's */
	uint32_t segment_size; /* bytes of payload in each but the last */
	uint32_t left;         /* bytes of payload that are still to come */
	const struct iovec *iov;
	size_t skip;                       /* bytes of iov[0] that are behind us */
	uint32_t done;                     /* segments so far */
	uint32_t l3, l4;                   /* where IP and TCP or UDP begin in the headers */
	uint32_t csum_at;                  /* the checksum's field */
	uint8_t version;                   /* of IP: 4, 6; 0: nothing is known but where the checksum is */
	uint8_t protocol;                  /* IPPROTO_TCP, IPPROTO_UDP */
	uint64_t addresses;                /* their sum, for the pseudo-header */
	uint8_t headers[NET_SOFT_HEADERS]; /* as the driver wrote them, copied once */
};

/* net_soft_needed() - Whether a frame can't go over a wire as it is */
static inline bool net_soft_needed(const struct net_frame *frame)
{
	return frame->hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM;
}

/*
 * net_soft_begin() - Read the headers of a frame that needs it; net_hdr_tx() has checked frame->hdr. The frame's iovecs must
 * stay as they are until the last segment. Return: 0, with at least one segment to come; -EBADMSG, the frame isn't what its
 * header says, or has more headers or segments than we do
 */
int net_soft_begin(struct net_soft *soft, const struct net_frame *frame);

/* net_soft_len() - Bytes of the next segment, headers and payload */
static inline uint32_t net_soft_len(const struct net_soft *soft)
{
	return soft->header_len + (soft->left < soft->segment_size ? soft->left : soft->segment_size);
}

/*
 * net_soft_next() - The next segment: soft->header_len bytes of headers written to @headers, which iov[0] then is, and its
 * payload. @iov has room for as many as the frame has, and one more. Return: how many are used
 */
unsigned net_soft_next(struct net_soft *soft, uint8_t *headers, struct iovec *iov);

#endif
