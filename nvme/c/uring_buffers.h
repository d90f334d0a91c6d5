/* SPDX-License-Identifier: Apache-2.0 */
/*
 * uring_buffers.h - memory that is registered with a ring, so that the kernel needn't look its pages up for each request
 *
 * Private to nvme/c/uring*.c.
 */
#ifndef KPOLL_URING_BUFFERS_H
#define KPOLL_URING_BUFFERS_H

#include <liburing.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#define URING_BUFFERS_MAX 1024

struct uring_buffer {
	uintptr_t base;
	size_t len;
	uint16_t index; /* the kernel's name of it */
};

struct uring_buffers {
	unsigned count;
	struct uring_buffer buffers[URING_BUFFERS_MAX]; /* in order of base; none overlap */
	bool taken[URING_BUFFERS_MAX];                  /* by index */
};

/* uring_buffers_init() - Prepare the ring for them. Return: 0; -EINVAL before Linux 5.19; -ENOMEM */
int uring_buffers_init(struct uring_buffers *b, struct io_uring *ring);

/*
 * uring_buffers_set() - Have this memory registered, as far as that goes, and no other; none of it overlaps
 *
 * What is registered stays so. Nothing else may be going on on the ring.
 * Return: 0, or why a part isn't registered: -ENOMEM (RLIMIT_MEMLOCK), -EOPNOTSUPP (a file's pages), -ENOSPC (too many parts)
 */
int uring_buffers_set(struct uring_buffers *b, struct io_uring *ring, const struct iovec *memory, unsigned count);

/* uring_buffers_find() - Return: the index of the buffer that has all of these bytes, or -1 */
int uring_buffers_find(const struct uring_buffers *b, const void *base, size_t len);

#endif
