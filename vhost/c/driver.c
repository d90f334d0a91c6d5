/* SPDX-License-Identifier: Apache-2.0 */
/*
 * driver.c - the driver side of a virtqueue: add, publish, take back
 *
 * Free descriptors (split) or buffer ids (packed) hang in a private list, so nothing that the device can write to
 * decides where the next descriptor goes. A request's place in that list, `slot`, also chooses its indirect table.
 * Publishing is one store: avail.idx (split), or the flags of the first descriptor of the batch (packed), which is
 * held back until all others are in memory; a device that reads in order sees nothing of a batch before that.
 */
#include <errno.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../kernel/c/atomics.h"
#include "driver.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "virtio's rings are little-endian, and this code reads them as they lie"
#endif

#define CACHE_LINE 64u
#define PACKED_AVAIL (1u << VRING_PACKED_DESC_F_AVAIL)
#define PACKED_USED (1u << VRING_PACKED_DESC_F_USED)

struct slot {
	uint64_t token;
	uint32_t ndesc; /* ring descriptors of the request in flight here; 0: none */
	uint16_t next;  /* next of the free list; split: next of the chain too */
};

struct driver {
	bool packed, event_idx, indirect, interrupts;
	uint32_t size, chain_max, room, in_flight, table_stride;
	uint8_t *tables;
	uint64_t tables_gpa;
	int kick_fd;
	uint64_t kicks;
	struct slot *slots;
	uint16_t free_head;

	uint16_t avail_idx; /* split: avail.idx with what was added; packed: next slot to fill */
	uint16_t added;     /* since the last publish; split: requests, packed: descriptors */
	uint16_t used_idx;  /* split: next entry of the used ring; packed: next slot to look at */
	bool avail_wrap, used_wrap;
	uint16_t first_slot; /* packed: where the held back flags go */
	uint16_t first_flags;

	uint16_t *used_event;        /* split: the index at which we want a call (§2.7.6) */
	const uint16_t *avail_event; /* split: the index at which the device wants a kick (§2.7.8) */
	union {
		struct vring_desc *desc;
		struct vring_packed_desc *ring;
	};
	union {
		struct vring_avail *avail;
		struct vring_packed_desc_event *driver_event;
	};
	union {
		struct vring_used *used;
		struct vring_packed_desc_event *device_event;
	};
};

static uint64_t align_up(uint64_t n, uint64_t to)
{
	return (n + to - 1) / to * to;
}

static uint32_t table_stride(uint32_t chain_max)
{
	return (uint32_t)align_up(chain_max * sizeof(struct vring_desc), CACHE_LINE);
}

int driver_lay_out(struct driver_layout *out, uint32_t size, uint64_t features, uint32_t chain_max)
{
	bool packed = features >> VIRTIO_F_RING_PACKED & 1;
	uint64_t event = sizeof(struct vring_packed_desc_event);

	if (size == 0 || size > VIRTQ_SIZE_MAX || chain_max == 0 || chain_max > size)
		return -EINVAL;
	if (!packed && (size & (size - 1)))
		return -EINVAL;
	out->desc = 0;
	out->avail = align_up(size * sizeof(struct vring_desc), CACHE_LINE);
	/* Room for used_event and avail_event behind the split rings, negotiated or not (§2.7.6, §2.7.8). */
	out->used = align_up(out->avail + (packed ? event : 6 + 2ull * size), CACHE_LINE);
	out->tables = align_up(out->used + (packed ? event : 6 + 8ull * size), CACHE_LINE);
	out->bytes = out->tables + (uint64_t)size * table_stride(chain_max);
	return 0;
}

int driver_create(struct driver **out, const struct driver_config *cfg)
{
	struct driver_layout at;
	struct driver *d;
	int err = driver_lay_out(&at, cfg->size, cfg->features, cfg->chain_max);

	if (err)
		return err;
	if ((uintptr_t)cfg->area % CACHE_LINE || cfg->area_gpa % CACHE_LINE)
		return -EINVAL;
	d = calloc(1, sizeof(*d));
	if (d)
		d->slots = calloc(cfg->size, sizeof(*d->slots));
	if (!d || !d->slots) {
		free(d);
		return -ENOMEM;
	}
	memset(cfg->area, 0, at.bytes);
	d->packed = cfg->features >> VIRTIO_F_RING_PACKED & 1;
	d->event_idx = cfg->features >> VIRTIO_RING_F_EVENT_IDX & 1;
	d->indirect = (cfg->features >> VIRTIO_RING_F_INDIRECT_DESC & 1) && !cfg->no_indirect;
	d->interrupts = true; /* what a zeroed ring asks for */
	d->size = d->room = cfg->size;
	d->chain_max = cfg->chain_max;
	d->table_stride = table_stride(cfg->chain_max);
	d->tables = cfg->area + at.tables;
	d->tables_gpa = cfg->area_gpa + at.tables;
	d->kick_fd = cfg->kick_fd;
	d->avail_wrap = d->used_wrap = true; /* §2.8.1: both wrap counters start at 1 */
	d->desc = (void *)(cfg->area + at.desc);
	d->avail = (void *)(cfg->area + at.avail);
	d->used = (void *)(cfg->area + at.used);
	if (!d->packed) {
		d->used_event = (void *)(cfg->area + at.avail + 4 + 2ull * cfg->size);
		d->avail_event = (void *)(cfg->area + at.used + 4 + 8ull * cfg->size);
	}
	for (uint32_t i = 0; i < cfg->size; i++)
		d->slots[i].next = (uint16_t)(i + 1);
	*out = d;
	return 0;
}

void driver_destroy(struct driver *d)
{
	if (d)
		free(d->slots);
	free(d);
}

void driver_set_kick_fd(struct driver *d, int kick_fd)
{
	d->kick_fd = kick_fd;
}

/* The slot's own indirect table: free again as soon as the slot is, so a request allocates nothing. */
static void *table_of(const struct driver *d, uint16_t slot, uint64_t *gpa)
{
	uint64_t offset = (uint64_t)slot * d->table_stride;

	*gpa = d->tables_gpa + offset;
	return d->tables + offset;
}

static void split_add_indirect(struct driver *d, const struct driver_buf *bufs, uint32_t out, uint32_t n, uint16_t head)
{
	uint64_t gpa;
	struct vring_desc *table = table_of(d, head, &gpa);

	for (uint32_t i = 0; i < n; i++) {
		uint16_t flags = (i >= out ? VRING_DESC_F_WRITE : 0) | (i + 1 < n ? VRING_DESC_F_NEXT : 0);

		table[i] = (struct vring_desc){ bufs[i].addr, bufs[i].len, flags, i + 1 < n ? (uint16_t)(i + 1) : 0 };
	}
	d->desc[head] = (struct vring_desc){ gpa, (uint32_t)(n * sizeof(*table)), VRING_DESC_F_INDIRECT, 0 };
	d->free_head = d->slots[head].next;
}

static void split_add_chain(struct driver *d, const struct driver_buf *bufs, uint32_t out, uint32_t n, uint16_t head)
{
	uint16_t at = head;

	for (uint32_t i = 0; i < n; i++) {
		uint16_t flags = (i >= out ? VRING_DESC_F_WRITE : 0) | (i + 1 < n ? VRING_DESC_F_NEXT : 0);
		uint16_t next = d->slots[at].next;

		d->desc[at] = (struct vring_desc){ bufs[i].addr, bufs[i].len, flags, i + 1 < n ? next : 0 };
		at = next;
	}
	d->free_head = at;
}

/* One descriptor of the packed ring: the first of a batch keeps its flags to itself until driver_publish(). */
static void packed_put(struct driver *d, uint64_t addr, uint32_t len, uint16_t id, uint16_t flags)
{
	struct vring_packed_desc *desc = &d->ring[d->avail_idx];

	desc->addr = addr;
	desc->len = len;
	desc->id = id;
	flags |= d->avail_wrap ? PACKED_AVAIL : PACKED_USED; /* §2.8.1: avail = wrap counter, used = its inverse */
	if (d->added++ == 0) {
		d->first_slot = d->avail_idx;
		d->first_flags = flags;
	} else {
		WRITE_ONCE(desc->flags, flags);
	}
	if (++d->avail_idx == d->size) {
		d->avail_idx = 0;
		d->avail_wrap = !d->avail_wrap;
	}
}

static void packed_add_indirect(struct driver *d, const struct driver_buf *bufs, uint32_t out, uint32_t n, uint16_t id)
{
	uint64_t gpa;
	struct vring_packed_desc *table = table_of(d, id, &gpa);

	for (uint32_t i = 0; i < n; i++)
		table[i] =
			(struct vring_packed_desc){ bufs[i].addr, bufs[i].len, 0, i >= out ? VRING_DESC_F_WRITE : 0 };
	packed_put(d, gpa, (uint32_t)(n * sizeof(*table)), id, VRING_DESC_F_INDIRECT);
}

static void packed_add_chain(struct driver *d, const struct driver_buf *bufs, uint32_t out, uint32_t n, uint16_t id)
{
	for (uint32_t i = 0; i < n; i++) {
		uint16_t flags = (i >= out ? VRING_DESC_F_WRITE : 0) | (i + 1 < n ? VRING_DESC_F_NEXT : 0);

		packed_put(d, bufs[i].addr, bufs[i].len, id, flags);
	}
}

int driver_add(struct driver *d, const struct driver_buf *bufs, uint32_t out, uint32_t in, uint64_t token)
{
	uint32_t n = out + in;
	bool indirect = d->indirect && n > 1; /* as Linux: one buffer is no shorter through a table */
	uint32_t ndesc = indirect ? 1 : n;
	uint16_t slot = d->free_head;

	if (n == 0 || out > d->chain_max || in > d->chain_max || n > d->chain_max)
		return -EINVAL;
	if (ndesc > d->room)
		return -ENOSPC;
	d->slots[slot].token = token;
	d->slots[slot].ndesc = ndesc;
	d->room -= ndesc;
	d->in_flight++;
	if (d->packed) {
		d->free_head = d->slots[slot].next;
		(indirect ? packed_add_indirect : packed_add_chain)(d, bufs, out, n, slot);
	} else {
		(indirect ? split_add_indirect : split_add_chain)(d, bufs, out, n, slot);
		d->avail->ring[d->avail_idx++ & (d->size - 1)] = slot;
		d->added++;
	}
	return 0;
}

/* §2.7.10: has the index that the other side waits for been passed by this batch? */
static bool need_event(uint16_t event, uint16_t new_idx, uint16_t old_idx)
{
	return (uint16_t)(new_idx - event - 1) < (uint16_t)(new_idx - old_idx);
}

static bool split_publish(struct driver *d)
{
	uint16_t old_idx = (uint16_t)(d->avail_idx - d->added);

	/* §2.7.13.3: ring and descriptors before the index. Pairs with the device's acquire of avail.idx. */
	store_release(&d->avail->idx, d->avail_idx);
	/* §2.7.13.4.1: the index before the look at what the device wants; its side: arm, barrier, look at avail.idx. */
	mb_full();
	if (d->event_idx)
		return need_event(READ_ONCE(*d->avail_event), d->avail_idx, old_idx);
	return !(READ_ONCE(d->used->flags) & VRING_USED_F_NO_NOTIFY);
}

static bool packed_publish(struct driver *d)
{
	uint16_t flags, off_wrap, event;

	/* §2.8.21.1: everything else before the first flags. Pairs with the device's acquire of them. */
	store_release(&d->ring[d->first_slot].flags, d->first_flags);
	mb_full(); /* §2.8.21.3.1, as in split_publish() */
	flags = READ_ONCE(d->device_event->flags);
	if (flags != VRING_PACKED_EVENT_FLAG_DESC || !d->event_idx)
		return flags != VRING_PACKED_EVENT_FLAG_DISABLE;
	mb_read(); /* the device writes off_wrap before the flags that say it counts */
	off_wrap = READ_ONCE(d->device_event->off_wrap);
	event = off_wrap & 0x7fff;
	if ((off_wrap >> VRING_PACKED_EVENT_F_WRAP_CTR) != d->avail_wrap)
		event = (uint16_t)(event - d->size); /* it speaks of the lap before */
	return need_event(event, d->avail_idx, (uint16_t)(d->avail_idx - d->added));
}

int driver_publish(struct driver *d)
{
	const uint64_t one = 1;
	bool kick;

	if (d->added == 0)
		return 0;
	kick = d->packed ? packed_publish(d) : split_publish(d);
	d->added = 0;
	if (!kick)
		return 0;
	d->kicks++;
	if (d->kick_fd >= 0 && write(d->kick_fd, &one, sizeof(one)) < 0 && errno != EAGAIN)
		return -errno;
	return 1;
}

/* Take a request out of its slot. The id comes from the device: it must name one that is in flight. */
static int release(struct driver *d, uint32_t id, struct driver_used *used)
{
	struct slot *slot;
	uint16_t last = (uint16_t)id;

	if (id >= d->size || d->slots[id].ndesc == 0)
		return -EPROTO;
	slot = &d->slots[id];
	used->token = slot->token;
	if (!d->packed) /* the private list still links the chain: put all of it back in front */
		for (uint32_t i = 1; i < slot->ndesc; i++)
			last = d->slots[last].next;
	d->slots[last].next = d->free_head;
	d->free_head = (uint16_t)id;
	d->room += slot->ndesc;
	d->in_flight--;
	slot->ndesc = 0;
	return 0;
}

static int split_poll_used(struct driver *d, struct driver_used *used, uint32_t max)
{
	/* §2.7.14: the index before the entries. Pairs with the device's release of used.idx. */
	uint16_t ready = (uint16_t)(load_acquire(&d->used->idx) - d->used_idx);
	uint32_t n;

	if (ready > d->in_flight)
		return -EPROTO;
	for (n = 0; n < ready && n < max; n++) {
		const struct vring_used_elem *elem = &d->used->ring[d->used_idx & (d->size - 1)];

		if (release(d, READ_ONCE(elem->id), &used[n]))
			return -EPROTO;
		used[n].len = READ_ONCE(elem->len);
		d->used_idx++;
	}
	return (int)n;
}

/* §2.8.1: a descriptor is used when both bits equal the used wrap counter. */
static bool packed_used_here(const struct driver *d)
{
	uint16_t flags = load_acquire(&d->ring[d->used_idx].flags) & (PACKED_AVAIL | PACKED_USED);

	return flags == (d->used_wrap ? PACKED_AVAIL | PACKED_USED : 0);
}

static int packed_poll_used(struct driver *d, struct driver_used *used, uint32_t max)
{
	uint32_t n;

	for (n = 0; n < max && d->in_flight && packed_used_here(d); n++) {
		const struct vring_packed_desc *desc = &d->ring[d->used_idx];
		uint32_t room = d->room;

		if (release(d, READ_ONCE(desc->id), &used[n]))
			return -EPROTO;
		used[n].len = READ_ONCE(desc->len);
		d->used_idx = (uint16_t)(d->used_idx + (d->room - room)); /* the chain's other slots are skipped */
		if (d->used_idx >= d->size) {
			d->used_idx = (uint16_t)(d->used_idx - d->size);
			d->used_wrap = !d->used_wrap;
		}
	}
	return (int)n;
}

/* Ask for a call when the next request is used; without EVENT_IDX that is how things stand anyway. */
static void arm(struct driver *d)
{
	if (d->packed)
		WRITE_ONCE(d->driver_event->off_wrap,
			   (uint16_t)(d->used_idx | d->used_wrap << VRING_PACKED_EVENT_F_WRAP_CTR));
	else
		WRITE_ONCE(*d->used_event, d->used_idx);
}

int driver_poll_used(struct driver *d, struct driver_used *used, uint32_t max)
{
	int n = d->packed ? packed_poll_used(d, used, max) : split_poll_used(d, used, max);

	if (n > 0 && d->interrupts && d->event_idx) {
		arm(d);
		mb_full(); /* before the caller's next look; the device's side: publish, barrier, read the event */
	}
	return n;
}

bool driver_more(const struct driver *d)
{
	if (d->packed)
		return d->in_flight && packed_used_here(d);
	return load_acquire(&d->used->idx) != d->used_idx;
}

void driver_interrupts_off(struct driver *d)
{
	d->interrupts = false;
	if (d->packed)
		WRITE_ONCE(d->driver_event->flags, VRING_PACKED_EVENT_FLAG_DISABLE);
	else if (d->event_idx)
		/* §2.7.7: flags must be 0 with EVENT_IDX; an index just passed comes round once in 65,536. */
		WRITE_ONCE(*d->used_event, (uint16_t)(d->used_idx - 1));
	else
		WRITE_ONCE(d->avail->flags, VRING_AVAIL_F_NO_INTERRUPT);
}

bool driver_interrupts_on(struct driver *d)
{
	d->interrupts = true;
	if (d->event_idx)
		arm(d);
	if (d->packed) {
		mb_write(); /* off_wrap before the flags that make it count */
		WRITE_ONCE(d->driver_event->flags,
			   d->event_idx ? VRING_PACKED_EVENT_FLAG_DESC : VRING_PACKED_EVENT_FLAG_ENABLE);
	} else if (!d->event_idx) {
		WRITE_ONCE(d->avail->flags, 0);
	}
	/* §2.7.14, §2.8.22: what was used before the device saw this brings no call. Pairs with its barrier after publishing. */
	mb_full();
	return driver_more(d);
}

uint32_t driver_room(const struct driver *d)
{
	return d->room;
}

uint32_t driver_in_flight(const struct driver *d)
{
	return d->in_flight;
}

uint64_t driver_kicks(const struct driver *d)
{
	return d->kicks;
}
