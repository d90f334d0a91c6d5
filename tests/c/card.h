/* SPDX-License-Identifier: Apache-2.0 */
/*
 * card.h - a guest with a network card of one queue pair, and its drivers
 *
 * A request's token is the offset of its buffers in the guest's memory. Receive buffers are filled with UNWRITTEN before
 * they are made available, so that what the device wrote beyond a frame is seen.
 */
#ifndef KPOLL_TEST_CARD_H
#define KPOLL_TEST_CARD_H

#include <linux/virtio_config.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backend/c/net.h"
#include "check.h"
#include "vhost/c/driver.h"

#define CARD_MEMORY (48u << 20)
#define CARD_RING(index) ((index) << 20)
#define CARD_TX_AT (4u << 20)  /* frames to send: slots of CARD_SLOT bytes */
#define CARD_RX_AT (24u << 20) /* buffers to receive into */
#define CARD_SLOT 65600u
#define CARD_UVA 0x500000000000ull
#define CARD_CHAIN 24
#define UNWRITTEN 0xee

#define CARD_BASIC (1ull << VIRTIO_F_VERSION_1)
#define MRG_RXBUF (1ull << VIRTIO_NET_F_MRG_RXBUF)

struct card {
	int fd;
	struct mem_map *map;
	struct mem_table *table;
	uint8_t *memory;
	struct net_port *port;
	struct net_lane *lane;
	struct net_queue *queue[2];
	struct driver *driver[2];
	struct driver_layout at[2];
	uint64_t features;
	uint32_t size;
	int kick[2], call[2]; /* eventfds */
	uint32_t room_at;     /* where the next receive buffer lies, if the test doesn't care */
};

/* Bind a queue to its rings, stopped. */
static inline void card_bind_only(struct card *c, unsigned i, uint32_t base)
{
	uint64_t uva = CARD_UVA + CARD_RING(i);
	struct virtq_config cfg = {
		.size = c->size,
		.features = c->features,
		.desc_uva = uva + c->at[i].desc,
		.avail_uva = uva + c->at[i].avail,
		.used_uva = uva + c->at[i].used,
		.base = base,
		.call_fd = c->call[i],
		.err_fd = -1,
	};

	CHECK_EQ(net_queue_bind(c->queue[i], &cfg, c->table), 0);
}

/* Bind a queue and put it on the lane, as a worker would. */
static inline void card_bind(struct card *c, unsigned i, uint32_t base)
{
	card_bind_only(c, i, base);
	CHECK_EQ(lane_add(net_lane_base(c->lane), net_queue_base(c->queue[i])), 0);
}

static inline void card_make(struct card *c, struct net_port *port, uint64_t features, uint32_t size)
{
	memset(c, 0, sizeof(*c));
	c->features = features | CARD_BASIC;
	c->size = size;
	c->port = port;
	c->fd = memfd_create("card", MFD_CLOEXEC);
	CHECK(c->fd >= 0 && ftruncate(c->fd, CARD_MEMORY) == 0);
	CHECK_EQ(mem_map_create(c->fd, 0, CARD_MEMORY, &c->map), 0);
	c->table = mem_table_create(1);
	mem_table_set(c->table, 0, 0, CARD_UVA, CARD_MEMORY, c->map);
	CHECK_EQ(mem_table_seal(c->table), 0);
	c->memory = mem_map_ptr(c->map);
	CHECK_EQ(net_lane_create(&c->lane, port), 0);
	for (unsigned i = 0; i < 2; i++) {
		struct driver_config driver = {
			.size = size,
			.chain_max = CARD_CHAIN < size ? CARD_CHAIN : size,
			.features = c->features,
			.area = c->memory + CARD_RING(i),
			.area_gpa = CARD_RING(i),
			.kick_fd = c->kick[i] = eventfd(0, EFD_NONBLOCK),
		};

		c->call[i] = eventfd(0, EFD_NONBLOCK);
		CHECK(c->kick[i] >= 0 && c->call[i] >= 0);
		CHECK_EQ(driver_lay_out(&c->at[i], size, c->features, driver.chain_max), 0);
		CHECK(c->at[i].bytes <= CARD_RING(1));
		CHECK_EQ(driver_create(&c->driver[i], &driver), 0);
		c->queue[i] = net_queue_create((uint16_t)i);
		CHECK(c->queue[i] != NULL);
		card_bind(c, i, c->features >> VIRTIO_F_RING_PACKED & 1 ? 0x80008000u : 0);
	}
	c->room_at = CARD_RX_AT;
}

/* On the ports that need no network. */
static inline void card_echo(struct card *c, uint64_t features, uint32_t size)
{
	struct net_port *port;

	CHECK_EQ(net_port_echo(&port), 0);
	card_make(c, port, features, size);
}

static inline void card_null(struct card *c, uint32_t source, uint64_t features)
{
	struct net_port *port;

	CHECK_EQ(net_port_null(&port, source), 0);
	card_make(c, port, features, 64);
}

static inline void card_free(struct card *c)
{
	for (unsigned i = 0; i < 2; i++) {
		net_queue_destroy(c->queue[i]);
		driver_destroy(c->driver[i]);
		close(c->kick[i]);
		close(c->call[i]);
	}
	net_lane_destroy(c->lane);
	net_port_destroy(c->port);
	mem_table_destroy(c->table);
	mem_map_destroy(c->map);
	close(c->fd);
}

static inline unsigned card_turn(struct card *c)
{
	struct lane *lane = net_lane_base(c->lane);

	return lane->ops->poll(lane);
}

/* Turn until a turn moves nothing. */
static inline void card_settle(struct card *c)
{
	while (card_turn(c) > 0)
		;
}

/* Ask both queues to stop, as a worker does, and turn. */
static inline void card_stop(struct card *c)
{
	for (unsigned i = 0; i < 2; i++)
		queue_set_state(net_queue_base(c->queue[i]), QUEUE_STOPPING);
	card_settle(c);
	for (unsigned i = 0; i < 2; i++) {
		struct queue *q = net_queue_base(c->queue[i]);

		CHECK_EQ(queue_in_flight(q), 0);
		lane_remove(net_lane_base(c->lane), q);
		net_lane_base(c->lane)->ops->release(net_lane_base(c->lane), q);
		queue_set_state(q, QUEUE_STOPPED);
	}
}

static inline int card_state(const struct card *c, enum net_direction dir)
{
	return queue_state(net_queue_base(c->queue[dir]));
}

static inline uint64_t card_drops(const struct card *c, enum net_direction dir, enum net_drop reason)
{
	return net_queue_stats(c->queue[dir])->drops[reason];
}

/* Every drop of every reason, so that a test can say "this one, and no other". */
static inline uint64_t card_all_drops(const struct card *c)
{
	uint64_t sum = 0;

	for (unsigned dir = 0; dir < 2; dir++)
		for (unsigned i = 0; i < NET_DROPS; i++)
			sum += net_queue_stats(c->queue[dir])->drops[i];
	return sum;
}

/* The bytes of frame @number: told from every other frame's. */
static inline uint8_t card_byte(unsigned number, uint32_t i)
{
	return (uint8_t)(number * 131 + i * 7 + i / 251);
}

static inline void card_write_frame(uint8_t *at, unsigned number, uint32_t len)
{
	for (uint32_t i = 0; i < len; i++)
		at[i] = card_byte(number, i);
}

/* Is this frame @number? */
static inline bool card_is_frame(const uint8_t *at, unsigned number, uint32_t len)
{
	for (uint32_t i = 0; i < len; i++)
		if (at[i] != card_byte(number, i))
			return false;
	return true;
}

/* Add a frame to send, in slot @slot: header and frame in one descriptor. The device sees it after card_sends(). */
static inline void card_add(struct card *c, unsigned slot, struct virtio_net_hdr_v1 hdr, unsigned number, uint32_t len)
{
	uint32_t at = CARD_TX_AT + slot * CARD_SLOT;

	memcpy(c->memory + at, &hdr, sizeof(hdr));
	card_write_frame(c->memory + at + NET_HDR_LEN, number, len);
	CHECK_EQ(driver_add(c->driver[NET_TX], &(struct driver_buf){ at, NET_HDR_LEN + len }, 1, 0, at), 0);
}

static inline void card_send(struct card *c, unsigned slot, unsigned number, uint32_t len)
{
	card_add(c, slot, (struct virtio_net_hdr_v1){ 0 }, number, len);
	CHECK(driver_publish(c->driver[NET_TX]) >= 0);
}

/* Take back sent chains. Return: how many */
static inline unsigned card_sent(struct card *c)
{
	struct driver_used used[64];
	unsigned n = 0;
	int got;

	while ((got = driver_poll_used(c->driver[NET_TX], used, 64)) > 0) {
		for (int i = 0; i < got; i++)
			CHECK_EQ(used[i].len, 0);
		n += (unsigned)got;
	}
	CHECK_EQ(got, 0);
	return n;
}

/* Make @count buffers of @len bytes available to receive into. */
static inline void card_room(struct card *c, unsigned count, uint32_t len)
{
	for (unsigned i = 0; i < count; i++) {
		if (c->room_at + len > CARD_MEMORY)
			c->room_at = CARD_RX_AT;
		memset(c->memory + c->room_at, UNWRITTEN, len);
		CHECK_EQ(driver_add(c->driver[NET_RX], &(struct driver_buf){ c->room_at, len }, 0, 1, c->room_at), 0);
		c->room_at += len;
	}
	CHECK(driver_publish(c->driver[NET_RX]) >= 0);
}

/* A received frame, put together. */
struct received {
	struct virtio_net_hdr_v1 hdr;
	uint32_t len;
	uint8_t frame[NET_FRAME_MAX];
};

/* Take a frame of which the buffers have @room bytes each, as a driver does. Return: whether there was one */
static inline bool card_receive(struct card *c, struct received *r, uint32_t room)
{
	struct driver_used used;
	unsigned buffers = 1;

	r->len = 0;
	for (unsigned i = 0; i < buffers; i++) {
		const uint8_t *from;
		uint32_t head = i == 0 ? NET_HDR_LEN : 0;
		int n = driver_poll_used(c->driver[NET_RX], &used, 1);

		if (i == 0 && n == 0)
			return false;
		CHECK_EQ(n, 1); /* a frame's buffers come all at once (§5.1.6.4.1) */
		CHECK(used.len > (i == 0 ? NET_HDR_LEN - 1 : 0) && used.len <= room);
		from = c->memory + used.token;
		if (i == 0) {
			memcpy(&r->hdr, from, NET_HDR_LEN);
			buffers = r->hdr.num_buffers;
			CHECK(buffers > 0 && (buffers == 1 || c->features & MRG_RXBUF));
		}
		CHECK(r->len + used.len - head <= NET_FRAME_MAX);
		memcpy(r->frame + r->len, from + head, used.len - head);
		r->len += used.len - head;
		if (i + 1 < buffers)
			CHECK_EQ(used.len, room); /* only the last one may have room left */
		for (uint32_t k = used.len; k < room; k++)
			CHECK_EQ(from[k], UNWRITTEN);
	}
	return true;
}

static inline void card_expect(struct card *c, uint32_t room, unsigned number, uint32_t len)
{
	static struct received r;

	CHECK(card_receive(c, &r, room));
	CHECK_EQ(r.len, len);
	CHECK(card_is_frame(r.frame, number, len));
}

#endif
