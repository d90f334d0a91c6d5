/* SPDX-License-Identifier: Apache-2.0 */
/* test_driver_hostile.c - a device that returns what it was not given: the driver says -EPROTO and touches nothing else */
#include <errno.h>

#include "driver_pair.h"

/* The device's pen: one used entry as it likes, made visible. */
static void split_use(struct pair *p, uint16_t idx, uint32_t id)
{
	struct vring_used *used = (void *)(p->mem + p->at.used);

	used->ring[(uint16_t)(idx - 1) % 16] = (struct vring_used_elem){ id, 0 };
	store_release(&used->idx, idx);
}

static void packed_use(struct pair *p, uint16_t slot, uint16_t id)
{
	struct vring_packed_desc *ring = (void *)(p->mem + p->at.desc);

	ring[slot].id = id;
	store_release(&ring[slot].flags, (uint16_t)(1u << VRING_PACKED_DESC_F_AVAIL | 1u << VRING_PACKED_DESC_F_USED));
}

static void split_an_id_beyond_the_ring_is_refused(void)
{
	struct driver_used used[4];
	struct pair p;

	pair_make(&p, 0, 16);
	pair_send(&p, 1);
	split_use(&p, 1, 16);
	CHECK_EQ(driver_poll_used(p.driver, used, 4), -EPROTO);
	split_use(&p, 1, UINT32_MAX);
	CHECK_EQ(driver_poll_used(p.driver, used, 4), -EPROTO);
	CHECK_EQ(driver_in_flight(p.driver), 1);
	pair_free(&p);
}

static void split_an_id_that_is_not_in_flight_is_refused(void)
{
	struct driver_used used[4];
	struct pair p;

	pair_make(&p, 0, 16);
	pair_send(&p, 1);
	split_use(&p, 1, 1); /* the middle of the chain that begins at 0 */
	CHECK_EQ(driver_poll_used(p.driver, used, 4), -EPROTO);
	pair_free(&p);
}

static void split_a_request_used_twice_is_refused(void)
{
	struct driver_used used[4];
	struct pair p;

	pair_make(&p, 0, 16);
	pair_send(&p, 1);
	pair_send(&p, 2);
	split_use(&p, 1, 0);
	CHECK_EQ(driver_poll_used(p.driver, used, 4), 1);
	split_use(&p, 2, 0);
	CHECK_EQ(driver_poll_used(p.driver, used, 4), -EPROTO);
	pair_free(&p);
}

static void split_an_index_that_jumps_is_refused(void)
{
	struct driver_used used[4];
	struct pair p;

	pair_make(&p, 0, 16);
	pair_send(&p, 1);
	split_use(&p, 2, 0);
	CHECK_EQ(driver_poll_used(p.driver, used, 4), -EPROTO);
	split_use(&p, UINT16_MAX, 0); /* backwards */
	CHECK_EQ(driver_poll_used(p.driver, used, 4), -EPROTO);
	pair_free(&p);
}

static void packed_an_id_beyond_the_ring_or_not_in_flight_is_refused(void)
{
	struct driver_used used[4];
	struct pair p;

	pair_make(&p, RING_PACKED, 16);
	pair_send(&p, 1);
	packed_use(&p, 0, 16);
	CHECK_EQ(driver_poll_used(p.driver, used, 4), -EPROTO);
	packed_use(&p, 0, 3);
	CHECK_EQ(driver_poll_used(p.driver, used, 4), -EPROTO);
	CHECK_EQ(driver_in_flight(p.driver), 1);
	pair_free(&p);
}

static void packed_a_request_used_twice_is_refused(void)
{
	struct driver_used used[4];
	struct pair p;

	pair_make(&p, RING_PACKED, 16);
	pair_send(&p, 1);
	pair_send(&p, 2);
	packed_use(&p, 0, 0);
	CHECK_EQ(driver_poll_used(p.driver, used, 4), 1);
	packed_use(&p, 2, 0); /* each request took two slots */
	CHECK_EQ(driver_poll_used(p.driver, used, 4), -EPROTO);
	pair_free(&p);
}

static void packed_used_slots_without_a_request_are_not_looked_at(void)
{
	struct driver_used used[4];
	struct pair p;

	pair_make(&p, RING_PACKED, 16);
	for (uint16_t slot = 0; slot < 16; slot++)
		packed_use(&p, slot, 0);
	CHECK_EQ(driver_poll_used(p.driver, used, 4), 0);
	CHECK(!driver_more(p.driver));
	pair_free(&p);
}

int main(void)
{
	RUN(split_an_id_beyond_the_ring_is_refused);
	RUN(split_an_id_that_is_not_in_flight_is_refused);
	RUN(split_a_request_used_twice_is_refused);
	RUN(split_an_index_that_jumps_is_refused);
	RUN(packed_an_id_beyond_the_ring_or_not_in_flight_is_refused);
	RUN(packed_a_request_used_twice_is_refused);
	RUN(packed_used_slots_without_a_request_are_not_looked_at);
	return 0;
}
