/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_driver_bench.c - the load generator against a small disk that behaves, lies, fails or falls silent
 *
 * The disk is a thread that serves one virtqueue out of an array: what a benchmark says about a back-end is worth
 * something only if it notices when that is wrong.
 */
#include <errno.h>
#include <linux/virtio_blk.h>
#include <pthread.h>
#include <sched.h>

#include "backend/c/bench_blk.h"
#include "driver_pair.h"

enum habit { HONEST, FLIPS_A_BIT, LOSES_WRITES, FAILS_READS, SILENT };

#define BLOCK 4096u
#define BLOCKS 64u
#define DEPTH 8u

struct disk {
	struct pair pair;
	pthread_t thread;
	enum habit habit;
	uint32_t stop; /* atomic */
	uint64_t served, sequential, last_sector;
	uint8_t contents[BLOCKS * BLOCK];
};

static void serve(struct disk *disk, struct virtq_chain *chain, struct iovec *iov)
{
	struct virtio_blk_outhdr header;
	uint8_t *status = iov[2].iov_base;

	CHECK_EQ(chain->out_count + chain->in_count, 3);
	memcpy(&header, iov[0].iov_base, sizeof(header));
	CHECK(header.sector * 512 + iov[1].iov_len <= sizeof(disk->contents));
	disk->sequential += disk->served && header.sector == disk->last_sector + BLOCK / 512;
	disk->last_sector = header.sector;
	disk->served++;
	*status = VIRTIO_BLK_S_OK;
	if (header.type == VIRTIO_BLK_T_OUT) {
		if (disk->habit != LOSES_WRITES || disk->served != BLOCKS + 30)
			memcpy(disk->contents + header.sector * 512, iov[1].iov_base, iov[1].iov_len);
	} else {
		memcpy(iov[1].iov_base, disk->contents + header.sector * 512, iov[1].iov_len);
		if (disk->habit == FLIPS_A_BIT && header.sector == 5 * BLOCK / 512)
			((uint8_t *)iov[1].iov_base)[1001] ^= 4;
		if (disk->habit == FAILS_READS)
			*status = VIRTIO_BLK_S_IOERR;
	}
}

static void *disk_main(void *arg)
{
	struct disk *disk = arg;
	struct virtq_chain chain;
	struct iovec iov[PAIR_CHAIN];

	while (!load_acquire(&disk->stop)) {
		while (disk->habit != SILENT && virtq_pop(&disk->pair.device, &chain, iov, PAIR_CHAIN) == 1) {
			serve(disk, &chain, iov);
			virtq_push(&disk->pair.device, &chain, chain.in_len);
			virtq_publish(&disk->pair.device);
		}
		sched_yield(); /* one CPU may have to do for both threads */
	}
	return NULL;
}

static struct disk disk;
static struct bench *bench;
static struct bench_result result;

static void start(enum habit habit, uint64_t features, bool verify, bool sleeps)
{
	struct bench_config cfg = {
		.queues = 1,
		.iodepth = DEPTH,
		.block_size = BLOCK,
		.segment_max = 1u << 20,
		.blocks = BLOCKS,
		.seed = 7,
		.stall_ns = habit == SILENT ? 50000000u : 20000000000u,
		.verify = verify,
		.sleep = sleeps,
		.area_gpa = PAIR_GPA + PAIR_DATA,
	};

	memset(&disk, 0, sizeof(disk));
	disk.habit = habit;
	pair_make(&disk.pair, features, 32);
	cfg.area = disk.pair.mem + PAIR_DATA;
	CHECK(PAIR_DATA + bench_area_bytes(&cfg) <= PAIR_BYTES);
	CHECK_EQ(bench_create(&bench, &cfg), 0);
	CHECK_EQ(bench_add_queue(bench, disk.pair.driver, disk.pair.call_fd), 0);
	CHECK_EQ(bench_add_queue(bench, disk.pair.driver, disk.pair.call_fd), -EINVAL);
	CHECK_EQ(pthread_create(&disk.thread, NULL, disk_main, &disk), 0);
}

static void stop(void)
{
	store_release(&disk.stop, 1);
	pthread_join(disk.thread, NULL);
	CHECK_EQ(disk.pair.device.fault, VIRTQ_FAULT_NONE);
	bench_destroy(bench);
	pair_free(&disk.pair);
}

static int run(int rw, uint64_t requests)
{
	struct bench_load load = { .rw = rw, .requests = requests };

	return bench_run(bench, &load, &result);
}

static void an_honest_disk_passes(uint64_t features)
{
	for (unsigned sleeps = 0; sleeps < 2; sleeps++) {
		uint64_t counted = 0;

		start(HONEST, features, true, sleeps);
		CHECK_EQ(run(BENCH_WRITE, BLOCKS), 0);
		CHECK_EQ(result.writes, BLOCKS);
		CHECK_EQ(run(BENCH_RANDRW, 500), 0);
		CHECK_EQ(result.reads + result.writes, 500);
		CHECK(result.reads > 150 && result.writes > 150);
		CHECK_EQ(result.checked, result.reads);
		for (unsigned i = 0; i < BENCH_BUCKETS; i++)
			counted += result.latency[i];
		CHECK_EQ(counted, 500);
		CHECK_EQ(run(BENCH_READ, BLOCKS), 0);
		CHECK_EQ(result.checked, BLOCKS);
		CHECK_EQ(result.mismatches, 0);
		CHECK_EQ(result.errors, 0);
		CHECK_EQ(disk.served, 500 + 2 * BLOCKS);
		stop();
	}
}

static void EACH_an_honest_disk_passes(void)
{
	pair_each(an_honest_disk_passes);
}

static void a_flipped_bit_is_found_and_located(void)
{
	start(FLIPS_A_BIT, 0, true, false);
	CHECK_EQ(run(BENCH_WRITE, BLOCKS), 0);
	CHECK_EQ(run(BENCH_READ, BLOCKS), 0);
	CHECK_EQ(result.checked, BLOCKS);
	CHECK_EQ(result.mismatches, 1);
	CHECK_EQ(result.mismatch_block, 5);
	CHECK_EQ(result.mismatch_offset, 1000); /* of the word */
	stop();
}

static void a_lost_write_is_found(void)
{
	start(LOSES_WRITES, 0, true, false);
	CHECK_EQ(run(BENCH_WRITE, BLOCKS), 0);
	CHECK_EQ(run(BENCH_WRITE, BLOCKS), 0); /* the second generation of one block stays the first */
	CHECK_EQ(run(BENCH_READ, BLOCKS), 0);
	CHECK_EQ(result.mismatches, 1);
	stop();
}

static void failed_requests_are_counted_and_not_compared(void)
{
	start(FAILS_READS, 0, true, false);
	CHECK_EQ(run(BENCH_WRITE, BLOCKS), 0);
	CHECK_EQ(result.errors, 0);
	CHECK_EQ(run(BENCH_RANDREAD, 100), 0);
	CHECK_EQ(result.errors, 100);
	CHECK_EQ(result.checked, 0);
	stop();
}

static void a_silent_disk_is_not_waited_for_for_ever(void)
{
	for (unsigned sleeps = 0; sleeps < 2; sleeps++) {
		start(SILENT, RING_EVENT_IDX, false, sleeps);
		CHECK_EQ(run(BENCH_RANDREAD, 100), -ETIMEDOUT);
		stop();
	}
}

static void *stopper(void *unused)
{
	bench_stop(bench);
	return unused;
}

static void a_run_without_end_can_be_stopped_from_another_thread(void)
{
	struct bench_load load = { .rw = BENCH_RANDREAD, .runtime_ns = 3600000000000u };

	for (unsigned sleeps = 0; sleeps < 2; sleeps++) {
		pthread_t thread;

		start(HONEST, 0, false, sleeps);
		CHECK_EQ(pthread_create(&thread, NULL, stopper, NULL), 0);
		CHECK_EQ(bench_run(bench, &load, &result), -ECANCELED);
		pthread_join(thread, NULL);
		stop();
	}
}

static void sequential_means_one_block_after_the_other_from_the_start(void)
{
	start(HONEST, 0, false, false);
	CHECK_EQ(run(BENCH_READ, 2 * BLOCKS), 0);
	CHECK_EQ(disk.sequential, 2 * BLOCKS - 2); /* all but the first, and the one after the end */
	CHECK_EQ(run(BENCH_RANDREAD, 500), 0);
	CHECK(disk.sequential < 2 * BLOCKS + 100);
	stop();
}

static void what_has_no_end_or_too_few_blocks_is_refused(void)
{
	struct bench_load endless = { .rw = BENCH_READ };
	struct bench_load bad = { .rw = BENCH_RANDRW + 1, .requests = 1 };
	struct bench_config cfg = { .queues = 1, .iodepth = 1, .block_size = 1000, .segment_max = 512, .blocks = 1 };

	start(HONEST, 0, false, false);
	CHECK_EQ(bench_run(bench, &endless, &result), -EINVAL);
	CHECK_EQ(bench_run(bench, &bad, &result), -EINVAL);
	stop();
	CHECK_EQ(bench_create(&bench, &cfg), -EINVAL);
}

static void a_bucket_is_never_wider_than_one_percent(void)
{
	for (uint64_t ns = 1; ns < 1ull << 40; ns += 1 + ns / 3) {
		double middle = bench_bucket_ns(bench_bucket_of(ns));

		CHECK(bench_bucket_of(ns) < BENCH_BUCKETS);
		CHECK(bench_bucket_of(ns) <= bench_bucket_of(ns + 1));
		CHECK(middle >= 0.99 * (double)ns && middle <= 1.01 * (double)ns);
	}
	CHECK_EQ(bench_bucket_of(UINT64_MAX), BENCH_BUCKETS - 1);
	CHECK_EQ(bench_bucket_of(1ull << 40), BENCH_BUCKETS - 1);
}

int main(void)
{
	RUN(EACH_an_honest_disk_passes);
	RUN(a_flipped_bit_is_found_and_located);
	RUN(a_lost_write_is_found);
	RUN(failed_requests_are_counted_and_not_compared);
	RUN(a_silent_disk_is_not_waited_for_for_ever);
	RUN(a_run_without_end_can_be_stopped_from_another_thread);
	RUN(sequential_means_one_block_after_the_other_from_the_start);
	RUN(what_has_no_end_or_too_few_blocks_is_refused);
	RUN(a_bucket_is_never_wider_than_one_percent);
	return 0;
}
