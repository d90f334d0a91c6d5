/* SPDX-License-Identifier: Apache-2.0 */
/*
 * packet.h - a packet as a driver leaves it to a device to complete, and the frames that must come of it
 *
 * These are looked at by code that shares nothing with net_soft.c: checksums byte by byte, where a right one makes the whole
 * sum 0xffff (RFC 1071 §1).
 */
#ifndef KPOLL_TEST_PACKET_H
#define KPOLL_TEST_PACKET_H

#include <netinet/in.h>
#include <stdint.h>
#include <string.h>

#include "backend/c/net_port.h"
#include "check.h"

#define F_CSUM VIRTIO_NET_HDR_F_NEEDS_CSUM
#define GSO(name) VIRTIO_NET_HDR_GSO_##name

enum { FIN = 0x01, PSH = 0x08, ACK = 0x10, ECE = 0x40, CWR = 0x80 };

/* What a driver would send. */
struct packet {
	bool v6, udp;
	unsigned tags, extensions, ip_options, tcp_options;
	uint32_t payload, gso_size; /* 0: a checksum alone */
	/* what came of it */
	uint8_t bytes[NET_FRAME_MAX];
	uint32_t len, l3, l4, headers;
	struct virtio_net_hdr_v1 hdr;
};

static struct packet p;

static inline void packet_put(uint32_t at, unsigned bytes, uint32_t value)
{
	for (unsigned i = 0; i < bytes; i++)
		p.bytes[at + i] = (uint8_t)(value >> 8 * (bytes - 1 - i));
}

static inline uint32_t packet_get(const uint8_t *at, unsigned bytes)
{
	uint32_t value = 0;

	for (unsigned i = 0; i < bytes; i++)
		value = value << 8 | at[i];
	return value;
}

/* RFC 1071 §4.1, as slow as it is there. */
static inline uint32_t slow_sum(uint32_t sum, const uint8_t *at, uint32_t len)
{
	for (uint32_t i = 0; i < len; i++)
		sum += i % 2 ? at[i] : (uint32_t)at[i] << 8;
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

static inline uint32_t pseudo_sum(const uint8_t *ip, bool v6, uint8_t protocol, uint32_t len)
{
	uint32_t sum = v6 ? slow_sum(0, ip + 8, 32) : slow_sum(0, ip + 12, 8);

	sum += protocol + len;
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

static inline void packet_build_ip(void)
{
	uint32_t at = p.l3;

	if (p.v6) {
		packet_put(at, 4, 0x60012345);
		packet_put(at + 7, 1, 64);
		for (unsigned i = 0; i < 32; i++)
			p.bytes[at + 8 + i] = (uint8_t)(0x20 + i * 11);
		p.bytes[at + 6] = p.extensions ? IPPROTO_HOPOPTS : p.udp ? IPPROTO_UDP : IPPROTO_TCP;
		at += 40;
		for (unsigned i = 0; i < p.extensions; i++, at += 8) {
			memset(p.bytes + at, 0, 8);
			p.bytes[at] = i + 1 < p.extensions ? IPPROTO_DSTOPTS : p.udp ? IPPROTO_UDP : IPPROTO_TCP;
		}
	} else {
		uint32_t len = 20 + 4 * p.ip_options;

		memset(p.bytes + at, 1, len); /* options: no operation */
		p.bytes[at] = (uint8_t)(0x40 | len / 4);
		p.bytes[at + 1] = 0;
		packet_put(at + 2, 2, 0); /* of the unsegmented frame, and ignored */
		packet_put(at + 4, 2, 0xfffe);
		packet_put(at + 6, 2, 0x4000);
		packet_put(at + 8, 2, 0x4000 | (p.udp ? IPPROTO_UDP : IPPROTO_TCP));
		packet_put(at + 12, 4, 0xc0000201);
		packet_put(at + 16, 4, 0xcb007102);
		at += len;
	}
	p.l4 = at;
}

static inline void packet_build(void)
{
	static const uint8_t ethernet[12] = { 2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2 };
	uint32_t at = 12, csum;

	memcpy(p.bytes, ethernet, 12);
	for (unsigned i = 0; i < p.tags; i++, at += 4)
		packet_put(at, 4, (i + 1 < p.tags ? 0x88a80000u : 0x81000000u) + 100 + i);
	packet_put(at, 2, p.v6 ? 0x86dd : 0x0800);
	p.l3 = at + 2;
	packet_build_ip();
	p.headers = p.l4 + (p.udp ? 8 : 20 + 4 * p.tcp_options);
	memset(p.bytes + p.l4, 1, p.headers - p.l4);
	if (!p.udp) {
		packet_put(p.l4 + 4, 4, 0xfffff000); /* the sequence number will wrap */
		packet_put(p.l4 + 12, 2, (5 + p.tcp_options) << 12 | FIN | PSH | ACK | ECE | CWR);
	}
	p.len = p.headers + p.payload;
	for (uint32_t i = p.headers; i < p.len; i++)
		p.bytes[i] = (uint8_t)(i * 7 + i / 253);
	if (p.v6 && p.gso_size == 0) /* else it is of the unsegmented frame, and ignored */
		packet_put(p.l3 + 4, 2, p.len - p.l3 - 40);
	csum = p.l4 + (p.udp ? 6 : 16);
	packet_put(csum, 2, pseudo_sum(p.bytes + p.l3, p.v6, p.udp ? IPPROTO_UDP : IPPROTO_TCP, p.len - p.l4));
	if (p.udp)
		packet_put(p.l4 + 4, 2, p.len - p.l4);
	p.hdr = (struct virtio_net_hdr_v1){
		.flags = F_CSUM,
		.csum_start = (uint16_t)p.l4,
		.csum_offset = (uint16_t)(csum - p.l4),
		.gso_size = (uint16_t)p.gso_size,
		.gso_type = (uint8_t)(!p.gso_size ? GSO(NONE) :
				      p.udp       ? GSO(UDP_L4) :
				      p.v6        ? GSO(TCPV6) :
						    GSO(TCPV4)),
		.hdr_len = 1, /* a hint, and a bad one */
	};
}

/* Is @out what a host accepts as segment @i? */
static inline void packet_check_segment(const uint8_t *out, uint32_t len, uint32_t i, bool last)
{
	const uint8_t *ip = out + p.l3, *l4 = out + p.l4;
	uint32_t l4_len = len - p.l4, at = i * p.gso_size;

	CHECK_EQ(memcmp(out, p.bytes, p.l3), 0);
	if (p.v6) {
		CHECK_EQ(packet_get(ip + 4, 2), len - p.l3 - 40);
		CHECK_EQ(memcmp(ip + 6, p.bytes + p.l3 + 6, p.l4 - p.l3 - 6), 0);
	} else {
		CHECK_EQ(packet_get(ip + 2, 2), len - p.l3);
		CHECK_EQ(packet_get(ip + 4, 2), (0xfffe + i) & 0xffff);
		CHECK_EQ(slow_sum(0, ip, p.l4 - p.l3), 0xffff);
		CHECK_EQ(memcmp(ip + 12, p.bytes + p.l3 + 12, p.l4 - p.l3 - 12), 0);
	}
	if (p.udp) {
		CHECK_EQ(packet_get(l4 + 4, 2), l4_len);
		CHECK(packet_get(l4 + 6, 2) != 0);
	} else {
		CHECK_EQ(packet_get(l4 + 4, 4), 0xfffff000 + at);
		CHECK_EQ(l4[13], ACK | ECE | (i == 0 ? CWR : 0) | (last ? FIN | PSH : 0));
		CHECK_EQ(memcmp(l4 + 20, p.bytes + p.l4 + 20, 4 * p.tcp_options), 0);
	}
	CHECK_EQ(slow_sum(pseudo_sum(ip, p.v6, p.udp ? IPPROTO_UDP : IPPROTO_TCP, l4_len), l4, l4_len), 0xffff);
	CHECK_EQ(memcmp(out + p.headers, p.bytes + p.headers + at, len - p.headers), 0);
}

#endif
