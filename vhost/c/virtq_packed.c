/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtq_packed.c - packed virtqueues (virtio 1.2 §2.8): one ring that both sides write
 *
 * THEORY OF OPERATION
 *
 * A descriptor is available when its AVAIL flag equals the device's wrap counter and its USED flag does not (§2.8.1).
 * The driver writes the first descriptor's flags last, so once those say available the whole chain is there. We do the
 * same backwards: of a burst of pushes the first one's flags are stored last, and as the driver reads in ring order it
 * sees none of them before that:
 *
 *	device (here)					driver
 *	2nd..nth used descriptors, with flags
 *	first one's id, len				event suppression := on
 *	first one's flags	(release)
 *	full barrier					full barrier
 *	reads the driver's event suppression		reads the next used descriptor's flags
 */
#include <errno.h>

#include "virtq_ring.h"

#define AVAIL (1u << VRING_PACKED_DESC_F_AVAIL)
#define USED (1u << VRING_PACKED_DESC_F_USED)

static bool is_available(uint16_t flags, bool wrap)
{
	return !!(flags & AVAIL) == wrap && !!(flags & USED) != wrap;
}

/* Keep what virtq_packed_watch() told a poller true: the next descriptor's flags, and what they are once available. */
static void look_at_next(struct virtq *q)
{
	q->next.addr = (uintptr_t)&q->ring[q->avail_idx].flags;
	q->next.val = q->avail_wrap ? AVAIL : USED;
}

/*
 * Has the ring been gone through with the wrap counter at 1? The driver then left AVAIL set in its last slot (§2.8.1),
 * and nothing written there since by either side with that counter clears it.
 */
static bool lap_completed(const struct virtq *q)
{
	return READ_ONCE(q->ring[q->size - 1].flags) & AVAIL;
}

int virtq_packed_init(struct virtq *q, const struct virtq_config *cfg, const struct mem_table *mem)
{
	const uint64_t ring_len = q->size * sizeof(struct vring_packed_desc), event_len = sizeof(*q->device_event);

	if (cfg->desc_uva % 16 || cfg->avail_uva % 4 || cfg->used_uva % 4)
		return -EINVAL;
	q->ring = mem_uva(mem, cfg->desc_uva, ring_len);
	q->driver_event = mem_uva(mem, cfg->avail_uva, event_len);
	q->device_event = mem_uva(mem, cfg->used_uva, event_len);
	if (!q->ring || !q->driver_event || !q->device_event)
		return -EFAULT;
	if ((uintptr_t)q->ring % 16 || (uintptr_t)q->driver_event % 4 || (uintptr_t)q->device_event % 4)
		return -EINVAL;
	/* As in split rings: turning the doorbell on must not look like a new request, or like an answer of the driver's. */
	if (mem_uva_overlap(mem, cfg->used_uva, event_len, cfg->desc_uva, ring_len) ||
	    mem_uva_overlap(mem, cfg->used_uva, event_len, cfg->avail_uva, event_len))
		return -EINVAL;
	q->avail_idx = cfg->base & 0x7fff;
	q->avail_wrap = cfg->base >> 15 & 1;
	/*
	 * User-mode Linux starts packed rings with a plain 0, as if they were split. Slot 0 with the counter at 0 would
	 * come after a lap with the counter at 1; where there was none, the ring is new and its counter 1 (§2.8.1).
	 */
	if (cfg->base == 0 && !lap_completed(q))
		q->avail_wrap = true;
	/* The used half, if it is given, must say the same: queues stop with nothing in flight, and we can't make up for it. */
	if (q->avail_idx >= q->size || (cfg->base >> 16 != 0 && cfg->base >> 16 != (cfg->base & 0xffff)))
		return -EINVAL;
	/* Queues stop with nothing in flight, so used stands where avail stands; some front-ends leave its half zero. */
	q->used_idx = q->used_published = q->avail_idx;
	q->used_wrap = q->avail_wrap;
	look_at_next(q);
	return 0;
}

bool virtq_packed_more(struct virtq *q)
{
	return is_available(load_acquire(&q->ring[q->avail_idx].flags), q->avail_wrap);
}

/* §2.8.7: an indirect table's entries are read in order; of their flags only WRITE counts. */
static int gather_indirect(struct virtq *q, struct virtq_gather *g, uint64_t table_gpa, int entries)
{
	const struct vring_packed_desc *table = virtq_at(q, table_gpa, (uint64_t)entries * sizeof(*table));

	for (int i = 0; i < entries; i++) {
		struct vring_packed_desc d;

		if (likely(table != NULL && (uintptr_t)table % sizeof(uint64_t) == 0))
			d = virtq_copy_packed_desc(&table[i]);
		else if (mem_read_gpa(q->mem, &d, table_gpa + (uint64_t)i * sizeof(d), sizeof(d)) < 0)
			return virtq_fail(q, VIRTQ_FAULT_ADDRESS);
		if (d.flags & VRING_DESC_F_INDIRECT)
			return virtq_fail(q, VIRTQ_FAULT_INDIRECT_NESTED);
		if (virtq_gather_buffer(q, g, d.addr, d.len, d.flags & VRING_DESC_F_WRITE) < 0)
			return -EPROTO;
	}
	return 0;
}

/* Walk the ring from the next slot on, of which @d is a copy. Return: 0 or -EPROTO */
static int gather_chain(struct virtq *q, struct virtq_chain *chain, struct iovec *iov, unsigned cap,
			struct vring_packed_desc d)
{
	struct virtq_gather *g = &(struct virtq_gather){ chain, iov, cap };
	uint16_t slot = q->avail_idx;
	bool wrap = q->avail_wrap;

	*chain = (struct virtq_chain){ 0 };
	for (;;) {
		if (d.flags & VRING_DESC_F_INDIRECT) {
			int entries = virtq_check_indirect(q, d.len, d.flags);

			if (entries < 0 || gather_indirect(q, g, d.addr, entries) < 0)
				return -EPROTO;
		} else if (virtq_gather_buffer(q, g, d.addr, d.len, d.flags & VRING_DESC_F_WRITE) < 0) {
			return -EPROTO;
		}
		chain->ndesc++;
		if (!(d.flags & VRING_DESC_F_NEXT))
			break;
		if (unlikely(chain->ndesc == q->size))
			return virtq_fail(q, VIRTQ_FAULT_LOOP);
		if (++slot == q->size) {
			slot = 0;
			wrap = !wrap;
		}
		d = virtq_copy_packed_desc(&q->ring[slot]);
		if (unlikely(!is_available(d.flags, wrap)))
			return virtq_fail(q, VIRTQ_FAULT_INCOMPLETE);
	}
	if (unlikely(d.id >= q->size)) /* the last descriptor's id names the buffer (§2.8.6) */
		return virtq_fail(q, VIRTQ_FAULT_BUFFER_ID);
	chain->id = d.id;
	return 0;
}

/* Return: 1; 0 when nothing is available; -EPROTO. The caller does look_at_next(). */
static inline __attribute__((always_inline)) int pop(struct virtq *q, struct virtq_chain *chain, struct iovec *iov,
						     unsigned cap)
{
	struct vring_packed_desc d;

	/* Pairs with the driver's barrier before it stores the first descriptor's flags (§2.8.21.1). */
	if (!is_available(load_acquire(&q->ring[q->avail_idx].flags), q->avail_wrap))
		return 0;
	d = virtq_copy_packed_desc(&q->ring[q->avail_idx]);
	if (unlikely(!is_available(d.flags, q->avail_wrap)))
		return virtq_fail(q, VIRTQ_FAULT_INCOMPLETE);
	if (unlikely(d.flags & (VRING_DESC_F_NEXT | VRING_DESC_F_INDIRECT)) || unlikely(d.id >= q->size) ||
	    !virtq_gather_single(q->near, chain, iov, cap, d.id, d.addr, d.len, d.flags & VRING_DESC_F_WRITE))
		if (gather_chain(q, chain, iov, cap, d) < 0)
			return -EPROTO;
	q->avail_idx += chain->ndesc;
	if (q->avail_idx >= q->size) {
		q->avail_idx -= q->size;
		q->avail_wrap = !q->avail_wrap;
	}
	return 1;
}

int virtq_packed_pop(struct virtq *q, struct virtq_chain *chain, struct iovec *iov, unsigned cap)
{
	int rc = pop(q, chain, iov, cap);

	look_at_next(q);
	return rc;
}

unsigned virtq_packed_pop_burst(struct virtq *q, const struct virtq_burst *b)
{
	const ptrdiff_t last = virtq_burst_last(b);
	ptrdiff_t at = 0;
	unsigned n;

	for (n = 0; n < b->max && at <= last; n++) {
		struct virtq_chain *chain = &b->chains[n];

		if (pop(q, chain, b->iov + at + b->gap, b->seg_max) <= 0)
			break;
		at += b->gap + chain->out_count + chain->in_count;
	}
	look_at_next(q);
	return n;
}

/* Its descriptors are as they were: used ones are written only over what was pushed, and that lies before them. */
void virtq_packed_unpop(struct virtq *q, const struct virtq_chain *chain)
{
	if (q->avail_idx < chain->ndesc) {
		q->avail_idx += q->size;
		q->avail_wrap = !q->avail_wrap;
	}
	q->avail_idx -= chain->ndesc;
	look_at_next(q);
}

static inline void push(struct virtq *q, const struct virtq_chain *chain, uint32_t len)
{
	struct vring_packed_desc *d = &q->ring[q->used_idx];
	uint16_t flags = (q->used_wrap ? AVAIL | USED : 0) | (len ? VRING_DESC_F_WRITE : 0);

	d->id = chain->id;
	d->len = len;
	if (q->unpublished == 0)
		q->first_flags = flags; /* used_published is this slot */
	else
		WRITE_ONCE(d->flags, flags);
	q->unpublished += chain->ndesc;
	q->used_idx += chain->ndesc;
	if (q->used_idx >= q->size) {
		q->used_idx -= q->size;
		q->used_wrap = !q->used_wrap;
	}
}

void virtq_packed_push(struct virtq *q, const struct virtq_chain *chain, uint32_t len)
{
	push(q, chain, len);
}

void virtq_packed_push_burst(struct virtq *q, const struct virtq_chain *chains, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		push(q, &chains[i], 0);
}

bool virtq_packed_publish(struct virtq *q)
{
	union {
		uint32_t both;
		struct vring_packed_desc_event event;
	} driver;
	uint16_t event, new = q->used_idx, old = new - q->unpublished;

	/* Pairs with the driver's read barrier between these flags and the rest of the used descriptors (§2.8.21.3). */
	store_release(&q->ring[q->used_published].flags, q->first_flags);
	q->used_published = new;
	mb_full(); /* pairs with the driver's, see above */
	/* One load for offset and flags: a driver may change both at once. */
	driver.both = READ_ONCE(*(const uint32_t *)q->driver_event);
	switch (driver.event.flags) {
	case VRING_PACKED_EVENT_FLAG_DISABLE:
		return false;
	case VRING_PACKED_EVENT_FLAG_DESC:
		if (!q->event_idx)
			return true;
		/* The driver names a slot and the lap (§2.8.10); an event of the last lap lies one ring behind. */
		event = driver.event.off_wrap & ~(1u << VRING_PACKED_EVENT_F_WRAP_CTR);
		if (driver.event.off_wrap >> VRING_PACKED_EVENT_F_WRAP_CTR != q->used_wrap)
			event -= q->size;
		return vring_need_event(event, new, old);
	default:
		return true;
	}
}

void virtq_packed_watch(struct virtq *q, struct eventfd_poll_info *word)
{
	word->addr = (uintptr_t)&q->next;
	word->size = sizeof(uint16_t);
	word->op = EVENTFD_POLL_OP_EQUAL;
	word->mask = AVAIL | USED;
	word->flags = EVENTFD_POLL_F_ARM | EVENTFD_POLL_F_INDIRECT;
	word->arm_addr = (uintptr_t)&q->device_event->flags;
	word->arm_val = VRING_PACKED_EVENT_FLAG_ENABLE;
}
