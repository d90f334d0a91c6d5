/* SPDX-License-Identifier: Apache-2.0 */
/* test_net_soft.c - checksums and segments in software: each frame that comes out is one that a host would accept */
#include <errno.h>

#include "backend/c/net_soft.h"
#include "packet.h"

#define PIECES 40

static uint8_t out[NET_FRAME_MAX];

/* A deterministic sequence: a failure can be seen again. */
static uint32_t chance(uint32_t below)
{
	static uint32_t state = 12345;

	state = state * 1664525u + 1013904223u;
	return (uint32_t)((uint64_t)(state >> 4) * below >> 28);
}

/* Cut the bytes anywhere; each piece is an allocation of its own, so that reading beyond one is seen. */
static void cut(struct net_frame *f, struct iovec *iov, const uint8_t *bytes, uint32_t len, unsigned pieces)
{
	f->len = len;
	f->iov = iov;
	f->iovcnt = 1;
	iov[0] = (struct iovec){ &f->hdr, NET_HDR_LEN };
	for (uint32_t at = 0; at < len;) {
		uint32_t n = f->iovcnt == pieces ? len - at : 1 + chance(len - at);

		if (n > len - at)
			n = len - at;
		iov[f->iovcnt] = (struct iovec){ malloc(n), n };
		memcpy(iov[f->iovcnt++].iov_base, bytes + at, n);
		at += n;
	}
}

static void free_pieces(struct net_frame *f)
{
	for (unsigned i = 1; i < f->iovcnt; i++)
		free(f->iov[i].iov_base);
}

/* Put the next segment together in out[]. Return: its length */
static uint32_t next(struct net_soft *soft, unsigned iovs)
{
	struct iovec *iov = malloc((iovs + 1) * sizeof(*iov));
	uint32_t headers_len = soft->header_len, len = net_soft_len(soft), at = 0;
	uint8_t *headers = malloc(headers_len);
	unsigned n = net_soft_next(soft, headers, iov);

	CHECK(n <= iovs + 1 && iov[0].iov_base == headers && iov[0].iov_len == headers_len);
	for (unsigned i = 0; i < n; i++) {
		CHECK(at + iov[i].iov_len <= sizeof(out));
		memcpy(out + at, iov[i].iov_base, iov[i].iov_len);
		at += (uint32_t)iov[i].iov_len;
	}
	CHECK_EQ(at, len);
	free(headers);
	free(iov);
	return len;
}

/* Segment the packet, cut into pieces anyhow, and check all that comes out. */
static void expect_segments(unsigned pieces)
{
	struct iovec iov[PIECES + 1];
	struct net_frame f;
	struct net_soft soft;
	uint32_t want = p.payload <= p.gso_size ? 1 : (p.payload + p.gso_size - 1) / p.gso_size, sum = 0;

	packet_build();
	cut(&f, iov, p.bytes, p.len, pieces);
	f.hdr = p.hdr;
	CHECK(net_soft_needed(&f));
	CHECK_EQ(net_soft_begin(&soft, &f), 0);
	CHECK_EQ(soft.segments, want);
	CHECK_EQ(soft.header_len, p.headers);
	for (uint32_t i = 0; i < want; i++) {
		uint32_t len = next(&soft, f.iovcnt - 1);

		CHECK_EQ(soft.segments, want - 1 - i);
		if (i + 1 < want)
			CHECK_EQ(len, p.headers + p.gso_size);
		packet_check_segment(out, len, i, i + 1 == want);
		sum += len - p.headers;
	}
	CHECK_EQ(sum, p.payload);
	free_pieces(&f);
}

static void each_segment_is_a_frame_that_a_host_accepts(void)
{
	for (unsigned i = 0; i < 2000; i++) {
		p.v6 = chance(2);
		p.udp = chance(2);
		p.tags = chance(3);
		p.extensions = p.v6 ? chance(4) : 0;
		p.ip_options = chance(11);
		p.tcp_options = chance(11);
		p.payload = i % 10 ? chance(9000) : chance(60000);
		p.gso_size = (p.payload > 20000 ? 500 : 30) + chance(1500);
		expect_segments(2 + chance(PIECES - 2));
	}
}

static void a_last_segment_may_be_shorter_or_the_only_one(void)
{
	static const uint32_t payloads[] = { 0, 1, 999, 1000, 1001, 1999, 2000, 64000 };

	memset(&p, 0, sizeof(p));
	for (unsigned i = 0; i < 16; i++) {
		p.udp = i % 2;
		p.payload = payloads[i / 2];
		p.gso_size = 1000;
		expect_segments(1);
		expect_segments(PIECES);
	}
}

/* One checksum, anywhere: nothing else of the frame is looked at, or changed. */
static void a_checksum_alone_is_completed_wherever_it_is(void)
{
	for (unsigned i = 0; i < 2000; i++) {
		uint32_t len = 60 + chance(3000), start = chance(200), offset, expected;
		struct iovec iov[PIECES + 1];
		struct net_frame f;
		struct net_soft soft;

		start = start > len - 2 ? len - 2 : start;
		offset = chance(len - 2 - start < 50 ? len - 1 - start : 50);
		for (uint32_t k = 0; k < len; k++)
			p.bytes[k] = (uint8_t)chance(256);
		cut(&f, iov, p.bytes, len, 1 + chance(PIECES));
		f.hdr = (struct virtio_net_hdr_v1){ F_CSUM, .csum_start = (uint16_t)start,
						    .csum_offset = (uint16_t)offset };
		CHECK_EQ(net_soft_begin(&soft, &f), 0);
		CHECK_EQ(soft.segments, 1);
		CHECK_EQ(next(&soft, f.iovcnt - 1), len);
		CHECK_EQ(soft.segments, 0);
		expected = ~slow_sum(0, p.bytes + start, len - start) & 0xffff;
		CHECK_EQ(packet_get(out + start + offset, 2), expected ? expected : 0xffff);
		memcpy(out + start + offset, p.bytes + start + offset, 2);
		CHECK_EQ(memcmp(out, p.bytes, len), 0);
		free_pieces(&f);
	}
}

/* RFC 768: a sum of zero is sent as ones, because zero says that there is none. */
static void a_checksum_of_zero_is_sent_as_ones(void)
{
	struct iovec iov[2];
	struct net_frame f;
	struct net_soft soft;

	memset(p.bytes, 0xff, 60);
	cut(&f, iov, p.bytes, 60, 1);
	f.hdr = (struct virtio_net_hdr_v1){ F_CSUM, .csum_start = 34, .csum_offset = 6 };
	CHECK_EQ(net_soft_begin(&soft, &f), 0);
	CHECK_EQ(next(&soft, 1), 60);
	CHECK_EQ(packet_get(out + 40, 2), 0xffff);
	free_pieces(&f);
}

static int begin(const uint8_t *bytes, uint32_t len, struct virtio_net_hdr_v1 hdr)
{
	struct iovec iov[PIECES + 1];
	struct net_frame f;
	struct net_soft soft;
	int rc;

	cut(&f, iov, bytes, len, 1 + chance(PIECES));
	f.hdr = hdr;
	rc = net_soft_begin(&soft, &f);
	while (rc == 0 && soft.segments > 0) /* nor is anything else read or written on the way */
		CHECK(next(&soft, f.iovcnt - 1) <= NET_FRAME_MAX);
	free_pieces(&f);
	return rc;
}

static void headers_that_end_too_early_are_refused(void)
{
	for (unsigned kind = 0; kind < 4; kind++) {
		memset(&p, 0, sizeof(p));
		p.v6 = kind & 1;
		p.udp = kind & 2;
		p.tags = 2;
		p.extensions = 2;
		p.tcp_options = 3;
		p.payload = 100;
		p.gso_size = 40;
		packet_build();
		for (uint32_t len = NET_FRAME_MIN; len < p.headers; len++)
			CHECK_EQ(begin(p.bytes, len, p.hdr), -EBADMSG);
		CHECK_EQ(begin(p.bytes, p.headers, p.hdr), 0);
	}
}

/* Break one byte of a good packet, which then must be refused. */
static void expect_refused(uint32_t at, uint8_t value)
{
	uint8_t good = p.bytes[at];

	CHECK_EQ(begin(p.bytes, p.len, p.hdr), 0);
	p.bytes[at] = value;
	CHECK_EQ(begin(p.bytes, p.len, p.hdr), -EBADMSG);
	p.bytes[at] = good;
}

static void headers_that_contradict_each_other_are_refused(void)
{
	memset(&p, 0, sizeof(p));
	p.payload = 1000;
	p.gso_size = 100;
	packet_build();
	expect_refused(13, 0x06);       /* ARP */
	expect_refused(p.l3, 0x65);     /* IPv6 says the version, IPv4 the Ethertype */
	expect_refused(p.l3, 0x44);     /* 16 bytes of IPv4 */
	expect_refused(p.l3, 0x46);     /* TCP elsewhere than virtio's header has it */
	expect_refused(p.l3 + 6, 0x20); /* more fragments */
	expect_refused(p.l3 + 7, 0x01); /* a later fragment */
	expect_refused(p.l3 + 9, IPPROTO_UDP);
	expect_refused(p.l4 + 12, 0x40); /* 16 bytes of TCP */
	p.hdr.csum_offset = 14;
	CHECK_EQ(begin(p.bytes, p.len, p.hdr), -EBADMSG);
	packet_build();
	p.hdr.gso_type = GSO(TCPV6);
	CHECK_EQ(begin(p.bytes, p.len, p.hdr), -EBADMSG);
	p.hdr.gso_type = GSO(UDP_L4);
	CHECK_EQ(begin(p.bytes, p.len, p.hdr), -EBADMSG);
	p.hdr.gso_type = GSO(TCPV4) | GSO(ECN);
	CHECK_EQ(begin(p.bytes, p.len, p.hdr), 0);

	p.v6 = true;
	p.extensions = 2;
	packet_build();
	expect_refused(p.l3, 0x45);
	expect_refused(p.l3 + 6, IPPROTO_ROUTING);
	expect_refused(p.l3 + 6, IPPROTO_FRAGMENT);
	expect_refused(p.l3 + 40, IPPROTO_UDP); /* ends where there is an option */
	expect_refused(p.l3 + 41, 255);         /* longer than all that we look at */
	p.extensions = 9;
	packet_build();
	CHECK_EQ(begin(p.bytes, p.len, p.hdr), -EBADMSG);
}

static void more_than_can_be_is_refused(void)
{
	memset(&p, 0, sizeof(p));
	p.tags = 3;
	p.payload = 1000;
	p.gso_size = 100;
	packet_build();
	CHECK_EQ(begin(p.bytes, p.len, p.hdr), -EBADMSG);

	p.tags = 0;
	p.payload = NET_SOFT_SEGMENTS * 2 + 1;
	p.gso_size = 2;
	packet_build();
	CHECK_EQ(begin(p.bytes, p.len, p.hdr), -EBADMSG);
	p.payload--;
	expect_segments(PIECES);

	p.payload = NET_FRAME_MAX - 54; /* 65,536 bytes of IP in one segment */
	p.gso_size = 65535;
	packet_build();
	CHECK_EQ(begin(p.bytes, p.len, p.hdr), -EBADMSG);
	p.payload--;
	expect_segments(PIECES);

	p.hdr = (struct virtio_net_hdr_v1){ F_CSUM, .csum_start = NET_SOFT_HEADERS, .csum_offset = 0 };
	CHECK_EQ(begin(p.bytes, p.len, p.hdr), -EBADMSG);
	p.hdr.csum_start -= 2;
	CHECK_EQ(begin(p.bytes, p.len, p.hdr), 0);
}

/* Whatever bytes there are: refused, or segments of the right lengths; never a byte from beyond the frame. */
static void random_headers_read_nothing_that_is_not_theirs(void)
{
	unsigned accepted = 0;

	for (unsigned i = 0; i < 30000; i++) {
		p.v6 = chance(2);
		p.udp = chance(2);
		p.tags = chance(4);
		p.extensions = chance(10);
		p.ip_options = chance(11);
		p.tcp_options = chance(11);
		p.payload = chance(2000);
		p.gso_size = 20 + chance(500);
		packet_build();
		for (unsigned k = chance(4); k > 0; k--)
			p.bytes[chance(p.headers)] = (uint8_t)chance(256);
		accepted += begin(p.bytes, chance(3) ? p.len : NET_FRAME_MIN + chance(p.len - NET_FRAME_MIN), p.hdr) ==
			    0;
	}
	CHECK(accepted > 1000 && accepted < 29000);
}

int main(void)
{
	RUN(each_segment_is_a_frame_that_a_host_accepts);
	RUN(a_last_segment_may_be_shorter_or_the_only_one);
	RUN(a_checksum_alone_is_completed_wherever_it_is);
	RUN(a_checksum_of_zero_is_sent_as_ones);
	RUN(headers_that_end_too_early_are_refused);
	RUN(headers_that_contradict_each_other_are_refused);
	RUN(more_than_can_be_is_refused);
	RUN(random_headers_read_nothing_that_is_not_theirs);
	return 0;
}
