/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net_hdr.c - what may stand in a virtio_net_hdr_v1, in either direction
 *
 * THEORY OF OPERATION
 *
 * The directions differ in the feature bits that allow an offload, and in DATA_VALID, which only a device may say. What is
 * allowed is the same: a checksum to complete must lie in the frame; a frame to segment has such a checksum, a size for
 * its segments, and headers that lie in the frame (a hint only, §5.1.6.2.2, which the kernel behind a tap relies on
 * all the same).
 */
#include "net_hdr.h"

_Static_assert(sizeof(struct virtio_net_hdr_v1) == NET_HDR_LEN, "the header is 12 bytes");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the header is little-endian; this host would need swaps");

#define BIT(n) (1ull << (n))

/* A direction's features. */
struct offloads {
	uint64_t csum, tso4, tso6, ecn, ufo, uso;
};

static const struct offloads to_host = {
	.csum = BIT(VIRTIO_NET_F_CSUM),
	.tso4 = BIT(VIRTIO_NET_F_HOST_TSO4),
	.tso6 = BIT(VIRTIO_NET_F_HOST_TSO6),
	.ecn = BIT(VIRTIO_NET_F_HOST_ECN),
	.ufo = BIT(VIRTIO_NET_F_HOST_UFO),
	.uso = BIT(VIRTIO_NET_F_HOST_USO),
};

/* USO of both IP versions: one gso_type means both, so a driver that takes only one of them gets neither. */
static const struct offloads to_guest = {
	.csum = BIT(VIRTIO_NET_F_GUEST_CSUM),
	.tso4 = BIT(VIRTIO_NET_F_GUEST_TSO4),
	.tso6 = BIT(VIRTIO_NET_F_GUEST_TSO6),
	.ecn = BIT(VIRTIO_NET_F_GUEST_ECN),
	.ufo = BIT(VIRTIO_NET_F_GUEST_UFO),
	.uso = BIT(VIRTIO_NET_F_GUEST_USO4) | BIT(VIRTIO_NET_F_GUEST_USO6),
};

static bool has_all(uint64_t features, uint64_t wanted)
{
	return (features & wanted) == wanted;
}

static bool gso_allowed(uint8_t gso_type, const struct offloads *may, uint64_t features)
{
	bool ecn = gso_type & VIRTIO_NET_HDR_GSO_ECN;

	switch (gso_type & ~VIRTIO_NET_HDR_GSO_ECN) {
	case VIRTIO_NET_HDR_GSO_TCPV4:
		return has_all(features, may->tso4 | (ecn ? may->ecn : 0));
	case VIRTIO_NET_HDR_GSO_TCPV6:
		return has_all(features, may->tso6 | (ecn ? may->ecn : 0));
	case VIRTIO_NET_HDR_GSO_UDP:
		return !ecn && has_all(features, may->ufo);
	case VIRTIO_NET_HDR_GSO_UDP_L4:
		return !ecn && has_all(features, may->uso);
	default:
		return false;
	}
}

static bool check(struct virtio_net_hdr_v1 *hdr, uint32_t len, const struct offloads *may, uint64_t features)
{
	if (hdr->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) {
		if (!has_all(features, may->csum) || (uint32_t)hdr->csum_start + hdr->csum_offset + 2 > len)
			return false;
	} else {
		hdr->csum_start = hdr->csum_offset = 0;
	}
	if (hdr->gso_type == VIRTIO_NET_HDR_GSO_NONE) {
		hdr->gso_size = hdr->hdr_len = 0;
		return true;
	}
	/* §5.1.6.2.1, §5.1.6.4.1: who asks for segments asks for their checksums. */
	return gso_allowed(hdr->gso_type, may, features) && hdr->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM &&
	       hdr->gso_size > 0 && hdr->hdr_len <= len;
}

bool net_hdr_check_tx(struct virtio_net_hdr_v1 *hdr, uint32_t len, uint64_t features)
{
	hdr->flags &= VIRTIO_NET_HDR_F_NEEDS_CSUM; /* §5.1.6.2.2: bits that we don't know are ignored */
	hdr->num_buffers = 0;                      /* §5.1.6.2.1: unused here */
	return check(hdr, len, &to_host, features);
}

bool net_hdr_check_rx(struct virtio_net_hdr_v1 *hdr, uint32_t len, uint64_t features)
{
	/* §5.1.6.4.1: without GUEST_CSUM flags are zero, which for DATA_VALID only loses a hint. */
	hdr->flags &= VIRTIO_NET_HDR_F_NEEDS_CSUM |
		      (has_all(features, to_guest.csum) ? VIRTIO_NET_HDR_F_DATA_VALID : 0);
	return check(hdr, len, &to_guest, features);
}
