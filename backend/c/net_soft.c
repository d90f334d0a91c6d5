/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net_soft.c - checksums and segments in software
 *
 * THEORY OF OPERATION
 *
 * The headers are copied once. What they say is believed from the copy alone, and only where it agrees with virtio's header:
 * a driver that lies about one of them gets its frame back. The payload is read twice, once for the checksum and once by
 * who sends it; a driver that changes it in between has sent a frame with a wrong checksum.
 *
 * A frame without segments needs no more than its header says: where to begin, and where to put the result. The field holds the
 * pseudo-header's sum (§5.1.6.2.1). A segment is made into such a frame first: lengths, sequence number and flags written into
 * its headers, the pseudo-header's sum (RFC 9293 §3.1, RFC 8200 §8.1) into its checksum field. That sum is our own: the driver's
 * is of the unsegmented frame, or of no length at all.
 */
#include "net_soft.h"

#include <errno.h>
#include <netinet/in.h>
#include <string.h>

#include "../../kernel/c/atomics.h"
#include "net_csum.h"

enum {
	ETH_TYPE = 12, /* where the first Ethertype is */
	VLAN_TAGS = 2, /* IEEE 802.1ad */
	IPV4_MIN = 20,
	IPV6_HEADER = 40,
	EXTENSIONS = 8, /* most extension headers of IPv6; two are as many as anybody has */
	TCP_MIN = 20,
	TCP_CHECKSUM = 16,
	UDP_HEADER = 8,
	UDP_CHECKSUM = 6,
	IP_MAX = 65535,
};

enum { TCP_FIN = 0x01, TCP_PSH = 0x08, TCP_CWR = 0x80 };

static uint16_t get16(const uint8_t *at)
{
	return (uint16_t)(at[0] << 8 | at[1]);
}

static void put16(uint8_t *at, uint32_t value)
{
	at[0] = (uint8_t)(value >> 8);
	at[1] = (uint8_t)value;
}

/* As it lies in memory: a sum of net_csum.h. */
static void put_sum(uint8_t *at, uint16_t sum)
{
	memcpy(at, &sum, sizeof(sum));
}

/* IP behind Ethernet, TCP or UDP behind IP, in the first @have bytes of the frame. Return: whether they are there */
static bool find_ethernet(struct net_soft *soft, uint32_t have, uint16_t *type)
{
	uint32_t at = ETH_TYPE;

	for (unsigned tags = 0; at + 2 <= have; tags++, at += 4) {
		*type = get16(soft->headers + at);
		soft->l3 = at + 2;
		if (*type != 0x8100 && *type != 0x88a8)
			return true;
		if (tags == VLAN_TAGS)
			return false;
	}
	return false;
}

static bool find_ipv4(struct net_soft *soft, uint32_t have)
{
	const uint8_t *ip = soft->headers + soft->l3;
	uint32_t len;

	if (soft->l3 + IPV4_MIN > have || ip[0] >> 4 != 4)
		return false;
	len = (ip[0] & 15) * 4u;
	/* A fragment has no transport header, or only a part of what its checksum is of. */
	if (len < IPV4_MIN || soft->l3 + len > have || get16(ip + 6) & 0x3fff)
		return false;
	soft->version = 4;
	soft->protocol = ip[9];
	soft->l4 = soft->l3 + len;
	return true;
}

/* RFC 8200 §4. A routing header would have the checksum be of another address than the one in front. */
static bool find_ipv6(struct net_soft *soft, uint32_t have)
{
	const uint8_t *ip = soft->headers + soft->l3;
	uint32_t at = soft->l3 + IPV6_HEADER;

	if (at > have || ip[0] >> 4 != 6)
		return false;
	soft->version = 6;
	soft->protocol = ip[6];
	for (unsigned i = 0; soft->protocol == IPPROTO_HOPOPTS || soft->protocol == IPPROTO_DSTOPTS; i++) {
		if (i == EXTENSIONS || at + 8 > have)
			return false;
		soft->protocol = soft->headers[at];
		at += (soft->headers[at + 1] + 1u) * 8;
	}
	soft->l4 = at;
	return at <= have;
}

static bool find_transport(struct net_soft *soft, uint32_t have, const struct virtio_net_hdr_v1 *hdr)
{
	uint8_t gso = hdr->gso_type & ~VIRTIO_NET_HDR_GSO_ECN;
	const uint8_t *l4 = soft->headers + soft->l4;
	uint32_t len = UDP_HEADER, checksum = UDP_CHECKSUM;

	if (gso == VIRTIO_NET_HDR_GSO_UDP_L4) {
		if (soft->protocol != IPPROTO_UDP)
			return false;
	} else {
		if (gso != (soft->version == 4 ? VIRTIO_NET_HDR_GSO_TCPV4 : VIRTIO_NET_HDR_GSO_TCPV6) ||
		    soft->protocol != IPPROTO_TCP || soft->l4 + TCP_MIN > have)
			return false;
		len = (l4[12] >> 4) * 4u;
		checksum = TCP_CHECKSUM;
		if (len < TCP_MIN)
			return false;
	}
	soft->header_len = soft->l4 + len;
	return soft->header_len <= have && hdr->csum_start == soft->l4 && hdr->csum_offset == checksum;
}

static bool find_headers(struct net_soft *soft, uint32_t have, const struct virtio_net_hdr_v1 *hdr)
{
	uint16_t type;

	if (!find_ethernet(soft, have, &type))
		return false;
	if (type == 0x0800 ? !find_ipv4(soft, have) : type != 0x86dd || !find_ipv6(soft, have))
		return false;
	return find_transport(soft, have, hdr);
}

/* The part of the pseudo-header that is the same in all segments. */
static uint64_t sum_addresses(const struct net_soft *soft)
{
	struct net_csum csum = { 0 };

	if (soft->version == 4)
		net_csum_add(&csum, soft->headers + soft->l3 + 12, 8);
	else
		net_csum_add(&csum, soft->headers + soft->l3 + 8, 32);
	return csum.sum;
}

int net_soft_begin(struct net_soft *soft, const struct net_frame *frame)
{
	const struct virtio_net_hdr_v1 *hdr = &frame->hdr;
	bool gso = hdr->gso_type != VIRTIO_NET_HDR_GSO_NONE;
	uint32_t have = NET_SOFT_HEADERS < frame->len ? NET_SOFT_HEADERS : frame->len, at;

	memset(soft, 0, offsetof(struct net_soft, headers));
	soft->segments = 1;
	soft->l4 = hdr->csum_start;
	soft->header_len = (uint32_t)hdr->csum_start + hdr->csum_offset + 2;
	if (!gso && soft->header_len < have)
		have = soft->header_len;
	net_iov_read(frame->iov + 1, frame->iovcnt - 1, soft->headers, have);
	if (gso ? !find_headers(soft, have, hdr) : soft->header_len > have)
		return -EBADMSG;
	soft->csum_at = soft->l4 + hdr->csum_offset;
	soft->left = soft->segment_size = frame->len - soft->header_len;
	if (gso) {
		if (hdr->gso_size < soft->left) {
			soft->segment_size = hdr->gso_size;
			soft->segments = (soft->left + hdr->gso_size - 1) / hdr->gso_size;
		}
		if (soft->segments > NET_SOFT_SEGMENTS || net_soft_len(soft) - soft->l3 > IP_MAX)
			return -EBADMSG;
		soft->addresses = sum_addresses(soft);
	}
	soft->iov = frame->iov + 1;
	for (at = soft->header_len; at > 0 && at >= soft->iov->iov_len; soft->iov++)
		at -= (uint32_t)soft->iov->iov_len;
	soft->skip = at;
	return 0;
}

/* Take the next @len bytes of payload. Return: iovecs */
static unsigned take_payload(struct net_soft *soft, uint32_t len, struct iovec *iov)
{
	unsigned n = 0;

	soft->left -= len;
	while (len > 0) {
		size_t piece = soft->iov->iov_len - soft->skip;

		if (piece > len)
			piece = len;
		iov[n++] = (struct iovec){ (uint8_t *)soft->iov->iov_base + soft->skip, piece };
		len -= (uint32_t)piece;
		soft->skip += piece;
		if (soft->skip == soft->iov->iov_len) {
			soft->iov++;
			soft->skip = 0;
		}
	}
	return n;
}

static void write_ip(const struct net_soft *soft, uint8_t *ip, uint32_t len)
{
	struct net_csum csum = { 0 };

	if (soft->version == 6) {
		put16(ip + 4, len - IPV6_HEADER);
		return;
	}
	put16(ip + 2, len);
	put16(ip + 4, get16(ip + 4) + soft->done); /* RFC 6864 §4: ever another one, should it be fragmented */
	put_sum(ip + 10, 0);
	net_csum_add(&csum, ip, (ip[0] & 15) * 4u);
	put_sum(ip + 10, net_csum_field(&csum));
}

/* A segment's share of what the driver wrote for all of them. */
static void write_tcp(const struct net_soft *soft, uint8_t *tcp)
{
	uint32_t seq = (uint32_t)get16(tcp + 4) << 16 | get16(tcp + 6);

	seq += soft->done * soft->segment_size;
	put16(tcp + 4, seq >> 16);
	put16(tcp + 6, seq);
	if (soft->segments > 1) /* what ends the data comes with its end */
		tcp[13] &= (uint8_t) ~(TCP_FIN | TCP_PSH);
	if (soft->done > 0) /* RFC 3168 §6.1.2: said once */
		tcp[13] &= (uint8_t)~TCP_CWR;
}

static void write_segment(const struct net_soft *soft, uint8_t *headers, uint32_t len)
{
	uint32_t l4_len = len - soft->l4;
	struct net_csum pseudo = { .sum = soft->addresses };
	uint8_t words[4] = { 0, soft->protocol };

	write_ip(soft, headers + soft->l3, len - soft->l3);
	if (soft->protocol == IPPROTO_TCP)
		write_tcp(soft, headers + soft->l4);
	else
		put16(headers + soft->l4 + 4, l4_len);
	put16(words + 2, l4_len);
	net_csum_add(&pseudo, words, sizeof(words));
	put_sum(headers + soft->csum_at, net_csum_sum(&pseudo));
}

unsigned net_soft_next(struct net_soft *soft, uint8_t *headers, struct iovec *iov)
{
	uint32_t len = net_soft_len(soft);
	unsigned n = 1 + take_payload(soft, len - soft->header_len, iov + 1);
	struct net_csum csum = { 0 };
	uint16_t field;

	memcpy(headers, soft->headers, soft->header_len);
	iov[0] = (struct iovec){ headers, soft->header_len };
	if (soft->version)
		write_segment(soft, headers, len);
	net_csum_add(&csum, headers + soft->l4, soft->header_len - soft->l4);
	for (unsigned i = 1; i < n; i++)
		net_csum_add(&csum, iov[i].iov_base, iov[i].iov_len);
	field = net_csum_field(&csum);
	/* RFC 768: zero means that there is none. To TCP the two zeros of this arithmetic are the same. */
	put_sum(headers + soft->csum_at, field ? field : 0xffff);
	soft->segments--;
	soft->done++;
	return n;
}
