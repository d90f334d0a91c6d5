/* SPDX-License-Identifier: Apache-2.0 */
/* test_wait.c - the wait set: conditions, arming, and that no store or signal is missed */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "check.h"
#include "kernel/c/atomics.h"
#include "kernel/c/wait.h"
#include "strategies.h"
#include "vhost/c/mem.h"

static bool holds(uint64_t word, uint32_t op, uint64_t val, uint64_t mask)
{
	struct eventfd_poll_info w = { .addr = (uintptr_t)&word, .size = 8, .op = op, .val = val, .mask = mask };

	CHECK_EQ(wait_word_check(&w), 0);
	return wait_word_true(&w);
}

static void each_operator_means_what_the_contract_says(void)
{
	CHECK(holds(5, EVENTFD_POLL_OP_EQUAL, 5, 0));
	CHECK(!holds(5, EVENTFD_POLL_OP_EQUAL, 4, 0));
	CHECK(holds(0xf5, EVENTFD_POLL_OP_EQUAL, 5, 0x0f));
	CHECK(holds(5, EVENTFD_POLL_OP_NOT_EQUAL, 4, 0));
	CHECK(!holds(0x15, EVENTFD_POLL_OP_NOT_EQUAL, 0x25, 0x0f));
	CHECK(holds(6, EVENTFD_POLL_OP_AND, 2, 0));
	CHECK(!holds(6, EVENTFD_POLL_OP_AND, 1, 0));
	CHECK(holds(6, EVENTFD_POLL_OP_NAND, 1, 0));
	CHECK(!holds(6, EVENTFD_POLL_OP_NAND, 4, 0));
}

static void without_a_mask_the_bits_that_count_are_those_of_the_words_size(void)
{
	uint64_t ones = UINT64_MAX;
	struct eventfd_poll_info w = { .addr = (uintptr_t)&ones, .op = EVENTFD_POLL_OP_EQUAL, .val = UINT64_MAX };

	for (w.size = 1; w.size <= 8; w.size *= 2) {
		CHECK_EQ(wait_word_check(&w), 0);
		CHECK(wait_word_true(&w));
		w.op = EVENTFD_POLL_OP_NOT_EQUAL;
		CHECK(!wait_word_true(&w));
		w.op = EVENTFD_POLL_OP_EQUAL;
	}
}

static void a_word_is_compared_with_another_word(void)
{
	uint16_t idx = 3, shadow = 3;
	struct eventfd_poll_info w = {
		.addr = (uintptr_t)&idx, .size = 2, .op = EVENTFD_POLL_OP_NOT_EQUAL_PTR, .val = (uintptr_t)&shadow
	};

	CHECK(!wait_word_true(&w));
	idx = 4;
	CHECK(wait_word_true(&w));
	shadow = 4;
	CHECK(!wait_word_true(&w));
}

static void an_indirect_word_is_followed_each_time(void)
{
	uint16_t flags[2] = { 0, 0x80 };
	struct eventfd_poll_pair pair = { (uintptr_t)&flags[0], 0x80 };
	struct eventfd_poll_info w = { .addr = (uintptr_t)&pair,
				       .size = 2,
				       .op = EVENTFD_POLL_OP_EQUAL,
				       .mask = 0x8080,
				       .flags = EVENTFD_POLL_F_INDIRECT };

	CHECK(!wait_word_true(&w));
	pair.addr = (uintptr_t)&flags[1];
	CHECK(wait_word_true(&w));
	pair.val = 0x8000;
	CHECK(!wait_word_true(&w));
}

static void malformed_words_are_refused(void)
{
	uint64_t word = 0;
	const struct eventfd_poll_info good = { .addr = (uintptr_t)&word, .size = 4, .op = EVENTFD_POLL_OP_EQUAL };
	struct eventfd_poll_info bad[] = { good, good, good, good, good, good, good };
	struct wait_set ws;

	bad[0].size = 3;
	bad[1].addr += 2;
	bad[2].op = 6;
	bad[3].op = EVENTFD_POLL_OP_NONE;
	bad[4].flags = 8;
	bad[5].mask = 1ull << 32;
	bad[6].flags = EVENTFD_POLL_F_ARM_PTR;
	CHECK_EQ(wait_set_init(&ws, WAIT_OFF, 0), 0);
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		CHECK_EQ(wait_set_add(&ws, -1, &bad[i], &ws, NULL), -EINVAL);
	CHECK_EQ(wait_set_add(&ws, -1, &good, &ws, NULL), 0);
	wait_set_fini(&ws);
}

static void a_true_word_ends_the_wait_at_once(int strategy)
{
	uint32_t word = 1;
	struct eventfd_poll_info w = { .addr = (uintptr_t)&word, .size = 4, .op = EVENTFD_POLL_OP_NOT_EQUAL };
	struct wait_set ws;

	CHECK_EQ(wait_set_init(&ws, strategy, 1000), 0);
	CHECK_EQ(wait_set_add(&ws, -1, &w, &ws, NULL), 0);
	CHECK_EQ(wait_set_wait(&ws, -1), strategy == WAIT_OFF ? WAIT_ARMED : WAIT_HIT);
	CHECK_EQ(ws.stats.sleeps, 0);
	wait_set_fini(&ws);
}

/* Two doorbells, of the two kinds, and a word that has none, as the worker's mailbox. */
static void the_arm_word_is_written_before_a_sleep_and_only_then(int strategy)
{
	uint16_t word = 0, flags = 1, event = 0, shadow = 77;
	uint32_t mailbox = 0;
	struct eventfd_poll_info w[3] = {
		{ .addr = (uintptr_t)&word,
		  .size = 2,
		  .op = EVENTFD_POLL_OP_NOT_EQUAL,
		  .flags = EVENTFD_POLL_F_ARM,
		  .arm_addr = (uintptr_t)&flags,
		  .arm_val = 0 },
		{ .addr = (uintptr_t)&word,
		  .size = 2,
		  .op = EVENTFD_POLL_OP_NOT_EQUAL,
		  .flags = EVENTFD_POLL_F_ARM | EVENTFD_POLL_F_ARM_PTR,
		  .arm_addr = (uintptr_t)&event,
		  .arm_val = (uintptr_t)&shadow },
		{ .addr = (uintptr_t)&mailbox, .size = 4, .op = EVENTFD_POLL_OP_NOT_EQUAL },
	};
	struct wait_set ws;

	CHECK_EQ(wait_set_init(&ws, strategy, 100), 0);
	for (unsigned i = 0; i < 3; i++)
		CHECK_EQ(wait_set_add(&ws, -1, &w[i], &ws, NULL), 0);
	if (strategy != WAIT_OFF) {
		word = 1;
		CHECK_EQ(wait_set_wait(&ws, -1), WAIT_HIT);
		CHECK_EQ(flags, 1);
		CHECK_EQ(event, 0);
		CHECK_EQ(ws.stats.sleeps, 0);
		word = 0;
	}
	CHECK_EQ(wait_set_wait(&ws, 20000000), WAIT_ARMED);
	CHECK_EQ(ws.stats.sleeps, 1);
	CHECK_EQ(flags, 0);
	CHECK_EQ(event, 77);
	wait_set_fini(&ws);
}

static void a_word_that_was_removed_is_neither_looked_at_nor_armed(int strategy)
{
	uint32_t *gone = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint32_t stays = 0, doorbell = 0;
	struct eventfd_poll_info w[2] = {
		{ .size = 4,
		  .op = EVENTFD_POLL_OP_NOT_EQUAL,
		  .flags = EVENTFD_POLL_F_ARM,
		  .arm_addr = (uintptr_t)&doorbell,
		  .arm_val = 1 },
		{ .addr = (uintptr_t)&stays, .size = 4, .op = EVENTFD_POLL_OP_NOT_EQUAL },
	};
	struct wait_set ws;

	CHECK(gone != MAP_FAILED);
	w[0].addr = (uintptr_t)gone;
	CHECK_EQ(wait_set_init(&ws, strategy, 100), 0);
	CHECK_EQ(wait_set_add(&ws, -1, &w[0], gone, NULL), 0);
	CHECK_EQ(wait_set_add(&ws, -1, &w[1], &stays, NULL), 0);
	*gone = 1;
	wait_set_del(&ws, gone);
	CHECK_EQ(ws.count, 1);
	CHECK_EQ(munmap(gone, 4096), 0);
	wait_set_wait(&ws, 2000000);
	CHECK_EQ(doorbell, 0);
	stays = 1; /* moved into the other's place, and still watched */
	wait_set_wait(&ws, -1);
	wait_set_fini(&ws);
}

static uint64_t waited_ns(struct wait_set *ws, int64_t timeout_ns)
{
	uint64_t start = now_ns();

	wait_set_wait(ws, timeout_ns);
	return now_ns() - start;
}

static void an_eventfd_is_never_read_and_yet_each_write_wakes(int strategy)
{
	uint64_t one = 1, signals = 0, counter;
	int fd = eventfd(0, EFD_NONBLOCK);
	struct wait_set ws;

	CHECK_EQ(wait_set_init(&ws, strategy, 100), 0);
	CHECK_EQ(wait_set_add(&ws, fd, NULL, &ws, &signals), 0);
	for (int i = 1; i <= 3; i++) {
		CHECK(write(fd, &one, 8) == 8);
		wait_set_wait(&ws, -1);
		CHECK_EQ(signals, i);
	}
	CHECK(read(fd, &counter, 8) == 8);
	CHECK_EQ(counter, 3);
	wait_set_del(&ws, &ws);
	CHECK_EQ(ws.count, 0);
	wait_set_fini(&ws);
	close(fd);
}

static void a_socket_ends_every_wait_until_it_has_been_read_with(int strategy, int busy_poll_us)
{
	struct wait_set ws;
	int pair[2];
	char byte;

	CHECK_EQ(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair), 0);
	setsockopt(pair[0], SOL_SOCKET, SO_BUSY_POLL, &busy_poll_us, sizeof(busy_poll_us)); /* older kernels: root's */
	CHECK_EQ(wait_set_init(&ws, strategy, 100), 0);
	CHECK_EQ(wait_set_add_socket(&ws, pair[0], &ws), 0);
	CHECK(write(pair[1], "a", 1) == 1);
	CHECK(write(pair[1], "b", 1) == 1);
	wait_set_wait(&ws, -1); /* for ever, if it didn't */
	wait_set_wait(&ws, -1);
	CHECK(read(pair[0], &byte, 1) == 1);
	wait_set_wait(&ws, -1);
	CHECK(read(pair[0], &byte, 1) == 1);
	CHECK(waited_ns(&ws, 2000000) >= 2000000);
	CHECK(write(pair[1], "c", 1) == 1);
	wait_set_del(&ws, &ws);
	CHECK_EQ(ws.count, 0);
	CHECK(waited_ns(&ws, 2000000) >= 2000000);
	wait_set_fini(&ws);
	CHECK(read(pair[0], &byte, 1) == 1); /* still open: it isn't the set's */
	close(pair[0]);
	close(pair[1]);
}

static void a_socket_ends_every_wait_until_it_has_been_read(int strategy)
{
	a_socket_ends_every_wait_until_it_has_been_read_with(strategy, 0);
}

static void a_socket_that_may_be_busy_polled_loses_nothing_by_it(int strategy)
{
	a_socket_ends_every_wait_until_it_has_been_read_with(strategy, 50);
}

static void a_muted_socket_ends_none(int strategy)
{
	struct wait_set ws;
	int pair[2];

	CHECK_EQ(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair), 0);
	CHECK_EQ(wait_set_init(&ws, strategy, 100), 0);
	CHECK_EQ(wait_set_mute(&ws, pair[0], true), -ENOENT);
	CHECK_EQ(wait_set_add_socket(&ws, pair[0], &ws), 0);
	CHECK(write(pair[1], "a", 1) == 1);
	for (int i = 0; i < 2; i++)
		CHECK_EQ(wait_set_mute(&ws, pair[0], true), 0);
	CHECK(waited_ns(&ws, 2000000) >= 2000000);
	for (int i = 0; i < 2; i++)
		CHECK_EQ(wait_set_mute(&ws, pair[0], false), 0);
	wait_set_wait(&ws, -1);
	CHECK_EQ(wait_set_mute(&ws, pair[0], true), 0);
	wait_set_del(&ws, &ws);
	CHECK_EQ(ws.sockets, 0);
	wait_set_fini(&ws);
	close(pair[0]);
	close(pair[1]);
}

static void *sends_once_the_doorbell_is_armed(void *arg)
{
	const uint32_t *armed = ((void **)arg)[0];
	const int *fd = ((void **)arg)[1];

	while (!__atomic_load_n(armed, __ATOMIC_ACQUIRE))
		cpu_relax();
	return write(*fd, "a", 1) == 1 ? NULL : arg;
}

/* The socket beside a word whose doorbell is armed just before the sleep. */
static void a_socket_ends_a_sleep_that_waits_for_words_too(int strategy)
{
	uint32_t word = 0, armed = 0;
	struct eventfd_poll_info w = {
		.addr = (uintptr_t)&word,
		.size = 4,
		.op = EVENTFD_POLL_OP_NOT_EQUAL,
		.flags = EVENTFD_POLL_F_ARM,
		.arm_addr = (uintptr_t)&armed,
		.arm_val = 1,
	};
	struct wait_set ws;
	pthread_t thread;
	void *failed;
	int pair[2];
	void *to_watch[] = { &armed, &pair[1] };

	CHECK_EQ(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair), 0);
	CHECK_EQ(wait_set_init(&ws, strategy, 100), 0);
	CHECK_EQ(wait_set_add(&ws, -1, &w, &ws, NULL), 0);
	CHECK_EQ(wait_set_add_socket(&ws, pair[0], &ws), 0);
	CHECK_EQ(pthread_create(&thread, NULL, sends_once_the_doorbell_is_armed, to_watch), 0);
	CHECK_EQ(wait_set_wait(&ws, -1), WAIT_ARMED);
	CHECK_EQ(pthread_join(thread, &failed), 0);
	CHECK(failed == NULL);
	wait_set_fini(&ws);
	close(pair[0]);
	close(pair[1]);
}

static void what_epoll_cannot_watch_is_refused(int strategy)
{
	uint32_t word = 0;
	struct eventfd_poll_info w = { .addr = (uintptr_t)&word, .size = 4, .op = EVENTFD_POLL_OP_NOT_EQUAL };
	FILE *file = tmpfile();
	struct wait_set ws;

	CHECK_EQ(wait_set_init(&ws, strategy, 1), 0);
	CHECK_EQ(wait_set_add(&ws, fileno(file), &w, &ws, NULL), -EPERM);
	CHECK_EQ(ws.count, 0);
	wait_set_fini(&ws);
	fclose(file);
}

static void a_wait_without_events_ends_at_its_timeout(int strategy)
{
	struct wait_set ws;

	CHECK_EQ(wait_set_init(&ws, strategy, 1), 0);
	CHECK_EQ(wait_set_add(&ws, -1, NULL, &ws, NULL), 0);
	CHECK(waited_ns(&ws, 2000000) >= 2000000);
	wait_set_fini(&ws);
}

static void a_set_that_nothing_was_added_to_waits_too(int strategy)
{
	struct wait_set ws;
	uint64_t start = now_ns();

	CHECK_EQ(wait_set_init(&ws, strategy, 1), 0);
	wait_set_wait(&ws, 2000000);
	CHECK(now_ns() - start >= 2000000);
	wait_set_fini(&ws);
}

/* The ppoll of wait_kernel.c, in this program: what it returned is met by memory that has just come back. */
static int comes_back_fd = -1;

int ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask)
{
	struct timespec left = timeout ? *timeout : (struct timespec){ 0 };
	int n = (int)syscall(SYS_ppoll, fds, count, timeout ? &left : NULL, mask, _NSIG / 8);

	if (comes_back_fd >= 0)
		CHECK_EQ(ftruncate(comes_back_fd, 8192), 0);
	return n;
}

static void memory_that_went_and_came_back_does_not_keep_the_waiter_awake(int strategy)
{
	int fd = memfd_create("guest", MFD_CLOEXEC);
	struct eventfd_poll_info w = {
		.size = 4, .op = EVENTFD_POLL_OP_NOT_EQUAL, .flags = EVENTFD_POLL_F_ARM, .arm_val = 1
	};
	struct mem_map *map;
	struct wait_set ws;
	uint64_t start;

	CHECK_EQ(mem_sigbus_install(), 0);
	CHECK_EQ(ftruncate(fd, 8192), 0);
	CHECK_EQ(mem_map_create(fd, 0, 8192, &map), 0);
	w.addr = (uintptr_t)mem_map_ptr(map);
	w.arm_addr = w.addr + 4096;
	CHECK_EQ(wait_set_init(&ws, strategy, 10), 0);
	CHECK_EQ(wait_set_add(&ws, -1, &w, &ws, NULL), 0);
	CHECK_EQ(ftruncate(fd, 4096), 0);
	comes_back_fd = fd;
	wait_set_wait(&ws, 2000000); /* the kernel couldn't arm, or we couldn't and zeros are there instead */
	comes_back_fd = -1;
	start = now_ns();
	wait_set_wait(&ws, 2000000);
	CHECK(now_ns() - start >= 2000000);
	CHECK_EQ(*(const uint32_t *)(uintptr_t)w.arm_addr, 1);
	wait_set_fini(&ws);
	mem_map_destroy(map);
	close(fd);
}

static unsigned open_descriptors(void)
{
	unsigned n = 0;

	for (int fd = 0; fd < 1024; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

static void no_descriptor_is_left_behind(int strategy)
{
	uint32_t words[20] = { 0 };
	unsigned before = open_descriptors();
	struct wait_set ws;

	CHECK_EQ(wait_set_init(&ws, strategy, 1), 0);
	for (unsigned i = 0; i < 20; i++) {
		struct eventfd_poll_info w = { .addr = (uintptr_t)&words[i],
					       .size = 4,
					       .op = EVENTFD_POLL_OP_NOT_EQUAL };

		CHECK_EQ(wait_set_add(&ws, -1, &w, &words[i % 3], NULL), 0);
	}
	wait_set_del(&ws, &words[1]);
	CHECK_EQ(ws.count, 13);
	wait_set_fini(&ws);
	CHECK_EQ(open_descriptors(), before);
}

/*
 * The other side of the contract, as a virtio driver keeps it: store, full barrier, signal only if armed. A waiter that
 * armed without looking again, or looked before it armed, would sleep for ever on one of these.
 */
struct peer {
	uint32_t word, armed, seen, events;
	int fd;
};

static void *driver(void *arg)
{
	struct peer *p = arg;
	uint64_t one = 1;
	uint32_t random = 1;

	for (uint32_t i = 1; i <= p->events; i++) {
		/* A pause of 0..6 µs meets the waiter anywhere between its last look and its sleep. */
		random = random * 1664525 + 1013904223;
		for (uint32_t pause = random >> 24; pause > 0; pause--)
			cpu_relax();
		__atomic_store_n(&p->word, i, __ATOMIC_RELEASE);
		mb_full();
		if (__atomic_load_n(&p->armed, __ATOMIC_RELAXED) && write(p->fd, &one, 8) < 0)
			return p;
		while (__atomic_load_n(&p->seen, __ATOMIC_ACQUIRE) != i)
			cpu_relax();
	}
	return NULL;
}

static void lose_nothing(int strategy, uint32_t max_us)
{
	struct peer p = { .events = repeated(100000), .fd = eventfd(0, EFD_NONBLOCK) };
	uint32_t shadow = 0, mailbox = 0;
	struct eventfd_poll_info w = {
		.addr = (uintptr_t)&p.word,
		.size = 4,
		.op = EVENTFD_POLL_OP_NOT_EQUAL_PTR,
		.val = (uintptr_t)&shadow,
		.flags = EVENTFD_POLL_F_ARM,
		.arm_addr = (uintptr_t)&p.armed,
		.arm_val = 1,
	};
	struct eventfd_poll_info quiet = { .addr = (uintptr_t)&mailbox, .size = 4, .op = EVENTFD_POLL_OP_NOT_EQUAL };
	struct wait_set ws;
	pthread_t thread;
	void *failed;

	CHECK_EQ(wait_set_init(&ws, strategy, max_us), 0);
	CHECK_EQ(wait_set_add(&ws, -1, &quiet, &mailbox, NULL), 0);
	CHECK_EQ(wait_set_add(&ws, p.fd, &w, &ws, NULL), 0);
	CHECK_EQ(pthread_create(&thread, NULL, driver, &p), 0);
	while (shadow != p.events) {
		uint32_t word = __atomic_load_n(&p.word, __ATOMIC_ACQUIRE);

		if (word != shadow) {
			CHECK_EQ(word, shadow + 1);
			shadow = word;
			__atomic_store_n(&p.seen, word, __ATOMIC_RELEASE);
		} else if (wait_set_wait(&ws, -1) == WAIT_ARMED) { /* for ever, if a wake-up were lost */
			__atomic_store_n(&p.armed, 0, __ATOMIC_RELAXED);
		}
	}
	CHECK_EQ(pthread_join(thread, &failed), 0);
	CHECK(failed == NULL);
	printf("    %llu hits, %llu sleeps\n", (unsigned long long)ws.stats.hits, (unsigned long long)ws.stats.sleeps);
	wait_set_fini(&ws);
	close(p.fd);
}

static void no_wake_up_is_lost(int strategy)
{
	if (strategy == WAIT_OFF) {
		lose_nothing(strategy, 0);
	} else if (strategy == WAIT_USER) {
		lose_nothing(strategy, 2); /* between spin and sleep */
	} else {
		for (uint32_t max_us = 1; max_us <= 100; max_us *= 10)
			lose_nothing(strategy, max_us);
	}
}

int main(void)
{
	alarm(240); /* a lost wake-up ends here instead of hanging */
	RUN(each_operator_means_what_the_contract_says);
	RUN(without_a_mask_the_bits_that_count_are_those_of_the_words_size);
	RUN(a_word_is_compared_with_another_word);
	RUN(an_indirect_word_is_followed_each_time);
	RUN(malformed_words_are_refused);
	EACH(a_true_word_ends_the_wait_at_once);
	EACH(the_arm_word_is_written_before_a_sleep_and_only_then);
	EACH(a_word_that_was_removed_is_neither_looked_at_nor_armed);
	EACH(an_eventfd_is_never_read_and_yet_each_write_wakes);
	EACH(a_socket_ends_every_wait_until_it_has_been_read);
	EACH(a_socket_that_may_be_busy_polled_loses_nothing_by_it);
	EACH(a_muted_socket_ends_none);
	EACH(a_socket_ends_a_sleep_that_waits_for_words_too);
	EACH(what_epoll_cannot_watch_is_refused);
	EACH(a_wait_without_events_ends_at_its_timeout);
	EACH(a_set_that_nothing_was_added_to_waits_too);
	EACH(memory_that_went_and_came_back_does_not_keep_the_waiter_awake);
	EACH(no_descriptor_is_left_behind);
	EACH(no_wake_up_is_lost);
	return 0;
}
