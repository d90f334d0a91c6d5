/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * EVENTFD_SET_POLL: let poll, select and epoll on an eventfd watch a word of memory
 *
 * See Documentation/userspace-api/eventfd_poll.rst.
 */
#ifndef _UAPI_LINUX_EVENTFD_POLL_H
#define _UAPI_LINUX_EVENTFD_POLL_H

#include <linux/ioctl.h>
#include <linux/types.h>

/**
 * struct eventfd_poll_info - a condition on a word of the caller's memory
 * @addr:     naturally aligned address of the word; with F_INDIRECT, of a struct eventfd_poll_pair
 * @size:     1, 2, 4 or 8 bytes
 * @op:       EVENTFD_POLL_OP_*
 * @val:      comparand; for NOT_EQUAL_PTR the address of a word of the same size to compare with
 * @mask:     the bits of the word that count; 0 means all of them
 * @flags:    EVENTFD_POLL_F_*
 * @max_us:   spin at most this many microseconds for this word; 0: as the administrator allows
 * @arm_addr: with F_ARM, a word of the same size, written just before the poller really sleeps
 * @arm_val:  what is written there; with F_ARM_PTR the address of what is written
 */
struct eventfd_poll_info {
	__u64 addr;
	__u32 size;
	__u32 op;
	__u64 val;
	__u64 mask;
	__u32 flags;
	__u32 max_us;
	__u64 arm_addr;
	__u64 arm_val;
};

/* What addr names under F_INDIRECT; the poller reads it again each time it looks. */
struct eventfd_poll_pair {
	__u64 addr;
	__u64 val;
};

#define EVENTFD_POLL_OP_NONE 0 /* clear the condition */
#define EVENTFD_POLL_OP_EQUAL 1
#define EVENTFD_POLL_OP_NOT_EQUAL 2
#define EVENTFD_POLL_OP_AND 3  /* (word & val) != 0 */
#define EVENTFD_POLL_OP_NAND 4 /* (word & val) == 0 */
#define EVENTFD_POLL_OP_NOT_EQUAL_PTR 5

#define EVENTFD_POLL_F_ARM 1
#define EVENTFD_POLL_F_ARM_PTR 2
#define EVENTFD_POLL_F_INDIRECT 4

#define EVENTFD_SET_POLL _IOW(0xED, 0x00, struct eventfd_poll_info)

#endif
