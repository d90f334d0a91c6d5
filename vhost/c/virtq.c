/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtq.c - what both ring formats have in common: binding, faults, buffers, calling the driver
 *
 * THEORY OF OPERATION
 *
 * The two formats differ in how descriptors are found and given back (virtq_split.c, virtq_packed.c); what a descriptor
 * means does not. Each one is copied out of guest memory once and checked in the copy, so a guest that rewrites it
 * meanwhile changes nothing. A buffer that is contiguous for the guest may cross two of our mappings; it then becomes
 * two iovecs. The first thing that breaks a rule marks the queue broken, and a broken queue pops nothing more.
 */
#include "virtq.h"

#include <errno.h>
#include <linux/virtio_config.h>
#include <string.h>

#include "../../kernel/c/signal_fd.h"
#include "virtq_ring.h"

static const char *const fault_names[VIRTQ_FAULT_COUNT] = {
	[VIRTQ_FAULT_NONE] = "none",
	[VIRTQ_FAULT_AVAIL_IDX] = "avail_idx",
	[VIRTQ_FAULT_DESC_INDEX] = "desc_index",
	[VIRTQ_FAULT_LOOP] = "loop",
	[VIRTQ_FAULT_ADDRESS] = "address",
	[VIRTQ_FAULT_ZERO_LENGTH] = "zero_length",
	[VIRTQ_FAULT_TOO_MANY] = "too_many",
	[VIRTQ_FAULT_INDIRECT_NESTED] = "indirect_nested",
	[VIRTQ_FAULT_INDIRECT_LENGTH] = "indirect_length",
	[VIRTQ_FAULT_INDIRECT_UNASKED] = "indirect_unasked",
	[VIRTQ_FAULT_ORDER] = "order",
	[VIRTQ_FAULT_BUFFER_ID] = "buffer_id",
	[VIRTQ_FAULT_INCOMPLETE] = "incomplete",
	[VIRTQ_FAULT_MEMORY_GONE] = "memory_gone",
	[VIRTQ_FAULT_REQUEST] = "request",
};

const char *virtq_fault_name(enum virtq_fault fault)
{
	return (unsigned)fault < VIRTQ_FAULT_COUNT ? fault_names[fault] : "unknown";
}

int virtq_fail(struct virtq *q, enum virtq_fault fault)
{
	if (q->fault == VIRTQ_FAULT_NONE) {
		q->fault = fault;
		signal_fd(q->err_fd);
	}
	return -EPROTO;
}

int virtq_init(struct virtq *q, const struct virtq_config *cfg, const struct mem_table *mem)
{
	if (cfg->size == 0 || cfg->size > VIRTQ_SIZE_MAX)
		return -EINVAL;
	memset(q, 0, sizeof(*q));
	q->mem = mem;
	q->near = mem->regions;
	q->size = cfg->size;
	q->packed = cfg->features >> VIRTIO_F_RING_PACKED & 1;
	q->event_idx = cfg->features >> VIRTIO_RING_F_EVENT_IDX & 1;
	q->indirect = cfg->features >> VIRTIO_RING_F_INDIRECT_DESC & 1;
	q->call_fd = cfg->call_fd;
	q->err_fd = cfg->err_fd;
	return q->packed ? virtq_packed_init(q, cfg, mem) : virtq_split_init(q, cfg, mem);
}

/*
 * Only asked of a queue that has nothing in flight, so that what was popped has also been pushed: one index says all,
 * and packed rings' used half (the upper 16 bits) repeats it.
 */
uint32_t virtq_base(const struct virtq *q)
{
	uint32_t base;

	if (!q->packed)
		return q->avail_idx;
	base = q->avail_idx | (uint32_t)q->avail_wrap << 15;
	return base | base << 16;
}

bool virtq_more(struct virtq *q)
{
	if (q->fault != VIRTQ_FAULT_NONE)
		return false;
	return q->packed ? virtq_packed_more(q) : virtq_split_more(q);
}

int virtq_pop(struct virtq *q, struct virtq_chain *chain, struct iovec *iov, unsigned cap)
{
	if (unlikely(q->fault != VIRTQ_FAULT_NONE))
		return -EPROTO;
	return q->packed ? virtq_packed_pop(q, chain, iov, cap) : virtq_split_pop(q, chain, iov, cap);
}

unsigned virtq_pop_burst(struct virtq *q, const struct virtq_burst *b)
{
	if (unlikely(q->fault != VIRTQ_FAULT_NONE))
		return 0;
	return q->packed ? virtq_packed_pop_burst(q, b) : virtq_split_pop_burst(q, b);
}

void *virtq_find(struct virtq *q, uint64_t gpa, uint64_t len)
{
	const struct mem_region *r = mem_find_gpa(q->mem, gpa);

	if (!r)
		return NULL;
	q->near = r;
	return len <= r->size - (gpa - r->gpa) ? r->ptr + (gpa - r->gpa) : NULL;
}

int virtq_gather_rare(struct virtq *q, struct virtq_gather *g, uint64_t addr_gpa, uint32_t len, bool writable)
{
	struct virtq_chain *c = g->chain;
	uint64_t left = len;

	if (len == 0)
		return virtq_fail(q, VIRTQ_FAULT_ZERO_LENGTH);
	if (!writable && c->in_count > 0) /* virtio 1.2 §2.7.4.2: readable ones come first */
		return virtq_fail(q, VIRTQ_FAULT_ORDER);
	if (__builtin_add_overflow(writable ? c->in_len : c->out_len, len, writable ? &c->in_len : &c->out_len))
		return virtq_fail(q, VIRTQ_FAULT_TOO_MANY);
	if (addr_gpa + len < addr_gpa)
		return virtq_fail(q, VIRTQ_FAULT_ADDRESS);
	while (left > 0) {
		unsigned used = c->out_count + c->in_count;
		uint64_t run = left;
		void *at = mem_gpa_run(q->mem, addr_gpa, &run);

		if (!at)
			return virtq_fail(q, VIRTQ_FAULT_ADDRESS);
		if (used >= g->cap)
			return virtq_fail(q, VIRTQ_FAULT_TOO_MANY);
		g->iov[used] = (struct iovec){ at, run };
		(*(writable ? &c->in_count : &c->out_count))++;
		addr_gpa += run;
		left -= run;
	}
	return 0;
}

int virtq_check_indirect(struct virtq *q, uint32_t len, uint16_t flags)
{
	if (!q->indirect)
		return virtq_fail(q, VIRTQ_FAULT_INDIRECT_UNASKED);
	if (flags & VRING_DESC_F_NEXT) /* virtio 1.2 §2.7.5.3.1: never both */
		return virtq_fail(q, VIRTQ_FAULT_INDIRECT_NESTED);
	if (len == 0 || len % sizeof(struct vring_desc))
		return virtq_fail(q, VIRTQ_FAULT_INDIRECT_LENGTH);
	/* More entries than any ring has can only be a loop or a fill-up; it also bounds the walk. */
	if (len / sizeof(struct vring_desc) > VIRTQ_SIZE_MAX)
		return virtq_fail(q, VIRTQ_FAULT_TOO_MANY);
	return (int)(len / sizeof(struct vring_desc));
}

void virtq_unpop(struct virtq *q, const struct virtq_chain *chain)
{
	if (q->packed)
		virtq_packed_unpop(q, chain);
	else
		q->avail_idx--; /* its entry stays in avail.ring until it was used (virtio 1.2 §2.7.6) */
}

void virtq_refuse_burst(struct virtq *q, const struct virtq_chain *chains, unsigned n)
{
	while (n > 0)
		virtq_unpop(q, &chains[--n]);
	virtq_fail(q, VIRTQ_FAULT_REQUEST);
}

unsigned virtq_take(struct iovec *iov, void *dst, size_t len)
{
	uint8_t *to = dst;
	unsigned i = 0;

	while (len > 0) {
		size_t n = iov[i].iov_len < len ? iov[i].iov_len : len;

		copy_once(to, iov[i].iov_base, n);
		iov[i].iov_base = (uint8_t *)iov[i].iov_base + n;
		iov[i].iov_len -= n;
		to += n;
		len -= n;
		if (iov[i].iov_len == 0)
			i++;
	}
	return i;
}

void virtq_push(struct virtq *q, const struct virtq_chain *chain, uint32_t len)
{
	if (q->packed)
		virtq_packed_push(q, chain, len);
	else
		virtq_split_push(q, chain, len);
}

void virtq_push_burst(struct virtq *q, const struct virtq_chain *chains, unsigned n)
{
	if (q->packed)
		virtq_packed_push_burst(q, chains, n);
	else
		virtq_split_push_burst(q, chains, n);
}

void virtq_publish(struct virtq *q)
{
	bool call;

	if (q->unpublished == 0)
		return;
	call = q->packed ? virtq_packed_publish(q) : virtq_split_publish(q);
	q->unpublished = 0;
	if (call) {
		count_add(&q->calls, 1);
		signal_fd(q->call_fd);
	} else {
		count_add(&q->calls_suppressed, 1);
	}
}

void virtq_notify_off(struct virtq *q)
{
	if (q->packed)
		WRITE_ONCE(q->device_event->flags, VRING_PACKED_EVENT_FLAG_DISABLE);
	else if (!q->event_idx) /* with EVENT_IDX an avail_event that lies behind is "off" enough, and flags stay 0 */
		WRITE_ONCE(q->used->flags, VRING_USED_F_NO_NOTIFY);
}

void virtq_watch(struct virtq *q, struct eventfd_poll_info *word)
{
	memset(word, 0, sizeof(*word));
	if (q->packed)
		virtq_packed_watch(q, word);
	else
		virtq_split_watch(q, word);
}
