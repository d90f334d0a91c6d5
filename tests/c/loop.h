/* SPDX-License-Identifier: Apache-2.0 */
/*
 * loop.h - a block device of a test's own, over a file
 *
 * loop_add() takes whichever is free, as everybody does. What changes the device for good, such as its limits in sysfs,
 * is for loop_own() and loop_disown(), one at a time: nobody else comes upon a device of that number.
 */
#ifndef KPOLL_TEST_LOOP_H
#define KPOLL_TEST_LOOP_H

#include <fcntl.h>
#include <limits.h>
#include <linux/loop.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "check.h"

/* A loop device that isn't over any file yet. Return: whether it is over this one now */
static inline bool loop_bind(int loop, const char *file, uint32_t block)
{
	int fd = open(file, O_RDWR | O_CLOEXEC);
	struct loop_config config = { .fd = (uint32_t)fd, .block_size = block, .info.lo_flags = LO_FLAGS_AUTOCLEAR };
	bool bound;

	CHECK(fd >= 0);
	bound = ioctl(loop, LOOP_CONFIGURE, &config) == 0;
	close(fd);
	return bound;
}

/* Return: the descriptor of @device, or -1 where there can be none; closing it ends the loop (AUTOCLEAR) */
static inline int loop_add(char device[PATH_MAX], const char *file)
{
	int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC), loop = -1;

	for (unsigned tries = 0; control >= 0 && loop < 0 && tries < 10; tries++) { /* others take them too */
		int n = ioctl(control, LOOP_CTL_GET_FREE);

		if (n < 0)
			break;
		snprintf(device, PATH_MAX, "/dev/loop%d", n);
		loop = open(device, O_RDWR | O_CLOEXEC);
		if (loop >= 0 && !loop_bind(loop, file, 512)) {
			close(loop);
			loop = -1;
		}
	}
	if (control >= 0)
		close(control);
	return loop;
}

static inline int loop_control(unsigned long request)
{
	int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC), ret = -1;

	if (control >= 0) {
		ret = ioctl(control, request, 10000 + getpid() % 10000);
		close(control);
	}
	return ret;
}

/* Return: the descriptor of @device, which is over no file yet; or -1 where there can be none */
static inline int loop_own(char device[PATH_MAX])
{
	int number = loop_control(LOOP_CTL_ADD);

	snprintf(device, PATH_MAX, "/dev/loop%d", number);
	return number < 0 ? -1 : open(device, O_RDWR | O_CLOEXEC);
}

static inline void loop_disown(void)
{
	loop_control(LOOP_CTL_REMOVE);
}

#endif
