/* SPDX-License-Identifier: Apache-2.0 */
/*
 * smart.h - how an NVMe device is: its SMART / Health Information log page (NVMe base 2.0 §5.16.1.3)
 */
#ifndef KPOLL_SMART_H
#define KPOLL_SMART_H

#include <linux/filter.h>
#include <linux/nvme_ioctl.h>
#include <stdint.h>

#define SMART_BYTES 512

/**
 * smart_read() - Ask the controller behind a device for the page; blocks until it answers
 * @device:	A controller's, namespace's or partition's descriptor; the caller has CAP_SYS_ADMIN
 *
 * Return: 0; the NVMe status, above 0, when the device refuses; -EACCES without the capability, -ENOTTY when it isn't
 * of NVMe, or what else ioctl(2) says
 */
int smart_read(int device, uint8_t page[SMART_BYTES]);

/* What smart_serve() answers. */
struct smart_answer {
	int32_t status; /* as smart_read() returns it */
	uint8_t page[SMART_BYTES];
};

/**
 * smart_serve() - Give up all system calls that @filter denies, then answer each byte on @sock with a struct smart_answer
 * @device:	As for smart_read(); all lower descriptors are open
 * @sock:	A connected SOCK_SEQPACKET socket
 * @news:	Another one; a descriptor that comes by it takes @device's place. No socket: none will
 * @filter:	Of seccomp; @length instructions
 *
 * For a process of its own, which it ends when @sock's other end is closed: nothing is done once the filter is in but
 * ioctl(2) on @device, read(2) and write(2) on @sock, and exit_group(2). Return: -errno when the filter can't be had
 */
int smart_serve(int device, int sock, int news, const void *filter, uint16_t length);

#endif
