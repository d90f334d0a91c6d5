/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net_null.c - a port that leads nowhere: the rings' own cost, and one copy each way
 *
 * What is sent is copied, as any real backend would have it copied, and forgotten. What is received is the same frame again
 * and again, as fast as the driver makes room: broadcast, of an experimental Ethertype, zeros else.
 */
#include "net_port.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../../kernel/c/atomics.h"

struct null_port {
	struct net_port port;
	uint32_t source; /* bytes of the frame that is received; 0: none is */
	uint8_t sink[NET_FRAME_MAX];
	struct {
		struct virtio_net_hdr_v1 hdr;
		uint8_t bytes[NET_FRAME_MAX];
	} frame;
};

static void null_tx(struct net_port *port, struct net_frame *frames, unsigned n)
{
	struct null_port *null = container_of(port, struct null_port, port);

	for (unsigned i = 0; i < n; i++) {
		net_iov_read(frames[i].iov + 1, frames[i].iovcnt - 1, null->sink, frames[i].len);
		frames[i].error = 0;
	}
}

static int null_rx(struct net_port *port, struct net_frame *frames, unsigned n)
{
	struct null_port *null = container_of(port, struct null_port, port);

	if (null->source == 0)
		return 0;
	for (unsigned i = 0; i < n; i++) {
		frames[i].lent = &null->frame.hdr;
		frames[i].len = null->source;
	}
	return (int)n;
}

static void null_destroy(struct net_port *port)
{
	free(container_of(port, struct null_port, port));
}

static const struct net_port_ops ops = { .tx = null_tx, .rx = null_rx, .destroy = null_destroy };

int net_port_null(struct net_port **out, uint32_t source)
{
	/* Broadcast, from a locally administered address, of the Ethertype 0x88b5 (IEEE 802, Local Experimental 1). */
	static const uint8_t header[NET_FRAME_MIN] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02,
						       0,    0,    0,    0,    1,    0x88, 0xb5 };
	struct null_port *null;

	if (source != 0 && (source < NET_FRAME_MIN || source > NET_FRAME_MAX))
		return -EINVAL;
	null = calloc(1, sizeof(*null));
	if (!null)
		return -ENOMEM;
	null->port = (struct net_port){ .ops = &ops, .fd = -1, .rx_batch = NET_BATCH, .lends = true };
	null->source = source;
	memcpy(null->frame.bytes, header, sizeof(header));
	*out = &null->port;
	return 0;
}
