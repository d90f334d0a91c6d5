/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtq.h - the device side of a virtqueue, split (virtio 1.2 §2.7) or packed (§2.8)
 *
 * One thread owns a virtq at a time. It pops chains, keeps them as long as it likes, pushes them back in any order
 * and publishes what it pushed in one go. Whatever the driver wrote is read once, checked, and used from the copy;
 * the first thing that does not check out sets `fault`, after which the queue pops nothing more.
 */
#ifndef KPOLL_VIRTQ_H
#define KPOLL_VIRTQ_H

#include <linux/virtio_ring.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "../../kernel/uapi/eventfd_poll.h"
#include "mem.h"

#define VIRTQ_SIZE_MAX 32768

enum virtq_fault {
	VIRTQ_FAULT_NONE = 0,
	VIRTQ_FAULT_AVAIL_IDX,        /* avail.idx ran ahead by more than the queue size */
	VIRTQ_FAULT_DESC_INDEX,       /* head or next outside the descriptor table */
	VIRTQ_FAULT_LOOP,             /* a chain longer than the table: it loops */
	VIRTQ_FAULT_ADDRESS,          /* a buffer (or an indirect table) outside guest memory, or wrapping */
	VIRTQ_FAULT_ZERO_LENGTH,      /* a descriptor of no bytes */
	VIRTQ_FAULT_TOO_MANY,         /* more descriptors or bytes than the device takes */
	VIRTQ_FAULT_INDIRECT_NESTED,  /* an indirect table inside one, or INDIRECT with NEXT */
	VIRTQ_FAULT_INDIRECT_LENGTH,  /* indirect table empty, or no multiple of 16 */
	VIRTQ_FAULT_INDIRECT_UNASKED, /* INDIRECT without the feature */
	VIRTQ_FAULT_ORDER,            /* a device-readable descriptor after a device-writable one */
	VIRTQ_FAULT_BUFFER_ID,        /* packed: a buffer id beyond the queue size */
	VIRTQ_FAULT_INCOMPLETE,       /* packed: a chain whose end was not made available */
	VIRTQ_FAULT_MEMORY_GONE,      /* the front-end truncated its memory under us */
	VIRTQ_FAULT_REQUEST,          /* the device could not even parse the request (set by the device) */
	VIRTQ_FAULT_COUNT,
};

/* virtq_fault_name() - The fault as the snake_case word of logs and metrics */
const char *virtq_fault_name(enum virtq_fault fault);

/* A popped chain: what the device keeps to push it back. */
struct virtq_chain {
	uint16_t id;              /* split: head index; packed: buffer id */
	uint16_t ndesc;           /* ring slots it occupies (packed; 1 for split) */
	uint16_t out_count;       /* iov[0 .. out_count) is device-readable */
	uint16_t in_count;        /* iov[out_count .. out_count + in_count) is device-writable */
	uint32_t out_len, in_len; /* their bytes */
};

struct virtq_config {
	uint32_t size;     /* 1..32768; a power of two unless packed */
	uint64_t features; /* negotiated */
	uint64_t desc_uva, avail_uva, used_uva;
	uint32_t base;       /* SET_VRING_BASE's number: avail index; packed: bit 15 its wrap counter */
	int call_fd, err_fd; /* -1: none. Not owned; call_fd may be dup2()ed over while the queue runs */
};

struct virtq {
	const struct mem_region *near; /* where the last buffer was found: the next one's is most likely the same */

	/* Written at set-up only. */
	const struct mem_table *mem;
	union {
		const struct vring_desc *desc;
		struct vring_packed_desc *ring;
	};
	union {
		const struct vring_avail *avail;
		const struct vring_packed_desc_event *driver_event;
	};
	union {
		struct vring_used *used;
		struct vring_packed_desc_event *device_event;
	};
	uint32_t size;
	bool packed, event_idx, indirect;
	int call_fd, err_fd;

	/* The owner's, every request. Indices are ring positions; split ones run freely modulo 2^16. */
	uint16_t avail_idx;         /* next to pop (split: entry of avail.ring; packed: slot) */
	uint16_t avail_seen;        /* split: avail.idx as last read */
	uint16_t used_idx;          /* next to push (split: entry of used.ring; packed: slot) */
	uint16_t used_published;    /* where the driver's view ends: the first push that it can't see yet */
	uint16_t unpublished;       /* ring positions pushed since */
	uint16_t first_flags;       /* packed: flags of the first unpublished push, stored last */
	bool avail_wrap, used_wrap; /* packed: wrap counters */
	bool called_before;         /* split EVENT_IDX: used_event means something from the second publish on */
	enum virtq_fault fault;
	struct eventfd_poll_pair next; /* packed: where the next descriptor's flags lie, and their value once available */

	uint64_t calls, calls_suppressed; /* counters for the metrics */
};

/**
 * virtq_init() - Bind a virtqueue to its rings
 * @mem:	Sealed table; must outlive the binding
 *
 * Return: 0; -EINVAL for a bad size, or rings misaligned or overlapping; -EFAULT when a ring lies outside guest memory
 */
int virtq_init(struct virtq *q, const struct virtq_config *cfg, const struct mem_table *mem);

/* virtq_base() - The number that GET_VRING_BASE answers, from which virtq_init() continues */
uint32_t virtq_base(const struct virtq *q);

/* virtq_more() - Is there a chain that virtq_pop() would return (or a fault to find)? Reads the ring. */
bool virtq_more(struct virtq *q);

/**
 * virtq_pop() - Take the next available chain
 * @iov:	Receives its buffers, ours to access, readable ones first
 * @cap:	Room in @iov
 *
 * Return: 1; 0 when nothing is available; -EPROTO with @q->fault set and the err fd signalled
 */
int virtq_pop(struct virtq *q, struct virtq_chain *chain, struct iovec *iov, unsigned cap);

/* Where a burst of chains goes. */
struct virtq_burst {
	struct virtq_chain *chains;
	unsigned max; /* room in chains */
	/* Receives the buffers of one chain after the other, with @gap entries left free before each chain's. */
	struct iovec *iov;
	unsigned cap;     /* room in iov */
	unsigned seg_max; /* most buffers of one chain, as virtq_pop()'s cap */
	unsigned gap;
};

/**
 * virtq_pop_burst() - Take the next available chains, while there are any and @b has room for the longest
 *
 * As virtq_pop() again and again, but that the avail index is read once.
 *
 * Return: how many. When @q->fault is set, the chain after them is the one that did not check out.
 */
unsigned virtq_pop_burst(struct virtq *q, const struct virtq_burst *b);

/**
 * virtq_unpop() - Take back the last pop: the chain is the next that virtq_pop() returns
 * @chain:	Popped last of all that were neither pushed nor unpopped
 *
 * For who pops ahead (net rx buffers) and must stop with nothing in flight. Every chain popped before it, and not unpopped
 * after it, is to be pushed: the ring remembers one position, not which chains were left out.
 */
void virtq_unpop(struct virtq *q, const struct virtq_chain *chain);

/* virtq_refuse_burst() - Unpop the last @n chains, and mark the queue broken: the first of them is no request */
void virtq_refuse_burst(struct virtq *q, const struct virtq_chain *chains, unsigned n);

/**
 * virtq_take() - Copy @len bytes once from the front of popped buffers, taking them off
 * @iov:	Holds as many bytes: a chain's out_len, which the caller has looked at
 *
 * Return: iovecs used up
 */
unsigned virtq_take(struct iovec *iov, void *dst, size_t len);

/* virtq_push() - Give a chain back with @len bytes written to it; the driver sees it after virtq_publish() */
void virtq_push(struct virtq *q, const struct virtq_chain *chain, uint32_t len);

/* virtq_push_burst() - Give chains back with nothing written to them */
void virtq_push_burst(struct virtq *q, const struct virtq_chain *chains, unsigned n);

/* virtq_publish() - Let the driver see all pushes, and call it (write call_fd) if it wants that */
void virtq_publish(struct virtq *q);

/* virtq_notify_off() - Ask the driver not to kick. A hint: kicks may still come. */
void virtq_notify_off(struct virtq *q);

/**
 * virtq_watch() - Describe "something became available" as a memory condition, with the arm word that turns kicks on
 *
 * The description points into @q and the ring; it holds until the virtq is bound anew.
 */
void virtq_watch(struct virtq *q, struct eventfd_poll_info *word);

/* virtq_fail() - Mark the queue broken (first fault wins) and signal the err fd. Return: -EPROTO */
int virtq_fail(struct virtq *q, enum virtq_fault fault);

#endif
