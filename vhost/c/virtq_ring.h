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

/* Where a chain's buffers are gathered. */
struct virtq_gather {
	struct virtq_chain *chain;
	struct iovec *iov;
	unsigned cap;
};

/* virtq_gather_buffer() - Append one descriptor's buffer. Return: 0 or -EPROTO (virtq_fail() has been called) */
int virtq_gather_buffer(struct virtq *q, struct virtq_gather *g, uint64_t addr_gpa, uint32_t len, bool writable);

/* virtq_check_indirect() - The rules for a descriptor with VRING_DESC_F_INDIRECT. Return: entries in its table or -EPROTO */
int virtq_check_indirect(struct virtq *q, uint32_t len, uint16_t flags);

int virtq_split_init(struct virtq *q, const struct virtq_config *cfg, const struct mem_table *mem);
bool virtq_split_more(struct virtq *q);
int virtq_split_pop(struct virtq *q, struct virtq_gather *g);
void virtq_split_push(struct virtq *q, const struct virtq_chain *chain, uint32_t len);
bool virtq_split_publish(struct virtq *q);
void virtq_split_watch(struct virtq *q, struct eventfd_poll_info *word);

int virtq_packed_init(struct virtq *q, const struct virtq_config *cfg, const struct mem_table *mem);
bool virtq_packed_more(struct virtq *q);
int virtq_packed_pop(struct virtq *q, struct virtq_gather *g);
void virtq_packed_push(struct virtq *q, const struct virtq_chain *chain, uint32_t len);
bool virtq_packed_publish(struct virtq *q);
void virtq_packed_watch(struct virtq *q, struct eventfd_poll_info *word);

#endif
