/* SPDX-License-Identifier: Apache-2.0 */
/* test_driver_ring.c - requests through a ring, driver to device and back: nothing lost, nothing doubled, nothing bent */
#include <errno.h>

#include "driver_pair.h"

static void the_device_sees_the_buffers_that_were_added(uint64_t features)
{
	struct driver_buf bufs[5] = { pair_buf(0, 16), pair_buf(100, 7), pair_buf(4096, 4096), pair_buf(9000, 1),
				      pair_buf(50, 2) };
	struct virtq_chain chain;
	struct iovec iov[PAIR_CHAIN];
	struct pair p;

	pair_make(&p, features, 16);
	CHECK_EQ(driver_add(p.driver, bufs, 2, 3, 99), 0);
	CHECK_EQ(virtq_pop(&p.device, &chain, iov, PAIR_CHAIN), 0); /* not before it is published */
	driver_publish(p.driver);
	CHECK_EQ(virtq_pop(&p.device, &chain, iov, PAIR_CHAIN), 1);
	CHECK_EQ(chain.out_count, 2);
	CHECK_EQ(chain.in_count, 3);
	for (unsigned i = 0; i < 5; i++) {
		CHECK(iov[i].iov_base == p.mem + (bufs[i].addr - PAIR_GPA));
		CHECK_EQ(iov[i].iov_len, bufs[i].len);
	}
	CHECK_EQ(virtq_pop(&p.device, &chain, iov, PAIR_CHAIN), 0);
	pair_free(&p);
}

/*
 * Many laps with chains of 1..6 buffers in batches of any size, the device returning them in another order than it got
 * them: every token comes back once, with the length that the device gave.
 */
static void every_request_comes_back_once(uint64_t features)
{
	enum { TOTAL = 5000 };
	uint32_t sizes[] = { 8, 64, features & RING_PACKED ? 37 : 32 };

	for (unsigned s = 0; s < 3; s++) {
		static uint8_t came[TOTAL];
		struct virtq_chain held[64];
		unsigned holding = 0, sent = 0, back = 0;
		uint64_t random = 1;
		struct pair p;

		memset(came, 0, sizeof(came));
		pair_make(&p, features, sizes[s]);
		while (back < TOTAL) {
			struct driver_buf bufs[PAIR_CHAIN];
			struct driver_used used[64];
			struct iovec iov[PAIR_CHAIN];
			int n;

			for (unsigned batch = (random = random * 6364136223846793005u + 1) >> 60; batch && sent < TOTAL;
			     batch--) {
				uint32_t count = 1 + sent % PAIR_CHAIN, out = sent % (count + 1);

				for (uint32_t i = 0; i < count; i++)
					bufs[i] = pair_buf(64 * i, 1 + sent % 50);
				if (driver_add(p.driver, bufs, out, count - out, sent) == -ENOSPC)
					break;
				sent++;
			}
			CHECK(driver_publish(p.driver) >= 0);
			while (holding < 64 && virtq_pop(&p.device, &held[holding], iov, PAIR_CHAIN) == 1)
				holding++;
			CHECK_EQ(p.device.fault, VIRTQ_FAULT_NONE);
			for (unsigned give = (random = random * 6364136223846793005u + 1) >> 61; give && holding;
			     give--) {
				unsigned pick = (unsigned)(random >> 20) % holding;

				virtq_push(&p.device, &held[pick], held[pick].in_len);
				held[pick] = held[--holding];
			}
			virtq_publish(&p.device);
			n = driver_poll_used(p.driver, used, 64);
			CHECK(n >= 0);
			for (int i = 0; i < n; i++) {
				uint64_t t = used[i].token;
				uint32_t count = (uint32_t)(1 + t % PAIR_CHAIN), out = (uint32_t)(t % (count + 1));

				CHECK(t < TOTAL && !came[t]);
				came[t] = 1;
				CHECK_EQ(used[i].len, (count - out) * (1 + t % 50));
			}
			back += (unsigned)n;
		}
		CHECK_EQ(driver_in_flight(p.driver), 0);
		CHECK_EQ(driver_room(p.driver), sizes[s]);
		pair_free(&p);
	}
}

static void a_full_ring_refuses_and_takes_again(uint64_t features)
{
	struct driver_buf bufs[2] = { pair_buf(0, 16), pair_buf(64, 512) };
	uint32_t fits = features & RING_INDIRECT ? 8 : 4;
	struct driver_used used[8];
	struct pair p;

	pair_make(&p, features, 8);
	for (unsigned lap = 0; lap < 3; lap++) {
		for (uint32_t i = 0; i < fits; i++)
			CHECK_EQ(driver_add(p.driver, bufs, 1, 1, i), 0);
		CHECK_EQ(driver_add(p.driver, bufs, 1, 1, 0), -ENOSPC);
		driver_publish(p.driver);
		CHECK_EQ(driver_add(p.driver, bufs, 1, 1, 0), -ENOSPC);
		for (uint32_t i = 0; i < fits; i++)
			CHECK_EQ(pair_serve(&p), 1);
		CHECK_EQ(pair_serve(&p), 0);
		CHECK_EQ(driver_poll_used(p.driver, used, 8), (int)fits);
		CHECK_EQ(driver_room(p.driver), 8);
	}
	pair_free(&p);
}

/* A device that pops ahead, and stops: what it unpops is available to its successor, which starts at virtq_base(). */
static void what_is_unpopped_is_popped_again(uint64_t features)
{
	enum { TOTAL = 3000, AHEAD = 7 };
	struct virtq_chain held[AHEAD];
	struct iovec iov[PAIR_CHAIN];
	uint64_t back = 0, sent = 0;
	struct pair p;

	pair_make(&p, features, 64);
	while (back < TOTAL) {
		struct eventfd_poll_info word;
		struct driver_used used[64];
		unsigned holding = 0, keep;
		uint32_t base;
		int n;

		while (sent < TOTAL && sent - back < 9) {
			struct driver_buf bufs[PAIR_CHAIN] = { pair_buf(0, 1),   pair_buf(64, 2),  pair_buf(128, 3),
							       pair_buf(192, 4), pair_buf(256, 5), pair_buf(320, 6) };

			CHECK_EQ(driver_add(p.driver, bufs, 0, 1 + sent % PAIR_CHAIN, sent), 0);
			sent++;
		}
		driver_publish(p.driver);
		while (holding < AHEAD && virtq_pop(&p.device, &held[holding], iov, PAIR_CHAIN) == 1)
			holding++;
		keep = 1 + back % 3 < holding ? 1 + back % 3 : holding;
		while (holding > keep)
			virtq_unpop(&p.device, &held[--holding]);
		base = virtq_base(&p.device);
		virtq_watch(&p.device, &word);
		CHECK_EQ(wait_word_true(&word), sent - back > keep);
		CHECK_EQ(virtq_more(&p.device), sent - back > keep);
		while (holding > 0) { /* the driver gets them back in another order */
			holding--;
			virtq_push(&p.device, &held[holding], held[holding].in_len);
		}
		virtq_publish(&p.device);
		CHECK_EQ(virtq_base(&p.device), base);
		n = driver_poll_used(p.driver, used, 64);
		CHECK_EQ(n, keep);
		for (int i = 0; i < n; i++) {
			uint32_t pieces = 1 + used[i].token % PAIR_CHAIN;

			CHECK_EQ(used[i].token, back + keep - 1 - (unsigned)i);
			CHECK_EQ(used[i].len, pieces * (pieces + 1) / 2);
		}
		back += keep;
	}
	CHECK_EQ(driver_in_flight(p.driver), 0);
	pair_free(&p);
}

static void what_cannot_be_a_request_or_a_queue_is_refused(void)
{
	struct driver_buf bufs[PAIR_CHAIN + 1] = { pair_buf(0, 16) };
	struct driver_layout at;
	struct pair p;

	CHECK_EQ(driver_lay_out(&at, 0, 0, 1), -EINVAL);
	CHECK_EQ(driver_lay_out(&at, 65536, 0, 1), -EINVAL);
	CHECK_EQ(driver_lay_out(&at, 100, 0, 1), -EINVAL); /* §2.7: a power of 2 */
	CHECK_EQ(driver_lay_out(&at, 100, RING_PACKED, 1), 0);
	CHECK_EQ(driver_lay_out(&at, 8, 0, 9), -EINVAL);
	CHECK_EQ(driver_lay_out(&at, 32768, 0, 128), 0);
	pair_make(&p, 0, 16);
	CHECK_EQ(driver_add(p.driver, bufs, 0, 0, 1), -EINVAL);
	CHECK_EQ(driver_add(p.driver, bufs, 0, PAIR_CHAIN + 1, 1), -EINVAL);
	CHECK_EQ(driver_add(p.driver, bufs, UINT32_MAX, 2, 1), -EINVAL);
	CHECK_EQ(driver_in_flight(p.driver), 0);
	pair_free(&p);
}

static void EACH_the_device_sees_the_buffers_that_were_added(void)
{
	pair_each(the_device_sees_the_buffers_that_were_added);
}

static void EACH_every_request_comes_back_once(void)
{
	pair_each(every_request_comes_back_once);
}

static void EACH_a_full_ring_refuses_and_takes_again(void)
{
	pair_each(a_full_ring_refuses_and_takes_again);
}

static void EACH_what_is_unpopped_is_popped_again(void)
{
	pair_each(what_is_unpopped_is_popped_again);
}

int main(void)
{
	RUN(EACH_the_device_sees_the_buffers_that_were_added);
	RUN(EACH_every_request_comes_back_once);
	RUN(EACH_a_full_ring_refuses_and_takes_again);
	RUN(EACH_what_is_unpopped_is_popped_again);
	RUN(what_cannot_be_a_request_or_a_queue_is_refused);
	return 0;
}
