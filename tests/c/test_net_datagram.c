/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_net_datagram.c - many datagrams in one message, offloads in software, and VXLAN's header, on a loopback of our own
 *
 * On a loopback a message that UDP_SEGMENT would cut up arrives in one piece at a socket that takes it so (UDP_GRO): what is
 * received tells how it was sent.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <netinet/udp.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "../../backend/c/net_datagram.h"
#include "card.h"
#include "packet.h"

#define F(name) (1ull << VIRTIO_NET_F_##name)
#define OFFLOADS (F(CSUM) | F(HOST_TSO4) | F(HOST_TSO6) | F(HOST_ECN) | F(HOST_USO))
#define MTU_ROOM 1526u
#define VNI 0x123456u

static struct card c;
static struct received r;
static uint8_t message[65536];
static int ours, peer, stranger;
static sa_family_t family;

static struct sockaddr_storage address(uint16_t port, uint8_t host)
{
	struct sockaddr_storage at = { .ss_family = family };

	if (family == AF_INET) {
		((struct sockaddr_in *)&at)->sin_addr.s_addr = htonl(0x7f000000u + host);
		((struct sockaddr_in *)&at)->sin_port = htons(port);
	} else {
		((struct sockaddr_in6 *)&at)->sin6_addr = in6addr_loopback;
		((struct sockaddr_in6 *)&at)->sin6_port = htons(port);
	}
	return at;
}

static int bound(uint16_t port, uint8_t host)
{
	struct sockaddr_storage at = address(port, host);
	int fd = socket(family, SOCK_DGRAM, 0), bytes = 8 << 20;

	CHECK(fd >= 0 && bind(fd, (struct sockaddr *)&at, sizeof(at)) == 0);
	CHECK(setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof(bytes)) == 0);
	CHECK(setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof(bytes)) == 0);
	return fd;
}

static void connect_to(int fd, uint16_t port, uint8_t host)
{
	struct sockaddr_storage at = address(port, host);

	CHECK(connect(fd, (struct sockaddr *)&at, sizeof(at)) == 0);
}

static void start(uint64_t features)
{
	struct net_port *port;

	family = AF_INET;
	ours = bound(4000, 1);
	peer = bound(4001, 1);
	stranger = -1;
	connect_to(ours, 4001, 1);
	connect_to(peer, 4000, 1);
	CHECK_EQ(net_port_udp(&port, ours), 0);
	card_make(&c, port, features, 256);
}

/* Another host's port of any number may send to us, as Linux's vxlan does. */
static void start_vxlan(sa_family_t ip, uint64_t features)
{
	struct net_port *port;
	int probe;

	family = ip;
	ours = bound(4789, 1);
	peer = bound(50000, 2);
	stranger = bound(50001, 3);
	probe = bound(0, 1);
	connect_to(probe, 50000, 2);
	connect_to(peer, 4789, 1);
	connect_to(stranger, 4789, 1);
	CHECK_EQ(net_port_vxlan(&port, ours, VNI, probe), 0);
	close(probe);
	card_make(&c, port, features, 256);
}

static void stop(void)
{
	card_free(&c);
	close(ours);
	close(peer);
	if (stranger >= 0)
		close(stranger);
}

static void takes_many_in_one(int fd)
{
	int on = 1;

	CHECK(setsockopt(fd, SOL_UDP, UDP_GRO, &on, sizeof(on)) == 0);
}

/* Receive a message. Return: its length, *@size that of each datagram in it; -1: there is none */
static int peer_receives(uint32_t *size)
{
	char control[CMSG_SPACE(sizeof(int))];
	struct iovec iov = { message, sizeof(message) };
	struct msghdr hdr = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)
	};
	int len = (int)recvmsg(peer, &hdr, MSG_DONTWAIT);
	struct cmsghdr *cmsg = len < 0 ? NULL : CMSG_FIRSTHDR(&hdr);

	*size = (uint32_t)len;
	if (cmsg && cmsg->cmsg_level == SOL_UDP && cmsg->cmsg_type == UDP_GRO)
		memcpy(size, CMSG_DATA(cmsg), sizeof(*size));
	return len;
}

/* Send datagrams in one message: all of @size bytes, but the last of @last. */
static void sends_in_one(int fd, const uint8_t *bytes, uint32_t len, uint32_t size)
{
	uint16_t segment = (uint16_t)size;
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(uint16_t))];
	} control;
	struct iovec iov = { (void *)(uintptr_t)bytes, len };
	struct msghdr hdr = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes)
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&hdr);

	cmsg->cmsg_level = SOL_UDP;
	cmsg->cmsg_type = UDP_SEGMENT;
	cmsg->cmsg_len = CMSG_LEN(sizeof(segment));
	memcpy(CMSG_DATA(cmsg), &segment, sizeof(segment));
	CHECK_EQ(sendmsg(fd, &hdr, 0), len);
}

static void send_packet(unsigned slot)
{
	uint32_t at = CARD_TX_AT + slot * CARD_SLOT;

	memcpy(c.memory + at, &p.hdr, NET_HDR_LEN);
	memcpy(c.memory + at + NET_HDR_LEN, p.bytes, p.len);
	CHECK_EQ(driver_add(c.driver[NET_TX], &(struct driver_buf){ at, NET_HDR_LEN + p.len }, 1, 0, at), 0);
	CHECK(driver_publish(c.driver[NET_TX]) >= 0);
}

static void build(bool v6, bool udp, uint32_t payload, uint32_t gso_size)
{
	memset(&p, 0, sizeof(p));
	p.v6 = v6;
	p.udp = udp;
	p.tcp_options = 3;
	p.payload = payload;
	p.gso_size = gso_size;
	packet_build();
}

static void frames_of_one_size_share_a_message_that_a_shorter_one_ends(void)
{
	static const uint32_t lens[] = { 100, 100, 100, 60, 100, 200, 200, 60, 60, 14 };
	static const uint32_t ends[] = { 3, 4, 7, 9 }; /* the last frame of each message */
	uint32_t size;
	unsigned n = 0;

	start(0);
	takes_many_in_one(peer);
	for (unsigned i = 0; i < 10; i++)
		card_send(&c, i, i, lens[i]);
	card_settle(&c);
	for (unsigned m = 0; m < 4; m++) {
		uint32_t at = 0, len = (uint32_t)peer_receives(&size);

		for (; n <= ends[m]; at += lens[n++])
			CHECK(at + lens[n] <= len && card_is_frame(message + at, n, lens[n]));
		CHECK_EQ(at, len);
	}
	CHECK_EQ(peer_receives(&size), -1);
	CHECK_EQ(net_queue_stats(c.queue[NET_TX])->packets, 10);
	stop();
}

static void a_large_segment_leaves_in_few_messages_and_arrives_as_frames(void)
{
	for (unsigned kind = 0; kind < 8; kind++) {
		uint32_t size, i = 0, messages = 0, segments;
		int len;

		start(OFFLOADS);
		if (kind & 4)
			takes_many_in_one(peer);
		build(kind & 1, kind & 2, 60001, 1400);
		segments = (60001 + 1399) / 1400;
		send_packet(0);
		card_settle(&c);
		CHECK_EQ(card_sent(&c), 1);
		for (; (len = peer_receives(&size)) >= 0; messages++)
			for (uint32_t at = 0; at < (uint32_t)len; i++) {
				uint32_t piece = (uint32_t)len - at < size ? (uint32_t)len - at : size;

				packet_check_segment(message + at, piece, i, i + 1 == segments);
				at += piece;
			}
		CHECK_EQ(i, segments);
		CHECK_EQ(messages, kind & 4 ? 1 : segments);
		CHECK_EQ(net_queue_stats(c.queue[NET_TX])->packets, 1);
		CHECK_EQ(net_queue_stats(c.queue[NET_TX])->bytes, p.len);
		stop();
	}
}

/* More headers, iovecs and messages than one batch holds. */
static void many_large_segments_all_leave(void)
{
	uint32_t size;
	unsigned frames = 40, segments = 700, n = 0;
	int len;

	start(OFFLOADS);
	takes_many_in_one(peer);
	build(false, false, segments * 64 - 1, 64);
	for (unsigned i = 0; i < frames; i++)
		send_packet(i % 32);
	do {
		card_turn(&c);
		while ((len = peer_receives(&size)) >= 0)
			for (uint32_t at = 0; at < (uint32_t)len; at += size, n++) {
				uint32_t left = (uint32_t)len - at;

				packet_check_segment(message + at, left < size ? left : size, n % segments,
						     n % segments == segments - 1);
			}
	} while (card_turn(&c) > 0 || n < frames * segments);
	CHECK_EQ(n, frames * segments);
	CHECK_EQ(card_sent(&c), frames);
	CHECK_EQ(card_all_drops(&c), 0);
	stop();
}

static void a_checksum_is_completed_on_the_way(void)
{
	uint32_t size;

	start(OFFLOADS);
	build(true, false, 500, 0);
	send_packet(0);
	card_settle(&c);
	CHECK_EQ(peer_receives(&size), p.len);
	packet_check_segment(message, size, 0, true);
	stop();
}

static void headers_that_contradict_virtios_cost_their_frame_alone(void)
{
	uint32_t size;

	start(OFFLOADS);
	build(false, false, 5000, 1000);
	p.bytes[p.l3] = 0x65;
	send_packet(0);
	card_send(&c, 1, 7, 60);
	card_settle(&c);
	CHECK_EQ(card_sent(&c), 2);
	CHECK_EQ(card_drops(&c, NET_TX, NET_DROP_HEADER), 1);
	CHECK_EQ(card_all_drops(&c), 1);
	CHECK_EQ(c.port->error, 0); /* it is no trouble of the network's */
	CHECK_EQ(peer_receives(&size), 60);
	CHECK(card_is_frame(message, 7, 60));
	CHECK_EQ(peer_receives(&size), -1);
	stop();
}

static void set_mtu(int mtu)
{
	struct ifreq ifr = { .ifr_name = "lo", .ifr_flags = IFF_UP };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	CHECK(fd >= 0 && ioctl(fd, SIOCSIFFLAGS, &ifr) == 0);
	ifr.ifr_mtu = mtu;
	CHECK(ioctl(fd, SIOCSIFMTU, &ifr) == 0);
	close(fd);
}

/* The kernel takes no message for frames of @big bytes; IP fragments each. @small ones fit the path. */
static void try_beyond_mtu(int mtu, uint32_t big, uint32_t small)
{
	uint32_t size;

	set_mtu(mtu);
	start(0);
	takes_many_in_one(peer);
	for (unsigned round = 0; round < 2; round++) {
		for (unsigned i = 0; i < 4; i++)
			card_send(&c, i, i, i < 3 ? big : small);
		card_settle(&c);
		for (unsigned i = 0; i < 4; i++) {
			CHECK_EQ(peer_receives(&size), (int)(i < 3 ? big : small));
			CHECK(card_is_frame(message, i, size));
		}
	}
	for (unsigned i = 0; i < 4; i++)
		card_send(&c, i, i, small);
	card_settle(&c);
	CHECK_EQ(peer_receives(&size), (int)(4 * small));
	CHECK_EQ(size, small);
	CHECK_EQ(net_queue_stats(c.queue[NET_TX])->packets, 12);
	CHECK_EQ(card_all_drops(&c), 0);
	CHECK_EQ(c.port->error, 0);
}

static void frames_beyond_the_mtu_leave_one_by_one_and_smaller_ones_together(void)
{
	try_beyond_mtu(1500, 3000, 1400);
	stop();
	set_mtu(65536);
}

static void small_frames_beyond_the_mtu_leave_one_by_one_too(void)
{
	try_beyond_mtu(128, 200, 80);
	stop();
	set_mtu(65536);
}

static void after_a_minute_it_is_tried_again_what_fits_the_path(void)
{
	uint32_t size;

	try_beyond_mtu(1500, 3000, 1400);
	set_mtu(65536);
	CHECK(net_datagram_of(c.port)->again_ns > now_ns());
	net_datagram_of(c.port)->again_ns = now_ns();
	for (unsigned i = 0; i < 4; i++)
		card_send(&c, i, i, 3000);
	card_settle(&c);
	CHECK_EQ(peer_receives(&size), 4 * 3000);
	stop();
}

static void what_came_in_one_piece_arrives_frame_by_frame_as_there_is_room(void)
{
	static uint8_t bytes[30 * 100 + 60];

	start(0);
	for (unsigned i = 0; i < 31; i++)
		card_write_frame(bytes + i * 100, i, i < 30 ? 100 : 60);
	sends_in_one(peer, bytes, sizeof(bytes), 100);
	card_write_frame(message, 31, 80);
	CHECK_EQ(send(peer, message, 80, 0), 80);
	for (unsigned i = 0; i < 32;) {
		unsigned n = i + 5 < 32 ? 5 : 32 - i;

		card_room(&c, n, MTU_ROOM);
		card_settle(&c);
		for (; n > 0; n--, i++)
			card_expect(&c, MTU_ROOM, i, i < 30 ? 100 : i == 30 ? 60 : 80);
		CHECK(!card_receive(&c, &r, MTU_ROOM));
	}
	CHECK_EQ(card_all_drops(&c), 0);
	stop();
}

/* RFC 7348 §5 */
static void write_vxlan(uint8_t *at, uint8_t flags, uint32_t vni)
{
	const uint8_t header[8] = { flags, 0, 0, 0, (uint8_t)(vni >> 16), (uint8_t)(vni >> 8), (uint8_t)vni, 0 };

	memcpy(at, header, 8);
}

static void a_vxlan_header_is_in_front_of_each_frame(void)
{
	uint8_t header[8];
	uint32_t size;

	write_vxlan(header, 0x08, VNI);
	for (unsigned v6 = 0; v6 < 2; v6++) {
		start_vxlan(v6 ? AF_INET6 : AF_INET, OFFLOADS);
		for (unsigned i = 0; i < 3; i++)
			card_send(&c, i, i, 60 + i);
		build(v6, false, 3000, 1000);
		send_packet(3);
		card_settle(&c);
		for (unsigned i = 0; i < 3; i++) {
			CHECK_EQ(peer_receives(&size), 8 + 60 + i);
			CHECK(memcmp(message, header, 8) == 0 && card_is_frame(message + 8, i, 60 + i));
		}
		for (unsigned i = 0; i < 3; i++) {
			CHECK_EQ(peer_receives(&size), 8 + p.headers + 1000);
			CHECK_EQ(memcmp(message, header, 8), 0);
			packet_check_segment(message + 8, size - 8, i, i == 2);
		}
		CHECK_EQ(card_all_drops(&c), 0);
		stop();
	}
}

static void only_the_peers_frames_of_our_segment_are_received(void)
{
	static uint8_t bytes[10 * 108];
	uint64_t foreign;

	for (unsigned v6 = 0; v6 < 2; v6++) {
		start_vxlan(v6 ? AF_INET6 : AF_INET, 0);
		card_room(&c, 100, MTU_ROOM);
		for (unsigned i = 0; i < 10;
		     i++) { /* of another segment, without the I flag, with bits that mean nothing */
			write_vxlan(bytes + i * 108, i == 4 ? 0x00 : i == 5 ? 0xff : 0x08, VNI ^ (i == 3));
			bytes[i * 108 + 7] = (uint8_t)i;
			card_write_frame(bytes + i * 108 + 8, i, 100);
		}
		sends_in_one(peer, bytes, sizeof(bytes), 108);
		CHECK_EQ(send(peer, bytes, 7, 0), 7); /* no whole header */
		CHECK_EQ(send(peer, bytes, 8 + 13, 0), 8 + 13);
		foreign = 3;
		if (!v6) { /* ::1 is the one address that there is of IPv6 */
			CHECK_EQ(send(stranger, bytes, 108, 0), 108);
			foreign++;
		}
		card_settle(&c);
		for (unsigned i = 0; i < 10; i++)
			if (i != 3 && i != 4)
				card_expect(&c, MTU_ROOM, i, 100);
		CHECK(!card_receive(&c, &r, MTU_ROOM));
		CHECK_EQ(card_drops(&c, NET_RX, NET_DROP_FOREIGN), foreign);
		CHECK_EQ(card_drops(&c, NET_RX, NET_DROP_LENGTH), 1);
		CHECK_EQ(card_all_drops(&c), foreign + 1);
		stop();
	}
}

static void a_vni_has_24_bits(void)
{
	struct net_port *port;

	family = AF_INET;
	ours = bound(4789, 1);
	CHECK_EQ(net_port_vxlan(&port, ours, 1u << 24, ours), -EINVAL);
	CHECK_EQ(net_port_vxlan(&port, ours, 1, ours), -ENOTCONN);
	connect_to(ours, 4789, 2);
	CHECK_EQ(net_port_vxlan(&port, ours, (1u << 24) - 1, ours), 0);
	net_port_destroy(port);
	close(ours);
}

int main(void)
{
	if (unshare(CLONE_NEWNET) < 0)
		SKIP("a network namespace takes root");
	set_mtu(65536);
	RUN(frames_of_one_size_share_a_message_that_a_shorter_one_ends);
	RUN(a_large_segment_leaves_in_few_messages_and_arrives_as_frames);
	RUN(many_large_segments_all_leave);
	RUN(a_checksum_is_completed_on_the_way);
	RUN(headers_that_contradict_virtios_cost_their_frame_alone);
	RUN(frames_beyond_the_mtu_leave_one_by_one_and_smaller_ones_together);
	RUN(after_a_minute_it_is_tried_again_what_fits_the_path);
	RUN(what_came_in_one_piece_arrives_frame_by_frame_as_there_is_room);
	RUN(a_vxlan_header_is_in_front_of_each_frame);
	RUN(only_the_peers_frames_of_our_segment_are_received);
	RUN(a_vni_has_24_bits);
	RUN(small_frames_beyond_the_mtu_leave_one_by_one_too); /* last: IPv6 doesn't survive such an MTU */
	return 0;
}
