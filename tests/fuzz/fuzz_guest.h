/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_guest.h - a guest whose whole memory is the fuzzer's input
 *
 * Input: byte 0 features (see below), byte 1 log2 of the queue size, byte 2 and 3 avail.idx; the rest lies at guest
 * physical 0, where the rings are too: descriptor table or packed ring first, then what the other structures are made
 * of. Two adjacent regions of 32 KiB, so that buffers and tables can cross from one mapping into the other.
 */
#ifndef KPOLL_FUZZ_GUEST_H
#define KPOLL_FUZZ_GUEST_H

#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vhost/c/mem.h"
#include "vhost/c/virtq.h"

#define REGION 32768u
#define MEMORY (2 * REGION)
#define AVAIL_AT 1024u /* after a table of 64 descriptors */
#define USED_AT 2048u
#define UVA 0x10000000u
#define MUST(cond)               \
	do {                     \
		if (!(cond))     \
			abort(); \
	} while (0)

static struct mem_map *maps[2];
static struct mem_table *table;

static inline void fuzz_memory(void)
{
	if (table)
		return;
	table = mem_table_create(2);
	for (unsigned i = 0; i < 2; i++) {
		int fd = memfd_create("fuzz", MFD_CLOEXEC);

		MUST(fd >= 0 && ftruncate(fd, REGION) == 0);
		MUST(mem_map_create(fd, 0, REGION, &maps[i]) == 0);
		mem_table_set(table, i, (uint64_t)i * REGION, UVA + (uint64_t)i * REGION, REGION, maps[i]);
		close(fd);
	}
	MUST(mem_table_seal(table) == 0);
}

/* Lay @data out as the guest and describe its queue. Return: false when there is too little of it */
static inline bool fuzz_guest(const uint8_t *data, size_t size, struct virtq_config *cfg)
{
	size_t first;

	if (size < 4)
		return false;
	fuzz_memory();
	memset(mem_map_ptr(maps[0]), 0, REGION);
	memset(mem_map_ptr(maps[1]), 0, REGION);
	*cfg = (struct virtq_config){
		.size = 1u << data[1] % 7,
		.desc_uva = UVA,
		.avail_uva = UVA + AVAIL_AT,
		.used_uva = UVA + USED_AT,
		.call_fd = -1,
		.err_fd = -1,
	};
	if (data[0] & 1)
		cfg->features |= 1ull << VIRTIO_F_RING_PACKED;
	if (data[0] & 2)
		cfg->features |= 1ull << VIRTIO_RING_F_INDIRECT_DESC;
	if (data[0] & 4)
		cfg->features |= 1ull << VIRTIO_RING_F_EVENT_IDX;
	if (data[0] & 8)
		cfg->base = 0x8000;
	if (data[0] & 1 && data[0] & 16)
		cfg->size = data[1] % 64 + 1; /* packed rings take any size */
	size -= 4;
	if (size > MEMORY)
		size = MEMORY;
	first = size < REGION ? size : REGION;
	memcpy(mem_map_ptr(maps[0]), data + 4, first);
	memcpy(mem_map_ptr(maps[1]), data + 4 + first, size - first);
	if (!(data[0] & 1)) {
		struct vring_avail *avail = mem_uva(table, cfg->avail_uva, sizeof(*avail));

		avail->idx = (uint16_t)(cfg->base + (data[2] | data[3] << 8) % 80);
	}
	return true;
}

#endif
