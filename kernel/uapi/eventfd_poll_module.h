/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * EVENTFD_SET_POLL where the kernel hasn't got it: by way of the loadable module eventfd_poll
 *
 * A module can't add an ioctl to eventfds. Its device makes a wrapper instead: the argument is an eventfd (by value),
 * the result a new close-on-exec descriptor that is readable when the eventfd is or the condition holds, and that takes
 * EVENTFD_SET_POLL. What a module can't do (F_ARM) it refuses with EINVAL.
 */
#ifndef _UAPI_LINUX_EVENTFD_POLL_MODULE_H
#define _UAPI_LINUX_EVENTFD_POLL_MODULE_H

#include "eventfd_poll.h"

#define EVENTFD_POLL_DEVICE "/dev/eventfd_poll"
#define EVENTFD_POLL_WRAP _IO(0xED, 0x01)

#endif
