/* SPDX-License-Identifier: Apache-2.0 */
/*
 * engine.h - what the I/O engines share among themselves: lists, alignment, and their constructors
 *
 * Private to nvme/c; everybody else includes io.h.
 */
#ifndef KPOLL_IO_ENGINE_H
#define KPOLL_IO_ENGINE_H

#include "../../kernel/c/atomics.h"
#include "io.h"

int aio_create(struct io_engine **out, struct io_target *t, uint32_t depth);
int aio_iopoll_create(struct io_engine **out, struct io_target *t, uint32_t depth);
int uring_create(struct io_engine **out, struct io_target *t, uint32_t depth);
int uring_iopoll_create(struct io_engine **out, struct io_target *t, uint32_t depth);
int null_create(struct io_engine **out, struct io_target *t, uint32_t depth);

/* A queue of requests, first in, first out, linked through io_req.next. */
struct io_list {
	struct io_req *first, *last;
};

static inline void io_list_push(struct io_list *l, struct io_req *r)
{
	r->next = NULL;
	if (l->first)
		l->last->next = r;
	else
		l->first = r;
	l->last = r;
}

static inline struct io_req *io_list_pop(struct io_list *l)
{
	struct io_req *r = l->first;

	if (r)
		l->first = r->next;
	return r;
}

/*
 * Would O_DIRECT refuse this range or these buffers? statx(2): stx_dio_mem_align is for buffers, stx_dio_offset_align
 * "for file offsets and I/O segment lengths". Both are 1 for a target without O_DIRECT, so the masks are 0 there.
 */
static inline bool io_range_misaligned(const struct io_target *t, uint64_t offset, uint64_t len)
{
	return (offset | len) & (t->offset_align - 1);
}

static inline bool io_iov_misaligned(const struct io_target *t, const struct iovec *iov, uint32_t count)
{
	uintptr_t bases = 0;
	size_t lens = 0;

	for (uint32_t i = 0; i < count; i++) {
		bases |= (uintptr_t)iov[i].iov_base;
		lens |= iov[i].iov_len;
	}
	return (bases & (t->mem_align - 1)) | (lens & (t->offset_align - 1));
}

/*
 * Would the device take a read or write at once, as far as we can tell? The kernel would cut what is too long, what lies in
 * too many pages (each may be a segment), and what has gaps inside pages: NVMe's lists of pages can't have any.
 *
 * Pages that are neighbours in physical memory, as in huge pages, are one segment to the kernel, but which ones are is not
 * ours to see. So pages are counted, as many as there can be segments. With 127 segments, which is what Linux' PCI driver
 * takes, that excludes what is longer than 508 KiB; it takes the device so long that an interrupt more is next to
 * nothing. To try it polled would cost those that are cut after all a submission in vain, with all their pages.
 */
static inline bool io_in_one_piece(const struct io_target *t, const struct io_req *r)
{
	const uintptr_t inside = 4096 - 1;
	uintptr_t gaps = 0;
	uint64_t pages = 0;

	for (uint32_t i = 0; i < r->iovcnt; i++) {
		uintptr_t base = (uintptr_t)r->iov[i].iov_base, end = base + r->iov[i].iov_len;

		pages += (end + inside) / 4096 - base / 4096;
		gaps |= (i > 0 ? base : 0) | (i + 1 < r->iovcnt ? end : 0);
	}
	return (!t->max_bytes || r->len <= t->max_bytes) && (!t->max_segments || pages <= t->max_segments) &&
	       !(gaps & inside);
}

#endif
