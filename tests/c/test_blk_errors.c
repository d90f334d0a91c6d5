/* SPDX-License-Identifier: Apache-2.0 */
/* test_blk_errors.c - a disk that fails for a while: reported, retried, stopped; and queues that stop meanwhile */
#include <errno.h>
#include <stdio.h>
#include <sys/eventfd.h>

#include "disk.h"
#include "kernel/c/atomics.h"

#define KEPT_BYTES 4096 /* of the disk while it fails: what lies beyond can't be read */
#define BAD 1024        /* a sector that fails then */
#define PATTERN 0x5a

static struct blk_dev *dev;
static struct blk_lane *lane;
static struct client c;
static char path[256];

static void start(enum blk_on_error policy, uint64_t features)
{
	dev = disk_make(path);
	dev->on_error = (uint8_t)policy;
	dev->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	CHECK_EQ(blk_lane_create(&lane, dev, "aio", 256), 0);
	client_make(&c, dev, 0, 128, features, -1, -1);
	CHECK_EQ(lane_add(blk_lane_base(lane), blk_queue_base(c.queue)), 0);
	memset(c.memory + DATA_AT, PATTERN, 1 << 16);
	CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_OUT, BAD, 1 << 16), VIRTIO_BLK_S_OK);
}

static void end(void)
{
	client_free(&c);
	blk_lane_destroy(lane);
	close(dev->event_fd);
	disk_free(dev);
}

static const struct blk_stats *stats(void)
{
	return blk_queue_stats(c.queue);
}

static uint64_t events(void)
{
	uint64_t n = 0;

	return read(dev->event_fd, &n, sizeof(n)) == sizeof(n) ? n : 0;
}

static void disk_fails(void)
{
	CHECK_EQ(truncate(path, KEPT_BYTES), 0);
}

static void disk_works(void)
{
	uint8_t data[1 << 16];
	int fd = open(path, O_WRONLY);

	memset(data, PATTERN, sizeof(data));
	CHECK(fd >= 0 && ftruncate(fd, DISK_BYTES) == 0);
	CHECK_EQ(pwrite(fd, data, sizeof(data), BAD * BLK_SECTOR), (ssize_t)sizeof(data));
	CHECK_EQ(fsync(fd), 0);
	close(fd);
}

static void read_4k(unsigned slot, uint64_t sector)
{
	memset(c.memory + DATA_AT + slot * 4096, 0, 4096);
	client_add(&c, slot, VIRTIO_BLK_T_IN, sector, slot * 4096, 4096);
}

static unsigned answered(void)
{
	struct driver_used used[64];

	return (unsigned)driver_poll_used(c.driver, used, 64);
}

/* Turn the lane until the driver has something back. */
static void until_answered(void)
{
	while (answered() == 0)
		blk_lane_poll(lane);
}

/* Turn the lane until so many requests have failed in all, and wait. */
static void until_failures(uint64_t n)
{
	while (stats()->failures[BLK_READ] < n)
		if (blk_lane_poll(lane) == 0)
			usleep(10);
}

static int64_t sleeps(void)
{
	struct lane *base = blk_lane_base(lane);

	return base->ops->sleep_timeout_ns(base);
}

static void a_failure_is_reported_and_told_once(void)
{
	start(BLK_REPORT, 0);
	disk_fails();
	CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_IN, BAD, 4096), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_IN, BAD, 4096), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(events(), 1);
	CHECK_EQ(dev->error, EIO);
	CHECK_EQ(stats()->errors[BLK_READ][BLK_E_IO], 2);
	CHECK_EQ(stats()->failures[BLK_READ], 0);
	dev->told = 0;
	CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_IN, BAD, 4096), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(events(), 1);
	end();
}

static void retried_until_the_disk_works_and_answered_once(void)
{
	unsigned got = 0;

	start(BLK_RETRY, 0);
	disk_fails();
	for (unsigned i = 0; i < 8; i++)
		read_4k(i, BAD + i * 8);
	driver_publish(c.driver);
	until_failures(8 + 3); /* each once, and three probes */
	CHECK_EQ(stats()->kept, 8);
	CHECK_EQ(queue_in_flight(blk_queue_base(c.queue)), 8);
	CHECK_EQ(answered(), 0);
	disk_works();
	while (got < 8) {
		if (blk_lane_poll(lane) == 0)
			usleep(10);
		got += answered();
	}
	for (unsigned i = 0; i < 8; i++) {
		CHECK_EQ(*client_status(&c, i), VIRTIO_BLK_S_OK);
		for (unsigned k = 0; k < 4096; k++)
			CHECK_EQ(c.memory[DATA_AT + i * 4096 + k], PATTERN);
	}
	CHECK_EQ(blk_lane_poll(lane), 0);
	CHECK_EQ(answered(), 0);
	CHECK_EQ(stats()->kept, 0);
	CHECK_EQ(stats()->requests[BLK_READ], 8);
	CHECK_EQ(stats()->errors[BLK_READ][BLK_E_IO], 0);
	CHECK_EQ(events(), 2); /* when it began, and when it was over */
	end();
}

static void between_two_tries_the_lane_sleeps(void)
{
	start(BLK_RETRY, 0);
	CHECK_EQ(sleeps(), -1);
	disk_fails();
	read_4k(0, BAD);
	driver_publish(c.driver);
	until_failures(2);
	CHECK(sleeps() > 0 && sleeps() <= 1000000000);
	CHECK_EQ(blk_lane_poll(lane), 0);
	until_failures(4);
	CHECK(sleeps() > 20000000); /* 10 ms, doubled each time */
	disk_works();
	until_answered();
	CHECK_EQ(sleeps(), -1);
	end();
}

static void a_request_that_can_be_served_meanwhile_is(void)
{
	start(BLK_RETRY, 0);
	disk_fails();
	read_4k(0, BAD);
	driver_publish(c.driver);
	until_failures(1);
	read_4k(1, 0);
	driver_publish(c.driver);
	until_answered();
	CHECK_EQ(*client_status(&c, 1), VIRTIO_BLK_S_OK);
	CHECK_EQ(stats()->kept, 1);
	disk_works();
	until_answered();
	end();
}

static void what_the_guest_does_wrong_is_never_kept(void)
{
	start(BLK_STOP, 0);
	CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_IN, DISK_BYTES / BLK_SECTOR, 512), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(client_ask(&c, lane, 77, 0, 512), VIRTIO_BLK_S_UNSUPP);
	CHECK_EQ(dev->stopped, 0);
	end();
}

/* As a disk of 4096-byte blocks refuses 512 bytes. */
static void what_the_disk_refuses_as_invalid_is_never_kept(void)
{
	int ends[2];

	for (enum blk_on_error policy = BLK_RETRY; policy <= BLK_STOP; policy++) {
		start(policy, 0);
		CHECK_EQ(pipe2(ends, O_CLOEXEC), 0);
		CHECK_EQ(dup2(ends[1], dev->target.fd), dev->target.fd); /* fdatasync(2) of a pipe is EINVAL */
		store_relaxed(&dev->target.cached_writes, false);
		CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_IOERR);
		CHECK_EQ(dev->error, EINVAL);
		CHECK_EQ(dev->stopped, 0);
		CHECK_EQ(stats()->kept, 0);
		close(ends[0]);
		close(ends[1]);
		end();
	}
}

/* The front-end truncated it; headers and status bytes lie before. */
static void a_request_whose_memory_is_gone_breaks_its_queue_and_is_not_the_disks_failure(void)
{
	for (enum blk_on_error policy = BLK_REPORT; policy <= BLK_STOP; policy++) {
		struct queue *q;

		start(policy, 0);
		q = blk_queue_base(c.queue);
		CHECK_EQ(ftruncate(c.fd, DATA_AT), 0);
		CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_IN, BAD, 4096), VIRTIO_BLK_S_IOERR);
		CHECK_EQ(queue_state(q), QUEUE_BROKEN);
		CHECK_EQ(q->vq.fault, VIRTQ_FAULT_MEMORY_GONE);
		CHECK_EQ(events(), 0);
		CHECK_EQ(dev->stopped, 0);
		CHECK_EQ(stats()->kept, 0);
		CHECK_EQ(stats()->failures[BLK_READ], 0);
		CHECK_EQ(stats()->errors[BLK_READ][BLK_E_IO], 0);
		CHECK_EQ(stats()->errors[BLK_READ][BLK_E_MEMORY], 1);
		end();
	}
}

/* It was to be tried again since the disk had failed it. */
static void what_is_kept_when_its_memory_goes_is_answered(void)
{
	start(BLK_RETRY, 0);
	disk_fails();
	read_4k(0, BAD);
	driver_publish(c.driver);
	until_failures(1);
	CHECK_EQ(ftruncate(c.fd, DATA_AT), 0);
	disk_works();
	until_answered();
	CHECK_EQ(*client_status(&c, 0), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(queue_state(blk_queue_base(c.queue)), QUEUE_BROKEN);
	CHECK_EQ(stats()->kept, 0);
	CHECK_EQ(queue_in_flight(blk_queue_base(c.queue)), 0);
	end();
}

static void stopped_all_wait_until_resumed(void)
{
	unsigned got = 0;

	start(BLK_STOP, 0);
	disk_fails();
	read_4k(0, BAD);
	driver_publish(c.driver);
	until_failures(1);
	CHECK_EQ(dev->stopped, 1);
	read_4k(1, 0); /* which would succeed */
	driver_publish(c.driver);
	while (blk_lane_poll(lane) > 0)
		;
	CHECK_EQ(answered(), 0);
	CHECK_EQ(stats()->kept, 2);
	CHECK_EQ(sleeps(), -1); /* nothing happens by itself */
	CHECK_EQ(virtq_more(&blk_queue_base(c.queue)->vq), false);
	CHECK_EQ(blk_dev_calm(dev), false); /* nothing is calm */

	blk_dev_resume(dev); /* too early: what comes after the failure waits again */
	until_failures(2);
	CHECK_EQ(dev->stopped, 1);
	CHECK_EQ(stats()->errors[BLK_READ][BLK_E_IO], 0);

	disk_works();
	blk_dev_resume(dev);
	while (stats()->kept > 0) {
		blk_lane_poll(lane);
		got += answered();
	}
	blk_lane_poll(lane);
	CHECK(got + answered() <= 2);
	CHECK_EQ(*client_status(&c, 0), VIRTIO_BLK_S_OK);
	CHECK_EQ(*client_status(&c, 1), VIRTIO_BLK_S_OK);
	CHECK_EQ(stats()->requests[BLK_READ], 2);
	CHECK_EQ(dev->stopped, 0);
	CHECK_EQ(blk_dev_calm(dev), true);
	CHECK_EQ(dev->told, 0);
	end();
}

/* What a worker does on GET_VRING_BASE. Return: the base */
static uint32_t stop_queue(void)
{
	struct queue *q = blk_queue_base(c.queue);

	queue_set_state(q, QUEUE_STOPPING);
	while (queue_in_flight(q) > 0)
		blk_lane_poll(lane);
	virtq_publish(&q->vq);
	lane_remove(blk_lane_base(lane), q);
	queue_set_state(q, QUEUE_STOPPED);
	return virtq_base(&q->vq);
}

static void start_queue(uint32_t base)
{
	c.cfg.base = base;
	CHECK_EQ(blk_queue_bind(c.queue, &c.cfg, c.table), 0);
	CHECK_EQ(lane_add(blk_lane_base(lane), blk_queue_base(c.queue)), 0);
}

static void a_queue_that_stops_gives_back_what_waits_and_goes_on_from_there(void)
{
	static const uint64_t rings[] = { 0, 1ull << VIRTIO_F_RING_PACKED };

	for (unsigned r = 0; r < 2; r++) {
		for (enum blk_on_error policy = BLK_RETRY; policy <= BLK_STOP; policy++) {
			unsigned got = 0;
			uint32_t base;

			start(policy, rings[r]);
			disk_fails();
			for (unsigned i = 0; i < 40; i++)
				read_4k(i % 16, BAD + i % 16 * 8);
			driver_publish(c.driver);
			until_failures(1);
			base = stop_queue();
			CHECK_EQ(answered(), 0);
			CHECK_EQ(stats()->kept, 0);
			CHECK_EQ(stats()->requests[BLK_READ], 0);
			disk_works();
			blk_dev_resume(dev);
			CHECK_EQ(dev->stopped, 0);
			start_queue(base);
			while (got < 40) {
				if (blk_lane_poll(lane) == 0)
					usleep(10);
				got += answered();
			}
			CHECK_EQ(stats()->requests[BLK_READ], 40);
			CHECK_EQ(stats()->errors[BLK_READ][BLK_E_IO], 0);
			CHECK_EQ(c.memory[DATA_AT + 15 * 4096], PATTERN);
			end();
		}
	}
}

/* The ring remembers one position: what is missing before an answer can't be given back. */
static void behind_an_answer_what_waits_fails_when_the_queue_stops(void)
{
	unsigned got = 0;
	uint32_t base;

	start(BLK_RETRY, 0);
	for (unsigned i = 0; i < 8; i++) /* the queue has had more in flight than it will have */
		read_4k(i, 0);
	driver_publish(c.driver);
	while (got < 8) {
		blk_lane_poll(lane);
		got += answered();
	}
	disk_fails();
	read_4k(0, BAD);
	driver_publish(c.driver);
	until_failures(1);
	read_4k(1, 0);
	driver_publish(c.driver);
	until_answered();
	read_4k(2, BAD);
	driver_publish(c.driver);
	until_failures(3);
	base = stop_queue();
	CHECK_EQ(answered(), 1);
	CHECK_EQ(*client_status(&c, 0), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(*client_status(&c, 2), STATUS_UNWRITTEN);
	disk_works();
	start_queue(base);
	until_answered();
	CHECK_EQ(*client_status(&c, 2), VIRTIO_BLK_S_OK);
	end();
}

/* An engine that is slow: what it has finished comes back when the test says so, the last first or the first. */
static const struct io_ops *engine_ops;
static struct io_req *finished[16];
static unsigned finished_count, wanted;
static bool last_first;

static unsigned reap_wanted(struct io_engine *e, struct io_req **done, unsigned max)
{
	unsigned n = 0;

	CHECK(finished_count < 8 && max >= 8);
	finished_count += engine_ops->reap(e, finished + finished_count, 8);
	for (; wanted > 0 && finished_count > 0; wanted--) {
		unsigned i = last_first ? --finished_count : 0;

		done[n++] = finished[i];
		if (!last_first)
			memmove(finished, finished + 1, --finished_count * sizeof(*finished));
	}
	return n;
}

static void come_back(unsigned n)
{
	for (wanted = n; wanted > 0;)
		blk_lane_poll(lane);
}

/* One lane, two queues: the one that stops still has a request with the engine when another of its is tried. */
static void a_queue_that_stops_leaves_the_others_their_tries(void)
{
	for (unsigned way = 0; way < 4; way++) {
		struct io_engine *io;
		struct io_ops slow;
		struct client other;
		const struct blk_stats *others;
		struct queue *q;
		uint64_t before;

		start(BLK_RETRY, 0);
		client_make(&other, dev, 1, 128, 0, -1, -1);
		CHECK_EQ(lane_add(blk_lane_base(lane), blk_queue_base(other.queue)), 0);
		q = blk_queue_base(c.queue);
		others = blk_queue_stats(other.queue);
		disk_fails();
		io = blk_lane_engine(lane);
		engine_ops = io->ops;
		slow = *engine_ops;
		slow.reap = reap_wanted;
		io->ops = &slow;
		last_first = way & 1;
		read_4k(0, BAD);
		driver_publish(c.driver);
		come_back(1);
		CHECK_EQ(stats()->kept, 1);
		read_4k(1, BAD);
		client_add(&other, 0, VIRTIO_BLK_T_IN, BAD, 0, 4096);
		driver_publish(c.driver);
		blk_lane_poll(lane);
		queue_set_state(q, QUEUE_STOPPING);
		while (io->in_flight < 2)
			blk_lane_poll(lane); /* the kept one is tried */
		driver_publish(other.driver);
		while (io->in_flight < 3)
			blk_lane_poll(lane);
		if (way & 2)
			disk_works();
		come_back(3);
		io->ops = engine_ops;
		while (queue_in_flight(q) > 0)
			blk_lane_poll(lane);
		lane_remove(blk_lane_base(lane), q);
		queue_set_state(q, QUEUE_STOPPED);
		CHECK_EQ(stats()->kept, 0);
		before = others->failures[BLK_READ];
		while (!(way & 2) && others->failures[BLK_READ] < before + 2)
			blk_lane_poll(lane);
		disk_works();
		while (others->requests[BLK_READ] == 0)
			blk_lane_poll(lane);
		CHECK_EQ(*client_status(&other, 0), VIRTIO_BLK_S_OK);
		client_free(&other);
		end();
	}
}

static void stop_the_disk(uint64_t features)
{
	start(BLK_STOP, features);
	disk_fails();
	read_4k(0, BAD);
	driver_publish(c.driver);
	until_failures(1);
}

static void come_meanwhile(void)
{
	driver_publish(c.driver);
	while (blk_lane_poll(lane) > 0)
		;
	CHECK_EQ(answered(), 0);
	CHECK_EQ(stats()->kept, 2);
}

/* Had it been answered the failed one before it could not be given back. */
static void what_takes_no_disk_waits_for_its_turn_too(void)
{
	static const uint64_t rings[] = { 0, 1ull << VIRTIO_F_RING_PACKED };

	for (unsigned r = 0; r < 2; r++) {
		unsigned got = 0;
		uint32_t base;

		stop_the_disk(rings[r]);
		client_add(&c, 1, VIRTIO_BLK_T_GET_ID, 0, 4096, BLK_SERIAL_LEN);
		come_meanwhile();
		base = stop_queue();
		CHECK_EQ(answered(), 0);
		CHECK_EQ(stats()->kept, 0);
		disk_works();
		blk_dev_resume(dev);
		start_queue(base);
		while (got < 2) {
			blk_lane_poll(lane);
			got += answered();
		}
		CHECK_EQ(*client_status(&c, 0), VIRTIO_BLK_S_OK);
		CHECK_EQ(*client_status(&c, 1), VIRTIO_BLK_S_OK);
		end();
	}
}

static void what_was_kept_back_is_answered_when_resumed(void)
{
	unsigned got = 0;

	stop_the_disk(0);
	client_add(&c, 1, VIRTIO_BLK_T_GET_ID, 0, 4096, BLK_SERIAL_LEN);
	come_meanwhile();
	disk_works();
	blk_dev_resume(dev);
	while (got < 2) {
		blk_lane_poll(lane);
		got += answered();
	}
	CHECK_EQ(*client_status(&c, 1), VIRTIO_BLK_S_OK);
	CHECK(memcmp(c.memory + DATA_AT + 4096, "serial-of-the-disk", 18) == 0);
	CHECK_EQ(stats()->kept, 0);
	CHECK_EQ(queue_in_flight(blk_queue_base(c.queue)), 0);
	end();
}

static void what_was_kept_back_and_can_not_be_given_back_is_answered(void)
{
	stop_the_disk(0);
	client_add(&c, 1, 77, 0, 4096, 512);
	come_meanwhile();
	store_relaxed(&dev->stopped, 0); /* as seen by a lane that hasn't heard of the resume yet */
	read_4k(2, 0);
	driver_publish(c.driver);
	until_answered();
	stop_queue();
	CHECK_EQ(answered(), 2);
	CHECK_EQ(*client_status(&c, 0), VIRTIO_BLK_S_IOERR);
	CHECK_EQ(*client_status(&c, 1), VIRTIO_BLK_S_UNSUPP);
	CHECK_EQ(*client_status(&c, 2), VIRTIO_BLK_S_OK);
	CHECK_EQ(stats()->kept, 0);
	end();
}

static void what_was_kept_back_and_is_no_request_breaks_its_queue(void)
{
	struct driver_buf header = { HEADER_AT + 64, sizeof(struct virtio_blk_outhdr) };

	struct queue *q;

	stop_the_disk(0);
	q = blk_queue_base(c.queue);
	CHECK_EQ(driver_add(c.driver, &header, 1, 0, 1), 0); /* no room for a status */
	come_meanwhile();
	disk_works();
	blk_dev_resume(dev);
	while (queue_in_flight(q) > 0)
		blk_lane_poll(lane);
	CHECK_EQ(stats()->kept, 0);
	CHECK_EQ(queue_state(q), QUEUE_BROKEN);
	CHECK_EQ(q->vq.fault, VIRTQ_FAULT_REQUEST);
	end();
}

static void a_queue_that_breaks_keeps_nothing(void)
{
	start(BLK_STOP, 0);
	disk_fails();
	read_4k(0, BAD);
	driver_publish(c.driver);
	until_failures(1);
	lane_fail(blk_lane_base(lane), blk_queue_base(c.queue), VIRTQ_FAULT_REQUEST);
	while (queue_in_flight(blk_queue_base(c.queue)) > 0)
		blk_lane_poll(lane);
	CHECK_EQ(stats()->kept, 0);
	end();
}

int main(void)
{
	disk_path(path, sizeof(path));
	alarm(240);
	RUN(a_failure_is_reported_and_told_once);
	RUN(retried_until_the_disk_works_and_answered_once);
	RUN(between_two_tries_the_lane_sleeps);
	RUN(a_request_that_can_be_served_meanwhile_is);
	RUN(what_the_guest_does_wrong_is_never_kept);
	RUN(what_the_disk_refuses_as_invalid_is_never_kept);
	RUN(a_request_whose_memory_is_gone_breaks_its_queue_and_is_not_the_disks_failure);
	RUN(what_is_kept_when_its_memory_goes_is_answered);
	RUN(stopped_all_wait_until_resumed);
	RUN(a_queue_that_stops_gives_back_what_waits_and_goes_on_from_there);
	RUN(behind_an_answer_what_waits_fails_when_the_queue_stops);
	RUN(a_queue_that_stops_leaves_the_others_their_tries);
	RUN(what_takes_no_disk_waits_for_its_turn_too);
	RUN(what_was_kept_back_is_answered_when_resumed);
	RUN(what_was_kept_back_and_can_not_be_given_back_is_answered);
	RUN(what_was_kept_back_and_is_no_request_breaks_its_queue);
	RUN(a_queue_that_breaks_keeps_nothing);
	unlink(path);
	return 0;
}
