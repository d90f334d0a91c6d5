/* SPDX-License-Identifier: Apache-2.0 */
/* test_blk.c - the block device: each request type, each refusal, and what a broken queue does to the others */
#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>

#include "disk.h"
#include "kernel/c/atomics.h"

static struct blk_dev *dev;
static struct blk_lane *lane;
static struct client c;
static char path[256];

static void start(const char *engine, uint64_t features)
{
	dev = disk_make(strcmp(engine, "null") ? path : NULL);
	CHECK_EQ(blk_lane_create(&lane, dev, engine, 256), 0);
	client_make(&c, dev, 0, 128, features, -1, -1);
	CHECK_EQ(lane_add(blk_lane_base(lane), blk_queue_base(c.queue)), 0);
}

static void stop(void)
{
	client_free(&c);
	blk_lane_destroy(lane);
	disk_free(dev);
}

static const uint64_t rings[] = {
	0,
	1ull << VIRTIO_RING_F_INDIRECT_DESC | 1ull << VIRTIO_RING_F_EVENT_IDX,
	1ull << VIRTIO_F_RING_PACKED,
	1ull << VIRTIO_F_RING_PACKED | 1ull << VIRTIO_RING_F_INDIRECT_DESC | 1ull << VIRTIO_RING_F_EVENT_IDX,
};

static void what_is_written_is_read_back_on_every_engine_and_ring(void)
{
	static const char *const engines[] = { "aio", "io_uring" };

	for (unsigned e = 0; e < 2; e++) {
		for (unsigned r = 0; r < 4; r++) {
			uint32_t len;

			start(engines[e], rings[r]);
			for (unsigned i = 0; i < 65536; i++)
				c.memory[DATA_AT + i] = (uint8_t)(i * 7 + i / 256 + r);
			client_add(&c, 0, VIRTIO_BLK_T_OUT, 100, 0, 65536);
			CHECK_EQ(client_await(&c, lane, &len), VIRTIO_BLK_S_OK);
			CHECK_EQ(len, 1);
			CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
			client_add(&c, 1, VIRTIO_BLK_T_IN, 100, 131072, 65536);
			CHECK_EQ(client_await(&c, lane, &len), VIRTIO_BLK_S_OK);
			CHECK_EQ(len, 65537);
			CHECK(memcmp(c.memory + DATA_AT, c.memory + DATA_AT + 131072, 65536) == 0);
			stop();
		}
	}
}

static void many_requests_in_flight_each_get_their_own_data(void)
{
	start("aio", rings[1]);
	for (unsigned round = 0; round < 50; round++) {
		struct driver_used used[64];
		int got = 0;

		for (unsigned i = 0; i < 32; i++) {
			memset(c.memory + DATA_AT + i * 4096, (int)(round + i), 4096);
			client_add(&c, i, VIRTIO_BLK_T_OUT, i * 8, i * 4096, 4096);
		}
		driver_publish(c.driver);
		while (got < 32) {
			blk_lane_poll(lane);
			got += driver_poll_used(c.driver, used, 64);
		}
		for (unsigned i = 0; i < 32; i++) {
			CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_IN, i * 8, 4096), VIRTIO_BLK_S_OK);
			CHECK_EQ(c.memory[DATA_AT], (uint8_t)(round + i));
			CHECK_EQ(c.memory[DATA_AT + 4095], (uint8_t)(round + i));
		}
	}
	stop();
}

/* virtio 1.2 §2.7.4.1: the driver may cut a request where it likes. */
static void a_header_in_pieces_and_a_status_behind_data_are_understood(void)
{
	struct driver_buf bufs[5];

	start("aio", 0);
	memset(c.memory + DATA_AT, 0x5a, 512);
	CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_OUT, 3, 512), VIRTIO_BLK_S_OK);
	memset(c.memory + DATA_AT, 0, 1024);
	*client_header(&c, 1) = (struct virtio_blk_outhdr){ .type = VIRTIO_BLK_T_IN, .sector = 3 };
	bufs[0] = (struct driver_buf){ HEADER_AT + 64, 3 };
	bufs[1] = (struct driver_buf){ HEADER_AT + 64 + 3, 13 };
	bufs[2] = (struct driver_buf){ DATA_AT, 100 };
	bufs[3] = (struct driver_buf){ DATA_AT + 100, 413 }; /* 412 bytes of data and the status */
	c.memory[DATA_AT + 512] = STATUS_UNWRITTEN;
	CHECK_EQ(driver_add(c.driver, bufs, 2, 2, 1), 0);
	client_await(&c, lane, NULL);
	CHECK_EQ(c.memory[DATA_AT + 512], VIRTIO_BLK_S_OK);
	CHECK_EQ(c.memory[DATA_AT], 0x5a);
	CHECK_EQ(c.memory[DATA_AT + 511], 0x5a);

	*client_header(&c, 1) = (struct virtio_blk_outhdr){ .type = VIRTIO_BLK_T_OUT, .sector = 4 };
	memset(c.memory + HEADER_AT + 64 + 16, 0x77, 512); /* data right behind the header, one descriptor */
	bufs[0] = (struct driver_buf){ HEADER_AT + 64, 16 + 512 };
	bufs[1] = (struct driver_buf){ DATA_AT, 1 };
	CHECK_EQ(driver_add(c.driver, bufs, 1, 1, 1), 0);
	client_await(&c, lane, NULL);
	CHECK_EQ(c.memory[DATA_AT], VIRTIO_BLK_S_OK);
	CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_IN, 4, 512), VIRTIO_BLK_S_OK);
	CHECK_EQ(c.memory[DATA_AT + 300], 0x77);
	stop();
}

static void what_lies_beyond_the_disk_is_an_error(void)
{
	const uint64_t end = DISK_BYTES / BLK_SECTOR;

	start("aio", 0);
	CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_IN, end - 1, 512), VIRTIO_BLK_S_OK);
	CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_IN, end - 1, 1024), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_OUT, end, 512), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_IN, UINT64_MAX, 512), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_IN, UINT64_MAX / BLK_SECTOR, 512), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_IN, 0, 511), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(blk_queue_stats(c.queue)->errors[BLK_READ][BLK_E_RANGE], 4);
	CHECK_EQ(queue_state(blk_queue_base(c.queue)), QUEUE_RUNNING);
	stop();
}

static void a_grown_disk_takes_requests_at_its_new_end(void)
{
	const uint64_t end = DISK_BYTES / BLK_SECTOR;

	start("aio", 0);
	CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_OUT, end, 512), VIRTIO_BLK_S_IOERR);
	CHECK(truncate(path, 2 * DISK_BYTES) == 0);
	store_relaxed(&dev->capacity, 2 * end);
	CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_OUT, end, 512), VIRTIO_BLK_S_OK);
	stop();
}

static void a_file_that_shrank_is_an_error_not_a_crash(void)
{
	start("aio", 0);
	CHECK(truncate(path, 4096) == 0);
	CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_IN, 64, 4096), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(blk_queue_stats(c.queue)->errors[BLK_READ][BLK_E_IO], 1);
	stop();
}

static void a_read_only_disk_refuses_every_change(void)
{
	start("null", 0);
	dev->read_only = true;
	CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_IN, 0, 512), VIRTIO_BLK_S_OK);
	CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_OUT, 0, 512), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_DISCARD, 0, 16), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_WRITE_ZEROES, 0, 16), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
	stop();
}

static void an_unknown_request_is_unsupported(void)
{
	start("null", 0);
	CHECK_EQ(client_ask(&c, lane, 77, 0, 512), VIRTIO_BLK_S_UNSUPP);
	stop();
}

static void get_id_gives_the_serial(void)
{
	uint32_t len;

	start("null", 0);
	memset(c.memory + DATA_AT, 1, 32);
	client_add(&c, 0, VIRTIO_BLK_T_GET_ID, 0, 0, BLK_SERIAL_LEN);
	CHECK_EQ(client_await(&c, lane, &len), VIRTIO_BLK_S_OK);
	CHECK_EQ(len, BLK_SERIAL_LEN + 1);
	CHECK(memcmp(c.memory + DATA_AT, "serial-of-the-disk\0\0\1", 21) == 0);
	stop();
}

static void get_lifetime_gives_what_is_known_and_no_more(void)
{
	uint32_t len;

	start("null", 0);
	memset(c.memory + DATA_AT, 7, 32);
	CHECK_EQ(client_ask(&c, lane, T_GET_LIFETIME, 0, 6), VIRTIO_BLK_S_UNSUPP);
	CHECK_EQ(c.memory[DATA_AT], 7);
	memcpy(&dev->lifetime, "\1\0\2\0\3\0\0\0", 8);
	for (uint32_t room = 6; room <= 32; room += 26) {
		memset(c.memory + DATA_AT, 7, 32);
		client_add(&c, 0, T_GET_LIFETIME, 0, 0, room);
		CHECK_EQ(client_await(&c, lane, &len), VIRTIO_BLK_S_OK);
		CHECK_EQ(len, 6 + 1); /* and the status byte */
		CHECK(memcmp(c.memory + DATA_AT, "\1\0\2\0\3\0\7\7", 8) == 0);
	}
	memset(c.memory + DATA_AT, 7, 32);
	CHECK_EQ(client_ask(&c, lane, T_GET_LIFETIME, 0, 5), VIRTIO_BLK_S_IOERR); /* there is no room for it */
	CHECK_EQ(c.memory[DATA_AT], 7);
	CHECK_EQ(blk_queue_stats(c.queue)->errors[BLK_OTHER][BLK_E_RANGE], 1);
	stop();
}

static void set_ranges(unsigned n, uint64_t sector, uint32_t sectors, uint32_t flags)
{
	struct virtio_blk_discard_write_zeroes *seg = (void *)(c.memory + DATA_AT);

	for (unsigned i = 0; i < n; i++)
		seg[i] = (struct virtio_blk_discard_write_zeroes){ sector + i * sectors, sectors, flags };
}

static blkcnt_t blocks_on_disk(void)
{
	struct stat st;

	CHECK(stat(path, &st) == 0);
	return st.st_blocks;
}

static void fill(void)
{
	memset(c.memory + DATA_AT, 0xab, 1u << 20);
	for (unsigned i = 0; i < DISK_BYTES >> 20; i++)
		CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_OUT, i * 2048ull, 1u << 20), VIRTIO_BLK_S_OK);
	CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
}

static void discard_gives_space_back_range_by_range(void)
{
	blkcnt_t before;

	start("aio", 0);
	fill();
	before = blocks_on_disk();
	set_ranges(4, 0, 2048, 0);
	CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_DISCARD, 0, 4 * 16), VIRTIO_BLK_S_OK);
	CHECK(blocks_on_disk() <= before - 4 * 2048);
	CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_IN, 4 * 2048, 512), VIRTIO_BLK_S_OK);
	CHECK_EQ(c.memory[DATA_AT], 0xab); /* what was not named is untouched */
	stop();
}

static void write_zeroes_reads_as_zeros_with_and_without_unmap(void)
{
	for (uint32_t unmap = 0; unmap < 2; unmap++) {
		blkcnt_t before;

		start("aio", 0);
		fill();
		before = blocks_on_disk();
		set_ranges(1, 8, 1024, unmap);
		CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_WRITE_ZEROES, 0, 16), VIRTIO_BLK_S_OK);
		CHECK(unmap ? blocks_on_disk() <= before - 1024 : blocks_on_disk() >= before);
		memset(c.memory + DATA_AT, 1, 1 << 20);
		CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_IN, 7, 1026 * 512), VIRTIO_BLK_S_OK);
		CHECK_EQ(c.memory[DATA_AT + 511], 0xab);
		for (unsigned i = 512; i < 1025 * 512; i++)
			CHECK_EQ(c.memory[DATA_AT + i], 0);
		CHECK_EQ(c.memory[DATA_AT + 1025 * 512], 0xab);
		stop();
	}
}

static void ranges_that_break_the_limits_are_refused(void)
{
	start("null", 0);
	set_ranges(1, 0, 8, 1);
	CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_DISCARD, 0, 16), VIRTIO_BLK_S_UNSUPP); /* UNMAP is not for discard */
	set_ranges(1, 0, 8, 2);
	CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_WRITE_ZEROES, 0, 16), VIRTIO_BLK_S_UNSUPP); /* reserved bit */
	set_ranges(1, 0, 4097, 0);
	CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_DISCARD, 0, 16), VIRTIO_BLK_S_IOERR);
	set_ranges(1, DISK_BYTES / BLK_SECTOR - 1, 2, 0);
	CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_DISCARD, 0, 16), VIRTIO_BLK_S_IOERR);
	set_ranges(17, 0, 1, 0);
	CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_DISCARD, 0, 17 * 16), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_DISCARD, 0, 15), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_DISCARD, 0, 0), VIRTIO_BLK_S_IOERR);
	set_ranges(16, 0, 1, 0);
	CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_DISCARD, 0, 16 * 16), VIRTIO_BLK_S_OK);
	dev->max_discard_sectors = 0;
	CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_DISCARD, 0, 16), VIRTIO_BLK_S_UNSUPP);
	stop();
}

static void break_with(const struct driver_buf *bufs, unsigned out, unsigned in, const char *fault)
{
	struct client other;

	start("null", 0);
	client_make(&other, dev, 1, 16, 0, -1, -1);
	CHECK_EQ(lane_add(blk_lane_base(lane), blk_queue_base(other.queue)), 0);
	CHECK_EQ(driver_add(c.driver, bufs, out, in, 0), 0);
	CHECK(driver_publish(c.driver) >= 0);
	while (blk_lane_poll(lane) > 0)
		;
	CHECK_EQ(queue_state(blk_queue_base(c.queue)), QUEUE_BROKEN);
	CHECK(lane_broken(blk_lane_base(lane)) == blk_queue_base(c.queue));
	CHECK(lane_broken(blk_lane_base(lane)) == NULL); /* told once */
	CHECK(strcmp(virtq_fault_name(blk_queue_base(c.queue)->vq.fault), fault) == 0);
	CHECK_EQ(queue_in_flight(blk_queue_base(c.queue)), 0);
	CHECK_EQ(client_ask(&other, lane, VIRTIO_BLK_T_IN, 0, 512), VIRTIO_BLK_S_OK); /* the others go on */
	client_free(&other);
	stop();
}

static void a_chain_that_cannot_be_a_request_breaks_its_queue_alone(void)
{
	const struct driver_buf header = { HEADER_AT, 16 }, half = { HEADER_AT, 15 }, status = { HEADER_AT + 32, 1 };

	break_with(&header, 1, 0, "request");                                     /* no status byte */
	break_with((const struct driver_buf[]){ half, status }, 1, 1, "request"); /* half a header */
	break_with(&status, 0, 1, "request");                                     /* no header */
	break_with((const struct driver_buf[]){ header, { DRIVER_MEMORY, 512 }, status }, 1, 2, "address");
}

static void memory_truncated_by_the_front_end_breaks_its_queues_alone(void)
{
	struct client other;

	CHECK_EQ(mem_sigbus_install(), 0);
	start("null", 0);
	client_make(&other, dev, 1, 16, 0, -1, -1);
	CHECK_EQ(lane_add(blk_lane_base(lane), blk_queue_base(other.queue)), 0);
	client_add(&c, 0, VIRTIO_BLK_T_IN, 0, 0, 512);
	driver_publish(c.driver);
	CHECK(ftruncate(c.fd, 0) == 0);
	while (blk_lane_poll(lane) > 0)
		;
	blk_lane_poll(lane);
	CHECK_EQ(queue_state(blk_queue_base(c.queue)), QUEUE_BROKEN);
	CHECK_EQ(client_ask(&other, lane, VIRTIO_BLK_T_IN, 0, 512), VIRTIO_BLK_S_OK);
	client_free(&other);
	stop();
}

/* A driver that offers a buffer again before it was used could pile up requests without end. */
static void more_in_flight_than_the_ring_has_entries_is_a_fault(void)
{
	struct driver_layout at;
	struct vring_avail *avail;

	start("aio", 0);
	CHECK_EQ(driver_lay_out(&at, 128, 0, 16), 0);
	client_add(&c, 0, VIRTIO_BLK_T_FLUSH, 0, 0, 0); /* helpers take their time, the lane does not reap in between */
	driver_publish(c.driver);
	avail = (struct vring_avail *)(c.memory + at.avail);
	for (unsigned i = 0; i < 4000 && queue_state(blk_queue_base(c.queue)) == QUEUE_RUNNING; i++) {
		for (unsigned k = 0; k < 32; k++) {
			avail->ring[avail->idx % 128] = avail->ring[0];
			__atomic_store_n(&avail->idx, (uint16_t)(avail->idx + 1), __ATOMIC_RELEASE);
		}
		blk_lane_poll(lane);
		CHECK(queue_in_flight(blk_queue_base(c.queue)) <= 128);
	}
	while (queue_in_flight(blk_queue_base(c.queue)) > 0)
		blk_lane_poll(lane);
	stop();
}

static void counters_tell_what_happened(void)
{
	const struct blk_stats *s;
	uint64_t timed = 0;

	start("aio", 0);
	CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_OUT, 0, 8192), VIRTIO_BLK_S_OK);
	CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_IN, 0, 4096), VIRTIO_BLK_S_OK);
	CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_IN, 0, 4096), VIRTIO_BLK_S_OK);
	CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_OUT, 0, 0), VIRTIO_BLK_S_OK); /* nothing is written by it */
	s = blk_queue_stats(c.queue);
	CHECK_EQ(s->requests[BLK_WRITE], 2);
	CHECK_EQ(s->bytes[BLK_WRITE], 8192);
	CHECK_EQ(s->requests[BLK_READ], 2);
	CHECK_EQ(s->bytes[BLK_READ], 8192);
	for (unsigned i = 0; i < BLK_BUCKETS; i++)
		timed += s->latency[BLK_READ][i];
	CHECK_EQ(timed, 2);
	CHECK(s->latency_sum_ns[BLK_READ] > 0);
	stop();
}

int main(void)
{
	disk_path(path, sizeof(path));
	alarm(240);
	RUN(what_is_written_is_read_back_on_every_engine_and_ring);
	RUN(many_requests_in_flight_each_get_their_own_data);
	RUN(a_header_in_pieces_and_a_status_behind_data_are_understood);
	RUN(what_lies_beyond_the_disk_is_an_error);
	RUN(a_grown_disk_takes_requests_at_its_new_end);
	RUN(a_file_that_shrank_is_an_error_not_a_crash);
	RUN(a_read_only_disk_refuses_every_change);
	RUN(an_unknown_request_is_unsupported);
	RUN(get_id_gives_the_serial);
	RUN(get_lifetime_gives_what_is_known_and_no_more);
	RUN(discard_gives_space_back_range_by_range);
	RUN(write_zeroes_reads_as_zeros_with_and_without_unmap);
	RUN(ranges_that_break_the_limits_are_refused);
	RUN(a_chain_that_cannot_be_a_request_breaks_its_queue_alone);
	RUN(memory_truncated_by_the_front_end_breaks_its_queues_alone);
	RUN(more_in_flight_than_the_ring_has_entries_is_a_fault);
	RUN(counters_tell_what_happened);
	unlink(path);
	return 0;
}
