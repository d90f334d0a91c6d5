/* SPDX-License-Identifier: Apache-2.0 */
/* test_driver_notify.c - kicks and calls: those that are wanted come, the others don't (virtio 1.2 §2.7.7, §2.7.10, §2.8.10) */
#include "driver_pair.h"

static void a_device_that_wants_no_kicks_gets_none(uint64_t features)
{
	struct driver_used used;
	struct pair p;

	pair_make(&p, features, 16);
	pair_send(&p, 0); /* with EVENT_IDX a new ring's event index is 0: the first one may still kick */
	CHECK_EQ(pair_serve(&p), 1);
	CHECK_EQ(driver_poll_used(p.driver, &used, 1), 1);
	virtq_notify_off(&p.device);
	pair_signals(p.kick_fd);
	for (unsigned i = 0; i < 100; i++) {
		CHECK_EQ(pair_send(&p, i), 0);
		CHECK_EQ(pair_serve(&p), 1);
		CHECK_EQ(driver_poll_used(p.driver, &used, 1), 1);
		CHECK_EQ(used.token, i);
	}
	CHECK_EQ(pair_signals(p.kick_fd), 0);
	pair_free(&p);
}

static void a_device_that_arms_is_kicked_by_the_next_request(uint64_t features)
{
	struct driver_used used;
	struct pair p;

	pair_make(&p, features, 16);
	for (unsigned i = 0; i < 100; i++) {
		virtq_notify_off(&p.device);
		CHECK(!pair_device_arms(&p));
		pair_signals(p.kick_fd);
		CHECK_EQ(pair_send(&p, i), 1);
		CHECK_EQ(pair_signals(p.kick_fd), 1);
		CHECK_EQ(pair_serve(&p), 1);
		CHECK_EQ(driver_poll_used(p.driver, &used, 1), 1);
	}
	pair_free(&p);
}

static void a_request_published_before_the_device_arms_is_found_by_its_second_look(uint64_t features)
{
	struct pair p;

	pair_make(&p, features, 16);
	virtq_notify_off(&p.device);
	pair_send(&p, 1);
	CHECK(pair_device_arms(&p));
	pair_free(&p);
}

static void a_batch_brings_one_kick(uint64_t features)
{
	struct driver_buf buf = pair_buf(0, 16);
	struct pair p;

	pair_make(&p, features, 16);
	CHECK(!pair_device_arms(&p));
	for (unsigned i = 0; i < 10; i++)
		CHECK_EQ(driver_add(p.driver, &buf, 1, 0, i), 0);
	CHECK_EQ(driver_publish(p.driver), 1);
	CHECK_EQ(driver_publish(p.driver), 0); /* nothing new: nothing to tell */
	CHECK_EQ(driver_kicks(p.driver), 1);
	CHECK_EQ(pair_signals(p.kick_fd), 1);
	pair_free(&p);
}

static void a_driver_that_polls_is_not_called(uint64_t features)
{
	struct driver_used used;
	struct pair p;

	pair_make(&p, features, 16);
	driver_interrupts_off(p.driver);
	pair_send(&p, 0);
	pair_serve(&p); /* with EVENT_IDX the very first one may call */
	CHECK_EQ(driver_poll_used(p.driver, &used, 1), 1);
	driver_interrupts_off(p.driver);
	pair_signals(p.call_fd);
	for (unsigned i = 0; i < 100; i++) {
		pair_send(&p, i);
		CHECK_EQ(pair_serve(&p), 1);
		CHECK_EQ(driver_poll_used(p.driver, &used, 1), 1);
	}
	CHECK_EQ(pair_signals(p.call_fd), 0);
	pair_free(&p);
}

static void a_driver_that_waits_is_called_once_for_each_that_it_takes(uint64_t features)
{
	struct driver_used used;
	struct pair p;

	pair_make(&p, features, 16);
	driver_interrupts_off(p.driver);
	CHECK(!driver_interrupts_on(p.driver));
	for (unsigned i = 0; i < 100; i++) {
		pair_send(&p, i);
		CHECK_EQ(pair_signals(p.call_fd), 0);
		CHECK_EQ(pair_serve(&p), 1);
		CHECK_EQ(pair_signals(p.call_fd), 1);
		CHECK_EQ(driver_poll_used(p.driver, &used, 1), 1);
	}
	pair_free(&p);
}

static void with_event_idx_requests_used_before_the_driver_looked_bring_no_second_call(void)
{
	for (unsigned packed = 0; packed < 2; packed++) {
		struct pair p;

		pair_make(&p, RING_EVENT_IDX | (packed ? RING_PACKED : 0), 16);
		CHECK(!driver_interrupts_on(p.driver));
		for (unsigned i = 0; i < 5; i++)
			pair_send(&p, i);
		for (unsigned i = 0; i < 5; i++)
			CHECK_EQ(pair_serve(&p), 1);
		CHECK_EQ(pair_signals(p.call_fd), 1);
		pair_free(&p);
	}
}

static void turning_interrupts_on_tells_what_came_too_early_for_a_call(uint64_t features)
{
	struct driver_used used;
	struct pair p;

	pair_make(&p, features, 16);
	driver_interrupts_off(p.driver);
	pair_send(&p, 5);
	CHECK_EQ(pair_serve(&p), 1);
	CHECK(driver_interrupts_on(p.driver));
	CHECK_EQ(driver_poll_used(p.driver, &used, 1), 1);
	CHECK(!driver_interrupts_on(p.driver));
	pair_free(&p);
}

#define EACH(behaviour)                                       \
	do {                                                  \
		printf("%s, split and packed\n", #behaviour); \
		fflush(stdout);                               \
		pair_each(behaviour);                         \
	} while (0)

int main(void)
{
	EACH(a_device_that_wants_no_kicks_gets_none);
	EACH(a_device_that_arms_is_kicked_by_the_next_request);
	EACH(a_request_published_before_the_device_arms_is_found_by_its_second_look);
	EACH(a_batch_brings_one_kick);
	EACH(a_driver_that_polls_is_not_called);
	EACH(a_driver_that_waits_is_called_once_for_each_that_it_takes);
	RUN(with_event_idx_requests_used_before_the_driver_looked_bring_no_second_call);
	EACH(turning_interrupts_on_tells_what_came_too_early_for_a_call);
	return 0;
}
