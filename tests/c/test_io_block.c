// SPDX-License-Identifier: Apache-2.0
/*
 * test_io_block.c - block devices of our own: a zram, which completes inside the submit call and has no RWF_NOWAIT,
 * and a loop device over a file, which completes later and gives space back to the file
 */
#include <errno.h>
#include <sys/eventfd.h>

#include "loop.h"
#include "test_io.h"

#define DISK_SIZE (16 * MIB)

static struct io_engine *e;
static struct io_target t;
static char device[PATH_MAX];
static int zram = -1; /* number of our own */

static bool sysfs_write(const char *path, const char *value)
{
	int fd = open(path, O_WRONLY);
	bool ok = fd >= 0 && write(fd, value, strlen(value)) == (ssize_t)strlen(value);

	if (fd >= 0)
		close(fd);
	return ok;
}

/* Return: whether there is one now, as @zram and @device */
static bool zram_add(void)
{
	FILE *f = fopen("/sys/class/zram-control/hot_add", "re");
	char path[PATH_MAX];

	if (!f)
		return false;
	if (fscanf(f, "%d", &zram) != 1)
		zram = -1;
	fclose(f);
	if (zram < 0)
		return false;
	snprintf(path, sizeof(path), "/sys/block/zram%d/disksize", zram);
	CHECK(sysfs_write(path, "16M"));
	snprintf(device, sizeof(device), "/dev/zram%d", zram);
	return true;
}

static bool zram_remove(void)
{
	char number[16];
	bool ok;

	if (zram < 0)
		return true;
	snprintf(number, sizeof(number), "%d", zram);
	ok = sysfs_write("/sys/class/zram-control/hot_remove", number);
	if (ok)
		zram = -1;
	return ok;
}

/* A test that fails leaves nothing behind either. */
static void clean_up(void)
{
	if (t.fd > 0)
		io_target_close(&t);
	zram_remove();
}

static void its_facts_come_from_the_kernel(void)
{
	CHECK(t.block_device);
	CHECK(t.direct);
	CHECK_EQ(t.fd_buffered, -1);
	CHECK_EQ(t.size, DISK_SIZE);
	CHECK_EQ(io_target_size(&t), DISK_SIZE);
	CHECK(t.logical_block >= 512 && t.physical_block >= t.logical_block && t.io_min >= t.logical_block);
	CHECK(t.discard_max > 0 && t.discard_max % t.logical_block == 0);
	CHECK(t.discard_granularity > 0);
	CHECK(t.max_bytes > 0 && t.max_segments > 0);
}

/* Long enough for the engine to learn what the device is like and act on it. */
static void data_survives_thousands_of_batches(void)
{
	enum { BATCH = 8 };
	uint8_t *buf = pages(BATCH * 16 * KIB);
	struct iovec iov[BATCH][2];
	struct io_req r[BATCH] = { 0 }, *done[BATCH];

	for (unsigned round = 0; round < 1000; round++) {
		bool write = round % 2 == 0; /* each write is read back by the next round */

		for (unsigned i = 0; i < BATCH; i++) {
			uint64_t offset = ((round / 2 * 7 + i) % (DISK_SIZE / (16 * KIB))) * 16 * KIB;
			uint8_t *p = buf + i * 16 * KIB;
			unsigned pieces = 1 + i % 2;

			iov[i][0] = (struct iovec){ p, 16 * KIB / pieces };
			iov[i][1] = (struct iovec){ p + 8 * KIB, 8 * KIB };
			r[i] = (struct io_req){ .op = write ? IO_WRITE : IO_READ,
						.flags = write && i == 3 ? IO_F_DSYNC : 0 };
			r[i].iov = iov[i];
			r[i].iovcnt = pieces;
			r[i].offset = offset;
			r[i].len = 16 * KIB;
			if (write)
				pattern_fill(p, 16 * KIB, offset, (uint8_t)(round / 2));
			else
				memset(p, 0xff, 16 * KIB);
			io_queue(e, &r[i]);
		}
		io_submit_all(e);
		reap_all(e, done, BATCH);
		for (unsigned i = 0; i < BATCH; i++) {
			CHECK_EQ(r[i].res, 0);
			CHECK(write || pattern_is(buf + i * 16 * KIB, 16 * KIB, r[i].offset, (uint8_t)(round / 2)));
		}
	}
	CHECK_EQ(e->in_flight, 0);
	free(buf);
}

static void memory_at_odd_addresses_is_served(void)
{
	uint8_t *buf = pages(2 * MIB);

	pattern_fill(buf + 3, MIB + 4 * KIB, 0, 9);
	CHECK_EQ(run_rw(e, IO_WRITE, 0, buf + 3, MIB + 4 * KIB, 4 * MIB), 0);
	memset(buf, 0, 2 * MIB);
	CHECK_EQ(run_rw(e, IO_READ, 0, buf + 5, MIB + 4 * KIB, 4 * MIB), 0);
	CHECK(pattern_is(buf + 5, MIB + 4 * KIB, 0, 9));
	free(buf);
}

static void ranges_below_its_block_are_refused(void)
{
	uint8_t *buf = pages(4 * KIB);

	CHECK_EQ(run_rw(e, IO_READ, 0, buf, t.offset_align / 2, 0), -EINVAL);
	CHECK_EQ(run_rw(e, IO_WRITE, 0, buf, t.offset_align, t.offset_align / 2), -EINVAL);
	free(buf);
}

static void beyond_its_end_is_an_error(void)
{
	uint8_t *buf = pages(8 * KIB);

	CHECK_EQ(run_rw(e, IO_READ, 0, buf, 4 * KIB, DISK_SIZE), -EIO);
	CHECK_EQ(run_rw(e, IO_READ, 0, buf, 8 * KIB, DISK_SIZE - 4 * KIB), -EIO);
	CHECK(run_rw(e, IO_WRITE, 0, buf, 4 * KIB, DISK_SIZE) < 0);
	free(buf);
}

static void a_bad_buffer_is_an_error_of_its_request_alone(void)
{
	uint8_t *buf = pages(4 * KIB);

	/* Repeated, for each of the engine's ways. */
	for (unsigned i = 0; i < 40; i++) {
		CHECK_EQ(run_rw(e, IO_READ, 0, (void *)4096, 4 * KIB, 0), -EFAULT);
		CHECK_EQ(run_rw(e, IO_READ, 0, buf, 4 * KIB, 0), 0);
	}
	free(buf);
}

static void discard_and_write_zeroes_read_as_zeros(void)
{
	uint8_t *buf = pages(MIB);

	for (unsigned i = 0; i < 3; i++) {
		memset(buf, 0x5a, MIB);
		CHECK_EQ(run_rw(e, IO_WRITE, 0, buf, MIB, MIB), 0);
		if (i == 0)
			CHECK_EQ(run_extent(e, IO_DISCARD, 0, MIB, MIB),
				 0); /* zram and loop both zero what they discard */
		else
			CHECK_EQ(run_extent(e, IO_WRITE_ZEROES, i == 1 ? IO_F_UNMAP : 0, MIB, MIB), 0);
		CHECK_EQ(run_rw(e, IO_READ, 0, buf, MIB, MIB), 0);
		CHECK(zeros(buf, MIB));
	}
	CHECK_EQ(run_extent(e, IO_FLUSH, 0, 0, 0), 0);
	free(buf);
}

static bool engine_here(const char *engine)
{
	int ret;

	CHECK_EQ(io_target_open(&t, device, false), 0);
	ret = io_engine_create(&e, engine, &t, 64);
	printf("# %s on %s (nowait %d, mem_align %u, offset_align %u)\n", engine, device, t.nowait, t.mem_align,
	       t.offset_align);
	if (!ret)
		return true;
	printf("skip: no %s here: %s\n", engine, strerror(-ret));
	io_target_close(&t);
	return false;
}

static void engine_done(void)
{
	CHECK_EQ(e->in_flight, 0);
	CHECK_EQ(e->unsignalled, 0);
	io_engine_destroy(e);
	io_target_close(&t);
}

static void common(void)
{
	RUN(its_facts_come_from_the_kernel);
	RUN(data_survives_thousands_of_batches);
	RUN(memory_at_odd_addresses_is_served);
	RUN(ranges_below_its_block_are_refused);
	RUN(beyond_its_end_is_an_error);
	RUN(a_bad_buffer_is_an_error_of_its_request_alone);
	RUN(discard_and_write_zeroes_read_as_zeros);
}

static void what_completes_inline_is_read_without_a_ring(void)
{
	uint8_t *buf = pages(4 * KIB);
	struct io_stats before = e->stats;
	struct io_wait waits[IO_WAITS_MAX];
	uint64_t signalled;

	for (unsigned i = 0; i < 65; i++)
		CHECK_EQ(run_rw(e, IO_READ, 0, buf, 4 * KIB, 0), 0);
	CHECK(e->completes_inline);
	io_waits(e, waits);
	CHECK_EQ(read(waits[0].fd, &signalled, sizeof(signalled)), (ssize_t)sizeof(signalled));
	for (unsigned i = 0; i < 100; i++)
		CHECK_EQ(run_rw(e, IO_READ, 0, buf, 4 * KIB, 0), 0);
	CHECK(e->completes_inline);
	CHECK(read(waits[0].fd, &signalled, sizeof(signalled)) < 0 && errno == EAGAIN);
	CHECK_EQ(e->stats.inline_done - before.inline_done, 165);
	CHECK_EQ(e->stats.completions - before.completions, 165);
	free(buf);
}

static void it_has_no_cache_to_flush(void)
{
	CHECK(!t.write_cache);
}

static void it_has_a_cache_to_flush(void)
{
	CHECK(t.write_cache);
}

static void on_zram(void)
{
	static const char *const engines[] = { "aio", "io_uring" };

	for (unsigned i = 0; i < 2; i++) {
		if (!zram_add()) { /* a fresh one each time: holds nothing yet */
			printf("skip: no zram of our own (needs root and the module)\n");
			return;
		}
		if (engine_here(engines[i])) {
			common();
			if (i == 0)
				RUN(what_completes_inline_is_read_without_a_ring);
			RUN(it_has_no_cache_to_flush);
			engine_done();
		}
		CHECK(zram_remove());
	}
}

static void a_discard_reaches_the_file_below(const char *file)
{
	uint8_t *buf = pages(MIB);
	uint64_t before;

	memset(buf, 0xa5, MIB);
	CHECK_EQ(run_rw(e, IO_WRITE, 0, buf, MIB, 2 * MIB), 0);
	CHECK_EQ(run_extent(e, IO_FLUSH, 0, 0, 0), 0);
	before = file_allocated(file);
	CHECK_EQ(run_extent(e, IO_DISCARD, 0, 2 * MIB, MIB), 0);
	CHECK(file_gave_back(file, before, MIB));
	free(buf);
}

/* Once for all requests, and once more when the disk is another one. */
static void who_wants_to_know_hears_that_it_will_not_be_polled(void)
{
	uint8_t *buf = pages(4 * KIB);
	uint64_t told;

	t.unpolled_fd = eventfd(0, EFD_NONBLOCK);
	for (unsigned i = 0; i < 2; i++) {
		CHECK_EQ(run_rw(e, IO_READ, 0, buf, 4 * KIB, 0), 0);
		CHECK_EQ(run_rw(e, IO_READ, 0, buf, 4 * KIB, 4 * KIB), 0);
		CHECK_EQ(read(t.unpolled_fd, &told, sizeof(told)), (ssize_t)sizeof(told));
		CHECK_EQ(told, 1);
		io_engine_reopened(e);
	}
	close(t.unpolled_fd);
	t.unpolled_fd = -1;
	free(buf);
}

static void on_loop(void)
{
	static const char *const engines[] = { "aio", "io_uring", "io_uring_iopoll" };

	for (unsigned i = 0; i < 3; i++) {
		char file[PATH_MAX];
		int loop;

		scratch_path(file, false);
		CHECK_EQ(truncate(file, DISK_SIZE), 0);
		loop = loop_add(device, file);
		if (loop < 0) {
			printf("skip: no loop device (needs root)\n");
		} else {
			if (engine_here(engines[i])) {
				if (i == 2 && kernel_refuses_to_poll())
					RUN(who_wants_to_know_hears_that_it_will_not_be_polled);
				common();
				RUN(it_has_a_cache_to_flush);
				a_discard_reaches_the_file_below(file);
				engine_done();
			}
			close(loop);
		}
		unlink(file);
	}
}

int main(void)
{
	atexit(clean_up);
	on_zram();
	on_loop();
	return 0;
}
