/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net_udp.c - a port on a connected datagram socket: each datagram is one frame, and nothing else
 *
 * That is what QEMU's `-netdev dgram` speaks. No header goes over the wire, so a card on this port offers no offloads.
 */
#include "net_port.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "../../kernel/c/atomics.h"

struct udp_port {
	struct net_port port;
	struct mmsghdr msgs[NET_BATCH];
};

static void prepare(struct udp_port *udp, const struct net_frame *frames, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		udp->msgs[i].msg_hdr =
			(struct msghdr){ .msg_iov = frames[i].iov + 1, .msg_iovlen = frames[i].iovcnt - 1 };
}

/*
 * What an earlier datagram met on its way (an ICMP error) is told to whichever call comes next, once. So a call that failed
 * is tried again before its frame is blamed.
 */
static void udp_tx(struct net_port *port, struct net_frame *frames, unsigned n)
{
	struct udp_port *udp = container_of(port, struct udp_port, port);
	bool again = false;

	prepare(udp, frames, n);
	for (unsigned i = 0; i < n;) {
		int sent = sendmmsg(port->fd, udp->msgs + i, n - i, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (likely(sent > 0)) {
			for (; sent > 0; sent--)
				frames[i++].error = 0;
			again = false;
		} else if (errno == EAGAIN || errno == ENOBUFS) {
			for (; i < n; i++)
				frames[i].error = -EAGAIN;
		} else if (errno != EINTR) {
			store_relaxed(&port->error, (uint32_t)errno);
			if (again || errno == EFAULT)
				frames[i++].error = -errno;
			again = !again;
		}
	}
}

static int udp_rx(struct net_port *port, struct net_frame *frames, unsigned n)
{
	struct udp_port *udp = container_of(port, struct udp_port, port);
	int got = -1, error = EINTR;

	prepare(udp, frames, n);
	/* Errors hide datagrams that are there. */
	for (unsigned tries = 0; got < 0 && tries < NET_BATCH; tries++) {
		got = recvmmsg(port->fd, udp->msgs, n, MSG_DONTWAIT, NULL);
		if (likely(got >= 0))
			break;
		error = errno;
		if (error == EAGAIN)
			return 0;
		if (error == EFAULT)
			return -EFAULT;
		if (error != EINTR)
			store_relaxed(&port->error, (uint32_t)error);
	}
	for (int i = 0; i < got; i++)
		frames[i].len = udp->msgs[i].msg_len;
	return got < 0 ? -error : got;
}

static void udp_destroy(struct net_port *port)
{
	free(container_of(port, struct udp_port, port));
}

static const struct net_port_ops ops = { .tx = udp_tx, .rx = udp_rx, .destroy = udp_destroy };

int net_port_udp(struct net_port **out, int fd)
{
	struct udp_port *udp;
	socklen_t len = sizeof(int);
	int type;

	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0)
		return -errno;
	if (type != SOCK_DGRAM)
		return -EINVAL;
	udp = calloc(1, sizeof(*udp));
	if (!udp)
		return -ENOMEM;
	udp->port = (struct net_port){ .ops = &ops, .fd = fd, .rx_batch = NET_BATCH };
	*out = &udp->port;
	return 0;
}
