/* SPDX-License-Identifier: Apache-2.0 */
/*
 * aio_ring.h - the ring that lies at an aio_context_t's address: the kernel's struct aio_ring, in fs/aio.c
 *
 * The kernel stores events and then moves `tail`; we read them and move `head`.
 */
#ifndef KPOLL_AIO_RING_H
#define KPOLL_AIO_RING_H

#include <linux/aio_abi.h>
#include <stdbool.h>
#include <stddef.h>

#include "../../kernel/uapi/aio_poll.h"

#define AIO_RING_MAGIC 0xa10a10a1

struct aio_ring {
	unsigned id, nr, head, tail;
	unsigned magic, compat_features, incompat_features, header_length;
	struct io_event events[];
};

/* Return: the ring, or NULL if it isn't one that we know */
static inline struct aio_ring *aio_ring_of(aio_context_t ctx)
{
	struct aio_ring *ring = (struct aio_ring *)ctx;
	bool known = ring->magic == AIO_RING_MAGIC && ring->incompat_features == 0 &&
		     ring->header_length == sizeof(*ring);

	return known ? ring : NULL;
}

/* Does the kernel know IOCB_FLAG_HIPRI? */
static inline bool aio_ring_polls(const struct aio_ring *ring)
{
	return ring && ring->compat_features & AIO_RING_COMPAT_HIPRI;
}

#endif
