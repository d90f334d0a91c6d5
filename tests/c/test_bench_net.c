/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_bench_net.c - the load generator against a small card that behaves, loses, spoils, repeats or falls silent
 *
 * The card is a thread that sends back what it is sent: what a benchmark says about a back-end is worth something only if it
 * notices when that is wrong.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <sys/socket.h>

#include "backend/c/bench_net.h"
#include "backend/c/bench_raw.h"
#include "driver_pair.h"

enum habit { HONEST, SPOILS_A_BYTE, CUTS_ONE, LOSES_ONE, REPEATS_ONE, SWALLOWS, OVERSTATES, SOURCE };

#define QUEUE 16u
#define SIZE 1500u
#define SPECIAL 100u /* the frame that a habit is about */

struct card {
	struct pair rx, tx;
	pthread_t thread;
	enum habit habit;
	uint32_t stop; /* atomic */
	uint64_t served;
	uint8_t frame[NET_HDR_LEN + SIZE];
};

static struct card card;
static struct bench_net *bench;
static struct bench_net_result result;

/* Give the driver a frame, in as many buffers as it takes; waits for them. */
static void deliver(uint32_t len)
{
	struct virtio_net_hdr_v1 *first = NULL;
	struct virtq_chain chain;
	struct iovec iov[PAIR_CHAIN];
	uint32_t done = 0;
	uint16_t buffers = 0;

	while (done < len && !load_acquire(&card.stop)) {
		uint32_t n = len - done;

		if (virtq_pop(&card.rx.device, &chain, iov, PAIR_CHAIN) != 1) {
			sched_yield();
			continue;
		}
		if (n > iov[0].iov_len)
			n = (uint32_t)iov[0].iov_len;
		memcpy(iov[0].iov_base, card.frame + done, n);
		done += n;
		if (!first)
			first = iov[0].iov_base;
		first->num_buffers = ++buffers;
		virtq_push(&card.rx.device, &chain, card.habit == OVERSTATES ? chain.in_len + 1 : n);
	}
	virtq_publish(&card.rx.device);
}

static void serve(uint32_t len)
{
	bool special = card.served++ == SPECIAL;

	if (card.habit == SWALLOWS || (card.habit == LOSES_ONE && special))
		return;
	if (card.habit == SPOILS_A_BYTE && special)
		card.frame[len - 7] ^= 4;
	deliver(card.habit == CUTS_ONE && special ? len - 1 : len);
	if (card.habit == REPEATS_ONE && special)
		deliver(len);
}

static void *card_main(void *unused)
{
	struct virtq_chain chain;
	struct iovec iov[PAIR_CHAIN];

	while (!load_acquire(&card.stop)) {
		if (card.habit == SOURCE)
			deliver(sizeof(card.frame));
		while (virtq_pop(&card.tx.device, &chain, iov, PAIR_CHAIN) == 1) {
			CHECK_EQ(chain.out_len, sizeof(card.frame));
			memcpy(card.frame, iov[0].iov_base, iov[0].iov_len);
			virtq_push(&card.tx.device, &chain, 0);
			virtq_publish(&card.tx.device);
			serve(chain.out_len);
		}
		sched_yield(); /* one CPU may have to do for both threads */
	}
	return unused;
}

static void start(enum habit habit, uint64_t features, bool merges)
{
	struct bench_net_config cfg = {
		.pairs = 1,
		.queue_size = QUEUE,
		.size = SIZE,
		.rx_buffer = merges ? 600 : 2048,
		.batch = 4,
		.depth = 8,
		.mrg_rxbuf = merges,
		.verify = true,
		.seed = 7,
		.stall_ns = habit == SWALLOWS ? 2000000000u : 20000000000u,
		.reflect_fd = -1,
		.area_gpa = PAIR_GPA + PAIR_DATA,
	};

	memset(&card, 0, sizeof(card));
	card.habit = habit;
	pair_make(&card.rx, features, QUEUE);
	pair_make(&card.tx, features, QUEUE);
	CHECK(PAIR_DATA + bench_net_area_bytes(&cfg) <= PAIR_BYTES);
	/* One area for both queues' data: the devices see it by the same guest addresses. */
	cfg.area = mmap(card.rx.mem + PAIR_DATA, PAIR_BYTES - PAIR_DATA, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
			card.tx.memfd, PAIR_DATA);
	CHECK(cfg.area != MAP_FAILED);
	CHECK_EQ(bench_net_create(&bench, &cfg), 0);
	CHECK_EQ(bench_net_add_pair(bench, card.rx.driver, card.tx.driver, card.rx.call_fd, card.tx.call_fd), 0);
	CHECK_EQ(bench_net_add_pair(bench, card.rx.driver, card.tx.driver, -1, -1), -EINVAL);
	CHECK_EQ(pthread_create(&card.thread, NULL, card_main, NULL), 0);
}

static void stop(void)
{
	store_release(&card.stop, 1);
	pthread_join(card.thread, NULL);
	CHECK_EQ(card.rx.device.fault, VIRTQ_FAULT_NONE);
	CHECK_EQ(card.tx.device.fault, VIRTQ_FAULT_NONE);
	bench_net_destroy(bench);
	pair_free(&card.rx);
	pair_free(&card.tx);
}

static int run(int mode, uint64_t frames)
{
	struct bench_net_load load = { .mode = mode, .frames = frames };

	return bench_net_run(bench, &load, &result);
}

static void an_honest_card_passes(uint64_t features)
{
	for (unsigned merges = 0; merges < 2; merges++) {
		uint64_t counted = 0;

		start(HONEST, features, merges);
		for (unsigned phase = 0; phase < 2; phase++) {
			CHECK_EQ(run(BENCH_NET_ECHO, 300), 0);
			CHECK_EQ(result.sent, 300);
			CHECK_EQ(result.received, 300);
			CHECK_EQ(result.bytes, 300 * SIZE);
			CHECK_EQ(result.lost + result.foreign + result.mismatches, 0);
		}
		for (unsigned i = 0; i < BENCH_BUCKETS; i++)
			counted += result.rtt[i];
		CHECK_EQ(counted, 300);
		CHECK_EQ(card.served, 600);
		stop();
	}
}

static void EACH_an_honest_card_passes(void)
{
	pair_each(an_honest_card_passes);
}

static void a_spoilt_byte_is_found_and_so_is_a_cut(void)
{
	for (int habit = SPOILS_A_BYTE; habit <= CUTS_ONE; habit++) {
		start(habit, 0, false);
		CHECK_EQ(run(BENCH_NET_ECHO, 300), 0);
		CHECK_EQ(result.mismatches, 1);
		CHECK_EQ(result.mismatch_number, SPECIAL);
		CHECK_EQ(result.lost, 0);
		stop();
	}
}

static void a_lost_frame_is_missed_and_the_others_go_on(void)
{
	start(LOSES_ONE, 0, false);
	CHECK_EQ(run(BENCH_NET_ECHO, 300), 0);
	CHECK_EQ(result.sent, 300);
	CHECK_EQ(result.received, 299);
	CHECK_EQ(result.lost, 1);
	stop();
}

static void the_last_frame_is_given_up_when_it_does_not_come(void)
{
	start(LOSES_ONE, 0, false);
	CHECK_EQ(run(BENCH_NET_ECHO, SPECIAL + 1), 0);
	CHECK_EQ(result.lost, 1);
	stop();
}

static void a_frame_that_comes_twice_counts_once(void)
{
	start(REPEATS_ONE, 0, false);
	CHECK_EQ(run(BENCH_NET_ECHO, 300), 0);
	CHECK_EQ(result.received, 300);
	CHECK_EQ(result.foreign, 1);
	CHECK_EQ(result.lost, 0);
	stop();
}

static void a_card_that_gives_nothing_back_is_not_waited_for_for_ever(void)
{
	start(SWALLOWS, 0, false);
	CHECK_EQ(run(BENCH_NET_ECHO, 300), -ETIMEDOUT);
	stop();
}

static void sending_needs_nobody_who_answers(void)
{
	start(SWALLOWS, 0, false);
	CHECK_EQ(run(BENCH_NET_TX, 300), 0);
	CHECK_EQ(result.sent, 300);
	CHECK_EQ(result.received, 0);
	stop();
}

static void what_a_source_gives_is_counted(void)
{
	start(SOURCE, 0, true);
	CHECK_EQ(run(BENCH_NET_RX, 300), 0);
	CHECK(result.received >= 300);
	CHECK_EQ(result.bytes, result.received * SIZE);
	CHECK_EQ(result.foreign, result.received); /* zeros, not ours */
	CHECK_EQ(result.sent, 0);
	stop();
}

static void a_buffer_that_claims_more_than_it_holds_ends_the_run(void)
{
	start(OVERSTATES, 0, false);
	CHECK_EQ(run(BENCH_NET_ECHO, 300), -EBADMSG);
	stop();
}

static void *stopper(void *unused)
{
	bench_net_stop(bench);
	return unused;
}

static void a_run_without_end_can_be_stopped_from_another_thread(void)
{
	struct bench_net_load load = { .mode = BENCH_NET_ECHO, .runtime_ns = 3600000000000u };
	pthread_t thread;

	start(HONEST, 0, false);
	CHECK_EQ(pthread_create(&thread, NULL, stopper, NULL), 0);
	CHECK_EQ(bench_net_run(bench, &load, &result), -ECANCELED);
	pthread_join(thread, NULL);
	stop();
}

static void what_cannot_be_is_refused(void)
{
	struct bench_net_load endless = { .mode = BENCH_NET_TX };
	struct bench_net_load bad = { .mode = BENCH_NET_ECHO + 1, .frames = 1 };
	struct bench_net_config cfg = {
		.pairs = 1, .queue_size = 4, .size = 59, .rx_buffer = 100, .batch = 1, .depth = 1
	};

	start(HONEST, 0, false);
	CHECK_EQ(bench_net_run(bench, &endless, &result), -EINVAL);
	CHECK_EQ(bench_net_run(bench, &bad, &result), -EINVAL);
	stop();
	CHECK_EQ(bench_net_create(&bench, &cfg), -EINVAL);
	cfg.size = 60;
	cfg.depth = 5;
	CHECK_EQ(bench_net_create(&bench, &cfg), -EINVAL);
}

static struct bench_datagrams *datagrams(uint32_t size, uint32_t count)
{
	static const uint8_t bytes[2048];
	struct bench_datagrams *d;

	CHECK_EQ(bench_datagrams_create(&d, bytes, size, count, 1), 0);
	return d;
}

static void raw_loops_send_what_they_count(void)
{
	int fds[2];

	for (unsigned count = 1; count <= 32; count += 31) {
		struct bench_datagrams *batch = datagrams(100, count);
		struct bench_raw_result raw = { 0 };
		uint8_t buf[2048];
		uint64_t arrived = 0;

		CHECK_EQ(socketpair(AF_UNIX, SOCK_DGRAM, 0, fds), 0);
		/* Nobody reads meanwhile: the loop ends when the socket is full. */
		CHECK_EQ(fcntl(fds[0], F_SETFL, O_NONBLOCK), 0);
		CHECK_EQ(bench_raw_udp(fds[0], batch, 1000000000, &raw), -EAGAIN);
		while (recv(fds[1], buf, sizeof(buf), MSG_DONTWAIT) == 100)
			arrived++;
		CHECK(arrived > 0);
		CHECK_EQ(raw.frames, arrived);
		close(fds[0]);
		close(fds[1]);
		bench_datagrams_destroy(batch);
	}
	CHECK_EQ(bench_raw_tap(-1, 13, 1, NULL), -EINVAL);
	CHECK_EQ(bench_raw_xdp(&(struct net_xdp){ .frame_max = 100 }, 101, 1, 1, NULL), -EINVAL);
}

static void datagrams_that_cannot_be_are_refused(void)
{
	static const uint8_t bytes[UINT16_MAX];
	struct bench_datagrams *d;

	CHECK_EQ(bench_datagrams_create(&d, bytes, 13, 1, 1), -EINVAL);
	CHECK_EQ(bench_datagrams_create(&d, bytes, 65001, 1, 1), -EINVAL);
	CHECK_EQ(bench_datagrams_create(&d, bytes, 100, 0, 1), -EINVAL);
	CHECK_EQ(bench_datagrams_create(&d, bytes, 100, 65, 1), -EINVAL);
	CHECK_EQ(bench_datagrams_create(&d, bytes, 100, 1, 0), -EINVAL);
}

/* What the first sends, the second receives; or it is lost, but nobody waits. */
static void udp_pair(int fds[2])
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
	socklen_t len = sizeof(at);

	for (int i = 0; i < 2; i++) {
		fds[i] = socket(AF_INET, SOCK_DGRAM, 0);
		CHECK(fds[i] >= 0);
	}
	CHECK_EQ(bind(fds[1], (struct sockaddr *)&at, sizeof(at)), 0);
	CHECK_EQ(getsockname(fds[1], (struct sockaddr *)&at, &len), 0);
	CHECK_EQ(connect(fds[0], (struct sockaddr *)&at, sizeof(at)), 0);
}

struct feeding {
	pthread_t thread;
	struct bench_datagrams *batch;
	int fd, err;
	uint64_t came;
	uint32_t stop;
};

static void *feed(void *arg)
{
	struct feeding *f = arg;

	f->err = bench_raw_feed(f->fd, f->batch, 64, &f->came, &f->stop);
	return NULL;
}

static void a_raw_loop_receives_what_another_one_feeds_it(void)
{
	struct feeding f = { .batch = datagrams(100, 32) };
	struct bench_raw_result raw = { 0 };
	int fds[2];

	udp_pair(fds);
	f.fd = fds[0];
	CHECK_EQ(bench_raw_feed(f.fd, f.batch, 31, &f.came, &f.stop), -EINVAL);
	CHECK_EQ(pthread_create(&f.thread, NULL, feed, &f), 0);
	CHECK_EQ(bench_raw_receive(fds[1], 100, 100000000, &f.came, &raw), 0);
	__atomic_store_n(&f.stop, 1, __ATOMIC_RELEASE);
	pthread_join(f.thread, NULL);
	CHECK_EQ(f.err, 0);
	CHECK(raw.frames > 64); /* more than was under way at once */
	CHECK_EQ(raw.frames, f.came);
	close(fds[0]);
	close(fds[1]);
	bench_datagrams_destroy(f.batch);
}

int main(void)
{
	RUN(EACH_an_honest_card_passes);
	RUN(a_spoilt_byte_is_found_and_so_is_a_cut);
	RUN(a_lost_frame_is_missed_and_the_others_go_on);
	RUN(the_last_frame_is_given_up_when_it_does_not_come);
	RUN(a_frame_that_comes_twice_counts_once);
	RUN(a_card_that_gives_nothing_back_is_not_waited_for_for_ever);
	RUN(sending_needs_nobody_who_answers);
	RUN(what_a_source_gives_is_counted);
	RUN(a_buffer_that_claims_more_than_it_holds_ends_the_run);
	RUN(a_run_without_end_can_be_stopped_from_another_thread);
	RUN(what_cannot_be_is_refused);
	RUN(raw_loops_send_what_they_count);
	RUN(datagrams_that_cannot_be_are_refused);
	RUN(a_raw_loop_receives_what_another_one_feeds_it);
	return 0;
}
