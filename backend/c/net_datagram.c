/* SPDX-License-Identifier: Apache-2.0 */
/* net_datagram.c - a port on a datagram socket: what this socket can do, and the port's end */
#include "net_datagram.h"

#include <errno.h>
#include <netinet/udp.h>
#include <stdlib.h>

static void datagram_destroy(struct net_port *port)
{
	struct net_datagram *dg = net_datagram_of(port);

	net_datagram_unmap_buffers(dg);
	free(dg);
}

static const struct net_port_ops ops = {
	.tx = net_datagram_tx,
	.rx = net_datagram_rx,
	.destroy = datagram_destroy,
};

int net_datagram_create(struct net_datagram **out, int fd)
{
	struct net_datagram *dg;
	int type, segment, on = 1;
	socklen_t len = sizeof(int);

	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0)
		return -errno;
	if (type != SOCK_DGRAM)
		return -EINVAL;
	dg = calloc(1, sizeof(*dg));
	if (!dg)
		return -ENOMEM;
	dg->port = (struct net_port){ .ops = &ops, .fd = fd, .rx_batch = NET_BATCH };
	if (net_datagram_map_buffers(dg) < 0) {
		free(dg);
		return -ENOMEM;
	}
	/* Neither is there before Linux 5.0, nor on another kind of datagram socket. It goes without, one by one. */
	len = sizeof(segment);
	if (getsockopt(fd, SOL_UDP, UDP_SEGMENT, &segment, &len) == 0)
		dg->segment_max = UINT16_MAX;
	setsockopt(fd, SOL_UDP, UDP_GRO, &on, sizeof(on));
	*out = dg;
	return 0;
}
