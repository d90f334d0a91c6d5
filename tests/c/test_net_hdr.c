/* SPDX-License-Identifier: Apache-2.0 */
/* test_net_hdr.c - virtio-net headers: each offload needs its feature, each offset must lie in the frame */
#include <string.h>

#include "backend/c/net_hdr.h"
#include "check.h"

#define FRAME 200u
#define F(name) (1ull << VIRTIO_NET_F_##name)
#define G(name) VIRTIO_NET_HDR_GSO_##name

static struct virtio_net_hdr_v1 csum(uint16_t start, uint16_t offset)
{
	return (struct virtio_net_hdr_v1){
		.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
		.csum_start = start,
		.csum_offset = offset,
	};
}

static struct virtio_net_hdr_v1 gso(uint8_t type)
{
	struct virtio_net_hdr_v1 hdr = csum(34, 16);

	hdr.gso_type = type;
	hdr.gso_size = 100;
	hdr.hdr_len = 54;
	return hdr;
}

static bool tx(struct virtio_net_hdr_v1 hdr, uint64_t features)
{
	return net_hdr_tx(&hdr, FRAME, features);
}

static bool rx(struct virtio_net_hdr_v1 hdr, uint64_t features)
{
	return net_hdr_rx(&hdr, FRAME, features);
}

static void a_header_of_zeros_is_always_right(void)
{
	CHECK(tx((struct virtio_net_hdr_v1){ 0 }, 0));
	CHECK(rx((struct virtio_net_hdr_v1){ 0 }, 0));
}

static void a_checksum_needs_csum_to_send_and_guest_csum_to_receive(void)
{
	CHECK(tx(csum(34, 16), F(CSUM)));
	CHECK(!tx(csum(34, 16), ~F(CSUM)));
	CHECK(rx(csum(34, 16), F(GUEST_CSUM)));
	CHECK(!rx(csum(34, 16), ~F(GUEST_CSUM)));
}

static void a_checksum_lies_within_the_frame(void)
{
	CHECK(tx(csum(FRAME - 2, 0), F(CSUM)));
	CHECK(tx(csum(0, FRAME - 2), F(CSUM)));
	CHECK(!tx(csum(FRAME - 1, 0), F(CSUM)));
	CHECK(!tx(csum(FRAME - 10, 9), F(CSUM)));
	CHECK(!tx(csum(UINT16_MAX, UINT16_MAX), F(CSUM)));
	CHECK(!rx(csum(FRAME - 1, 0), F(GUEST_CSUM)));
}

static void each_segmentation_needs_its_own_feature(void)
{
	static const struct {
		uint8_t type;
		uint64_t tx, rx;
	} rules[] = {
		{ G(TCPV4), F(HOST_TSO4), F(GUEST_TSO4) },
		{ G(TCPV6), F(HOST_TSO6), F(GUEST_TSO6) },
		{ G(TCPV4) | G(ECN), F(HOST_TSO4) | F(HOST_ECN), F(GUEST_TSO4) | F(GUEST_ECN) },
		{ G(TCPV6) | G(ECN), F(HOST_TSO6) | F(HOST_ECN), F(GUEST_TSO6) | F(GUEST_ECN) },
		{ G(UDP), F(HOST_UFO), F(GUEST_UFO) },
		{ G(UDP_L4), F(HOST_USO), F(GUEST_USO4) | F(GUEST_USO6) },
	};

	for (unsigned i = 0; i < sizeof(rules) / sizeof(rules[0]); i++) {
		CHECK(tx(gso(rules[i].type), rules[i].tx | F(CSUM)));
		CHECK(rx(gso(rules[i].type), rules[i].rx | F(GUEST_CSUM)));
		/* Any one of the bits that it needs is missing, and no other. */
		for (unsigned bit = 0; bit < 64; bit++) {
			if (rules[i].tx >> bit & 1)
				CHECK(!tx(gso(rules[i].type), ~(1ull << bit)));
			if (rules[i].rx >> bit & 1)
				CHECK(!rx(gso(rules[i].type), ~(1ull << bit)));
		}
	}
}

static void an_unknown_segmentation_is_a_lie(void)
{
	CHECK(!tx(gso(2), ~0ull));
	CHECK(!tx(gso(6), ~0ull));
	CHECK(!tx(gso(0x7f), ~0ull));
	CHECK(!tx(gso(G(ECN)), ~0ull));
	CHECK(!tx(gso(G(UDP) | G(ECN)), ~0ull));
	CHECK(!tx(gso(G(UDP_L4) | G(ECN)), ~0ull));
}

static void segments_have_a_size_a_checksum_and_headers_within_the_frame(void)
{
	struct virtio_net_hdr_v1 hdr = gso(G(TCPV4));

	CHECK(tx(hdr, ~0ull));
	hdr.gso_size = 0;
	CHECK(!tx(hdr, ~0ull));
	hdr = gso(G(TCPV4));
	hdr.flags = 0;
	CHECK(!tx(hdr, ~0ull));
	hdr = gso(G(TCPV4));
	hdr.hdr_len = FRAME;
	CHECK(tx(hdr, ~0ull));
	hdr.hdr_len = FRAME + 1;
	CHECK(!tx(hdr, ~0ull));
}

static void what_means_nothing_in_this_frame_goes_nowhere(void)
{
	struct virtio_net_hdr_v1 hdr, zeros = { 0 };

	memset(&hdr, 0xff, sizeof(hdr));
	hdr.flags = (uint8_t)~VIRTIO_NET_HDR_F_NEEDS_CSUM;
	hdr.gso_type = G(NONE);
	CHECK(net_hdr_tx(&hdr, FRAME, 0));
	CHECK(memcmp(&hdr, &zeros, sizeof(hdr)) == 0);
}

static void data_valid_is_told_only_to_who_asked(void)
{
	struct virtio_net_hdr_v1 hdr = { .flags = VIRTIO_NET_HDR_F_DATA_VALID };

	CHECK(net_hdr_rx(&hdr, FRAME, F(GUEST_CSUM)));
	CHECK_EQ(hdr.flags, VIRTIO_NET_HDR_F_DATA_VALID);
	CHECK(net_hdr_rx(&hdr, FRAME, 0));
	CHECK_EQ(hdr.flags, 0);
}

int main(void)
{
	RUN(a_header_of_zeros_is_always_right);
	RUN(a_checksum_needs_csum_to_send_and_guest_csum_to_receive);
	RUN(a_checksum_lies_within_the_frame);
	RUN(each_segmentation_needs_its_own_feature);
	RUN(an_unknown_segmentation_is_a_lie);
	RUN(segments_have_a_size_a_checksum_and_headers_within_the_frame);
	RUN(what_means_nothing_in_this_frame_goes_nowhere);
	RUN(data_valid_is_told_only_to_who_asked);
	return 0;
}
