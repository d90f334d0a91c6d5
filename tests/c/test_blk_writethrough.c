/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_blk_writethrough.c - a guest that doesn't flush: what has to be durable before it is answered, and what hasn't
 *
 * Whether a flush was made shows when none succeeds any more.
 */
#include <errno.h>
#include <stdio.h>

#include "disk.h"
#include "kernel/c/atomics.h"

static struct blk_dev *dev;
static struct blk_lane *lane;
static struct client c;

static uint8_t ask_for_a_range(uint32_t type)
{
	struct virtio_blk_discard_write_zeroes *range = (void *)(c.memory + DATA_AT);

	*range = (struct virtio_blk_discard_write_zeroes){ .num_sectors = 64 };
	return client_ask(&c, lane, type, 0, sizeof(*range));
}

static void zeros_are_made_durable(void)
{
	CHECK_EQ(ask_for_a_range(VIRTIO_BLK_T_WRITE_ZEROES), VIRTIO_BLK_S_IOERR);
	store_relaxed(&dev->write_back, 1);
	CHECK_EQ(ask_for_a_range(VIRTIO_BLK_T_WRITE_ZEROES), VIRTIO_BLK_S_OK);
	store_relaxed(&dev->write_back, 0);
}

/* The device may discard, and it may leave it (virtio 1.2 §5.2.6.2): the guest can't rely on what it reads there. */
static void a_discard_is_not(void)
{
	CHECK_EQ(ask_for_a_range(VIRTIO_BLK_T_DISCARD), VIRTIO_BLK_S_OK);
}

static void a_flush_is_no_less_than_it_was(void)
{
	CHECK_EQ(client_ask(&c, lane, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_IOERR);
}

int main(void)
{
	char path[256];

	disk_path(path, sizeof(path));
	alarm(60);
	dev = disk_make(path);
	dev->write_back = 0;
	CHECK_EQ(blk_lane_create(&lane, dev, "aio", 16), 0);
	client_make(&c, dev, 0, 16, 0, -1, -1);
	CHECK_EQ(lane_add(blk_lane_base(lane), blk_queue_base(c.queue)), 0);
	store_relaxed(&dev->target.flush_error, -EIO);
	RUN(zeros_are_made_durable);
	RUN(a_discard_is_not);
	RUN(a_flush_is_no_less_than_it_was);
	client_free(&c);
	blk_lane_destroy(lane);
	disk_free(dev);
	unlink(path);
	return 0;
}
