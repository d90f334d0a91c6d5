/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_net_xdp.c - a network card on AF_XDP's rings in plain memory, with this test in the kernel's place
 *
 * It checks what the kernel would be given: chunks whole and aligned, each lent once at a time, and frames in order, none of
 * them shorter or longer than a wire's may be. What it gives is right: the kernel's rings are on our side of the trust boundary
 * (ARCHITECTURE.md). The umem is one allocation, so that a byte beyond it is seen.
 */
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_xdp.h>
#include <sys/socket.h>

#include "backend/c/net_xdp.h"
#include "card.h"
#include "packet.h"

#define F(name) (1ull << VIRTIO_NET_F_##name)
#define HEADROOM 256u /* XDP_PACKET_HEADROOM: where the kernel puts a frame in its chunk */
#define LONGEST (NET_XDP_CHUNK - HEADROOM)
#define FRAME_MAX 1518u /* what the interface takes: an MTU of 1500, Ethernet's header and a VLAN tag */
#define ROOM (NET_HDR_LEN + NET_XDP_CHUNK)
#define ROUNDS (3 * NET_XDP_RING / NET_BATCH) /* each chunk is used several times, and each ring goes round */

static struct card c;
static struct net_xdp with;
static bool receiving[NET_XDP_RING],
	sending[NET_XDP_RING];      /* chunks of each half that the kernel, or its ring, holds */
static uint64_t sent[NET_XDP_RING]; /* chunks that are being sent: a ring */
static uint32_t sent_at, completed_at, given_back;
static int wakeups; /* the other end of what would be the socket; -1: there is none */

static void make_ring(struct net_xdp_ring *ring, size_t entry)
{
	ring->producer = calloc(1, sizeof(uint32_t));
	ring->consumer = calloc(1, sizeof(uint32_t));
	ring->flags = calloc(1, sizeof(uint32_t));
	ring->entries = calloc(NET_XDP_RING, entry);
}

static void free_ring(struct net_xdp_ring *ring)
{
	free(ring->producer);
	free(ring->consumer);
	free(ring->flags);
	free(ring->entries);
}

static void start(uint64_t features, bool has_socket)
{
	struct net_port *port;
	int pair[2] = { -1, -1 };

	if (has_socket)
		CHECK_EQ(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair), 0);
	with = (struct net_xdp){ .fd = pair[0], .frame_max = FRAME_MAX, .umem = malloc(NET_XDP_UMEM) };
	memset(with.umem, UNWRITTEN, NET_XDP_UMEM);
	wakeups = pair[1];
	make_ring(&with.rx, sizeof(struct xdp_desc));
	make_ring(&with.tx, sizeof(struct xdp_desc));
	make_ring(&with.fill, sizeof(uint64_t));
	make_ring(&with.completion, sizeof(uint64_t));
	memset(receiving, 0, sizeof(receiving));
	memset(sending, 0, sizeof(sending));
	sent_at = completed_at = given_back = 0;
	CHECK_EQ(net_port_xdp(&port, &with), 0);
	card_make(&c, port, features, 256);
}

static void stop(void)
{
	card_free(&c);
	free_ring(&with.rx);
	free_ring(&with.tx);
	free_ring(&with.fill);
	free_ring(&with.completion);
	free(with.umem);
	if (with.fd >= 0) {
		close(with.fd);
		close(wakeups);
	}
}

/* The number of a chunk of one half, which @addr must be the beginning of. */
static uint32_t chunk_of(uint64_t addr, bool sends)
{
	CHECK_EQ(addr % NET_XDP_CHUNK, 0);
	CHECK(addr / NET_XDP_CHUNK >= (sends ? NET_XDP_RING : 0));
	CHECK(addr / NET_XDP_CHUNK < (sends ? 2 : 1) * NET_XDP_RING);
	return (uint32_t)(addr / NET_XDP_CHUNK) % NET_XDP_RING;
}

/* The kernel receives a frame into the next chunk that it was lent. */
static void kernel_receives(unsigned number, uint32_t len)
{
	uint32_t chunk, at = *with.fill.consumer, rx = *with.rx.producer;
	struct xdp_desc *ring = with.rx.entries;

	CHECK(at != *with.fill.producer);
	for (; given_back != *with.rx.consumer; given_back++)
		receiving[ring[given_back % NET_XDP_RING].addr / NET_XDP_CHUNK] = false;
	chunk = chunk_of(((uint64_t *)with.fill.entries)[at % NET_XDP_RING], false);
	CHECK(!receiving[chunk]);
	receiving[chunk] = true;
	*with.fill.consumer = at + 1;
	card_write_frame(with.umem + chunk * NET_XDP_CHUNK + HEADROOM, number, len);
	ring[rx % NET_XDP_RING] = (struct xdp_desc){ .addr = chunk * NET_XDP_CHUNK + HEADROOM, .len = len };
	*with.rx.producer = rx + 1;
}

/* The kernel takes the next frame to send. Return: where it lies, of *len bytes; NULL: there is none */
static const uint8_t *kernel_takes(uint32_t *len)
{
	uint32_t at = *with.tx.consumer, chunk;
	struct xdp_desc desc;

	if (at == *with.tx.producer)
		return NULL;
	desc = ((struct xdp_desc *)with.tx.entries)[at % NET_XDP_RING];
	chunk = chunk_of(desc.addr, true);
	CHECK(!sending[chunk] && desc.len >= ETH_ZLEN && desc.len <= FRAME_MAX && desc.options == 0);
	sending[chunk] = true;
	sent[sent_at++ % NET_XDP_RING] = desc.addr;
	*with.tx.consumer = at + 1;
	*len = desc.len;
	return with.umem + desc.addr;
}

/* The next frame is @number, of @expected bytes; behind a short one there are zeros. */
static void kernel_sends(unsigned number, uint32_t expected)
{
	uint32_t len = 0;
	const uint8_t *frame = kernel_takes(&len);

	CHECK(frame != NULL);
	CHECK_EQ(len, expected < ETH_ZLEN ? ETH_ZLEN : expected);
	CHECK(card_is_frame(frame, number, expected));
	for (uint32_t i = expected; i < len; i++)
		CHECK_EQ(frame[i], 0);
}

/* The kernel gives back the chunks of what it has sent. */
static void kernel_completes(void)
{
	for (; completed_at != sent_at; completed_at++) {
		uint64_t addr = sent[completed_at % NET_XDP_RING];

		CHECK(*with.completion.producer - *with.completion.consumer < NET_XDP_RING);
		sending[chunk_of(addr, true)] = false;
		((uint64_t *)with.completion.entries)[(*with.completion.producer)++ % NET_XDP_RING] = addr;
	}
}

static unsigned woken(void)
{
	unsigned n = 0;
	char none;

	while (recv(wakeups, &none, sizeof(none), MSG_DONTWAIT) == 0)
		n++;
	return n;
}

/* The length of frame @i: short ones, long ones, and the longest. */
static uint32_t len_of(unsigned i, uint32_t longest)
{
	static const uint32_t lens[] = { 60, 61, 1514, 14 };

	return i % 5 == 4 ? longest : lens[i % 5];
}

static void half_of_the_chunks_are_the_kernels_from_the_beginning(void)
{
	start(0, false);
	CHECK_EQ(*with.fill.producer, NET_XDP_RING);
	for (unsigned i = 0; i < NET_XDP_RING; i++)
		kernel_receives(i, 60);
	CHECK_EQ(*with.fill.consumer, *with.fill.producer);
	CHECK_EQ(*with.tx.producer, 0);
	stop();
}

static void frames_arrive_whole_and_in_order_and_their_chunks_are_lent_again(void)
{
	start(0, false);
	for (unsigned round = 0; round < ROUNDS; round++) {
		card_room(&c, NET_BATCH, ROOM);
		for (unsigned i = 0; i < NET_BATCH; i++)
			kernel_receives(round + i, len_of(i, LONGEST));
		card_settle(&c);
		CHECK_EQ(*with.fill.producer - *with.fill.consumer, NET_XDP_RING);
		for (unsigned i = 0; i < NET_BATCH; i++)
			card_expect(&c, ROOM, round + i, len_of(i, LONGEST));
	}
	CHECK_EQ(card_all_drops(&c), 0);
	stop();
}

static void frames_wait_in_their_chunks_for_a_guest_without_buffers(void)
{
	start(0, false);
	for (unsigned i = 0; i < 200; i++)
		kernel_receives(i, 100);
	CHECK_EQ(card_turn(&c), 0);
	CHECK_EQ(*with.rx.consumer, 0);
	card_room(&c, 200, ROOM);
	card_settle(&c);
	for (unsigned i = 0; i < 200; i++)
		card_expect(&c, ROOM, i, 100);
	CHECK_EQ(card_all_drops(&c), 0);
	stop();
}

static void frames_leave_whole_and_in_order_and_their_chunks_are_used_again(void)
{
	start(0, false);
	for (unsigned round = 0; round < ROUNDS; round++) {
		for (unsigned i = 0; i < NET_BATCH; i++)
			card_send(&c, i, round + i, len_of(i, FRAME_MAX));
		card_settle(&c);
		for (unsigned i = 0; i < NET_BATCH; i++)
			kernel_sends(round + i, len_of(i, FRAME_MAX));
		kernel_completes();
		CHECK_EQ(card_sent(&c), NET_BATCH);
	}
	CHECK_EQ(card_all_drops(&c), 0);
	stop();
}

static void a_frame_longer_than_the_interface_takes_is_refused(void)
{
	start(0, false);
	card_send(&c, 0, 1, FRAME_MAX + 1);
	card_send(&c, 1, 2, NET_XDP_CHUNK + 1);
	card_send(&c, 2, 3, FRAME_MAX);
	card_settle(&c);
	CHECK_EQ(card_drops(&c, NET_TX, NET_DROP_REFUSED), 2);
	kernel_sends(3, FRAME_MAX);
	CHECK_EQ(*with.tx.consumer, *with.tx.producer);
	CHECK_EQ(card_all_drops(&c), 2);
	stop();
}

/* What was in the chunk before may be another guest's. */
static void a_short_frame_is_filled_up_with_zeros_and_not_with_an_earlier_frame(void)
{
	start(0, false);
	for (unsigned i = 0; i < NET_XDP_RING; i++) { /* all of them: whichever is taken next has held one */
		card_send(&c, i % 64, i, FRAME_MAX);
		card_settle(&c);
		CHECK_EQ(card_sent(&c), 1);
		kernel_sends(i, FRAME_MAX);
	}
	kernel_completes();
	for (uint32_t len = NET_FRAME_MIN; len <= ETH_ZLEN; len++)
		card_send(&c, len, len, len);
	card_settle(&c);
	for (uint32_t len = NET_FRAME_MIN; len <= ETH_ZLEN; len++)
		kernel_sends(len, len);
	CHECK_EQ(*with.tx.consumer, *with.tx.producer);
	CHECK_EQ(card_all_drops(&c), 0);
	stop();
}

static void what_finds_no_chunk_is_lost_until_the_kernel_has_sent_some(void)
{
	start(0, false);
	for (unsigned i = 0; i < NET_XDP_RING + 5; i++) {
		card_send(&c, i % 64, i, 60);
		card_settle(&c);
		CHECK_EQ(card_sent(&c), 1);
	}
	CHECK_EQ(card_drops(&c, NET_TX, NET_DROP_FULL), 5);
	for (unsigned i = 0; i < NET_XDP_RING; i++)
		kernel_sends(i, 60);
	kernel_completes();
	for (unsigned i = 0; i < NET_XDP_RING; i += 64) {
		for (unsigned k = 0; k < 64; k++)
			card_send(&c, k, i + k, 60);
		card_settle(&c);
		CHECK_EQ(card_sent(&c), 64);
	}
	CHECK_EQ(card_all_drops(&c), 5);
	for (unsigned i = 0; i < NET_XDP_RING; i++)
		kernel_sends(i, 60);
	stop();
}

static void add_packet(unsigned slot)
{
	uint32_t at = CARD_TX_AT + slot * CARD_SLOT;

	memcpy(c.memory + at, &p.hdr, NET_HDR_LEN);
	memcpy(c.memory + at + NET_HDR_LEN, p.bytes, p.len);
	CHECK_EQ(driver_add(c.driver[NET_TX], &(struct driver_buf){ at, NET_HDR_LEN + p.len }, 1, 0, at), 0);
	CHECK(driver_publish(c.driver[NET_TX]) >= 0);
	card_settle(&c);
}

/* All of a frame's segments, or none: what else would arrive is a torn one. */
static void segments_have_a_chunk_each_or_the_frame_is_lost(void)
{
	const uint32_t segments = 10;

	p = (struct packet){ .udp = true, .payload = segments * 1000 - 1, .gso_size = 1000 };
	packet_build();
	start(F(CSUM) | F(HOST_USO), false);
	for (unsigned i = 0; i < NET_XDP_RING / segments; i++)
		add_packet(i % 4);
	CHECK_EQ(card_all_drops(&c), 0);
	add_packet(0);
	CHECK_EQ(card_drops(&c, NET_TX, NET_DROP_FULL), 1);
	for (unsigned i = 0; i < NET_XDP_RING / segments * segments; i++) {
		uint32_t len = 0, k = i % segments;
		const uint8_t *frame = kernel_takes(&len);

		CHECK(frame != NULL);
		CHECK_EQ(len, p.headers + 1000 - (k + 1 == segments));
		packet_check_segment(frame, len, k, k + 1 == segments);
	}
	CHECK_EQ(*with.tx.consumer, *with.tx.producer);
	stop();
}

static void a_segment_longer_than_the_interface_takes_is_refused(void)
{
	p = (struct packet){ .udp = true, .payload = 10000, .gso_size = NET_XDP_CHUNK };
	packet_build();
	start(F(CSUM) | F(HOST_USO), false);
	add_packet(0);
	p.gso_size = (uint16_t)(FRAME_MAX - p.headers + 1);
	packet_build();
	add_packet(1);
	CHECK_EQ(card_drops(&c, NET_TX, NET_DROP_REFUSED), 2);
	CHECK_EQ(*with.tx.producer, 0);
	p.gso_size--;
	packet_build();
	add_packet(2);
	CHECK(*with.tx.producer > 0);
	CHECK_EQ(card_all_drops(&c), 2);
	stop();
}

/* A last segment may have but one byte. */
static void a_short_segment_is_filled_up_with_zeros(void)
{
	uint32_t len = 0;
	const uint8_t *frame;

	p = (struct packet){ .udp = true, .payload = 1001, .gso_size = 1000 };
	packet_build();
	start(F(CSUM) | F(HOST_USO), false);
	add_packet(0);
	CHECK(kernel_takes(&len) != NULL);
	frame = kernel_takes(&len);
	CHECK(frame != NULL);
	CHECK_EQ(len, ETH_ZLEN);
	packet_check_segment(frame, p.headers + 1, 1, true);
	for (uint32_t i = p.headers + 1; i < len; i++)
		CHECK_EQ(frame[i], 0);
	CHECK_EQ(card_all_drops(&c), 0);
	stop();
}

static void the_kernel_is_woken_only_where_it_says_that_it_sleeps(void)
{
	start(0, true);
	card_send(&c, 0, 1, 60);
	card_settle(&c);
	CHECK_EQ(woken(), 0);
	CHECK(c.port->unsent); /* nobody will tell when it is sent */
	kernel_sends(1, 60);
	card_turn(&c);
	CHECK(!c.port->unsent);

	*with.tx.flags = XDP_RING_NEED_WAKEUP;
	card_send(&c, 0, 2, 60);
	card_turn(&c);
	CHECK(woken() > 0);
	CHECK(c.port->unsent);
	kernel_sends(2, 60);
	card_turn(&c);
	CHECK(!c.port->unsent);
	CHECK_EQ(woken(), 0);
	CHECK_EQ(card_all_drops(&c), 0);
	stop();
}

static void while_the_kernel_cannot_send_frames_are_refused_and_do_not_come_out_later(void)
{
	start(0, false);
	*with.tx.flags = XDP_RING_NEED_WAKEUP; /* there is no socket to wake it by */
	for (unsigned i = 0; i < 4; i++) {
		card_send(&c, i, i, 60);
		card_settle(&c);
	}
	CHECK_EQ(card_drops(&c, NET_TX, NET_DROP_REFUSED), 4);
	CHECK_EQ(c.port->error, EBADF);
	*with.tx.flags = 0;
	card_send(&c, 4, 4, 60);
	card_settle(&c);
	kernel_sends(0, 60); /* it was the kernel's already */
	kernel_sends(4, 60);
	CHECK_EQ(*with.tx.consumer, *with.tx.producer);
	CHECK_EQ(card_all_drops(&c), 4);
	stop();
}

int main(void)
{
	RUN(half_of_the_chunks_are_the_kernels_from_the_beginning);
	RUN(frames_arrive_whole_and_in_order_and_their_chunks_are_lent_again);
	RUN(frames_wait_in_their_chunks_for_a_guest_without_buffers);
	RUN(frames_leave_whole_and_in_order_and_their_chunks_are_used_again);
	RUN(a_frame_longer_than_the_interface_takes_is_refused);
	RUN(a_short_frame_is_filled_up_with_zeros_and_not_with_an_earlier_frame);
	RUN(what_finds_no_chunk_is_lost_until_the_kernel_has_sent_some);
	RUN(segments_have_a_chunk_each_or_the_frame_is_lost);
	RUN(a_segment_longer_than_the_interface_takes_is_refused);
	RUN(a_short_segment_is_filled_up_with_zeros);
	RUN(the_kernel_is_woken_only_where_it_says_that_it_sleeps);
	RUN(while_the_kernel_cannot_send_frames_are_refused_and_do_not_come_out_later);
	return 0;
}
