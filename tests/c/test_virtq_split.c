/* SPDX-License-Identifier: Apache-2.0 */
/* test_virtq_split.c - split virtqueues against a driver that breaks each rule, one at a time */
#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>

#include "guest.h"

#define NEXT VRING_DESC_F_NEXT
#define WRITE VRING_DESC_F_WRITE
#define INDIRECT VRING_DESC_F_INDIRECT
#define WITH_INDIRECT (1ull << VIRTIO_RING_F_INDIRECT_DESC)
#define WITH_EVENT_IDX (1ull << VIRTIO_RING_F_EVENT_IDX)

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
	CHECK_EQ(pop(), -EPROTO); /* and it stays broken */
	CHECK(!virtq_more(&g.q));
}

static void a_chain_becomes_iovecs_readable_ones_first(void)
{
	guest_start(&g, 0);
	guest_desc(&g, DESC_GPA, 3, DATA_GPA, 16, NEXT, 5);
	guest_desc(&g, DESC_GPA, 5, DATA_GPA + 0x1000, 512, NEXT | WRITE, 1);
	guest_desc(&g, DESC_GPA, 1, DATA_GPA + 0x3000, 1, WRITE, 0);
	CHECK_EQ(pop(), 0);
	guest_offer(&g, 3);
	CHECK(virtq_more(&g.q));
	CHECK_EQ(pop(), 1);
	CHECK_EQ(chain.id, 3);
	CHECK_EQ(chain.out_count, 1);
	CHECK_EQ(chain.in_count, 2);
	CHECK_EQ(chain.out_len, 16);
	CHECK_EQ(chain.in_len, 513);
	CHECK(iov[0].iov_base == guest_at(&g, DATA_GPA) && iov[0].iov_len == 16);
	CHECK(iov[2].iov_base == guest_at(&g, DATA_GPA + 0x3000) && iov[2].iov_len == 1);
	CHECK_EQ(pop(), 0);
}

static void used_entries_appear_all_at_once(void)
{
	const struct vring_used *used;
	struct virtq_chain first;

	guest_start(&g, 0);
	used = guest_at(&g, USED_GPA);
	guest_desc(&g, DESC_GPA, 0, DATA_GPA, 1, WRITE, 0);
	guest_desc(&g, DESC_GPA, 1, DATA_GPA, 1, WRITE, 0);
	guest_offer(&g, 0);
	guest_offer(&g, 1);
	CHECK_EQ(pop(), 1);
	first = chain;
	CHECK_EQ(pop(), 1);
	virtq_push(&g.q, &chain, 11); /* out of order */
	virtq_push(&g.q, &first, 22);
	CHECK_EQ(used->idx, 0);
	virtq_publish(&g.q);
	CHECK_EQ(used->idx, 2);
	CHECK(used->ring[0].id == 1 && used->ring[0].len == 11);
	CHECK(used->ring[1].id == 0 && used->ring[1].len == 22);
	CHECK_EQ(virtq_base(&g.q), 2);
}

static void indices_run_past_65535(void)
{
	guest_start(&g, 0);
	guest_desc(&g, DESC_GPA, 0, DATA_GPA, 1, WRITE, 0);
	for (int i = 0; i < 70000; i++) {
		guest_offer(&g, 0);
		CHECK_EQ(pop(), 1);
		virtq_push(&g.q, &chain, 1);
		virtq_publish(&g.q);
	}
	CHECK_EQ(virtq_base(&g.q), 70000 & 0xffff);
}

static void a_buffer_across_two_regions_is_two_iovecs(void)
{
	guest_start(&g, 0);
	guest_desc(&g, DESC_GPA, 0, BORDER_GPA - 100, 300, WRITE, 0);
	guest_offer(&g, 0);
	CHECK_EQ(pop(), 1);
	CHECK_EQ(chain.in_count, 2);
	CHECK_EQ(iov[0].iov_len, 100);
	CHECK_EQ(iov[1].iov_len, 200);
	CHECK(iov[1].iov_base == guest_at(&g, BORDER_GPA));
}

static void an_indirect_table_is_walked_after_direct_descriptors_too(void)
{
	guest_start(&g, WITH_INDIRECT);
	guest_desc(&g, DESC_GPA, 0, DATA_GPA, 16, NEXT, 1);
	guest_desc(&g, DESC_GPA, 1, TABLE_GPA, 32, INDIRECT, 0);
	guest_desc(&g, TABLE_GPA, 0, DATA_GPA + 512, 512, NEXT | WRITE, 1);
	guest_desc(&g, TABLE_GPA, 1, DATA_GPA + 2048, 1, WRITE, 0);
	guest_offer(&g, 0);
	CHECK_EQ(pop(), 1);
	CHECK_EQ(chain.out_count, 1);
	CHECK_EQ(chain.in_count, 2);
}

static void an_indirect_table_may_cross_two_regions(void)
{
	guest_start(&g, WITH_INDIRECT);
	guest_desc(&g, DESC_GPA, 0, BORDER_GPA - 16, 32, INDIRECT, 0);
	guest_desc(&g, BORDER_GPA - 16, 0, DATA_GPA, 16, NEXT, 1);
	guest_desc(&g, BORDER_GPA, 0, DATA_GPA + 64, 1, WRITE, 0);
	guest_offer(&g, 0);
	CHECK_EQ(pop(), 1);
	CHECK_EQ(chain.in_len, 1);
}

static void fault_head_outside_the_table(void)
{
	guest_start(&g, 0);
	guest_offer(&g, GUEST_SIZE);
	expect_fault(VIRTQ_FAULT_DESC_INDEX);
}

static void fault_next_outside_the_table(void)
{
	guest_start(&g, 0);
	guest_desc(&g, DESC_GPA, 0, DATA_GPA, 16, NEXT, GUEST_SIZE);
	guest_offer(&g, 0);
	expect_fault(VIRTQ_FAULT_DESC_INDEX);
}

static void fault_loop(void)
{
	guest_start(&g, 0);
	guest_desc(&g, DESC_GPA, 0, DATA_GPA, 16, NEXT, 1);
	guest_desc(&g, DESC_GPA, 1, DATA_GPA, 16, NEXT, 0);
	guest_offer(&g, 0);
	expect_fault(VIRTQ_FAULT_LOOP);
}

static void fault_avail_idx_ahead_by_more_than_the_queue(void)
{
	struct vring_avail *avail;

	guest_start(&g, 0);
	avail = guest_at(&g, AVAIL_GPA);
	avail->idx = GUEST_SIZE + 1;
	expect_fault(VIRTQ_FAULT_AVAIL_IDX);
	guest_start(&g, 0);
	avail->idx = 0xffff; /* one behind */
	expect_fault(VIRTQ_FAULT_AVAIL_IDX);
}

static void fault_buffer(uint64_t addr, uint32_t len, enum virtq_fault fault)
{
	guest_start(&g, 0);
	guest_desc(&g, DESC_GPA, 0, addr, len, WRITE, 0);
	guest_offer(&g, 0);
	expect_fault(fault);
}

static void fault_buffer_outside_memory(void)
{
	fault_buffer(0, 16, VIRTQ_FAULT_ADDRESS);
	fault_buffer(BEYOND_GPA, 1, VIRTQ_FAULT_ADDRESS);
	fault_buffer(BEYOND_GPA - 1, 2, VIRTQ_FAULT_ADDRESS);
	fault_buffer(1 * MIB, 0xffffffff, VIRTQ_FAULT_ADDRESS);
}

static void fault_buffer_wraps_the_address_space(void)
{
	fault_buffer(UINT64_MAX - 15, 32, VIRTQ_FAULT_ADDRESS);
	fault_buffer(UINT64_MAX, 1, VIRTQ_FAULT_ADDRESS);
}

static void fault_zero_length(void)
{
	fault_buffer(DATA_GPA, 0, VIRTQ_FAULT_ZERO_LENGTH);
}

static void fault_more_buffers_than_the_device_takes(void)
{
	guest_start(&g, WITH_INDIRECT);
	guest_desc(&g, DESC_GPA, 0, TABLE_GPA, 17 * 16, INDIRECT, 0);
	for (unsigned i = 0; i < 17; i++)
		guest_desc(&g, TABLE_GPA, i, DATA_GPA, 16, i < 16 ? NEXT : 0, (uint16_t)(i + 1));
	guest_offer(&g, 0);
	expect_fault(VIRTQ_FAULT_TOO_MANY);
}

static void fault_more_bytes_than_a_length_can_say(void)
{
	guest_start(&g, 0);
	for (unsigned i = 0; i < 8; i++) /* each lies outside, but the sum is looked at first */
		guest_desc(&g, DESC_GPA, i, DATA_GPA, i ? 0xffffffff : 16, i < 7 ? NEXT : 0, (uint16_t)(i + 1));
	guest_offer(&g, 0);
	expect_fault(VIRTQ_FAULT_TOO_MANY);
}

static void fault_readable_after_writable(void)
{
	guest_start(&g, 0);
	guest_desc(&g, DESC_GPA, 0, DATA_GPA, 16, NEXT | WRITE, 1);
	guest_desc(&g, DESC_GPA, 1, DATA_GPA, 16, 0, 0);
	guest_offer(&g, 0);
	expect_fault(VIRTQ_FAULT_ORDER);
}

static void fault_indirect(uint32_t len, uint16_t flags, uint16_t inner_flags, uint16_t inner_next, uint64_t features,
			   enum virtq_fault fault)
{
	guest_start(&g, features);
	guest_desc(&g, DESC_GPA, 0, TABLE_GPA, len, flags, 1);
	guest_desc(&g, DESC_GPA, 1, DATA_GPA, 16, WRITE, 0);
	guest_desc(&g, TABLE_GPA, 0, DATA_GPA, 16, inner_flags, inner_next);
	guest_desc(&g, TABLE_GPA, 1, DATA_GPA, 16, inner_flags, 0);
	guest_offer(&g, 0);
	expect_fault(fault);
}

static void fault_indirect_inside_indirect(void)
{
	fault_indirect(32, INDIRECT, INDIRECT, 0, WITH_INDIRECT, VIRTQ_FAULT_INDIRECT_NESTED);
}

static void fault_indirect_with_next(void)
{
	fault_indirect(32, INDIRECT | NEXT, 0, 0, WITH_INDIRECT, VIRTQ_FAULT_INDIRECT_NESTED);
}

static void fault_indirect_of_odd_or_no_length(void)
{
	fault_indirect(31, INDIRECT, 0, 0, WITH_INDIRECT, VIRTQ_FAULT_INDIRECT_LENGTH);
	fault_indirect(0, INDIRECT, 0, 0, WITH_INDIRECT, VIRTQ_FAULT_INDIRECT_LENGTH);
}

static void fault_indirect_longer_than_any_ring(void)
{
	fault_indirect(16 * (VIRTQ_SIZE_MAX + 1), INDIRECT, 0, 0, WITH_INDIRECT, VIRTQ_FAULT_TOO_MANY);
}

static void fault_indirect_without_the_feature(void)
{
	fault_indirect(32, INDIRECT, 0, 0, 0, VIRTQ_FAULT_INDIRECT_UNASKED);
}

static void fault_indirect_next_outside_its_table(void)
{
	fault_indirect(32, INDIRECT, NEXT, 2, WITH_INDIRECT, VIRTQ_FAULT_DESC_INDEX);
}

static void fault_indirect_loop(void)
{
	fault_indirect(32, INDIRECT, NEXT, 0, WITH_INDIRECT, VIRTQ_FAULT_LOOP);
}

static void fault_indirect_table_outside_memory(void)
{
	guest_start(&g, WITH_INDIRECT);
	guest_desc(&g, DESC_GPA, 0, BEYOND_GPA - 16, 32, INDIRECT, 0);
	guest_desc(&g, BEYOND_GPA - 16, 0, DATA_GPA, 16, NEXT, 1);
	guest_offer(&g, 0);
	expect_fault(VIRTQ_FAULT_ADDRESS);
}

static void a_fault_signals_the_err_fd_once(void)
{
	uint64_t count;
	int fd = eventfd(0, EFD_NONBLOCK);

	guest_start(&g, 0);
	g.q.err_fd = fd;
	guest_offer(&g, GUEST_SIZE);
	expect_fault(VIRTQ_FAULT_DESC_INDEX);
	CHECK(read(fd, &count, 8) == 8);
	CHECK_EQ(count, 1);
	close(fd);
}

static int init_with(uint32_t size, uint64_t desc_uva, uint64_t avail_uva, uint64_t used_uva)
{
	struct virtq_config cfg = { .size = size,
				    .desc_uva = desc_uva,
				    .avail_uva = avail_uva,
				    .used_uva = used_uva,
				    .call_fd = -1,
				    .err_fd = -1 };

	return virtq_init(&g.q, &cfg, g.table);
}

static void rings_that_cannot_be_are_refused(void)
{
	const uint64_t d = GUEST_UVA + DESC_GPA, a = GUEST_UVA + AVAIL_GPA, u = GUEST_UVA + USED_GPA;

	CHECK_EQ(init_with(0, d, a, u), -EINVAL);
	CHECK_EQ(init_with(7, d, a, u), -EINVAL);
	CHECK_EQ(init_with(65536, d, a, u), -EINVAL);
	CHECK_EQ(init_with(8, d + 8, a, u), -EINVAL);
	CHECK_EQ(init_with(8, d, a + 1, u), -EINVAL);
	CHECK_EQ(init_with(8, d, a, u + 2), -EINVAL);
	CHECK_EQ(init_with(8, GUEST_UVA + BORDER_GPA - 16, a, u), -EFAULT);
	CHECK_EQ(init_with(8, d, 0x1000, u), -EFAULT);
	CHECK_EQ(init_with(32768, GUEST_UVA + 2 * MIB, a, GUEST_UVA + 16 * MIB), 0);
}

/* Were used.flags avail.idx as well, arming the doorbell would look like a request, for ever. */
static void a_used_ring_inside_what_the_device_reads_is_refused(void)
{
	const uint64_t d = GUEST_UVA + DESC_GPA, a = GUEST_UVA + AVAIL_GPA, u = GUEST_UVA + USED_GPA;
	const uint64_t used_len = 4 + 8 * 8, desc_len = 8 * 16;

	CHECK_EQ(init_with(8, d, u - 2, u), -EINVAL);
	CHECK_EQ(init_with(8, d, u, u), -EINVAL);
	CHECK_EQ(init_with(8, d, u + used_len - 2, u), -EINVAL);
	CHECK_EQ(init_with(8, d, u + used_len, u), 0);
	CHECK_EQ(init_with(8, u - desc_len + 16, a, u), -EINVAL);
	CHECK_EQ(init_with(8, u - desc_len, a, u), 0);
}

static bool called_after_publish(void)
{
	uint64_t before = g.q.calls;

	guest_offer(&g, 0);
	CHECK_EQ(pop(), 1);
	virtq_push(&g.q, &chain, 1);
	virtq_publish(&g.q);
	return g.q.calls != before;
}

static void the_driver_decides_whether_it_is_called(void)
{
	struct vring_avail *avail;

	guest_start(&g, 0);
	avail = guest_at(&g, AVAIL_GPA);
	guest_desc(&g, DESC_GPA, 0, DATA_GPA, 1, WRITE, 0);
	CHECK(called_after_publish());
	avail->flags = VRING_AVAIL_F_NO_INTERRUPT;
	CHECK(!called_after_publish());
	avail->flags = 0;
	CHECK(called_after_publish());
}

static void with_event_idx_it_is_called_at_the_used_entry_it_names(void)
{
	struct vring_avail *avail;

	guest_start(&g, WITH_EVENT_IDX);
	avail = guest_at(&g, AVAIL_GPA);
	guest_desc(&g, DESC_GPA, 0, DATA_GPA, 1, WRITE, 0);
	CHECK(called_after_publish()); /* used.idx 1; the first one always calls */
	avail->ring[GUEST_SIZE] = 2;
	CHECK(!called_after_publish()); /* 2 */
	CHECK(called_after_publish());  /* 3: entry 2 was used */
	CHECK(!called_after_publish());
}

static void kicks_are_off_while_polling_and_armed_before_a_sleep(void)
{
	struct vring_used *used;
	struct eventfd_poll_info word;

	guest_start(&g, 0);
	used = guest_at(&g, USED_GPA);
	virtq_notify_off(&g.q);
	CHECK_EQ(used->flags, VRING_USED_F_NO_NOTIFY);
	virtq_watch(&g.q, &word);
	CHECK(word.arm_addr == (uintptr_t)&used->flags && word.arm_val == 0);

	guest_start(&g, WITH_EVENT_IDX);
	virtq_notify_off(&g.q);
	CHECK_EQ(used->flags, 0); /* virtio 1.2 §2.7.10: 0 with EVENT_IDX */
	virtq_watch(&g.q, &word);
	CHECK(word.arm_addr == (uintptr_t)&used->ring[GUEST_SIZE] && word.arm_val == (uintptr_t)&g.q.avail_idx);
}

int main(void)
{
	guest_make(&g);
	RUN(a_chain_becomes_iovecs_readable_ones_first);
	RUN(used_entries_appear_all_at_once);
	RUN(indices_run_past_65535);
	RUN(a_buffer_across_two_regions_is_two_iovecs);
	RUN(an_indirect_table_is_walked_after_direct_descriptors_too);
	RUN(an_indirect_table_may_cross_two_regions);
	RUN(fault_head_outside_the_table);
	RUN(fault_next_outside_the_table);
	RUN(fault_loop);
	RUN(fault_avail_idx_ahead_by_more_than_the_queue);
	RUN(fault_buffer_outside_memory);
	RUN(fault_buffer_wraps_the_address_space);
	RUN(fault_zero_length);
	RUN(fault_more_buffers_than_the_device_takes);
	RUN(fault_more_bytes_than_a_length_can_say);
	RUN(fault_readable_after_writable);
	RUN(fault_indirect_inside_indirect);
	RUN(fault_indirect_with_next);
	RUN(fault_indirect_of_odd_or_no_length);
	RUN(fault_indirect_longer_than_any_ring);
	RUN(fault_indirect_without_the_feature);
	RUN(fault_indirect_next_outside_its_table);
	RUN(fault_indirect_loop);
	RUN(fault_indirect_table_outside_memory);
	RUN(a_fault_signals_the_err_fd_once);
	RUN(rings_that_cannot_be_are_refused);
	RUN(a_used_ring_inside_what_the_device_reads_is_refused);
	RUN(the_driver_decides_whether_it_is_called);
	RUN(with_event_idx_it_is_called_at_the_used_entry_it_names);
	RUN(kicks_are_off_while_polling_and_armed_before_a_sleep);
	guest_free(&g);
	return 0;
}
