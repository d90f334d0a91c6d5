/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net_hdr.h - struct virtio_net_hdr_v1, which precedes every frame: what may stand in it (virtio 1.2 §5.1.6)
 *
 * A header that comes from a driver or from the other end of a wire is checked in a copy, and the copy is reduced to what
 * it was checked for: fields that mean nothing in this frame become zeros, so that nobody behind us can be misled by them.
 */
#ifndef KPOLL_NET_HDR_H
#define KPOLL_NET_HDR_H

#include <linux/virtio_net.h>
#include <stdbool.h>
#include <stdint.h>

#include "../../kernel/c/atomics.h"

#define NET_HDR_LEN 12u      /* with num_buffers (§5.1.6.1): net_device.py refuses drivers that have none */
#define NET_FRAME_MIN 14u    /* an Ethernet header */
#define NET_FRAME_MAX 65550u /* the largest frame that a driver must have room for (§5.1.6.3.1), its header apart */

/* Linux 6.2 names these. */
#ifndef VIRTIO_NET_HDR_GSO_UDP_L4
#define VIRTIO_NET_HDR_GSO_UDP_L4 5
#endif
#ifndef VIRTIO_NET_F_HOST_USO
#define VIRTIO_NET_F_GUEST_USO4 54
#define VIRTIO_NET_F_GUEST_USO6 55
#define VIRTIO_NET_F_HOST_USO 56
#endif

/* Does it ask for nothing? Then none of its other fields means anything (§5.1.6.2.1, §5.1.6.4.1). Most headers are so. */
static inline bool net_hdr_plain(const struct virtio_net_hdr_v1 *hdr)
{
	return hdr->flags == 0 && hdr->gso_type == VIRTIO_NET_HDR_GSO_NONE;
}

/**
 * net_hdr_tx() - Check the header of a frame that the driver sends (§5.1.6.2)
 * @hdr:	Our copy; reduced to what was checked
 * @len:	The frame's bytes, its header apart
 * @features:	Negotiated
 *
 * Return: false when it lies: an offload that wasn't negotiated, or an offset beyond the frame
 */
bool net_hdr_check_tx(struct virtio_net_hdr_v1 *hdr, uint32_t len, uint64_t features);
static inline bool net_hdr_tx(struct virtio_net_hdr_v1 *hdr, uint32_t len, uint64_t features)
{
	if (unlikely(!net_hdr_plain(hdr)))
		return net_hdr_check_tx(hdr, len, features);
	*hdr = (struct virtio_net_hdr_v1){ 0 };
	return true;
}

/**
 * net_hdr_rx() - Check the header of a frame that came from the backend (§5.1.6.4)
 *
 * As net_hdr_tx(), but for the features that say what the driver takes. num_buffers is the caller's to write.
 */
bool net_hdr_check_rx(struct virtio_net_hdr_v1 *hdr, uint32_t len, uint64_t features);
static inline bool net_hdr_rx(struct virtio_net_hdr_v1 *hdr, uint32_t len, uint64_t features)
{
	if (unlikely(!net_hdr_plain(hdr)))
		return net_hdr_check_rx(hdr, len, features);
	*hdr = (struct virtio_net_hdr_v1){ 0 };
	return true;
}

#endif
