/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net_echo.c - a port that gives back what it is sent, in order, header and all
 *
 * Frames wait in memory of its own between the two copies: the driver may have no room for them yet. They lie one behind the
 * other, so that few small ones are in few cache lines. When there is no room left, more frames are lost, as on any link.
 */
#include "net_port.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "../../kernel/c/atomics.h"

#define FRAMES 256u
#define LINE 64u
#define LONGEST ((NET_HDR_LEN + NET_FRAME_MAX + LINE - 1) / LINE * LINE)
#define ROOM ((FRAMES + 2) * LONGEST) /* for as many of the longest, wherever the end of the room leaves a gap */

struct kept {
	uint32_t at, len;
};

struct echo_port {
	struct net_port port;
	uint8_t *room; /* in untouched pages until first used */
	uint32_t end;  /* of the last frame kept, in room */
	struct kept frames[FRAMES];
	unsigned first, count;
};

/* Find room behind the last frame, or at the start. Return: false when there is none */
static bool place(struct echo_port *echo, uint32_t len, uint32_t *at)
{
	uint32_t bytes = (NET_HDR_LEN + len + LINE - 1) / LINE * LINE, first = echo->frames[echo->first].at;

	if (echo->count == FRAMES)
		return false;
	if (echo->count == 0) /* what was used last is still in the cache */
		*at = 0;
	else if (bytes <= (echo->end > first ? ROOM : first) - echo->end)
		*at = echo->end;
	else if (echo->end > first && bytes <= first)
		*at = 0;
	else
		return false;
	echo->end = *at + bytes;
	return true;
}

static void echo_tx(struct net_port *port, struct net_frame *frames, unsigned n)
{
	struct echo_port *echo = container_of(port, struct echo_port, port);

	for (unsigned i = 0; i < n; i++) {
		struct kept *kept = &echo->frames[(echo->first + echo->count) % FRAMES];
		uint32_t at;

		frames[i].error = place(echo, frames[i].len, &at) ? 0 : -EAGAIN;
		if (frames[i].error)
			continue;
		*kept = (struct kept){ at, frames[i].len };
		memcpy(echo->room + at, &frames[i].hdr, NET_HDR_LEN);
		net_iov_read(frames[i].iov + 1, frames[i].iovcnt - 1, echo->room + at + NET_HDR_LEN, frames[i].len);
		echo->count++;
	}
}

static int echo_rx(struct net_port *port, struct net_frame *frames, unsigned n)
{
	struct echo_port *echo = container_of(port, struct echo_port, port);
	unsigned i;

	for (i = 0; i < n && echo->count > 0; i++) {
		const struct kept *kept = &echo->frames[echo->first];

		frames[i].lent = (struct virtio_net_hdr_v1 *)(echo->room + kept->at);
		frames[i].len = kept->len;
		echo->first = (echo->first + 1) % FRAMES;
		echo->count--;
	}
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

	munmap(echo->room, ROOM);
	free(echo);
}

static const struct net_port_ops ops = { .tx = echo_tx, .rx = echo_rx, .forget = echo_forget, .destroy = echo_destroy };

int net_port_echo(struct net_port **out)
{
	struct echo_port *echo = calloc(1, sizeof(*echo));
	void *room;

	if (!echo)
		return -ENOMEM;
	room = mmap(NULL, ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (room == MAP_FAILED) {
		free(echo);
		return -ENOMEM;
	}
	echo->room = room;
	echo->port = (struct net_port){ .ops = &ops, .fd = -1, .rx_batch = NET_BATCH, .lends = true };
	*out = &echo->port;
	return 0;
}
