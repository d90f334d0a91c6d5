/* SPDX-License-Identifier: Apache-2.0 */
/*
 * per_request.c - driver and device in one thread, for callgrind to count what the device does per request
 *
 * per_request split|packed DEPTH REQUESTS: null disk, 4 KiB random reads with INDIRECT and EVENT_IDX, as Linux's driver
 * sends them, DEPTH at a time. callgrind collects only inside blk_lane_poll(), so the driver costs nothing.
 */
#include <stdlib.h>

#include "tests/c/disk.h"

#define RING (1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_RING_F_INDIRECT_DESC | 1ull << VIRTIO_RING_F_EVENT_IDX)

int main(int argc, char **argv)
{
	bool packed = argc == 4 && strcmp(argv[1], "packed") == 0;
	unsigned depth = argc == 4 ? (unsigned)atoi(argv[2]) : 0;
	unsigned left = argc == 4 ? (unsigned)atoi(argv[3]) : 0;
	struct blk_dev *dev = disk_make(NULL);
	struct blk_lane *lane;
	struct client c;
	unsigned sector = 1;

	CHECK(depth >= 1 && depth <= 64 && left % depth == 0 && left > 0);
	CHECK_EQ(blk_lane_create(&lane, dev, "null", 128), 0);
	client_make(&c, dev, 0, 128, RING | (packed ? 1ull << VIRTIO_F_RING_PACKED : 0), -1, -1);
	CHECK_EQ(lane_add(blk_lane_base(lane), blk_queue_base(c.queue)), 0);
	driver_interrupts_off(c.driver);
	for (; left > 0; left -= depth) {
		struct driver_used used[64];
		unsigned back = 0;

		for (unsigned i = 0; i < depth; i++) {
			sector = sector * 1103515245u + 12345u;
			client_add(&c, i, VIRTIO_BLK_T_IN, (sector >> 8) % (DISK_BYTES / 4096) * 8, i * 4096, 4096);
		}
		CHECK(driver_publish(c.driver) >= 0);
		while (back < depth) {
			int n;

			blk_lane_poll(lane);
			n = driver_poll_used(c.driver, used, 64);
			CHECK(n >= 0);
			for (int i = 0; i < n; i++)
				CHECK_EQ(*client_status(&c, (unsigned)used[i].token), VIRTIO_BLK_S_OK);
			back += (unsigned)n;
		}
	}
	printf("%llu\n", (unsigned long long)blk_queue_stats(c.queue)->requests[BLK_READ]);
	client_free(&c);
	blk_lane_destroy(lane);
	disk_free(dev);
	return 0;
}
