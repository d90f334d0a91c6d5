/* SPDX-License-Identifier: Apache-2.0 */
/* test_net.c - the network card: frames through it whole and in order, what it refuses, and what it leaves when it stops */
#include <errno.h>
#include <sys/socket.h>

#include "card.h"

#define F(name) (1ull << VIRTIO_NET_F_##name)
#define PACKED (1ull << VIRTIO_F_RING_PACKED)
#define MTU_ROOM 1526u /* §5.1.6.3.1: a buffer for 1514 bytes and the header */
#define BIG_ROOM (NET_FRAME_MAX + NET_HDR_LEN)

static struct card c;
static struct received r;

static const uint64_t rings[] = {
	0,
	1ull << VIRTIO_RING_F_INDIRECT_DESC | 1ull << VIRTIO_RING_F_EVENT_IDX,
	PACKED,
	PACKED | 1ull << VIRTIO_RING_F_INDIRECT_DESC | 1ull << VIRTIO_RING_F_EVENT_IDX,
};

static void frames_come_back_whole_and_in_order_on_every_ring(void)
{
	static const uint32_t lens[] = { 14, 60, 1514, 1515, 61, 9014, NET_FRAME_MAX, 64, 3000, 20000 };

	for (unsigned i = 0; i < 8; i++) {
		bool merge = i >= 4;
		uint32_t room = merge ? MTU_ROOM : BIG_ROOM;
		unsigned sent = 0, came = 0;
		uint64_t bytes = 0;

		card_echo(&c, rings[i % 4] | (merge ? MRG_RXBUF : 0), 256);
		card_room(&c, merge ? 255 : 200, room);
		while (came < 400) {
			for (unsigned k = 0; k < 1 + came % 5 && sent < 400; k++, sent++)
				card_add(&c, k, (struct virtio_net_hdr_v1){ 0 }, sent, lens[sent % 10]);
			CHECK(driver_publish(c.driver[NET_TX]) >= 0);
			card_settle(&c);
			card_sent(&c);
			while (came < sent) {
				card_expect(&c, room, came, lens[came % 10]);
				bytes += lens[came % 10];
				came++;
			}
			card_room(&c, driver_room(c.driver[NET_RX]), room);
		}
		CHECK_EQ(driver_in_flight(c.driver[NET_TX]), 0);
		CHECK_EQ(net_queue_stats(c.queue[NET_TX])->packets, 400);
		CHECK_EQ(net_queue_stats(c.queue[NET_RX])->packets, 400);
		CHECK_EQ(net_queue_stats(c.queue[NET_TX])->bytes, bytes);
		CHECK_EQ(net_queue_stats(c.queue[NET_RX])->bytes, bytes);
		CHECK_EQ(card_all_drops(&c), 0);
		card_free(&c);
	}
}

/* §2.7.4.1: the driver may cut header and frame where it likes. */
static void headers_and_frames_in_pieces_are_understood_both_ways(void)
{
	struct driver_buf tx[5] = {
		{ CARD_TX_AT, 5 }, { CARD_TX_AT + 100, 7 + 20 }, { CARD_TX_AT + 200, 1 }, { CARD_TX_AT + 300, 79 }
	};
	struct driver_buf rx[4] = {
		{ CARD_RX_AT, 3 }, { CARD_RX_AT + 100, 9 }, { CARD_RX_AT + 200, 1 }, { CARD_RX_AT + 300, 200 }
	};
	struct driver_used used;
	uint8_t frame[100];

	card_echo(&c, 0, 64);
	card_write_frame(frame, 9, 100);
	memcpy(c.memory + CARD_TX_AT + 107, frame, 20);
	memcpy(c.memory + CARD_TX_AT + 200, frame + 20, 1);
	memcpy(c.memory + CARD_TX_AT + 300, frame + 21, 79);
	CHECK_EQ(driver_add(c.driver[NET_TX], tx, 4, 0, 1), 0);
	CHECK_EQ(driver_add(c.driver[NET_RX], rx, 0, 4, 2), 0);
	driver_publish(c.driver[NET_TX]);
	driver_publish(c.driver[NET_RX]);
	card_settle(&c);
	CHECK_EQ(driver_poll_used(c.driver[NET_RX], &used, 1), 1);
	CHECK_EQ(used.len, NET_HDR_LEN + 100);
	CHECK_EQ(c.memory[CARD_RX_AT + 107], 1); /* num_buffers, little-endian */
	CHECK_EQ(c.memory[CARD_RX_AT + 108], 0);
	CHECK_EQ(c.memory[CARD_RX_AT + 200], frame[0]);
	CHECK(memcmp(c.memory + CARD_RX_AT + 300, frame + 1, 99) == 0);
	card_free(&c);
}

static void a_merged_frame_takes_as_few_buffers_as_hold_it(void)
{
	card_echo(&c, MRG_RXBUF, 64);
	card_room(&c, 40, 1000);
	card_send(&c, 0, 1, 988); /* all of one */
	card_send(&c, 1, 2, 989); /* a byte of a second */
	card_send(&c, 2, 3, 5000);
	card_send(&c, 3, 4, 100);
	card_settle(&c);
	CHECK(card_receive(&c, &r, 1000));
	CHECK_EQ(r.hdr.num_buffers, 1);
	CHECK(card_receive(&c, &r, 1000));
	CHECK_EQ(r.hdr.num_buffers, 2);
	CHECK(r.len == 989 && card_is_frame(r.frame, 2, 989));
	CHECK(card_receive(&c, &r, 1000));
	CHECK_EQ(r.hdr.num_buffers, 6);
	CHECK(r.len == 5000 && card_is_frame(r.frame, 3, 5000));
	card_expect(&c, 1000, 4, 100);
	CHECK_EQ(queue_in_flight(net_queue_base(c.queue[NET_RX])), 40 - 10);
	card_free(&c);
}

static void a_frame_may_take_all_buffers_that_there_are(void)
{
	card_echo(&c, MRG_RXBUF, 64);
	card_room(&c, 3, 1000);
	card_send(&c, 0, 1, 3000 - NET_HDR_LEN);
	card_settle(&c);
	card_expect(&c, 1000, 1, 3000 - NET_HDR_LEN);
	CHECK_EQ(queue_in_flight(net_queue_base(c.queue[NET_RX])), 0);
	card_free(&c);
}

static void buffers_with_room_for_a_header_alone_are_merged_too(void)
{
	card_echo(&c, MRG_RXBUF, 256);
	card_room(&c, 20, NET_HDR_LEN);
	card_send(&c, 0, 1, 100);
	card_settle(&c);
	CHECK(card_receive(&c, &r, NET_HDR_LEN));
	CHECK_EQ(r.hdr.num_buffers, 1 + 9); /* the first has no byte left, 100 bytes need 9 others */
	CHECK(r.len == 100 && card_is_frame(r.frame, 1, 100));
	card_free(&c);
}

static void offloads_reach_the_driver_that_takes_them_and_no_other(void)
{
	struct virtio_net_hdr_v1 tso = {
		.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
		.gso_type = VIRTIO_NET_HDR_GSO_TCPV4,
		.hdr_len = 54,
		.gso_size = 1448,
		.csum_start = 34,
		.csum_offset = 16,
	};
	uint64_t sends = F(CSUM) | F(HOST_TSO4);

	card_echo(&c, sends | F(GUEST_CSUM) | F(GUEST_TSO4), 64);
	card_room(&c, 2, BIG_ROOM);
	card_add(&c, 0, tso, 1, 9000);
	driver_publish(c.driver[NET_TX]);
	card_settle(&c);
	CHECK(card_receive(&c, &r, BIG_ROOM));
	tso.num_buffers = 1;
	CHECK(memcmp(&r.hdr, &tso, sizeof(tso)) == 0);
	card_free(&c);

	card_echo(&c, sends | F(GUEST_CSUM), 64);
	card_room(&c, 2, BIG_ROOM);
	card_add(&c, 0, tso, 1, 9000);
	driver_publish(c.driver[NET_TX]);
	card_settle(&c);
	CHECK(!card_receive(&c, &r, BIG_ROOM));
	CHECK_EQ(card_drops(&c, NET_RX, NET_DROP_HEADER), 1);
	CHECK_EQ(card_all_drops(&c), 1);
	card_free(&c);
}

static void what_one_frame_asked_for_is_not_said_of_another(void)
{
	struct virtio_net_hdr_v1 asks = { .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .csum_start = 34, .csum_offset = 16 };
	struct virtio_net_hdr_v1 nothing = { .num_buffers = 1 };

	card_null(&c, 1514, F(CSUM) | F(GUEST_CSUM));
	card_room(&c, 4, MTU_ROOM);
	card_add(&c, 0, asks, 1, 100);
	driver_publish(c.driver[NET_TX]);
	card_settle(&c);
	for (unsigned i = 0; i < 4; i++) {
		CHECK(card_receive(&c, &r, MTU_ROOM));
		CHECK(memcmp(&r.hdr, &nothing, sizeof(nothing)) == 0);
	}
	card_free(&c);
}

static void without_merging_a_frame_beyond_its_buffer_is_dropped(void)
{
	card_echo(&c, 0, 64);
	card_room(&c, 8, MTU_ROOM);
	card_send(&c, 0, 1, 1515);
	card_send(&c, 1, 2, 1514);
	card_send(&c, 2, 3, 9000);
	card_send(&c, 3, 4, 60);
	card_settle(&c);
	CHECK_EQ(card_sent(&c), 4);
	CHECK_EQ(card_drops(&c, NET_RX, NET_DROP_TOO_LONG), 2);
	card_expect(&c, MTU_ROOM, 2, 1514);
	card_expect(&c, MTU_ROOM, 4, 60);
	/* The buffers of the dropped ones serve the next frames. A driver would see their remains only there. */
	CHECK_EQ(queue_in_flight(net_queue_base(c.queue[NET_RX])), 6);
	card_send(&c, 0, 5, 1514);
	card_send(&c, 1, 6, 1514);
	card_settle(&c);
	card_expect(&c, MTU_ROOM, 5, 1514);
	card_expect(&c, MTU_ROOM, 6, 1514);
	CHECK_EQ(card_all_drops(&c), 2);
	card_free(&c);
}

static void a_frame_longer_than_all_buffers_is_dropped_and_they_stay(void)
{
	card_echo(&c, MRG_RXBUF, 64);
	card_room(&c, 3, 1000);
	card_send(&c, 0, 1, 3000 - NET_HDR_LEN + 1);
	card_send(&c, 1, 2, 60);
	card_settle(&c);
	CHECK_EQ(card_drops(&c, NET_RX, NET_DROP_NO_BUFFER), 1);
	card_expect(&c, 1000, 2, 60);
	CHECK_EQ(queue_in_flight(net_queue_base(c.queue[NET_RX])), 2);
	card_free(&c);
}

static void without_buffers_sending_goes_on_and_what_has_no_place_is_counted(void)
{
	card_echo(&c, 0, 64);
	for (unsigned i = 0; i < 300; i++) {
		card_send(&c, 0, i, 60);
		card_settle(&c);
		CHECK_EQ(card_sent(&c), 1);
	}
	CHECK_EQ(card_drops(&c, NET_TX, NET_DROP_FULL), 300 - 256);
	for (unsigned i = 0; i < 256; i++) {
		card_room(&c, 1, MTU_ROOM);
		card_settle(&c);
		card_expect(&c, MTU_ROOM, i, 60);
	}
	CHECK(!card_receive(&c, &r, MTU_ROOM));
	CHECK_EQ(card_all_drops(&c), 300 - 256);
	card_free(&c);
}

static void a_source_fills_what_room_there_is_and_then_rests(void)
{
	card_null(&c, 1514, 0);
	CHECK_EQ(card_turn(&c), 0);
	card_room(&c, 50, MTU_ROOM);
	card_settle(&c);
	for (unsigned i = 0; i < 50; i++) {
		CHECK(card_receive(&c, &r, MTU_ROOM));
		CHECK_EQ(r.len, 1514);
		CHECK(r.frame[0] == 0xff && r.frame[12] == 0x88 && r.frame[13] == 0xb5 && r.frame[1513] == 0);
	}
	CHECK_EQ(net_queue_stats(c.queue[NET_RX])->packets, 50);
	CHECK_EQ(card_turn(&c), 0);
	card_free(&c);
}

/* What a worker waits for must not be true of a card that has all it needs: the worker would never sleep. */
static void with_buffers_and_no_frames_there_is_nothing_to_do(void)
{
	for (unsigned i = 0; i < 4; i++) {
		struct eventfd_poll_info word;

		card_null(&c, 0, rings[i]);
		card_room(&c, 64, MTU_ROOM);
		card_settle(&c);
		virtq_watch(&net_queue_base(c.queue[NET_RX])->vq, &word);
		CHECK(!wait_word_true(&word));
		CHECK_EQ(queue_in_flight(net_queue_base(c.queue[NET_RX])), 64);
		CHECK_EQ(card_turn(&c), 0);
		card_free(&c);
	}
}

static void a_stopped_card_leaves_every_buffer_to_its_successor(void)
{
	for (unsigned i = 0; i < 8; i++) {
		unsigned number = 0;

		card_echo(&c, rings[i % 4] | (i >= 4 ? MRG_RXBUF : 0), 64);
		for (unsigned round = 0; round < 40; round++) {
			card_room(&c, driver_room(c.driver[NET_RX]), MTU_ROOM);
			for (unsigned k = 0; k < 1 + round % 7; k++)
				card_send(&c, k, number + k, 60 + round);
			card_settle(&c);
			card_sent(&c);
			card_stop(&c);
			for (unsigned k = 0; k < 1 + round % 7; k++)
				card_expect(&c, MTU_ROOM, number++, 60 + round);
			CHECK(!driver_more(c.driver[NET_RX])); /* none came back unused */
			for (unsigned dir = 0; dir < 2; dir++)
				card_bind(&c, dir, virtq_base(&net_queue_base(c.queue[dir])->vq));
		}
		CHECK_EQ(card_all_drops(&c), 0);
		card_free(&c);
	}
}

static void what_one_guest_sent_is_not_received_by_the_next(void)
{
	card_echo(&c, 0, 64);
	card_send(&c, 0, 1, 60);
	card_settle(&c);
	CHECK_EQ(card_sent(&c), 1);
	card_stop(&c);
	for (unsigned dir = 0; dir < 2; dir++)
		card_bind(&c, dir, virtq_base(&net_queue_base(c.queue[dir])->vq));
	card_room(&c, 4, MTU_ROOM);
	card_settle(&c);
	CHECK(!card_receive(&c, &r, MTU_ROOM));
	card_send(&c, 0, 2, 60);
	card_settle(&c);
	card_expect(&c, MTU_ROOM, 2, 60);
	card_free(&c);
}

/* A card on one end of a pair of datagram sockets: a port that receives several frames at once into the held buffers. */
static void card_pair(uint64_t features, int fds[2])
{
	struct net_port *port;

	CHECK_EQ(socketpair(AF_UNIX, SOCK_DGRAM, 0, fds), 0);
	CHECK_EQ(net_port_udp(&port, fds[0]), 0);
	card_make(&c, port, features, 64);
}

static void peer_sends(int fd, unsigned number, uint32_t len)
{
	card_write_frame(r.frame, number, len);
	CHECK_EQ(send(fd, r.frame, len, 0), len);
}

/* Buffers a b c d e f; frames: too long for a, 60 bytes to b, too long for c, 60 bytes to d. */
static void a_buffer_left_out_is_given_back_empty_when_the_queue_stops(void)
{
	struct driver_used used[8];
	int fds[2];

	for (unsigned i = 0; i < 4; i++) {
		card_pair(rings[i], fds);
		card_room(&c, 6, MTU_ROOM);
		for (unsigned k = 0; k < 4; k++)
			peer_sends(fds[1], k, k % 2 ? 60 : 9000);
		card_settle(&c);
		card_stop(&c);
		CHECK_EQ(driver_poll_used(c.driver[NET_RX], used, 8), 4);
		CHECK_EQ(used[0].token, CARD_RX_AT + MTU_ROOM);
		CHECK_EQ(used[1].token, CARD_RX_AT + 3 * MTU_ROOM);
		CHECK_EQ(used[2].token + used[3].token, 2 * CARD_RX_AT + 2 * MTU_ROOM); /* a and c */
		CHECK(used[2].len == 0 && used[3].len == 0);
		for (unsigned dir = 0; dir < 2; dir++)
			card_bind(&c, dir, virtq_base(&net_queue_base(c.queue[dir])->vq));
		peer_sends(fds[1], 7, 60);
		peer_sends(fds[1], 8, 60);
		card_settle(&c);
		CHECK_EQ(driver_poll_used(c.driver[NET_RX], used, 8), 2);
		CHECK_EQ(used[0].token, CARD_RX_AT + 4 * MTU_ROOM); /* e and f */
		CHECK_EQ(used[1].token, CARD_RX_AT + 5 * MTU_ROOM);
		card_free(&c);
		close(fds[0]);
		close(fds[1]);
	}
}

static void every_reason_has_a_name(void)
{
	for (unsigned i = 0; i < NET_DROPS; i++) {
		CHECK(net_drop_name(i) != NULL);
		for (unsigned k = 0; k < i; k++)
			CHECK(strcmp(net_drop_name(i), net_drop_name(k)) != 0);
	}
	CHECK(strcmp(net_drop_name(NET_DROPS), "unknown") == 0);
}

int main(void)
{
	RUN(frames_come_back_whole_and_in_order_on_every_ring);
	RUN(headers_and_frames_in_pieces_are_understood_both_ways);
	RUN(a_merged_frame_takes_as_few_buffers_as_hold_it);
	RUN(a_frame_may_take_all_buffers_that_there_are);
	RUN(buffers_with_room_for_a_header_alone_are_merged_too);
	RUN(offloads_reach_the_driver_that_takes_them_and_no_other);
	RUN(what_one_frame_asked_for_is_not_said_of_another);
	RUN(without_merging_a_frame_beyond_its_buffer_is_dropped);
	RUN(a_frame_longer_than_all_buffers_is_dropped_and_they_stay);
	RUN(without_buffers_sending_goes_on_and_what_has_no_place_is_counted);
	RUN(a_source_fills_what_room_there_is_and_then_rests);
	RUN(with_buffers_and_no_frames_there_is_nothing_to_do);
	RUN(a_stopped_card_leaves_every_buffer_to_its_successor);
	RUN(what_one_guest_sent_is_not_received_by_the_next);
	RUN(a_buffer_left_out_is_given_back_empty_when_the_queue_stops);
	RUN(every_reason_has_a_name);
	return 0;
}
