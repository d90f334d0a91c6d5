/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net_echo.c - a port that gives back what it is sent, in order, header and all
 *
 * Frames wait in slots of their own between the two copies: the driver may have no room for them yet. When there is no slot
 * left, more frames are lost, as on any link.
 */
#include "net_port.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "../../kernel/c/atomics.h"

#define SLOTS 256u

struct slot {
	struct virtio_net_hdr_v1 hdr;
	uint32_t len;
	uint8_t frame[NET_FRAME_MAX];
};

struct echo_port {
	struct net_port port;
	struct slot *slots; /* in untouched pages until first used */
	unsigned first, count;
};

static void echo_tx(struct net_port *port, struct net_frame *frames, unsigned n)
{
	struct echo_port *echo = container_of(port, struct echo_port, port);

	for (unsigned i = 0; i < n; i++) {
		struct slot *slot = &echo->slots[(echo->first + echo->count) % SLOTS];

		frames[i].error = echo->count == SLOTS ? -EAGAIN : 0;
		if (frames[i].error)
			continue;
		slot->hdr = frames[i].hdr;
		slot->len = frames[i].len;
		net_iov_read(frames[i].iov + 1, frames[i].iovcnt - 1, slot->frame, slot->len);
		echo->count++;
	}
}

static int echo_rx(struct net_port *port, struct net_frame *frames, unsigned n)
{
	struct echo_port *echo = container_of(port, struct echo_port, port);
	unsigned i;

	for (i = 0; i < n && echo->count > 0; i++) {
		const struct slot *slot = &echo->slots[echo->first];

		frames[i].hdr = slot->hdr;
		frames[i].len = slot->len;
		net_iov_write(frames[i].iov + 1, frames[i].iovcnt - 1, slot->frame, slot->len);
		echo->first = (echo->first + 1) % SLOTS;
		echo->count--;
	}
	if (echo->count == 0)
		echo->first = 0; /* the slots used last are the ones still in the cache */
	return (int)i;
}

static void echo_forget(struct net_port *port)
{
	struct echo_port *echo = container_of(port, struct echo_port, port);

	echo->first = echo->count = 0;
}

static void echo_destroy(struct net_port *port)
{
	struct echo_port *echo = container_of(port, struct echo_port, port);

	munmap(echo->slots, SLOTS * sizeof(*echo->slots));
	free(echo);
}

static const struct net_port_ops ops = { .tx = echo_tx, .rx = echo_rx, .forget = echo_forget, .destroy = echo_destroy };

int net_port_echo(struct net_port **out)
{
	struct echo_port *echo = calloc(1, sizeof(*echo));
	void *slots;

	if (!echo)
		return -ENOMEM;
	slots = mmap(NULL, SLOTS * sizeof(*echo->slots), PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (slots == MAP_FAILED) {
		free(echo);
		return -ENOMEM;
	}
	echo->slots = slots;
	echo->port = (struct net_port){ .ops = &ops, .fd = -1, .rx_batch = NET_BATCH };
	*out = &echo->port;
	return 0;
}
