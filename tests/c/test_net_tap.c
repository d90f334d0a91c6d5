/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_net_tap.c - a network card on a real tap, in a network namespace of its own; a packet socket is the host's side
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/rtnetlink.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "card.h"

#define F(name) (1ull << VIRTIO_NET_F_##name)
#define MTU_ROOM 1526u
#define BIG_ROOM (NET_FRAME_MAX + NET_HDR_LEN)
#define TAP_MTU 65521 /* the largest that a tap takes */
#define TAP_FRAME (TAP_MTU + ETH_HLEN)

static struct card c;
static struct received r;
static int tap, host; /* the host's is a packet socket with PACKET_VNET_HDR: HOST_HDR bytes, then the frame */
static struct ifreq ifr;

/* The header without num_buffers. */
#define HOST_HDR sizeof(struct virtio_net_hdr)
static uint8_t packet[HOST_HDR + NET_FRAME_MAX];

static void set_up(bool up)
{
	CHECK(ioctl(host, SIOCGIFFLAGS, &ifr) == 0);
	ifr.ifr_flags = (short)(up ? ifr.ifr_flags | IFF_UP : ifr.ifr_flags & ~IFF_UP);
	CHECK(ioctl(host, SIOCSIFFLAGS, &ifr) == 0);
}

/* No router solicitations of the host's own between the frames of a test. */
static void without_ipv6(void)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "/proc/sys/net/ipv6/conf/%s/disable_ipv6", ifr.ifr_name);
	fd = open(path, O_WRONLY);
	if (fd >= 0) {
		CHECK_EQ(write(fd, "1", 1), 1);
		close(fd);
	}
}

static void start(uint64_t features, unsigned offloads)
{
	struct sockaddr_ll at = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL) };
	int one = 1, bytes = 16 << 20;
	struct net_port *port;

	tap = open("/dev/net/tun", O_RDWR);
	ifr = (struct ifreq){ .ifr_name = "card%d", .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
	CHECK(tap >= 0 && ioctl(tap, TUNSETIFF, &ifr) == 0);
	CHECK(ioctl(tap, TUNSETOFFLOAD, offloads) == 0);
	host = socket(AF_PACKET, SOCK_RAW, 0);
	CHECK(host >= 0);
	without_ipv6();
	ifr.ifr_mtu = TAP_MTU;
	CHECK(ioctl(host, SIOCSIFMTU, &ifr) == 0);
	set_up(true);
	CHECK(ioctl(host, SIOCGIFINDEX, &ifr) == 0);
	at.sll_ifindex = ifr.ifr_ifindex;
	CHECK(setsockopt(host, SOL_PACKET, PACKET_VNET_HDR, &one, sizeof(one)) == 0);
	CHECK(setsockopt(host, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof(one)) == 0);
	CHECK(setsockopt(host, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof(bytes)) == 0);
	CHECK(bind(host, (struct sockaddr *)&at, sizeof(at)) == 0);
	CHECK_EQ(net_port_tap(&port, tap), 0);
	card_make(&c, port, features, 256);
}

static void stop(void)
{
	card_free(&c);
	close(tap);
	close(host);
}

static void host_sends(unsigned number, uint32_t len)
{
	memset(packet, 0, HOST_HDR);
	card_write_frame(packet + HOST_HDR, number, len);
	CHECK_EQ(send(host, packet, HOST_HDR + len, 0), HOST_HDR + len);
}

static void host_expects(unsigned number, uint32_t len)
{
	CHECK_EQ(recv(host, packet, sizeof(packet), MSG_DONTWAIT), HOST_HDR + len);
	CHECK(card_is_frame(packet + HOST_HDR, number, len));
}

static void frames_go_both_ways_whole_and_in_order(void)
{
	static const uint32_t lens[] = { 15, 60, 1514, 1515, 9014, TAP_FRAME, 61, 20000 };

	for (unsigned merge = 0; merge < 2; merge++) {
		uint32_t room = merge ? MTU_ROOM : BIG_ROOM;

		start(merge ? MRG_RXBUF : 0, 0);
		card_room(&c, 200, room);
		for (unsigned i = 0; i < 16; i++) {
			host_sends(i, lens[i % 8]);
			card_send(&c, i, 100 + i, lens[i % 8]);
		}
		card_settle(&c);
		CHECK_EQ(card_sent(&c), 16);
		for (unsigned i = 0; i < 16; i++) {
			card_expect(&c, room, i, lens[i % 8]);
			host_expects(100 + i, lens[i % 8]);
		}
		CHECK(!card_receive(&c, &r, room));
		CHECK_EQ(card_all_drops(&c), 0);
		CHECK_EQ(net_queue_stats(c.queue[NET_TX])->packets, 16);
		CHECK_EQ(net_queue_stats(c.queue[NET_RX])->packets, 16);
		stop();
	}
}

/* A TCP segment over IPv4 of @len bytes in all, to be cut into pieces of 1448: what the kernel must believe to take it. */
static struct virtio_net_hdr_v1 write_tso(uint8_t *at, uint32_t len)
{
	uint16_t ip_len = htons((uint16_t)(len - ETH_HLEN));

	card_write_frame(at, 1, len);
	memcpy(at + 12, "\x08\x00\x45\x00", 4);
	memcpy(at + 16, &ip_len, 2);
	memcpy(at + 20, "\x40\x00\x40\x06\x00\x00\x0a\x00\x00\x01\x0a\x00\x00\x02", 14);
	at[46] = 5 << 4; /* TCP's data offset */
	at[47] = 0x10;   /* ACK */
	return (struct virtio_net_hdr_v1){
		.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
		.gso_type = VIRTIO_NET_HDR_GSO_TCPV4,
		.hdr_len = 54,
		.gso_size = 1448,
		.csum_start = 34,
		.csum_offset = 16,
	};
}

static void segmentation_is_left_to_who_is_further_on_in_both_directions(void)
{
	const uint32_t len = 40000, at = CARD_TX_AT;
	struct virtio_net_hdr_v1 hdr, came;

	start(MRG_RXBUF | F(CSUM) | F(HOST_TSO4) | F(GUEST_CSUM) | F(GUEST_TSO4), TUN_F_CSUM | TUN_F_TSO4);
	hdr = write_tso(c.memory + at + NET_HDR_LEN, len);
	memcpy(c.memory + at, &hdr, sizeof(hdr));
	CHECK_EQ(driver_add(c.driver[NET_TX], &(struct driver_buf){ at, NET_HDR_LEN + len }, 1, 0, at), 0);
	driver_publish(c.driver[NET_TX]);
	card_settle(&c);
	CHECK_EQ(card_all_drops(&c), 0);
	CHECK_EQ(recv(host, packet, sizeof(packet), MSG_DONTWAIT), HOST_HDR + len);
	memset(&came, 0, sizeof(came));
	memcpy(&came, packet, HOST_HDR);
	CHECK_EQ(came.gso_type, VIRTIO_NET_HDR_GSO_TCPV4);
	CHECK_EQ(came.gso_size, 1448);
	CHECK_EQ(came.flags, VIRTIO_NET_HDR_F_NEEDS_CSUM);
	CHECK(memcmp(packet + HOST_HDR, c.memory + at + NET_HDR_LEN, len) == 0);

	card_room(&c, 200, MTU_ROOM);
	for (unsigned i = 0; i < 5; i++) { /* the first into the spill, the others straight into merged buffers */
		memcpy(packet, &hdr, HOST_HDR);
		write_tso(packet + HOST_HDR, len);
		CHECK_EQ(send(host, packet, HOST_HDR + len, 0), HOST_HDR + len);
		card_settle(&c);
		CHECK(card_receive(&c, &r, MTU_ROOM));
		CHECK_EQ(r.hdr.gso_type, VIRTIO_NET_HDR_GSO_TCPV4);
		CHECK_EQ(r.hdr.gso_size, 1448);
		CHECK_EQ(r.hdr.flags, VIRTIO_NET_HDR_F_NEEDS_CSUM);
		CHECK_EQ(r.hdr.csum_start, 34);
		CHECK_EQ(r.hdr.num_buffers, (NET_HDR_LEN + len + MTU_ROOM - 1) / MTU_ROOM);
		CHECK(r.len == len && memcmp(r.frame, packet + HOST_HDR, len) == 0);
	}
	CHECK_EQ(card_all_drops(&c), 0);
	stop();
}

static void a_frame_that_the_kernel_does_not_believe_is_refused(void)
{
	const uint32_t len = 4000, at = CARD_TX_AT;
	struct virtio_net_hdr_v1 hdr;

	start(F(CSUM) | F(HOST_TSO4), 0);
	hdr = write_tso(c.memory + at + NET_HDR_LEN, len);
	hdr.csum_start = len - 18; /* the checksum lies in the frame, the TCP header does not */
	memcpy(c.memory + at, &hdr, sizeof(hdr));
	CHECK_EQ(driver_add(c.driver[NET_TX], &(struct driver_buf){ at, NET_HDR_LEN + len }, 1, 0, at), 0);
	card_send(&c, 1, 3, 60);
	card_settle(&c);
	CHECK_EQ(card_sent(&c), 2);
	CHECK_EQ(card_drops(&c, NET_TX, NET_DROP_REFUSED), 1);
	CHECK_EQ(c.port->error, EINVAL);
	host_expects(3, 60);
	stop();
}

static void while_the_tap_is_down_frames_are_refused_and_then_taken_again(void)
{
	start(0, 0);
	card_room(&c, 4, MTU_ROOM);
	set_up(false);
	card_send(&c, 0, 1, 60);
	card_settle(&c);
	CHECK_EQ(card_sent(&c), 1);
	CHECK_EQ(card_drops(&c, NET_TX, NET_DROP_REFUSED), 1);
	CHECK_EQ(c.port->error, EIO);
	set_up(true);
	while (recv(host, packet, sizeof(packet), MSG_DONTWAIT) >= 0 || errno == ENETDOWN)
		; /* the packet socket is told that its device was down, once */
	card_send(&c, 0, 2, 60);
	host_sends(3, 60);
	card_settle(&c);
	host_expects(2, 60);
	card_expect(&c, MTU_ROOM, 3, 60);
	stop();
}

static void without_buffers_frames_wait_in_the_tap(void)
{
	start(0, 0);
	for (unsigned i = 0; i < 50; i++)
		host_sends(i, 100);
	CHECK_EQ(card_turn(&c), 0);
	card_room(&c, 50, MTU_ROOM);
	card_settle(&c);
	for (unsigned i = 0; i < 50; i++)
		card_expect(&c, MTU_ROOM, i, 100);
	stop();
}

static void remove_interface(void)
{
	struct {
		struct nlmsghdr nl;
		struct ifinfomsg link;
	} ask = {
		.nl = { .nlmsg_len = sizeof(ask), .nlmsg_type = RTM_DELLINK, .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK },
		.link = { .ifi_index = (int)if_nametoindex(ifr.ifr_name) },
	};
	struct {
		struct nlmsghdr nl;
		struct nlmsgerr said;
	} answer;
	int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);

	CHECK(fd >= 0 && send(fd, &ask, sizeof(ask), 0) == sizeof(ask));
	CHECK(recv(fd, &answer, sizeof(answer), 0) > 0);
	CHECK(answer.nl.nlmsg_type == NLMSG_ERROR && answer.said.error == 0);
	close(fd);
}

/* Its descriptor has an error from then on, which must neither end each wait nor break the queues. */
static void a_tap_whose_interface_is_gone_is_asked_again_now_and_then(void)
{
	const struct lane_ops *ops;
	struct wait_set ws;
	struct pollfd p;

	start(0, 0);
	ops = net_lane_base(c.lane)->ops;
	CHECK_EQ(wait_set_init(&ws, WAIT_OFF, 0), 0);
	CHECK_EQ(ops->join(net_lane_base(c.lane), &ws), 0);
	card_room(&c, 4, MTU_ROOM);
	card_settle(&c);
	CHECK_EQ(ops->sleep_timeout_ns(net_lane_base(c.lane)), -1);
	remove_interface();
	p = (struct pollfd){ .fd = ws.epoll_fd, .events = POLLIN };
	CHECK_EQ(poll(&p, 1, 1000), 1);
	card_send(&c, 0, 1, 60);
	card_settle(&c);
	CHECK_EQ(card_drops(&c, NET_TX, NET_DROP_REFUSED), 1);
	CHECK_EQ(c.port->error, EBADFD);
	CHECK_EQ(poll(&p, 1, 0), 0);
	CHECK(ops->sleep_timeout_ns(net_lane_base(c.lane)) > 0);
	CHECK_EQ(card_state(&c, NET_RX), QUEUE_RUNNING);
	CHECK_EQ(card_state(&c, NET_TX), QUEUE_RUNNING);
	wait_set_fini(&ws);
	stop();
}

static void plug(struct net_port *port, struct wait_set *ws)
{
	struct lane *lane = net_lane_base(c.lane);

	net_lane_plug(lane, port);
	wait_set_del(ws, lane); /* as a worker does */
	CHECK_EQ(lane->ops->join(lane, ws), 0);
}

/* So that nobody reads from it or writes to it while it is set up. */
static void while_the_cable_is_out_frames_are_refused_and_nobody_looks_at_the_tap(void)
{
	const struct lane_ops *ops;
	struct wait_set ws;
	struct pollfd p;

	start(0, 0);
	ops = net_lane_base(c.lane)->ops;
	CHECK_EQ(wait_set_init(&ws, WAIT_OFF, 0), 0);
	plug(c.port, &ws);
	card_room(&c, 4, MTU_ROOM);
	card_settle(&c);
	plug(net_port_none(), &ws);
	host_sends(1, 60);
	card_send(&c, 0, 2, 60);
	card_settle(&c);
	CHECK_EQ(card_sent(&c), 1);
	CHECK_EQ(card_drops(&c, NET_TX, NET_DROP_REFUSED), 1);
	CHECK_EQ(card_all_drops(&c), 1);
	CHECK_EQ(recv(host, packet, sizeof(packet), MSG_DONTWAIT), -1);
	CHECK(!card_receive(&c, &r, MTU_ROOM));
	p = (struct pollfd){ .fd = ws.epoll_fd, .events = POLLIN };
	CHECK_EQ(poll(&p, 1, 0), 0);
	CHECK_EQ(ops->sleep_timeout_ns(net_lane_base(c.lane)), -1);
	plug(c.port, &ws);
	CHECK_EQ(poll(&p, 1, 1000), 1);
	card_send(&c, 1, 3, 60);
	card_settle(&c);
	card_expect(&c, MTU_ROOM, 1, 60);
	host_expects(3, 60);
	wait_set_fini(&ws);
	stop();
}

static void a_port_that_cannot_be_waited_for_keeps_nobody_busy(void)
{
	struct lane *lane;
	struct wait_set ws;

	start(0, 0);
	lane = net_lane_base(c.lane);
	CHECK_EQ(wait_set_init(&ws, WAIT_OFF, 0), 0);
	close(ws.epoll_fd);
	CHECK_EQ(lane->ops->join(lane, &ws), -EBADF);
	CHECK_EQ(card_turn(&c), 0);
	CHECK_EQ(card_turn(&c), 0);
	ws.epoll_fd = -1;
	wait_set_fini(&ws);
	stop();
}

static void what_is_no_tap_with_headers_is_refused(void)
{
	struct ifreq plain = { .ifr_flags = IFF_TAP | IFF_NO_PI };
	struct net_port *port;
	int fd = open("/dev/net/tun", O_RDWR);

	CHECK(fd >= 0 && net_port_tap(&port, fd) < 0); /* no interface yet */
	CHECK(ioctl(fd, TUNSETIFF, &plain) == 0);
	CHECK_EQ(net_port_tap(&port, fd), -EINVAL);
	close(fd);
	CHECK_EQ(net_port_tap(&port, fd), -EBADF);
	fd = open("/dev/null", O_RDWR);
	CHECK_EQ(net_port_tap(&port, fd), -ENOTTY);
	close(fd);
}

int main(void)
{
	int fd = unshare(CLONE_NEWNET) == 0 ? open("/dev/net/tun", O_RDWR) : -1;

	if (fd < 0)
		SKIP("no network namespace, or no /dev/net/tun: root and the tun module are needed");
	close(fd);
	RUN(frames_go_both_ways_whole_and_in_order);
	RUN(segmentation_is_left_to_who_is_further_on_in_both_directions);
	RUN(a_frame_that_the_kernel_does_not_believe_is_refused);
	RUN(while_the_tap_is_down_frames_are_refused_and_then_taken_again);
	RUN(without_buffers_frames_wait_in_the_tap);
	RUN(a_tap_whose_interface_is_gone_is_asked_again_now_and_then);
	RUN(while_the_cable_is_out_frames_are_refused_and_nobody_looks_at_the_tap);
	RUN(a_port_that_cannot_be_waited_for_keeps_nobody_busy);
	RUN(what_is_no_tap_with_headers_is_refused);
	return 0;
}
