/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * What the patched kernel's <linux/aio_abi.h> has beyond others': AIO whose waiters poll the device's queue
 *
 * Kernels that don't know the flag ignore it; compat_features of the ring at an aio_context_t's address tells.
 */
#ifndef _UAPI_LINUX_AIO_POLL_H
#define _UAPI_LINUX_AIO_POLL_H

#ifndef IOCB_FLAG_HIPRI
#define IOCB_FLAG_HIPRI (1 << 2)
#define AIO_RING_COMPAT_HIPRI (1 << 1)
#endif

#endif
