/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net_udp.c - a port on a connected datagram socket: each datagram is one frame, and nothing else
 *
 * That is what QEMU's `-netdev dgram` speaks. No header goes over the wire, so frames leave complete.
 */
#include "net_datagram.h"

int net_port_udp(struct net_port **out, int fd)
{
	struct net_datagram *dg;
	int rc = net_datagram_create(&dg, fd);

	if (rc == 0)
		*out = &dg->port;
	return rc;
}
