/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtq_split.c - split virtqueues (virtio 1.2 §2.7): descriptor table, available ring, used ring
 *
 * THEORY OF OPERATION
 *
 * avail.idx and used.idx run freely modulo 2^16. avail.idx is read once per burst (avail_seen) and the entries up to
 * it are popped without looking again. used.idx is stored once per burst of pushes:
 *
 *	device (here)					driver
 *	used.ring[i] := {id, len}			avail.used_event := n, or avail.flags := 0
 *	used.idx := i + 1	(release)
 *	full barrier					full barrier
 *	reads used_event / flags: wants a call?		reads used.idx: anything new?
 *
 * One of the two sees the other's store, so a driver that goes to sleep is always called (§2.7.7.2, §2.7.13).
 */
#include <errno.h>

#include "virtq_ring.h"

#define PREFETCH_AHEAD 4 /* descriptors: one cache line holds as many */

static uint16_t *avail_event(struct virtq *q)
{
	return (uint16_t *)&q->used->ring[q->size];
}

int virtq_split_init(struct virtq *q, const struct virtq_config *cfg, const struct mem_table *mem)
{
	uint64_t event = q->event_idx ? sizeof(uint16_t) : 0;
	uint64_t desc_len = q->size * sizeof(struct vring_desc);
	uint64_t avail_len = sizeof(struct vring_avail) + q->size * sizeof(uint16_t) + event;
	uint64_t used_len = sizeof(struct vring_used) + q->size * sizeof(struct vring_used_elem) + event;

	/* §2.7: a power of two, and the alignments of the three parts */
	if (q->size & (q->size - 1) || cfg->desc_uva % 16 || cfg->avail_uva % 2 || cfg->used_uva % 4)
		return -EINVAL;
	q->desc = mem_uva(mem, cfg->desc_uva, desc_len);
	q->avail = mem_uva(mem, cfg->avail_uva, avail_len);
	q->used = mem_uva(mem, cfg->used_uva, used_len);
	if (!q->desc || !q->avail || !q->used)
		return -EFAULT;
	/* The front-end's addresses being aligned doesn't make ours so: a region may start anywhere in a page. */
	if ((uintptr_t)q->desc % 16 || (uintptr_t)q->avail % 2 || (uintptr_t)q->used % 4)
		return -EINVAL;
	/*
	 * What we write must be apart from what we read (§2.7: separate areas). Were used.flags avail.idx as well, turning
	 * the doorbell on would look like a new request, and no worker that has such a queue would ever sleep again.
	 *
	 * That stops the mistake, and the plain attempt. It can't stop all that a front-end does to its own worker: two
	 * queues may lie in each other, and what a disk read brings may be the next request (ARCHITECTURE.md, "The trust
	 * boundary").
	 */
	if (mem_uva_overlap(mem, cfg->used_uva, used_len, cfg->avail_uva, avail_len) ||
	    mem_uva_overlap(mem, cfg->used_uva, used_len, cfg->desc_uva, desc_len))
		return -EINVAL;
	q->avail_idx = q->avail_seen = (uint16_t)cfg->base;
	/* Where a predecessor stopped publishing, which is what the driver believes. */
	q->used_idx = q->used_published = READ_ONCE(q->used->idx);
	return 0;
}

bool virtq_split_more(struct virtq *q)
{
	return q->avail_idx != q->avail_seen || load_acquire(&q->avail->idx) != q->avail_idx;
}

/* Walk an indirect table. Its own next fields are followed, as §2.7.5.3.2 has it. */
static int gather_indirect(struct virtq *q, struct virtq_gather *g, uint64_t table_gpa, int entries)
{
	const struct vring_desc *table = virtq_at(q, table_gpa, (uint64_t)entries * sizeof(*table));
	uint32_t i = 0;

	for (int walked = 0; walked < entries; walked++) {
		struct vring_desc d;

		if (likely(table != NULL && (uintptr_t)table % sizeof(uint64_t) == 0))
			d = virtq_copy_desc(&table[i]);
		else if (mem_read_gpa(q->mem, &d, table_gpa + i * sizeof(d), sizeof(d)) < 0)
			return virtq_fail(q, VIRTQ_FAULT_ADDRESS);
		if (d.flags & VRING_DESC_F_INDIRECT)
			return virtq_fail(q, VIRTQ_FAULT_INDIRECT_NESTED);
		if (virtq_gather_buffer(q, g, d.addr, d.len, d.flags & VRING_DESC_F_WRITE) < 0)
			return -EPROTO;
		if (!(d.flags & VRING_DESC_F_NEXT))
			return 0;
		i = d.next;
		if (i >= (uint32_t)entries)
			return virtq_fail(q, VIRTQ_FAULT_DESC_INDEX);
	}
	return virtq_fail(q, VIRTQ_FAULT_LOOP);
}

/* Walk the descriptor table from @d on, a copy of the chain's head. */
static int gather_chain(struct virtq *q, struct virtq_chain *chain, struct iovec *iov, unsigned cap, uint16_t head,
			struct vring_desc d)
{
	struct virtq_gather *g = &(struct virtq_gather){ chain, iov, cap };

	*chain = (struct virtq_chain){ .id = head, .ndesc = 1 };
	for (uint32_t walked = 1; walked <= q->size; walked++) {
		if (d.flags & VRING_DESC_F_INDIRECT) {
			int entries = virtq_check_indirect(q, d.len, d.flags);

			return entries < 0 ? entries : gather_indirect(q, g, d.addr, entries);
		}
		if (virtq_gather_buffer(q, g, d.addr, d.len, d.flags & VRING_DESC_F_WRITE) < 0)
			return -EPROTO;
		if (!(d.flags & VRING_DESC_F_NEXT))
			return 0;
		if (unlikely(d.next >= q->size))
			return virtq_fail(q, VIRTQ_FAULT_DESC_INDEX);
		d = virtq_copy_desc(&q->desc[d.next]);
	}
	return virtq_fail(q, VIRTQ_FAULT_LOOP);
}

/* Chains that avail.idx says are there: it is read when all that it said before was popped. */
static uint16_t seen(struct virtq *q)
{
	if (q->avail_idx == q->avail_seen) {
		/* Pairs with the driver's barrier between filling avail.ring and storing avail.idx (§2.7.13.3.1). */
		uint16_t idx = load_acquire(&q->avail->idx);

		if (unlikely((uint16_t)(idx - q->avail_idx) > q->size)) {
			virtq_fail(q, VIRTQ_FAULT_AVAIL_IDX);
			return 0;
		}
		q->avail_seen = idx;
	}
	return q->avail_seen - q->avail_idx;
}

/* The entry of avail.ring that is @ahead of the next to pop. */
static uint16_t head_at(const struct virtq *q, uint16_t ahead)
{
	return READ_ONCE(q->avail->ring[(uint16_t)(q->avail_idx + ahead) & (q->size - 1)]);
}

/* Have the descriptor that is popped then travel here meanwhile. */
static void prefetch(const struct virtq *q, uint16_t ahead)
{
	__builtin_prefetch(&q->desc[head_at(q, ahead) & (q->size - 1)]);
}

/* Pop the chain that is @ahead of the next, one of those that were seen. Return: 0 or -EPROTO */
static inline __attribute__((always_inline)) int pop_seen(struct virtq *q, uint16_t ahead, struct virtq_chain *chain,
							  struct iovec *iov, unsigned cap)
{
	uint16_t head = head_at(q, ahead);
	struct vring_desc d;

	if (unlikely(head >= q->size))
		return virtq_fail(q, VIRTQ_FAULT_DESC_INDEX);
	d = virtq_copy_desc(&q->desc[head]);
	if (likely(!(d.flags & (VRING_DESC_F_NEXT | VRING_DESC_F_INDIRECT))) &&
	    virtq_gather_single(q->near, chain, iov, cap, head, d.addr, d.len, d.flags & VRING_DESC_F_WRITE))
		return 0;
	return gather_chain(q, chain, iov, cap, head, d);
}

int virtq_split_pop(struct virtq *q, struct virtq_chain *chain, struct iovec *iov, unsigned cap)
{
	if (seen(q) == 0)
		return q->fault == VIRTQ_FAULT_NONE ? 0 : -EPROTO;
	if (unlikely(pop_seen(q, 0, chain, iov, cap) < 0))
		return -EPROTO;
	q->avail_idx++;
	if (q->avail_idx != q->avail_seen) /* while this request is parsed */
		prefetch(q, 0);
	return 1;
}

unsigned virtq_split_pop_burst(struct virtq *q, const struct virtq_burst *b)
{
	const ptrdiff_t last = virtq_burst_last(b);
	unsigned n, left = seen(q);
	ptrdiff_t at = 0;

	if (left > b->max)
		left = b->max;
	for (n = 0; n < left && at <= last; n++) {
		struct virtq_chain *chain = &b->chains[n];

		if (n + PREFETCH_AHEAD < left)
			prefetch(q, n + PREFETCH_AHEAD);
		if (unlikely(pop_seen(q, n, chain, b->iov + at + b->gap, b->seg_max) < 0))
			break;
		at += b->gap + chain->out_count + chain->in_count;
	}
	q->avail_idx += n;
	return n;
}

static inline void push(struct virtq *q, uint16_t id, uint32_t len)
{
	q->used->ring[q->used_idx & (q->size - 1)] = (struct vring_used_elem){ .id = id, .len = len };
	q->used_idx++;
}

void virtq_split_push(struct virtq *q, const struct virtq_chain *chain, uint32_t len)
{
	push(q, chain->id, len);
	q->unpublished++;
}

void virtq_split_push_burst(struct virtq *q, const struct virtq_chain *chains, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		push(q, chains[i].id, 0);
	q->unpublished += n;
}

bool virtq_split_publish(struct virtq *q)
{
	uint16_t old = q->used_published, used_event;
	bool first = !q->called_before;

	store_release(&q->used->idx, q->used_idx); /* pairs with the driver's read barrier after reading used.idx */
	q->used_published = q->used_idx;
	mb_full(); /* pairs with the driver's, see above */
	if (!q->event_idx)
		return !(READ_ONCE(q->avail->flags) & VRING_AVAIL_F_NO_INTERRUPT);
	q->called_before = true;
	used_event = READ_ONCE(q->avail->ring[q->size]);
	return first || vring_need_event(used_event, q->used_idx, old);
}

void virtq_split_watch(struct virtq *q, struct eventfd_poll_info *word)
{
	word->addr = (uintptr_t)&q->avail->idx;
	word->size = sizeof(uint16_t);
	word->op = EVENTFD_POLL_OP_NOT_EQUAL_PTR;
	word->val = (uintptr_t)&q->avail_idx;
	word->flags = EVENTFD_POLL_F_ARM;
	if (q->event_idx) { /* "kick me at the very next one" */
		word->flags |= EVENTFD_POLL_F_ARM_PTR;
		word->arm_addr = (uintptr_t)avail_event(q);
		word->arm_val = (uintptr_t)&q->avail_idx;
	} else {
		word->arm_addr = (uintptr_t)&q->used->flags;
		word->arm_val = 0;
	}
}
