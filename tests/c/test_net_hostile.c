/* SPDX-License-Identifier: Apache-2.0 */
/* test_net_hostile.c - the network card and a driver that lies: a frame is dropped and counted, or that one queue breaks */
#include "card.h"
#include "kernel/c/atomics.h"

#define F(name) (1ull << VIRTIO_NET_F_##name)
#define MTU_ROOM 1526u

static struct card c;
static struct received r;

static void a_lying_header_is_dropped_and_its_chain_returned(void)
{
	static const struct virtio_net_hdr_v1 lies[] = {
		{ .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .csum_start = 90, .csum_offset = 9 },
		{ .gso_type = VIRTIO_NET_HDR_GSO_TCPV6, .gso_size = 50, .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM },
		{ .gso_type = VIRTIO_NET_HDR_GSO_TCPV4, .gso_size = 0, .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM },
		{ .gso_type = VIRTIO_NET_HDR_GSO_TCPV4, .gso_size = 50 },
		{ .gso_type = 99 },
	};

	card_echo(&c, F(CSUM) | F(GUEST_CSUM) | F(HOST_TSO4) | F(GUEST_TSO4), 64);
	card_room(&c, 20, MTU_ROOM);
	for (unsigned i = 0; i < 5; i++)
		card_add(&c, i, lies[i], i, 100);
	card_send(&c, 5, 77, 100);
	card_settle(&c);
	CHECK_EQ(card_sent(&c), 6);
	CHECK_EQ(card_drops(&c, NET_TX, NET_DROP_HEADER), 5);
	card_expect(&c, MTU_ROOM, 77, 100);
	CHECK(!card_receive(&c, &r, MTU_ROOM));
	CHECK_EQ(net_queue_stats(c.queue[NET_TX])->packets, 1);
	card_free(&c);
}

static void frames_that_cannot_be_are_dropped_by_their_length(void)
{
	card_echo(&c, MRG_RXBUF, 64);
	card_room(&c, 60, MTU_ROOM);
	card_send(&c, 0, 1, 0);
	card_send(&c, 1, 2, NET_FRAME_MIN - 1);
	card_send(&c, 2, 3, NET_FRAME_MAX + 1);
	card_send(&c, 4, 4, NET_FRAME_MAX);
	card_settle(&c);
	CHECK_EQ(card_sent(&c), 4);
	CHECK_EQ(card_drops(&c, NET_TX, NET_DROP_LENGTH), 3);
	card_expect(&c, MTU_ROOM, 4, NET_FRAME_MAX);
	card_free(&c);
}

/* What broke one queue, and the other one serves on. */
static void expect_broken(enum net_direction dir, enum virtq_fault fault)
{
	struct lane *lane = net_lane_base(c.lane);

	driver_publish(c.driver[dir]);
	card_settle(&c);
	CHECK_EQ(card_state(&c, dir), QUEUE_BROKEN);
	CHECK_EQ(net_queue_base(c.queue[dir])->vq.fault, fault);
	CHECK_EQ(card_state(&c, !dir), QUEUE_RUNNING);
	CHECK(lane_broken(lane) == net_queue_base(c.queue[dir]));
	CHECK(lane_broken(lane) == NULL);
}

static void what_cannot_be_a_frame_to_send_breaks_that_queue_alone(void)
{
	struct driver_buf bufs[CARD_CHAIN] = { { CARD_TX_AT, NET_HDR_LEN + 60 }, { CARD_TX_AT + 200, 1 } };

	card_null(&c, 60, 0);
	card_send(&c, 4, 1, 60);
	CHECK_EQ(driver_add(c.driver[NET_TX], bufs, 1, 1, 1), 0);
	expect_broken(NET_TX, VIRTQ_FAULT_REQUEST);
	CHECK_EQ(net_queue_stats(c.queue[NET_TX])->packets, 1); /* what came before it was sent */
	CHECK_EQ(card_sent(&c), 1);
	card_room(&c, 3, MTU_ROOM);
	card_settle(&c);
	CHECK(card_receive(&c, &r, MTU_ROOM));
	card_stop(&c);
	card_free(&c);

	card_null(&c, 60, 0);
	bufs[0].len = NET_HDR_LEN - 1;
	CHECK_EQ(driver_add(c.driver[NET_TX], bufs, 1, 0, 1), 0);
	expect_broken(NET_TX, VIRTQ_FAULT_REQUEST);
	card_free(&c);
}

static void what_cannot_be_received_into_breaks_that_queue_alone(void)
{
	struct driver_buf bufs[2] = { { CARD_RX_AT, 1 }, { CARD_RX_AT + 64, MTU_ROOM } };

	card_null(&c, 60, 0);
	CHECK_EQ(driver_add(c.driver[NET_RX], bufs, 1, 1, 1), 0);
	expect_broken(NET_RX, VIRTQ_FAULT_REQUEST);
	card_send(&c, 0, 1, 60);
	card_settle(&c);
	CHECK_EQ(card_sent(&c), 1);
	card_free(&c);

	card_null(&c, 60, 0);
	bufs[0].len = NET_HDR_LEN - 1;
	CHECK_EQ(driver_add(c.driver[NET_RX], bufs, 0, 1, 1), 0);
	expect_broken(NET_RX, VIRTQ_FAULT_REQUEST);
	card_free(&c);
}

static void a_broken_queue_stops_with_nothing_in_flight(void)
{
	struct driver_buf bad = { CARD_RX_AT, 1 };

	card_null(&c, 0, 0);
	card_room(&c, 10, MTU_ROOM);
	card_settle(&c);
	CHECK_EQ(queue_in_flight(net_queue_base(c.queue[NET_RX])), 10);
	CHECK_EQ(driver_add(c.driver[NET_RX], &bad, 0, 1, 1), 0);
	expect_broken(NET_RX, VIRTQ_FAULT_REQUEST);
	CHECK_EQ(queue_in_flight(net_queue_base(c.queue[NET_RX])), 10);
	card_stop(&c);
	card_free(&c);
}

static void a_driver_with_more_buffers_than_ring_entries_breaks_the_queue(void)
{
	struct vring_avail *avail;

	card_null(&c, 0, 0);
	card_room(&c, 64, MTU_ROOM);
	card_settle(&c);
	avail = (struct vring_avail *)(c.memory + CARD_RING(NET_RX) + c.at[NET_RX].avail);
	store_release(&avail->idx, avail->idx + 1);
	card_settle(&c);
	CHECK_EQ(card_state(&c, NET_RX), QUEUE_BROKEN);
	CHECK_EQ(net_queue_base(c.queue[NET_RX])->vq.fault, VIRTQ_FAULT_TOO_MANY);
	card_free(&c);
}

int main(void)
{
	RUN(a_lying_header_is_dropped_and_its_chain_returned);
	RUN(frames_that_cannot_be_are_dropped_by_their_length);
	RUN(what_cannot_be_a_frame_to_send_breaks_that_queue_alone);
	RUN(what_cannot_be_received_into_breaks_that_queue_alone);
	RUN(a_broken_queue_stops_with_nothing_in_flight);
	RUN(a_driver_with_more_buffers_than_ring_entries_breaks_the_queue);
	return 0;
}
