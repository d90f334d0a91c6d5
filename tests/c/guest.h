/* SPDX-License-Identifier: Apache-2.0 */
/*
 * guest.h - a guest to be hostile with: two adjacent memory regions, a third apart, and rings written by hand
 *
 * Guest physical 1 MiB .. 2 MiB and 2 MiB .. 3 MiB are two mappings (a buffer may cross them); 16 MiB .. 17 MiB lies
 * apart. The front-end's addresses are the guest's plus GUEST_UVA.
 */
#ifndef KPOLL_TEST_GUEST_H
#define KPOLL_TEST_GUEST_H

#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "vhost/c/mem.h"
#include "vhost/c/virtq.h"

#define MIB (1ull << 20)
#define GUEST_UVA 0x7f0000000000ull
#define GUEST_SIZE 8u /* entries of the hand-written rings */

/* Where the hand-written rings and data lie, guest physical. */
#define DESC_GPA (1 * MIB)
#define AVAIL_GPA (1 * MIB + 0x1000)
#define USED_GPA (1 * MIB + 0x2000)
#define TABLE_GPA (1 * MIB + 0x3000)
#define DATA_GPA (1 * MIB + 0x8000)
#define BORDER_GPA (2 * MIB) /* between the two adjacent regions */
#define BEYOND_GPA (3 * MIB) /* the first byte after them */

struct guest {
	struct mem_map *maps[3];
	int fds[3];
	struct mem_table *table;
	struct virtq q;
	uint16_t avail; /* split: our avail.idx */
};

static inline void guest_make(struct guest *g)
{
	static const uint64_t at[3] = { 1 * MIB, 2 * MIB, 16 * MIB };

	memset(g, 0, sizeof(*g));
	g->table = mem_table_create(3);
	for (unsigned i = 0; i < 3; i++) {
		g->fds[i] = memfd_create("guest", MFD_CLOEXEC);
		CHECK(g->fds[i] >= 0 && ftruncate(g->fds[i], MIB) == 0);
		CHECK_EQ(mem_map_create(g->fds[i], 0, MIB, &g->maps[i]), 0);
		mem_table_set(g->table, i, at[i], GUEST_UVA + at[i], MIB, g->maps[i]);
	}
	CHECK_EQ(mem_table_seal(g->table), 0);
}

static inline void guest_free(struct guest *g)
{
	mem_table_destroy(g->table);
	for (unsigned i = 0; i < 3; i++) {
		mem_map_destroy(g->maps[i]);
		close(g->fds[i]);
	}
}

static inline void *guest_at(struct guest *g, uint64_t gpa)
{
	void *p = mem_gpa(g->table, gpa, 1);

	CHECK(p != NULL);
	return p;
}

static inline void guest_start(struct guest *g, uint64_t features)
{
	bool packed = features >> VIRTIO_F_RING_PACKED & 1;
	struct virtq_config cfg = {
		.size = GUEST_SIZE,
		.features = features,
		.desc_uva = GUEST_UVA + DESC_GPA,
		.avail_uva = GUEST_UVA + AVAIL_GPA,
		.used_uva = GUEST_UVA + USED_GPA,
		.base = packed ? 0x80008000u : 0,
		.call_fd = -1,
		.err_fd = -1,
	};

	memset(guest_at(g, DESC_GPA), 0, 0x8000);
	g->avail = 0;
	CHECK_EQ(virtq_init(&g->q, &cfg, g->table), 0);
}

/* Split: one descriptor of the table at @table_gpa. */
static inline void guest_desc(struct guest *g, uint64_t table_gpa, unsigned i, uint64_t addr, uint32_t len,
			      uint16_t flags, uint16_t next)
{
	struct vring_desc *d = (struct vring_desc *)guest_at(g, table_gpa) + i;

	*d = (struct vring_desc){ .addr = addr, .len = len, .flags = flags, .next = next };
}

static inline void guest_offer(struct guest *g, uint16_t head)
{
	struct vring_avail *a = guest_at(g, AVAIL_GPA);

	a->ring[g->avail++ % GUEST_SIZE] = head;
	__atomic_store_n(&a->idx, g->avail, __ATOMIC_RELEASE);
}

#define PACKED_AVAIL ((uint16_t)(1u << VRING_PACKED_DESC_F_AVAIL)) /* available, on the first lap */

/* Packed: one slot of the ring, or (with flags lacking AVAIL) one entry of an indirect table. */
static inline void guest_slot(struct guest *g, uint64_t ring_gpa, unsigned i, uint64_t addr, uint32_t len, uint16_t id,
			      uint16_t flags)
{
	struct vring_packed_desc *d = (struct vring_packed_desc *)guest_at(g, ring_gpa) + i;

	*d = (struct vring_packed_desc){ .addr = addr, .len = len, .id = id, .flags = flags };
}

#endif
