/* SPDX-License-Identifier: Apache-2.0 */
/*
 * signal_fd.h - ring a doorbell: an eventfd, or the pipe or socket that a front-end has in its place
 */
#ifndef KPOLL_SIGNAL_FD_H
#define KPOLL_SIGNAL_FD_H

#include <stdint.h>
#include <unistd.h>

/*
 * signal_fd() - Signal a descriptor, which must be non-blocking; -1: nobody is to be told
 *
 * There is nothing to do about a failure: a full counter or pipe means that the other side has been told already.
 * Async-signal-safe, but for errno.
 */
static inline void signal_fd(int fd)
{
	const uint64_t one = 1;

	if (fd >= 0)
		(void)!write(fd, &one, sizeof(one));
}

#endif
