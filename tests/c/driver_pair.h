/* SPDX-License-Identifier: Apache-2.0 */
/*
 * driver_pair.h - a driver and a device over the same rings, in one thread: each is the other's test
 */
#ifndef KPOLL_TEST_DRIVER_PAIR_H
#define KPOLL_TEST_DRIVER_PAIR_H

#include <linux/virtio_config.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "kernel/c/atomics.h"
#include "kernel/c/wait.h"
#include "vhost/c/driver.h"
#include "vhost/c/virtq.h"

#define PAIR_BYTES (1u << 20)
#define PAIR_GPA 0x40000000ull
#define PAIR_UVA 0x7f0000000000ull
#define PAIR_DATA 0x80000u /* where buffers start, offset in the memory */
#define PAIR_CHAIN 6

#define RING_PACKED (1ull << VIRTIO_F_RING_PACKED)
#define RING_INDIRECT (1ull << VIRTIO_RING_F_INDIRECT_DESC)
#define RING_EVENT_IDX (1ull << VIRTIO_RING_F_EVENT_IDX)

struct pair {
	struct mem_map *map;
	struct mem_table *table;
	struct driver *driver;
	struct driver_layout at;
	struct virtq device;
	uint8_t *mem;
	int memfd, kick_fd, call_fd;
};

static inline void pair_make(struct pair *p, uint64_t features, uint32_t size)
{
	bool packed = features & RING_PACKED;
	struct driver_config dcfg = {
		.size = size,
		.chain_max = PAIR_CHAIN,
		.features = features | 1ull << VIRTIO_F_VERSION_1,
		.area_gpa = PAIR_GPA,
	};
	struct virtq_config vcfg = {
		.size = size,
		.features = dcfg.features,
		.base = packed ? 0x80008000u : 0,
		.err_fd = -1,
	};

	memset(p, 0, sizeof(*p));
	p->memfd = memfd_create("guest", MFD_CLOEXEC);
	p->kick_fd = dcfg.kick_fd = eventfd(0, EFD_NONBLOCK);
	p->call_fd = vcfg.call_fd = eventfd(0, EFD_NONBLOCK);
	CHECK(p->memfd >= 0 && p->kick_fd >= 0 && p->call_fd >= 0 && ftruncate(p->memfd, PAIR_BYTES) == 0);
	CHECK_EQ(mem_map_create(p->memfd, 0, PAIR_BYTES, &p->map), 0);
	p->table = mem_table_create(1);
	mem_table_set(p->table, 0, PAIR_GPA, PAIR_UVA, PAIR_BYTES, p->map);
	CHECK_EQ(mem_table_seal(p->table), 0);
	p->mem = dcfg.area = mem_map_ptr(p->map);
	CHECK_EQ(driver_lay_out(&p->at, size, features, PAIR_CHAIN), 0);
	CHECK(p->at.bytes <= PAIR_DATA);
	CHECK_EQ(driver_create(&p->driver, &dcfg), 0);
	vcfg.desc_uva = PAIR_UVA + p->at.desc;
	vcfg.avail_uva = PAIR_UVA + p->at.avail;
	vcfg.used_uva = PAIR_UVA + p->at.used;
	CHECK_EQ(virtq_init(&p->device, &vcfg, p->table), 0);
}

static inline void pair_free(struct pair *p)
{
	driver_destroy(p->driver);
	mem_table_destroy(p->table);
	mem_map_destroy(p->map);
	close(p->memfd);
	close(p->kick_fd);
	close(p->call_fd);
}

/* Run a behaviour for split and packed rings, with and without each ring feature. */
static inline void pair_each(void (*behaviour)(uint64_t features))
{
	for (unsigned i = 0; i < 8; i++)
		behaviour((i & 1 ? RING_PACKED : 0) | (i & 2 ? RING_INDIRECT : 0) | (i & 4 ? RING_EVENT_IDX : 0));
}

static inline struct driver_buf pair_buf(uint32_t offset, uint32_t len)
{
	return (struct driver_buf){ PAIR_GPA + PAIR_DATA + offset, len };
}

/* Add and publish one request of two buffers. Return: whether it kicked. */
static inline int pair_send(struct pair *p, uint64_t token)
{
	struct driver_buf bufs[2] = { pair_buf(0, 16), pair_buf(64, 512) };

	CHECK_EQ(driver_add(p->driver, bufs, 1, 1, token), 0);
	return driver_publish(p->driver);
}

/* The device serves one request. Return: whether there was one. */
static inline int pair_serve(struct pair *p)
{
	struct virtq_chain chain;
	struct iovec iov[PAIR_CHAIN];
	int n = virtq_pop(&p->device, &chain, iov, PAIR_CHAIN);

	CHECK(n >= 0);
	if (n) {
		virtq_push(&p->device, &chain, chain.in_len);
		virtq_publish(&p->device);
	}
	return n;
}

/* Signals of an eventfd since the last look. */
static inline uint64_t pair_signals(int fd)
{
	uint64_t count;

	return read(fd, &count, sizeof(count)) == sizeof(count) ? count : 0;
}

/* What a device does before it sleeps: doorbell on, barrier, look again. */
static inline bool pair_device_arms(struct pair *p)
{
	struct eventfd_poll_info word;

	virtq_watch(&p->device, &word);
	wait_word_arm(&word);
	mb_full();
	return virtq_more(&p->device);
}

#endif
