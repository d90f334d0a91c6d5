/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net_none.c - the port of a card whose cable is out: what is sent is refused, nothing is received
 *
 * It keeps nothing, so one is enough for all lanes.
 */
#include "net_port.h"

#include <errno.h>

static void none_tx(struct net_port *port, struct net_frame *frames, unsigned n)
{
	(void)port;
	for (unsigned i = 0; i < n; i++)
		frames[i].error = -ENETDOWN;
}

static int none_rx(struct net_port *port, struct net_frame *frames, unsigned n)
{
	(void)port;
	(void)frames;
	(void)n;
	return 0;
}

static void none_destroy(struct net_port *port)
{
	(void)port;
}

static const struct net_port_ops ops = { .tx = none_tx, .rx = none_rx, .destroy = none_destroy };

struct net_port *net_port_none(void)
{
	static struct net_port none = { .ops = &ops, .fd = -1, .rx_batch = 1 };

	return &none;
}
