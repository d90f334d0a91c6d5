/* SPDX-License-Identifier: Apache-2.0 */
/*
 * disk.h - a disk on a temporary file (or on nothing), and drivers that ask things of it
 */
#ifndef KPOLL_TEST_DISK_H
#define KPOLL_TEST_DISK_H

#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backend/c/blk.h"
#include "check.h"
#include "vhost/c/driver.h"

#define DISK_BYTES (8u << 20)
#define DRIVER_MEMORY (4u << 20)
#define DATA_AT (2u << 20)   /* data buffers in a driver's memory; rings below */
#define HEADER_AT (1u << 20) /* headers and status bytes */
#define DISK_UVA 0x500000000000ull

/* Say where a disk may lie; the caller removes it. */
static inline void disk_path(char *path, size_t size)
{
	snprintf(path, size, "%s/disk", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
}

static inline struct blk_dev *disk_make(const char *path)
{
	struct blk_dev *dev = blk_dev_create();

	CHECK(dev != NULL);
	if (path) {
		int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);

		CHECK(fd >= 0 && ftruncate(fd, DISK_BYTES) == 0);
		close(fd);
		CHECK_EQ(io_target_open(&dev->target, path, false), 0);
	} else {
		io_target_null(&dev->target, DISK_BYTES);
	}
	dev->capacity = DISK_BYTES / BLK_SECTOR;
	dev->write_back = 1;
	dev->max_discard_sectors = dev->max_write_zeroes_sectors = 4096;
	memcpy(dev->serial, "serial-of-the-disk", 18);
	return dev;
}

static inline void disk_free(struct blk_dev *dev)
{
	io_target_close(&dev->target);
	blk_dev_destroy(dev);
}

/* One guest with one virtqueue: its memory, its driver, and the device's queue bound to it. */
struct client {
	int fd;
	struct mem_map *map;
	struct mem_table *table;
	uint8_t *memory;
	struct driver *driver;
	struct blk_queue *queue;
	struct virtq_config cfg; /* as the queue is bound */
};

static inline void client_make(struct client *c, struct blk_dev *dev, uint16_t index, uint32_t size, uint64_t features,
			       int kick_fd, int call_fd)
{
	struct driver_layout at;
	struct driver_config driver = { .size = size, .chain_max = 16, .features = features, .kick_fd = kick_fd };
	struct virtq_config cfg = { .size = size, .features = features, .call_fd = call_fd, .err_fd = -1 };

	c->fd = memfd_create("client", MFD_CLOEXEC);
	CHECK(c->fd >= 0 && ftruncate(c->fd, DRIVER_MEMORY) == 0);
	CHECK_EQ(mem_map_create(c->fd, 0, DRIVER_MEMORY, &c->map), 0);
	c->table = mem_table_create(1);
	mem_table_set(c->table, 0, 0, DISK_UVA, DRIVER_MEMORY, c->map);
	CHECK_EQ(mem_table_seal(c->table), 0);
	c->memory = mem_map_ptr(c->map);
	CHECK_EQ(driver_lay_out(&at, size, features, driver.chain_max), 0);
	CHECK(at.bytes <= HEADER_AT);
	driver.area = c->memory;
	driver.area_gpa = 0;
	CHECK_EQ(driver_create(&c->driver, &driver), 0);
	c->queue = blk_queue_create(dev, index);
	cfg.desc_uva = DISK_UVA + at.desc;
	cfg.avail_uva = DISK_UVA + at.avail;
	cfg.used_uva = DISK_UVA + at.used;
	cfg.base = features >> VIRTIO_F_RING_PACKED & 1 ? 0x80008000u : 0;
	CHECK_EQ(blk_queue_bind(c->queue, &cfg, c->table), 0);
	c->cfg = cfg;
}

static inline void client_free(struct client *c)
{
	blk_queue_destroy(c->queue);
	driver_destroy(c->driver);
	mem_table_destroy(c->table);
	mem_map_destroy(c->map);
	close(c->fd);
}

#define STATUS_UNWRITTEN 0xee
#define T_GET_LIFETIME 10 /* virtio 1.2 §5.2.6; not in Linux' header */

/* Where request @slot keeps its header and its status byte. */
static inline struct virtio_blk_outhdr *client_header(struct client *c, unsigned slot)
{
	return (struct virtio_blk_outhdr *)(c->memory + HEADER_AT + slot * 64);
}

static inline uint8_t *client_status(struct client *c, unsigned slot)
{
	return c->memory + HEADER_AT + slot * 64 + 32;
}

/* Add a request of the usual three pieces; @len bytes of data at DATA_AT + @data. */
static inline void client_add(struct client *c, unsigned slot, uint32_t type, uint64_t sector, uint32_t data,
			      uint32_t len)
{
	bool to_guest = type == VIRTIO_BLK_T_IN || type == VIRTIO_BLK_T_GET_ID || type == T_GET_LIFETIME;
	struct driver_buf bufs[3] = { { HEADER_AT + slot * 64, sizeof(struct virtio_blk_outhdr) } };
	unsigned n = 1;

	*client_header(c, slot) = (struct virtio_blk_outhdr){ .type = type, .sector = sector };
	*client_status(c, slot) = STATUS_UNWRITTEN;
	if (len > 0)
		bufs[n++] = (struct driver_buf){ DATA_AT + data, len };
	bufs[n++] = (struct driver_buf){ HEADER_AT + slot * 64 + 32, 1 };
	CHECK_EQ(driver_add(c->driver, bufs, to_guest ? 1 : n - 1, to_guest ? n - 1 : 1, slot), 0);
}

/* Turn the lane until one request came back. Return: its status byte; *@len is what the device says it wrote */
static inline uint8_t client_await(struct client *c, struct blk_lane *lane, uint32_t *len)
{
	struct driver_used used;

	CHECK(driver_publish(c->driver) >= 0);
	while (driver_poll_used(c->driver, &used, 1) == 0) {
		CHECK_EQ(queue_state(blk_queue_base(c->queue)), QUEUE_RUNNING);
		if (blk_lane_poll(lane) == 0)
			usleep(10); /* a helper thread is at it */
	}
	if (len)
		*len = used.len;
	return *client_status(c, (unsigned)used.token);
}

static inline uint8_t client_ask(struct client *c, struct blk_lane *lane, uint32_t type, uint64_t sector, uint32_t len)
{
	client_add(c, 0, type, sector, 0, len);
	return client_await(c, lane, NULL);
}

#endif
