/* SPDX-License-Identifier: Apache-2.0 */
/* test_virtq_packed.c - packed virtqueues against a driver that breaks each rule, one at a time */
#include <errno.h>

#include "guest.h"

#define NEXT VRING_DESC_F_NEXT
#define WRITE VRING_DESC_F_WRITE
#define INDIRECT VRING_DESC_F_INDIRECT
#define PACKED (1ull << VIRTIO_F_RING_PACKED)
#define WITH_INDIRECT (PACKED | 1ull << VIRTIO_RING_F_INDIRECT_DESC)
#define WITH_EVENT_IDX (PACKED | 1ull << VIRTIO_RING_F_EVENT_IDX)
#define USED_FLAG ((uint16_t)(1u << VRING_PACKED_DESC_F_USED))

static struct guest g;
static struct virtq_chain chain;
static struct iovec iov[16];

static int pop(void)
{
	return virtq_pop(&g.q, &chain, iov, 16);
}

static void expect_fault(enum virtq_fault fault)
{
	CHECK_EQ(pop(), -EPROTO);
	CHECK(strcmp(virtq_fault_name(g.q.fault), virtq_fault_name(fault)) == 0);
	CHECK_EQ(pop(), -EPROTO);
}

static void a_chain_is_available_with_its_first_descriptors_flags(void)
{
	guest_start(&g, PACKED);
	guest_slot(&g, DESC_GPA, 1, DATA_GPA + 4096, 1, 4, WRITE | PACKED_AVAIL);
	CHECK_EQ(pop(), 0);
	CHECK(!virtq_more(&g.q));
	guest_slot(&g, DESC_GPA, 0, DATA_GPA, 16, 9, NEXT | PACKED_AVAIL);
	CHECK(virtq_more(&g.q));
	CHECK_EQ(pop(), 1);
	CHECK_EQ(chain.id, 4); /* the last descriptor's */
	CHECK_EQ(chain.ndesc, 2);
	CHECK_EQ(chain.out_len, 16);
	CHECK_EQ(chain.in_len, 1);
	CHECK_EQ(virtq_base(&g.q), 0x80028002u);
}

static void the_first_used_descriptor_shows_the_whole_batch(void)
{
	struct vring_packed_desc *ring;
	struct virtq_chain first;

	guest_start(&g, PACKED);
	ring = guest_at(&g, DESC_GPA);
	guest_slot(&g, DESC_GPA, 0, DATA_GPA, 1, 0, WRITE | PACKED_AVAIL);
	guest_slot(&g, DESC_GPA, 1, DATA_GPA, 1, 1, WRITE | PACKED_AVAIL);
	CHECK_EQ(pop(), 1);
	first = chain;
	CHECK_EQ(pop(), 1);
	virtq_push(&g.q, &chain, 1);
	virtq_push(&g.q, &first, 1);
	CHECK(!(ring[0].flags & USED_FLAG));
	virtq_publish(&g.q);
	CHECK_EQ(ring[0].flags, PACKED_AVAIL | USED_FLAG | WRITE);
	CHECK_EQ(ring[0].id, 1);
	CHECK_EQ(ring[1].flags, PACKED_AVAIL | USED_FLAG | WRITE);
	CHECK_EQ(ring[1].id, 0);
}

static void the_ring_goes_round_and_the_wrap_counters_flip(void)
{
	guest_start(&g, PACKED);
	for (unsigned i = 0; i < 5 * GUEST_SIZE; i++) {
		bool odd_lap = i / GUEST_SIZE % 2;

		guest_slot(&g, DESC_GPA, i % GUEST_SIZE, DATA_GPA, 1, (uint16_t)(i % GUEST_SIZE),
			   WRITE | (odd_lap ? USED_FLAG : PACKED_AVAIL));
		CHECK_EQ(pop(), 1);
		CHECK(!virtq_more(&g.q));
		virtq_push(&g.q, &chain, 1);
		virtq_publish(&g.q);
		CHECK_EQ(((struct vring_packed_desc *)guest_at(&g, DESC_GPA))[i % GUEST_SIZE].flags,
			 WRITE | (odd_lap ? 0 : PACKED_AVAIL | USED_FLAG));
	}
	CHECK_EQ(virtq_base(&g.q), 0); /* slot 0 of an odd lap: wrap counter 0 */
}

static void the_watched_word_moves_with_the_ring(void)
{
	struct eventfd_poll_info word;
	const struct eventfd_poll_pair *pair;

	guest_start(&g, PACKED);
	virtq_watch(&g.q, &word);
	pair = (const struct eventfd_poll_pair *)(uintptr_t)word.addr;
	CHECK_EQ(word.flags, EVENTFD_POLL_F_ARM | EVENTFD_POLL_F_INDIRECT);
	CHECK(pair->addr == (uintptr_t)guest_at(&g, DESC_GPA) + 14 && pair->val == PACKED_AVAIL);
	guest_slot(&g, DESC_GPA, 0, DATA_GPA, 1, 0, WRITE | PACKED_AVAIL);
	CHECK_EQ(pop(), 1);
	CHECK(pair->addr == (uintptr_t)guest_at(&g, DESC_GPA) + 16 + 14);
	CHECK_EQ(word.arm_addr, (uintptr_t)guest_at(&g, USED_GPA) + 2);
}

static void an_indirect_table_counts_as_one_slot(void)
{
	guest_start(&g, WITH_INDIRECT);
	guest_slot(&g, DESC_GPA, 0, TABLE_GPA, 48, 3, INDIRECT | PACKED_AVAIL);
	guest_slot(&g, TABLE_GPA, 0, DATA_GPA, 16, 0, 0);
	guest_slot(&g, TABLE_GPA, 1, BORDER_GPA - 8, 16, 0, WRITE);
	guest_slot(&g, TABLE_GPA, 2, DATA_GPA + 64, 1, 0, WRITE);
	CHECK_EQ(pop(), 1);
	CHECK_EQ(chain.id, 3);
	CHECK_EQ(chain.ndesc, 1);
	CHECK_EQ(chain.in_count, 3); /* the middle one crosses two regions */
}

static void fault_loop(void)
{
	guest_start(&g, PACKED);
	for (unsigned i = 0; i < GUEST_SIZE; i++)
		guest_slot(&g, DESC_GPA, i, DATA_GPA, 16, 0, NEXT | PACKED_AVAIL);
	expect_fault(VIRTQ_FAULT_LOOP);
}

static void fault_chain_whose_end_is_missing(void)
{
	guest_start(&g, PACKED);
	guest_slot(&g, DESC_GPA, 0, DATA_GPA, 16, 0, NEXT | PACKED_AVAIL);
	expect_fault(VIRTQ_FAULT_INCOMPLETE);
}

static void fault_buffer_id_beyond_the_queue(void)
{
	guest_start(&g, PACKED);
	guest_slot(&g, DESC_GPA, 0, DATA_GPA, 16, GUEST_SIZE, PACKED_AVAIL);
	expect_fault(VIRTQ_FAULT_BUFFER_ID);
}

static void fault_one(uint64_t addr, uint32_t len, uint16_t flags, uint64_t features, enum virtq_fault fault)
{
	guest_start(&g, features);
	guest_slot(&g, TABLE_GPA, 0, DATA_GPA, 16, 0, INDIRECT);
	guest_slot(&g, DESC_GPA, 0, addr, len, 0, flags | PACKED_AVAIL);
	guest_slot(&g, DESC_GPA, 1, DATA_GPA, 16, 0, PACKED_AVAIL);
	expect_fault(fault);
}

static void fault_bad_buffers(void)
{
	fault_one(BEYOND_GPA, 1, WRITE, PACKED, VIRTQ_FAULT_ADDRESS);
	fault_one(UINT64_MAX - 3, 8, WRITE, PACKED, VIRTQ_FAULT_ADDRESS);
	fault_one(DATA_GPA, 0, WRITE, PACKED, VIRTQ_FAULT_ZERO_LENGTH);
	fault_one(DATA_GPA, 16, WRITE | NEXT, PACKED, VIRTQ_FAULT_ORDER);
}

static void fault_bad_indirect(void)
{
	fault_one(TABLE_GPA, 16, INDIRECT, WITH_INDIRECT, VIRTQ_FAULT_INDIRECT_NESTED);
	fault_one(TABLE_GPA, 16, INDIRECT | NEXT, WITH_INDIRECT, VIRTQ_FAULT_INDIRECT_NESTED);
	fault_one(TABLE_GPA, 24, INDIRECT, WITH_INDIRECT, VIRTQ_FAULT_INDIRECT_LENGTH);
	fault_one(TABLE_GPA, 0, INDIRECT, WITH_INDIRECT, VIRTQ_FAULT_INDIRECT_LENGTH);
	fault_one(TABLE_GPA, 16, INDIRECT, PACKED, VIRTQ_FAULT_INDIRECT_UNASKED);
	fault_one(BEYOND_GPA, 16, INDIRECT, WITH_INDIRECT, VIRTQ_FAULT_ADDRESS);
}

static bool called_after_publish(unsigned slot)
{
	uint64_t before = g.q.calls;

	guest_slot(&g, DESC_GPA, slot, DATA_GPA, 1, 0, WRITE | PACKED_AVAIL);
	CHECK_EQ(pop(), 1);
	virtq_push(&g.q, &chain, 1);
	virtq_publish(&g.q);
	return g.q.calls != before;
}

static void the_driver_decides_whether_it_is_called(void)
{
	struct vring_packed_desc_event *driver;

	guest_start(&g, WITH_EVENT_IDX);
	driver = guest_at(&g, AVAIL_GPA);
	driver->flags = VRING_PACKED_EVENT_FLAG_ENABLE;
	CHECK(called_after_publish(0));
	driver->flags = VRING_PACKED_EVENT_FLAG_DISABLE;
	CHECK(!called_after_publish(1));
	driver->flags = VRING_PACKED_EVENT_FLAG_DESC;
	driver->off_wrap = 3 | 1u << VRING_PACKED_EVENT_F_WRAP_CTR;
	CHECK(!called_after_publish(2));
	CHECK(called_after_publish(3));
	CHECK(!called_after_publish(4));
	driver->off_wrap = 6; /* of the next lap: wrap counter 0 */
	CHECK(!called_after_publish(5));
	CHECK(!called_after_publish(6));
}

static void kicks_are_turned_off_in_the_device_event_flags(void)
{
	const struct vring_packed_desc_event *device;

	guest_start(&g, PACKED);
	device = guest_at(&g, USED_GPA);
	virtq_notify_off(&g.q);
	CHECK_EQ(device->flags, VRING_PACKED_EVENT_FLAG_DISABLE);
}

static void a_base_outside_the_ring_is_refused(void)
{
	struct virtq_config cfg = { .size = 8, .features = PACKED, .base = 8, .call_fd = -1, .err_fd = -1 };

	cfg.desc_uva = GUEST_UVA + DESC_GPA;
	cfg.avail_uva = GUEST_UVA + AVAIL_GPA;
	cfg.used_uva = GUEST_UVA + USED_GPA;
	CHECK_EQ(virtq_init(&g.q, &cfg, g.table), -EINVAL);
	cfg.base = 7;
	CHECK_EQ(virtq_init(&g.q, &cfg, g.table), 0);
	cfg.size = 7; /* packed rings need no power of two */
	cfg.base = 6;
	CHECK_EQ(virtq_init(&g.q, &cfg, g.table), 0);
}

static void a_device_event_inside_what_the_driver_writes_is_refused(void)
{
	struct virtq_config cfg = { .size = 8, .features = PACKED, .base = 0x80008000u, .call_fd = -1, .err_fd = -1 };

	cfg.desc_uva = GUEST_UVA + DESC_GPA;
	cfg.avail_uva = cfg.used_uva = GUEST_UVA + AVAIL_GPA;
	CHECK_EQ(virtq_init(&g.q, &cfg, g.table), -EINVAL);
	cfg.used_uva = cfg.desc_uva + 8 * 16 - 4;
	CHECK_EQ(virtq_init(&g.q, &cfg, g.table), -EINVAL);
	cfg.used_uva = cfg.desc_uva + 8 * 16;
	CHECK_EQ(virtq_init(&g.q, &cfg, g.table), 0);
}

/* User-mode Linux starts packed rings with a base of 0, as if they were split: without a lap behind it, that's lap one. */
static void a_base_of_zero_on_a_new_ring_means_its_first_lap(void)
{
	struct virtq_config cfg = { .size = 8, .features = PACKED, .base = 0, .call_fd = -1, .err_fd = -1 };

	guest_start(&g, PACKED);
	cfg.desc_uva = GUEST_UVA + DESC_GPA;
	cfg.avail_uva = GUEST_UVA + AVAIL_GPA;
	cfg.used_uva = GUEST_UVA + USED_GPA;
	CHECK_EQ(virtq_init(&g.q, &cfg, g.table), 0);
	guest_slot(&g, DESC_GPA, 0, DATA_GPA, 1, 0, WRITE | PACKED_AVAIL);
	CHECK_EQ(pop(), 1);

	guest_slot(&g, DESC_GPA, 7, DATA_GPA, 1, 7, WRITE | PACKED_AVAIL); /* the last slot was used once: lap two */
	CHECK_EQ(virtq_init(&g.q, &cfg, g.table), 0);
	CHECK(!virtq_more(&g.q));
	guest_slot(&g, DESC_GPA, 0, DATA_GPA, 1, 0, WRITE | USED_FLAG);
	CHECK_EQ(pop(), 1);
}

int main(void)
{
	guest_make(&g);
	RUN(a_chain_is_available_with_its_first_descriptors_flags);
	RUN(the_first_used_descriptor_shows_the_whole_batch);
	RUN(the_ring_goes_round_and_the_wrap_counters_flip);
	RUN(the_watched_word_moves_with_the_ring);
	RUN(an_indirect_table_counts_as_one_slot);
	RUN(fault_loop);
	RUN(fault_chain_whose_end_is_missing);
	RUN(fault_buffer_id_beyond_the_queue);
	RUN(fault_bad_buffers);
	RUN(fault_bad_indirect);
	RUN(the_driver_decides_whether_it_is_called);
	RUN(kicks_are_turned_off_in_the_device_event_flags);
	RUN(a_base_outside_the_ring_is_refused);
	RUN(a_device_event_inside_what_the_driver_writes_is_refused);
	RUN(a_base_of_zero_on_a_new_ring_means_its_first_lap);
	guest_free(&g);
	return 0;
}
