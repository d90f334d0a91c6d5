/* SPDX-License-Identifier: Apache-2.0 */
/* test_net_lent.c - the ports that lend frames out of memory of their own: echo and null */
#include <errno.h>

#include "card.h"

#define PACKED (1ull << VIRTIO_F_RING_PACKED)
#define MTU_ROOM 1526u
#define BIG_ROOM (NET_FRAME_MAX + NET_HDR_LEN)

static struct card c;

static const uint64_t rings[] = { 0, PACKED };

/* Unlike on a port that receives straight into the buffers. */
static void a_frame_that_is_dropped_leaves_its_buffer_to_the_next(void)
{
	struct driver_used used[8];

	for (unsigned i = 0; i < 2; i++) {
		card_echo(&c, rings[i], 64);
		card_room(&c, 6, MTU_ROOM);
		for (unsigned k = 0; k < 4; k++)
			card_send(&c, k, k, k % 2 ? 60 : 9000);
		card_settle(&c);
		CHECK_EQ(card_drops(&c, NET_RX, NET_DROP_TOO_LONG), 2);
		CHECK_EQ(driver_poll_used(c.driver[NET_RX], used, 8), 2);
		CHECK_EQ(used[0].token, CARD_RX_AT);
		CHECK_EQ(used[1].token, CARD_RX_AT + MTU_ROOM);
		CHECK(card_is_frame(c.memory + used[0].token + NET_HDR_LEN, 1, 60));
		CHECK(card_is_frame(c.memory + used[1].token + NET_HDR_LEN, 3, 60));
		card_free(&c);
	}
}

/* The room of an echo is a ring, in which long and short frames must find their places. */
static void an_echo_keeps_256_frames_of_any_length_until_there_are_buffers(void)
{
	unsigned sent = 0, came = 0;

	card_echo(&c, MRG_RXBUF, 256);
	for (unsigned round = 0; round < 12; round++) {
		unsigned n = round == 0 ? 256 : 5 + round * 7;

		for (unsigned k = 0; k < n; k++, sent++) {
			card_send(&c, 0, sent, sent % 3 ? 60 + sent : NET_FRAME_MAX);
			card_turn(&c);
			CHECK_EQ(card_sent(&c), 1);
		}
		CHECK_EQ(card_all_drops(&c), 0);
		for (unsigned k = 0; k < 5 + (round + 1) * 7 && came < sent; k++, came++) {
			card_room(&c, 1, BIG_ROOM);
			card_settle(&c);
			card_expect(&c, BIG_ROOM, came, came % 3 ? 60 + came : NET_FRAME_MAX);
		}
	}
	while (sent - came < 256)
		card_send(&c, 0, sent++, NET_FRAME_MAX), card_settle(&c), card_sent(&c);
	card_send(&c, 0, sent, 60);
	card_settle(&c);
	CHECK_EQ(card_drops(&c, NET_TX, NET_DROP_FULL), 1);
	card_free(&c);
}

static void ports_of_impossible_frames_are_refused(void)
{
	struct net_port *port;

	CHECK_EQ(net_port_null(&port, NET_FRAME_MIN - 1), -EINVAL);
	CHECK_EQ(net_port_null(&port, NET_FRAME_MAX + 1), -EINVAL);
}

int main(void)
{
	RUN(a_frame_that_is_dropped_leaves_its_buffer_to_the_next);
	RUN(an_echo_keeps_256_frames_of_any_length_until_there_are_buffers);
	RUN(ports_of_impossible_frames_are_refused);
	return 0;
}
