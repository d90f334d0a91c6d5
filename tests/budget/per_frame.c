/* SPDX-License-Identifier: Apache-2.0 */
/*
 * per_frame.c - driver and card in one thread, for callgrind to count what the card does per frame
 *
 * per_frame tx|rx|echo split|packed FRAMES: frames of 64 bytes, BURST at a time, each in one buffer with its header, as
 * Linux's driver lays them. tx goes to null and rx comes from it; echo is both. callgrind collects only inside the lane's
 * turns, so the driver costs nothing.
 */
#include <stdlib.h>

#include "tests/c/card.h"

#define FRAME 64u
#define ROOM 1536u
#define BURST 32u
#define RING (1ull << VIRTIO_RING_F_INDIRECT_DESC | 1ull << VIRTIO_RING_F_EVENT_IDX | MRG_RXBUF)

/* Take back what the card used. Return: how many */
static unsigned used(struct driver *d, uint64_t *tokens)
{
	struct driver_used back[BURST];
	int n = driver_poll_used(d, back, BURST);

	CHECK(n >= 0);
	for (int i = 0; i < n; i++)
		tokens[i] = back[i].token;
	return (unsigned)n;
}

/* Turn until a burst has come back from a queue, and make it available again. */
static void cycle(struct card *c, enum net_direction dir)
{
	struct driver *d = c->driver[dir];
	uint32_t len = dir == NET_TX ? NET_HDR_LEN + FRAME : ROOM;
	uint64_t tokens[BURST];
	unsigned n;

	for (unsigned back = 0; back < BURST; back += n) {
		card_turn(c);
		n = used(d, tokens);
		for (unsigned i = 0; i < n; i++) {
			struct driver_buf buf = { tokens[i], len };

			CHECK_EQ(driver_add(d, &buf, dir == NET_TX, dir == NET_RX, tokens[i]), 0);
		}
	}
	CHECK(driver_publish(d) >= 0);
}

int main(int argc, char **argv)
{
	const char *way = argc == 4 ? argv[1] : "";
	bool packed = argc == 4 && strcmp(argv[2], "packed") == 0, echo = strcmp(way, "echo") == 0;
	bool sends = echo || strcmp(way, "tx") == 0, receives = echo || strcmp(way, "rx") == 0;
	unsigned left = argc == 4 ? (unsigned)atoi(argv[3]) : 0;
	struct net_port *port;
	struct card c;

	CHECK((sends || receives) && left % BURST == 0 && left > 0);
	CHECK_EQ(echo ? net_port_echo(&port) : net_port_null(&port, receives ? FRAME : 0), 0);
	card_make(&c, port, RING | (packed ? 1ull << VIRTIO_F_RING_PACKED : 0), 256);
	driver_interrupts_off(c.driver[NET_TX]);
	driver_interrupts_off(c.driver[NET_RX]);
	if (receives)
		card_room(&c, BURST, ROOM);
	for (unsigned i = 0; sends && i < BURST; i++)
		card_send(&c, i, i, FRAME);
	for (; left > 0; left -= BURST) {
		if (sends)
			cycle(&c, NET_TX);
		if (receives)
			cycle(&c, NET_RX);
	}
	CHECK_EQ(card_all_drops(&c), 0);
	printf("%llu\n", (unsigned long long)net_queue_stats(c.queue[receives ? NET_RX : NET_TX])->packets);
	card_free(&c);
	return 0;
}
