/* SPDX-License-Identifier: Apache-2.0 */
/* test_net_udp.c - a network card on a datagram socket: frames and datagrams are one, whatever the network does */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>

#include "backend/c/worker.h"
#include "card.h"
#include "kernel/c/atomics.h"

#define MTU_ROOM 1526u
#define BIG_ROOM (NET_FRAME_MAX + NET_HDR_LEN)
#define UDP_MAX 65507u /* what an IPv4 datagram can carry */

static struct card c;
static struct received r;
static uint8_t datagram[NET_FRAME_MAX];
static int ours, peer;

static int udp_socket(struct sockaddr_in *at)
{
	int fd = socket(AF_INET, SOCK_DGRAM, 0), bytes = 8 << 20;
	socklen_t len = sizeof(*at);

	*at = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	CHECK(fd >= 0 && bind(fd, (struct sockaddr *)at, len) == 0);
	CHECK(getsockname(fd, (struct sockaddr *)at, &len) == 0);
	/* All that a test sends before it looks must fit; root may go beyond net.core.rmem_max. */
	if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof(bytes)) < 0)
		CHECK(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof(bytes)) == 0);
	return fd;
}

static void start_on(int fd, uint64_t features)
{
	struct net_port *port;

	CHECK_EQ(net_port_udp(&port, fd), 0);
	card_make(&c, port, features, 256);
}

static void start(uint64_t features)
{
	struct sockaddr_in a, b;

	ours = udp_socket(&a);
	peer = udp_socket(&b);
	CHECK(connect(ours, (struct sockaddr *)&b, sizeof(b)) == 0);
	CHECK(connect(peer, (struct sockaddr *)&a, sizeof(a)) == 0);
	start_on(ours, features);
}

static void stop(void)
{
	card_free(&c);
	close(ours);
	if (peer >= 0)
		close(peer);
}

static void peer_sends(unsigned number, uint32_t len)
{
	card_write_frame(datagram, number, len);
	CHECK_EQ(send(peer, datagram, len, 0), len);
}

static void peer_expects(unsigned number, uint32_t len)
{
	CHECK_EQ(recv(peer, datagram, sizeof(datagram), MSG_DONTWAIT), len);
	CHECK(card_is_frame(datagram, number, len));
}

static void what_is_sent_leaves_as_datagrams_in_order(void)
{
	start(0);
	for (unsigned i = 0; i < 200; i++)
		card_send(&c, i, i, i % 7 ? 60 + i : 1514);
	card_settle(&c);
	CHECK_EQ(card_sent(&c), 200);
	for (unsigned i = 0; i < 200; i++)
		peer_expects(i, i % 7 ? 60 + i : 1514);
	CHECK_EQ(recv(peer, datagram, sizeof(datagram), MSG_DONTWAIT), -1);
	CHECK_EQ(net_queue_stats(c.queue[NET_TX])->packets, 200);
	stop();
}

static void datagrams_of_any_length_arrive_as_frames_merged_or_not(void)
{
	static const uint32_t lens[] = { 14, 1514, UDP_MAX, 60, 9000, 1515, 20000, 64 };

	for (unsigned merge = 0; merge < 2; merge++) {
		uint32_t room = merge ? MTU_ROOM : BIG_ROOM;

		start(merge ? MRG_RXBUF : 0);
		card_room(&c, 255, room);
		for (unsigned i = 0; i < 24; i++) /* within one batch: tails go behind what was received after them */
			peer_sends(i, lens[i % 8]);
		card_settle(&c);
		for (unsigned i = 0; i < 24; i++)
			card_expect(&c, room, i, lens[i % 8]);
		CHECK(!card_receive(&c, &r, room));
		CHECK_EQ(card_all_drops(&c), 0);
		stop();
	}
}

static void datagrams_that_are_no_frames_are_dropped_and_the_others_arrive(void)
{
	start(MRG_RXBUF);
	card_room(&c, 20, MTU_ROOM);
	for (unsigned i = 0; i < 20; i++)
		peer_sends(i, i % 2 ? 100 : i % NET_FRAME_MIN);
	card_settle(&c);
	CHECK_EQ(card_drops(&c, NET_RX, NET_DROP_LENGTH), 10);
	for (unsigned i = 1; i < 20; i += 2) {
		CHECK(card_receive(&c, &r, MTU_ROOM));
		CHECK(r.len == 100 && card_is_frame(r.frame, i, 100));
	}
	CHECK_EQ(queue_in_flight(net_queue_base(c.queue[NET_RX])), 10);
	stop();
}

static void a_frame_that_no_datagram_holds_is_refused_and_the_others_leave(void)
{
	start(0);
	card_send(&c, 0, 0, 60);
	card_send(&c, 1, 1, UDP_MAX + 1);
	card_send(&c, 2, 2, UDP_MAX);
	card_settle(&c);
	CHECK_EQ(card_sent(&c), 3);
	peer_expects(0, 60);
	peer_expects(2, UDP_MAX);
	CHECK_EQ(card_drops(&c, NET_TX, NET_DROP_REFUSED), 1);
	CHECK_EQ(c.port->error, EMSGSIZE);
	stop();
}

/* Make the peer go away. Return: where it was */
static struct sockaddr_in peer_leaves(void)
{
	struct sockaddr_in at;
	socklen_t len = sizeof(at);

	CHECK(getsockname(peer, (struct sockaddr *)&at, &len) == 0);
	close(peer);
	peer = -1;
	return at;
}

/* An ICMP error is told to the next call, whose own frame did nothing wrong. */
static void frames_after_an_unreachable_peer_are_not_blamed_for_it(void)
{
	struct sockaddr_in at, to;
	socklen_t len = sizeof(to);

	start(0);
	at = peer_leaves();
	for (unsigned i = 0; i < 5; i++) {
		card_send(&c, 0, i, 60); /* there is no room to receive: it is sending that meets the error */
		card_settle(&c);
	}
	CHECK_EQ(card_sent(&c), 5);
	CHECK_EQ(c.port->error, ECONNREFUSED);
	CHECK_EQ(card_all_drops(&c), 0);

	peer = socket(AF_INET, SOCK_DGRAM, 0);
	CHECK(bind(peer, (struct sockaddr *)&at, sizeof(at)) == 0);
	CHECK(getsockname(ours, (struct sockaddr *)&to, &len) == 0);
	CHECK(connect(peer, (struct sockaddr *)&to, len) == 0);
	card_room(&c, 10, MTU_ROOM);
	card_send(&c, 0, 6, 60);
	peer_sends(7, 60);
	card_settle(&c);
	peer_expects(6, 60);
	card_expect(&c, MTU_ROOM, 7, 60);
	stop();
}

static void an_error_does_not_hide_the_datagrams_behind_it(void)
{
	start(0);
	card_room(&c, 10, MTU_ROOM);
	card_settle(&c);
	peer_sends(1, 60);
	peer_leaves();
	CHECK_EQ(send(ours, datagram, 60, 0), 60); /* refused: an error is pending */
	CHECK_EQ(card_turn(&c), 1);
	card_expect(&c, MTU_ROOM, 1, 60);
	CHECK_EQ(net_port_take_error(c.port), ECONNREFUSED);
	CHECK_EQ(c.port->error, 0);
	stop();
}

/* A Unix datagram socket is one that can be filled: its peer's queue is short. */
static void a_full_socket_drops_and_does_not_hold_up_what_is_received(void)
{
	int pair[2];
	uint64_t sent;

	CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0);
	ours = pair[0];
	peer = pair[1];
	start_on(ours, 0);
	card_room(&c, 10, MTU_ROOM);
	do {
		for (unsigned i = 0; i < 32; i++)
			card_send(&c, i, i, 60);
		peer_sends(1, 60);
		card_settle(&c);
		CHECK_EQ(card_sent(&c), 32);
		card_expect(&c, MTU_ROOM, 1, 60);
		card_room(&c, 1, MTU_ROOM);
	} while (card_drops(&c, NET_TX, NET_DROP_FULL) == 0);
	sent = net_queue_stats(c.queue[NET_TX])->packets;
	for (uint64_t i = 0; i < sent; i++)
		peer_expects((unsigned)(i % 32), 60);
	CHECK_EQ(recv(peer, datagram, sizeof(datagram), MSG_DONTWAIT), -1);
	CHECK_EQ(card_drops(&c, NET_TX, NET_DROP_FULL), card_all_drops(&c));
	card_send(&c, 0, 3, 60);
	card_settle(&c);
	peer_expects(3, 60);
	stop();
}

static void without_buffers_frames_wait_in_the_socket(void)
{
	start(0);
	for (unsigned i = 0; i < 50; i++)
		peer_sends(i, 100);
	card_settle(&c);
	CHECK_EQ(card_turn(&c), 0);
	for (unsigned i = 0; i < 50;) {
		unsigned n = i + 7 < 50 ? 7 : 50 - i;

		card_room(&c, n, MTU_ROOM);
		card_settle(&c);
		for (; n > 0; n--)
			card_expect(&c, MTU_ROOM, i++, 100);
	}
	CHECK_EQ(card_all_drops(&c), 0);
	stop();
}

static bool would_wake(struct wait_set *ws)
{
	struct pollfd p = { .fd = ws->epoll_fd, .events = POLLIN };

	return poll(&p, 1, 0) > 0;
}

/* A socket that stays readable would end each wait, and the worker never sleep. */
static void a_socket_is_waited_for_while_there_is_room_for_its_frames(void)
{
	struct wait_set ws;

	start(0);
	CHECK_EQ(wait_set_init(&ws, WAIT_OFF, 0), 0);
	CHECK_EQ(net_lane_base(c.lane)->ops->join(net_lane_base(c.lane), &ws), 0);
	peer_sends(1, 60);
	CHECK(would_wake(&ws));
	card_settle(&c); /* no room */
	CHECK(!would_wake(&ws));
	card_room(&c, 1, MTU_ROOM);
	card_settle(&c);
	card_expect(&c, MTU_ROOM, 1, 60);
	peer_sends(2, 60); /* and again there is none */
	CHECK(!would_wake(&ws));
	card_room(&c, 2, MTU_ROOM);
	card_settle(&c);
	card_expect(&c, MTU_ROOM, 2, 60);
	CHECK(!would_wake(&ws));
	peer_sends(3, 60);
	CHECK(would_wake(&ws));
	card_settle(&c);
	card_expect(&c, MTU_ROOM, 3, 60);
	peer_sends(4, 60);
	card_stop(&c);
	card_settle(&c);
	CHECK(!would_wake(&ws));
	wait_set_fini(&ws);
	stop();
}

/* What the kernel can't read for us any more isn't the network's fault. */
static void memory_that_is_gone_breaks_the_queue_that_lives_in_it(void)
{
	start(0);
	CHECK(mprotect(c.memory + CARD_TX_AT + 4096, 4096, PROT_NONE) == 0);
	CHECK_EQ(driver_add(c.driver[NET_TX], &(struct driver_buf){ CARD_TX_AT, 8192 }, 1, 0, 1), 0);
	driver_publish(c.driver[NET_TX]);
	card_settle(&c);
	CHECK_EQ(card_state(&c, NET_TX), QUEUE_BROKEN);
	CHECK_EQ(net_queue_base(c.queue[NET_TX])->vq.fault, VIRTQ_FAULT_MEMORY_GONE);
	CHECK_EQ(card_state(&c, NET_RX), QUEUE_RUNNING);
	CHECK(mprotect(c.memory + CARD_TX_AT + 4096, 4096, PROT_READ | PROT_WRITE) == 0);
	card_stop(&c);
	stop();

	CHECK_EQ(mem_sigbus_install(), 0);
	start(0);
	card_room(&c, 10, MTU_ROOM);
	card_settle(&c);
	CHECK(ftruncate(c.fd, CARD_RX_AT) == 0);
	peer_sends(1, 60);
	card_settle(&c);
	CHECK_EQ(card_state(&c, NET_RX), QUEUE_BROKEN);
	CHECK_EQ(net_queue_base(c.queue[NET_RX])->vq.fault, VIRTQ_FAULT_MEMORY_GONE);
	card_stop(&c);
	stop();
}

static void *run(void *w)
{
	CHECK_EQ(worker_run(w), 0);
	return NULL;
}

static void await_signal(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	uint64_t count;

	CHECK_EQ(poll(&p, 1, 10000), 1);
	CHECK_EQ(read(fd, &count, sizeof(count)), sizeof(count));
}

static void await_state(struct worker *w, enum net_direction dir, enum queue_state state)
{
	while (card_state(&c, dir) != (int)state)
		await_signal(worker_event_fd(w));
}

/* All of it at once: a worker that sleeps between frames is woken by the socket, by the driver, and by its mailbox. */
static void a_sleeping_worker_wakes_for_a_datagram_and_for_a_kick(void)
{
	for (unsigned packed = 0; packed < 2; packed++) {
		struct worker *w;
		pthread_t thread;
		struct lane *lane;

		start(packed ? 1ull << VIRTIO_F_RING_PACKED : 0);
		lane = net_lane_base(c.lane);
		card_stop(&c);
		CHECK_EQ(worker_create(&w, WAIT_OFF, 0), 0);
		CHECK_EQ(worker_add_lane(w, lane), 0);
		for (unsigned dir = 0; dir < 2; dir++) {
			card_bind_only(&c, dir, virtq_base(&net_queue_base(c.queue[dir])->vq));
			CHECK_EQ(worker_start_queue(w, lane, net_queue_base(c.queue[dir]), c.kick[dir]), 0);
		}
		CHECK_EQ(pthread_create(&thread, NULL, run, w), 0);
		for (unsigned dir = 0; dir < 2; dir++)
			await_state(w, dir, QUEUE_RUNNING);
		card_room(&c, 200, MTU_ROOM);
		for (unsigned i = 0; i < 100; i++) {
			struct pollfd p = { .fd = peer, .events = POLLIN };

			peer_sends(i, 60 + i);
			while (!driver_more(c.driver[NET_RX]))
				await_signal(c.call[NET_RX]);
			card_expect(&c, MTU_ROOM, i, 60 + i);
			card_send(&c, 0, i, 60 + i);
			CHECK_EQ(poll(&p, 1, 10000), 1);
			peer_expects(i, 60 + i);
			while (card_sent(&c) == 0)
				await_signal(c.call[NET_TX]);
		}
		for (unsigned dir = 0; dir < 2; dir++)
			CHECK_EQ(worker_stop_queue(w, net_queue_base(c.queue[dir])), 0);
		for (unsigned dir = 0; dir < 2; dir++)
			await_state(w, dir, QUEUE_STOPPED);
		CHECK_EQ(queue_in_flight(net_queue_base(c.queue[NET_RX])), 0);
		CHECK_EQ(driver_in_flight(c.driver[NET_RX]), 100); /* and the other 100 are in the ring, unused */
		CHECK_EQ(worker_stop(w), 0);
		CHECK_EQ(pthread_join(thread, NULL), 0);
		worker_destroy(w);
		stop();
	}
}

static void what_is_no_datagram_socket_is_refused(void)
{
	struct net_port *port;
	int pair[2];

	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
	CHECK_EQ(net_port_udp(&port, pair[0]), -EINVAL);
	close(pair[0]);
	close(pair[1]);
	CHECK_EQ(net_port_udp(&port, pair[0]), -EBADF);
}

int main(void)
{
	RUN(what_is_sent_leaves_as_datagrams_in_order);
	RUN(datagrams_of_any_length_arrive_as_frames_merged_or_not);
	RUN(datagrams_that_are_no_frames_are_dropped_and_the_others_arrive);
	RUN(a_frame_that_no_datagram_holds_is_refused_and_the_others_leave);
	RUN(frames_after_an_unreachable_peer_are_not_blamed_for_it);
	RUN(an_error_does_not_hide_the_datagrams_behind_it);
	RUN(a_full_socket_drops_and_does_not_hold_up_what_is_received);
	RUN(without_buffers_frames_wait_in_the_socket);
	RUN(a_socket_is_waited_for_while_there_is_room_for_its_frames);
	RUN(memory_that_is_gone_breaks_the_queue_that_lives_in_it);
	RUN(a_sleeping_worker_wakes_for_a_datagram_and_for_a_kick);
	RUN(what_is_no_datagram_socket_is_refused);
	return 0;
}
