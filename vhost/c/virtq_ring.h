/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtq_ring.h - what split and packed virtqueues share inside vhost/: turning descriptors into iovecs
 */
#ifndef KPOLL_VIRTQ_RING_H
#define KPOLL_VIRTQ_RING_H

#include "../../kernel/c/atomics.h"
#include "virtq.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "rings are little-endian; this host would need swaps");
_Static_assert(sizeof(struct vring_desc) == 16 && sizeof(struct vring_packed_desc) == 16, "descriptors are 16 bytes");

typedef uint64_t __attribute__((may_alias)) virtq_word;

/* Copy a descriptor once, in two loads. @at is 8-byte aligned. */
static inline struct vring_desc virtq_copy_desc(const struct vring_desc *at)
{
	const virtq_word *words = (const virtq_word *)at;
	uint64_t rest = READ_ONCE(words[1]);

	return (struct vring_desc){ .addr = READ_ONCE(words[0]),
				    .len = (uint32_t)rest,
				    .flags = (uint16_t)(rest >> 32),
				    .next = (uint16_t)(rest >> 48) };
}

static inline struct vring_packed_desc virtq_copy_packed_desc(const struct vring_packed_desc *at)
{
	const virtq_word *words = (const virtq_word *)at;
	uint64_t rest = READ_ONCE(words[1]);

	return (struct vring_packed_desc){ .addr = READ_ONCE(words[0]),
					   .len = (uint32_t)rest,
					   .id = (uint16_t)(rest >> 32),
					   .flags = (uint16_t)(rest >> 48) };
}

/* Where a chain's buffers are gathered. */
struct virtq_gather {
	struct virtq_chain *chain;
	struct iovec *iov;
	unsigned cap;
};

/* Where the last of a burst's chains may start, if there is to be room for the longest; before iov when it isn't at all. */
static inline ptrdiff_t virtq_burst_last(const struct virtq_burst *b)
{
	return (ptrdiff_t)b->cap - (ptrdiff_t)(b->gap + b->seg_max);
}

/* virtq_at() - As mem_gpa(), and remember where it was. virtq_find(): when it isn't where the last one was */
void *virtq_find(struct virtq *q, uint64_t gpa, uint64_t len);
static inline void *virtq_at(struct virtq *q, uint64_t gpa, uint64_t len)
{
	const struct mem_region *r = q->near;
	uint64_t at = gpa - r->gpa; /* huge when gpa < r->gpa */

	if (likely(at < r->size && len <= r->size - at))
		return r->ptr + at;
	return virtq_find(q, gpa, len);
}

/*
 * virtq_gather_single() - Make a chain of one descriptor, which most are, in the region @near, where the last one was. Return:
 * false when it takes virtq_gather_buffer() to do it, or to say what is wrong
 */
static inline bool virtq_gather_single(const struct mem_region *near, struct virtq_chain *chain, struct iovec *iov,
				       unsigned cap, uint16_t id, uint64_t addr_gpa, uint32_t len, bool writable)
{
	uint64_t at = addr_gpa - near->gpa;
	uint32_t in_len = writable ? len : 0;

	/* A length of 0 less 1 is larger than any room. */
	if (unlikely(at >= near->size || (uint64_t)len - 1 >= near->size - at || cap == 0))
		return false;
	*iov = (struct iovec){ near->ptr + at, len };
	*chain = (struct virtq_chain){ .id = id,
				       .ndesc = 1,
				       .out_count = !writable,
				       .in_count = writable,
				       .out_len = len - in_len,
				       .in_len = in_len };
	return true;
}

/* virtq_gather_rare() - Append a buffer that crosses mappings, or find out what is wrong with it. Return: 0 or -EPROTO */
int virtq_gather_rare(struct virtq *q, struct virtq_gather *g, uint64_t addr_gpa, uint32_t len, bool writable);

/* virtq_gather_buffer() - Append one descriptor's buffer. Return: 0 or -EPROTO (virtq_fail() has been called) */
static inline int virtq_gather_buffer(struct virtq *q, struct virtq_gather *g, uint64_t addr_gpa, uint32_t len,
				      bool writable)
{
	struct virtq_chain *c = g->chain;
	unsigned used = c->out_count + c->in_count;
	uint32_t total = (writable ? c->in_len : c->out_len) + len;
	void *at = virtq_at(q, addr_gpa, len);

	/* A total that did not grow has wrapped, or @len is 0. */
	if (unlikely(!at || used >= g->cap || total <= len - 1 || (!writable && c->in_count > 0)))
		return virtq_gather_rare(q, g, addr_gpa, len, writable);
	g->iov[used] = (struct iovec){ at, len };
	if (writable) {
		c->in_count++;
		c->in_len = total;
	} else {
		c->out_count++;
		c->out_len = total;
	}
	return 0;
}

/* virtq_check_indirect() - The rules for a descriptor with VRING_DESC_F_INDIRECT. Return: entries in its table or -EPROTO */
int virtq_check_indirect(struct virtq *q, uint32_t len, uint16_t flags);

int virtq_split_init(struct virtq *q, const struct virtq_config *cfg, const struct mem_table *mem);
bool virtq_split_more(struct virtq *q);
int virtq_split_pop(struct virtq *q, struct virtq_chain *chain, struct iovec *iov, unsigned cap);
unsigned virtq_split_pop_burst(struct virtq *q, const struct virtq_burst *b);
void virtq_split_push(struct virtq *q, const struct virtq_chain *chain, uint32_t len);
void virtq_split_push_burst(struct virtq *q, const struct virtq_chain *chains, unsigned n);
bool virtq_split_publish(struct virtq *q);
void virtq_split_watch(struct virtq *q, struct eventfd_poll_info *word);

int virtq_packed_init(struct virtq *q, const struct virtq_config *cfg, const struct mem_table *mem);
bool virtq_packed_more(struct virtq *q);
int virtq_packed_pop(struct virtq *q, struct virtq_chain *chain, struct iovec *iov, unsigned cap);
unsigned virtq_packed_pop_burst(struct virtq *q, const struct virtq_burst *b);
void virtq_packed_unpop(struct virtq *q, const struct virtq_chain *chain);
void virtq_packed_push(struct virtq *q, const struct virtq_chain *chain, uint32_t len);
void virtq_packed_push_burst(struct virtq *q, const struct virtq_chain *chains, unsigned n);
bool virtq_packed_publish(struct virtq *q);
void virtq_packed_watch(struct virtq *q, struct eventfd_poll_info *word);

#endif
