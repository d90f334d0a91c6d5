/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sync.h - carry out one request with blocking system calls
 *
 * Private to nvme/c: the work of a helper thread.
 */
#ifndef KPOLL_IO_SYNC_H
#define KPOLL_IO_SYNC_H

#include "io.h"

/* A thread's buffer that suits O_DIRECT, for guest buffers that don't; allocated when first needed, then kept. */
struct io_bounce {
	uint8_t *buf;
};

#define IO_BOUNCE_SIZE (1u << 20)

/**
 * io_sync() - Carry out a request from r->done on
 *
 * Moves r->done forward; r->iov is afterwards as it was.
 * Return: 0 when all of r->len is done; -EIO where the file ends early; -EINVAL for a range that a block device's
 * block size forbids; -ENOMEM for want of a bounce buffer; -errno of the system call
 */
int io_sync(struct io_target *t, struct io_req *r, struct io_bounce *bounce);

void io_bounce_free(struct io_bounce *bounce);

#endif
