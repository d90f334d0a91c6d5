/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_blk.c - whatever a driver asks of the disk, every request ends, none is left in flight, and nothing crashes */
#include <linux/virtio_blk.h>

#include "backend/c/blk.h"
#include "fuzz_guest.h"

static struct blk_dev *dev;
static struct blk_lane *lane;
static struct blk_queue *queue;

static void make_disk(void)
{
	if (dev)
		return;
	dev = blk_dev_create();
	MUST(dev != NULL);
	io_target_null(&dev->target, 1 << 20);
	dev->capacity = (1 << 20) / BLK_SECTOR;
	dev->max_discard_sectors = dev->max_write_zeroes_sectors = 1024;
	memcpy(dev->serial, "fuzz", 4);
	dev->lifetime = 1;
	MUST(blk_lane_create(&lane, dev, "null", 64) == 0);
	queue = blk_queue_create(dev, 0);
	MUST(queue != NULL);
}

static uint64_t total(const uint64_t *counts, unsigned n)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < n; i++)
		sum += counts[i];
	return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const struct blk_stats *stats;
	struct virtq_config cfg;
	unsigned turns = 0;
	uint64_t finished;

	make_disk();
	if (!fuzz_guest(data, size, &cfg))
		return 0;
	dev->read_only = data[0] & 32;
	dev->write_back = data[0] >> 6 & 1;
	if (blk_queue_bind(queue, &cfg, table) < 0)
		return 0;
	stats = blk_queue_stats(queue);
	finished = total(stats->requests, BLK_OPS);
	MUST(lane_add(blk_lane_base(lane), blk_queue_base(queue)) == 0);
	/* A packed driver's input may offer itself for ever, as each use writes the ring; turns are what we bound. */
	while (blk_lane_poll(lane) > 0 && turns++ < 64)
		;
	queue_set_state(blk_queue_base(queue), QUEUE_STOPPING);
	while (queue_in_flight(blk_queue_base(queue)) > 0)
		MUST(blk_lane_poll(lane) > 0);
	lane_remove(blk_lane_base(lane), blk_queue_base(queue));
	queue_set_state(blk_queue_base(queue), QUEUE_STOPPED);
	MUST(blk_queue_base(queue)->vq.unpublished == 0);
	MUST(total(stats->requests, BLK_OPS) - finished <= 32 * 66);
	return 0;
}
