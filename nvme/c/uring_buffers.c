// SPDX-License-Identifier: Apache-2.0
/*
 * uring_buffers.c - memory that is registered with a ring, in pieces as large as the kernel takes them
 *
 * The kernel pins a buffer's pages when it is registered: they stay what they are until it is unregistered, whatever
 * becomes of the mapping meanwhile. So a buffer must go before its mapping does; at the same address there may soon be
 * other memory, and I/O would still go to these pages.
 */
#include "uring_buffers.h"

#include <errno.h>

#define PIECE_MAX (1ul << 30) /* fs/io_uring: "arbitrary limit, but we need something" */

/* Give index @index this memory, or none. Return: 0 or -errno */
static int update(struct io_uring *ring, unsigned index, uintptr_t base, size_t len)
{
	struct iovec iov = { (void *)base, len };
	__u64 tag = 0;
	int ret = io_uring_register_buffers_update_tag(ring, index, &iov, &tag, 1);

	return ret < 0 ? ret : ret == 1 ? 0 : -EIO;
}

/* Is this piece in what is to be registered, cut as it would be? */
static bool wanted(const struct uring_buffer *b, const struct iovec *memory, unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		uintptr_t base = (uintptr_t)memory[i].iov_base;
		size_t at = b->base - base; /* huge when it lies before */

		if (at < memory[i].iov_len && at % PIECE_MAX == 0)
			return b->len == (memory[i].iov_len - at < PIECE_MAX ? memory[i].iov_len - at : PIECE_MAX);
	}
	return false;
}

/* Give up what isn't wanted any more; whatever the kernel says of it, it isn't used again. */
static int drop_others(struct uring_buffers *b, struct io_uring *ring, const struct iovec *memory, unsigned count)
{
	unsigned kept = 0;
	int error = 0;

	for (unsigned i = 0; i < b->count; i++) {
		struct uring_buffer each = b->buffers[i];
		int ret;

		if (wanted(&each, memory, count)) {
			b->buffers[kept++] = each;
			continue;
		}
		ret = update(ring, each.index, 0, 0);
		if (ret < 0)
			error = ret;
		else
			b->taken[each.index] = false;
	}
	b->count = kept;
	return error;
}

static int add(struct uring_buffers *b, struct io_uring *ring, uintptr_t base, size_t len)
{
	unsigned index = 0, at = b->count;
	int ret;

	while (index < URING_BUFFERS_MAX && b->taken[index])
		index++;
	if (index == URING_BUFFERS_MAX)
		return -ENOSPC;
	ret = update(ring, index, base, len);
	if (ret < 0)
		return ret;
	b->taken[index] = true;
	for (; at > 0 && b->buffers[at - 1].base > base; at--)
		b->buffers[at] = b->buffers[at - 1];
	b->buffers[at] = (struct uring_buffer){ base, len, (uint16_t)index };
	b->count++;
	return 0;
}

int uring_buffers_init(struct uring_buffers *b, struct io_uring *ring)
{
	*b = (struct uring_buffers){ 0 };
	return io_uring_register_buffers_sparse(ring, URING_BUFFERS_MAX);
}

int uring_buffers_set(struct uring_buffers *b, struct io_uring *ring, const struct iovec *memory, unsigned count)
{
	int error = drop_others(b, ring, memory, count);

	for (unsigned i = 0; i < count; i++) {
		uintptr_t base = (uintptr_t)memory[i].iov_base;

		for (size_t at = 0; at < memory[i].iov_len; at += PIECE_MAX) {
			size_t len = memory[i].iov_len - at < PIECE_MAX ? memory[i].iov_len - at : PIECE_MAX;
			int ret = 0;

			if (uring_buffers_find(b, (const void *)(base + at), len) < 0)
				ret = add(b, ring, base + at, len);
			if (ret < 0)
				error = ret;
		}
	}
	return error;
}

int uring_buffers_find(const struct uring_buffers *b, const void *base, size_t len)
{
	const struct uring_buffer *found;
	uintptr_t first = (uintptr_t)base;
	unsigned low = 0, high = b->count;

	while (low < high) { /* find the last one that begins no later */
		unsigned middle = low + (high - low) / 2;

		if (b->buffers[middle].base <= first)
			low = middle + 1;
		else
			high = middle;
	}
	if (!low)
		return -1;
	found = &b->buffers[low - 1];
	first -= found->base;
	return first < found->len && len <= found->len - first ? found->index : -1;
}
