/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net_tap.c - a port on a tap device: one system call per frame, the header in front of it (IFF_VNET_HDR)
 *
 * The kernel behind a tap completes checksums and segments for whoever is further on, so a driver's offloads go through as
 * they are, in both directions. Which it may hand us is set by who opened the tap (TUNSETOFFLOAD).
 */
#include "net_port.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <stdlib.h>
#include <sys/ioctl.h>

#include "../../kernel/c/atomics.h"

static void tap_tx(struct net_port *port, struct net_frame *frames, unsigned n)
{
	int full = 0;

	for (unsigned i = 0; i < n; i++) {
		ssize_t rc = -1;

		frames[i].error = full;
		if (full)
			continue;
		do
			rc = writev(port->fd, frames[i].iov, (int)frames[i].iovcnt);
		while (rc < 0 && errno == EINTR);
		if (likely(rc >= 0))
			continue;
		frames[i].error = -errno;
		if (errno == EAGAIN)
			full = -EAGAIN;
		else
			store_relaxed(&port->error, (uint32_t)errno);
	}
}

static int tap_rx(struct net_port *port, struct net_frame *frames, unsigned n)
{
	ssize_t rc;

	(void)n; /* rx_batch is 1 */
	do
		rc = readv(port->fd, frames->iov, (int)frames->iovcnt);
	while (rc < 0 && errno == EINTR);
	if (rc < 0) {
		if (errno == EAGAIN)
			return 0;
		if (errno != EFAULT)
			store_relaxed(&port->error, (uint32_t)errno);
		return -errno;
	}
	frames->len = rc > NET_HDR_LEN ? (uint32_t)rc - NET_HDR_LEN : 0;
	return 1;
}

static void tap_destroy(struct net_port *port)
{
	free(port);
}

static const struct net_port_ops ops = { .tx = tap_tx, .rx = tap_rx, .destroy = tap_destroy };

int net_port_tap(struct net_port **out, int fd)
{
	struct net_port *port;
	struct ifreq ifr = { 0 };
	int header = NET_HDR_LEN, flags = fcntl(fd, F_GETFL);

	if (flags < 0 || ioctl(fd, TUNGETIFF, &ifr) < 0)
		return -errno;
	if ((ifr.ifr_flags & (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)) != (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
		return -EINVAL;
	if (ioctl(fd, TUNSETVNETHDRSZ, &header) < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
		return -errno;
	port = calloc(1, sizeof(*port));
	if (!port)
		return -ENOMEM;
	*port = (struct net_port){ .ops = &ops, .fd = fd, .rx_batch = 1 };
	*out = port;
	return 0;
}
