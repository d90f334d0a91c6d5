/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net_xdp.c - a port on an AF_XDP socket: one copy between the guest's buffers and memory that the network card's driver uses
 *
 * THEORY OF OPERATION (Documentation/networking/af_xdp.rst)
 *
 * The socket's memory (umem) is cut into chunks, a frame each, and four rings carry them between us and the kernel. Half of
 * them receive: from the fill ring to the rx ring, and as soon as a frame was copied out, back. The other half send: from
 * our stack of free ones to the tx ring, and through the completion ring back.
 *
 *	fill --> kernel --> rx          free --> tx --> kernel --> completion
 *	  ^------- us <------'            ^------------- us <---------'
 *
 * Each ring has room for all the chunks that it can ever meet, so none is ever full: a chunk in hand is room enough.
 *
 * What the kernel puts into a ring is believed, as all that it says (ARCHITECTURE.md): no guest can write there.
 *
 * In zero-copy mode nothing is between us and the card: what Linux does for a frame before a driver has it is ours to do. It
 * is as long as the wire wants it, and no longer than the interface's MTU allows: a card may send, or choke on, anything else.
 *
 * A ring's kernel side may sleep, and says so in the ring's flags (XDP_RING_NEED_WAKEUP); else no system call is needed. In
 * copy mode it always sleeps, and sends at most 32 frames a call.
 */
#include "net_xdp.h"

#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_xdp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "../../kernel/c/atomics.h"
#include "net.h"
#include "net_soft.h"

struct xdp_port {
	struct net_port port;
	struct net_xdp xdp;
	uint32_t rx_at, fill_at, tx_at, completion_at; /* the rings' indices as we have moved them */
	int down;                                      /* why the last wake-up failed, or 0 */
	uint32_t free_count;
	uint64_t free[NET_XDP_RING];              /* offsets of chunks to send with */
	struct iovec segment[NET_TX_SEG_MAX + 2]; /* of a frame that is sent in several */
};

static uint64_t *address(const struct net_xdp_ring *ring, uint32_t at)
{
	return (uint64_t *)ring->entries + at % NET_XDP_RING;
}

static struct xdp_desc *descriptor(const struct net_xdp_ring *ring, uint32_t at)
{
	return (struct xdp_desc *)ring->entries + at % NET_XDP_RING;
}

/* Must the kernel be woken to go on with a ring? Full barrier: it says so, then looks at the producer's index once more. */
static bool sleeps(const struct xdp_port *xdp, const struct net_xdp_ring *ring)
{
	mb_full();
	return xdp->xdp.busy_poll || load_relaxed(ring->flags) & XDP_RING_NEED_WAKEUP;
}

static void take_completed(struct xdp_port *xdp)
{
	const struct net_xdp_ring *ring = &xdp->xdp.completion;
	uint32_t end = load_acquire(ring->producer);

	if (end == xdp->completion_at)
		return;
	while (xdp->completion_at != end)
		xdp->free[xdp->free_count++] = *address(ring, xdp->completion_at++);
	store_release(ring->consumer, end);
}

/* Have the kernel send what is in the tx ring, as far as it can now. Return: 0 or -errno: it can't send at all */
static int wake(struct xdp_port *xdp)
{
	const struct net_xdp_ring *ring = &xdp->xdp.tx;
	uint32_t left = xdp->tx_at - load_acquire(ring->consumer);

	xdp->down = 0;
	while (left > 0 && sleeps(xdp, ring)) {
		uint32_t before = left;

		if (sendto(xdp->port.fd, NULL, 0, MSG_DONTWAIT | MSG_NOSIGNAL, NULL, 0) < 0 && errno != EAGAIN &&
		    errno != EBUSY && errno != ENOBUFS && errno != EINTR) {
			xdp->down = -errno;
			store_relaxed(&xdp->port.error, (uint32_t)errno);
			left = 0; /* it stays there until somebody sends again */
			break;
		}
		left = xdp->tx_at - load_acquire(ring->consumer);
		if (left == before)
			break;
	}
	xdp->port.unsent = left > 0;
	return xdp->down;
}

/*
 * Put @len bytes into the tx ring: @head of them are in the chunk already, the others in @iov. What fills a short frame up
 * is written, as the chunk holds what it was used for last, which may be a frame of another guest.
 */
static void put(struct xdp_port *xdp, uint64_t chunk, const struct iovec *iov, unsigned iovcnt, uint32_t head,
		uint32_t len)
{
	uint8_t *frame = xdp->xdp.umem + chunk;

	net_iov_read(iov, iovcnt, frame + head, len - head);
	if (len < ETH_ZLEN) {
		memset(frame + len, 0, ETH_ZLEN - len);
		len = ETH_ZLEN;
	}
	*descriptor(&xdp->xdp.tx, xdp->tx_at++) = (struct xdp_desc){ .addr = chunk, .len = len };
}

static int put_segments(struct xdp_port *xdp, const struct net_frame *frame)
{
	struct net_soft soft;
	int rc = net_soft_begin(&soft, frame);

	if (rc < 0)
		return rc;
	if (net_soft_len(&soft) > xdp->xdp.frame_max)
		return -EMSGSIZE;
	if (soft.segments > xdp->free_count)
		return -EAGAIN;
	while (soft.segments > 0) {
		uint64_t chunk = xdp->free[--xdp->free_count];
		uint32_t len = net_soft_len(&soft), head = soft.header_len;
		unsigned n = net_soft_next(&soft, xdp->xdp.umem + chunk, xdp->segment);

		put(xdp, chunk, xdp->segment + 1, n - 1, head, len);
	}
	return 0;
}

static int put_frame(struct xdp_port *xdp, const struct net_frame *frame)
{
	if (net_soft_needed(frame))
		return put_segments(xdp, frame);
	if (unlikely(frame->len > xdp->xdp.frame_max))
		return -EMSGSIZE;
	if (unlikely(xdp->free_count == 0))
		return -EAGAIN;
	put(xdp, xdp->free[--xdp->free_count], frame->iov + 1, frame->iovcnt - 1, 0, frame->len);
	return 0;
}

static void xdp_tx(struct net_port *port, struct net_frame *frames, unsigned n)
{
	struct xdp_port *xdp = container_of(port, struct xdp_port, port);

	/* What can't be sent now must not come out minutes later, when the interface is up again. */
	if (unlikely(xdp->down) && wake(xdp) < 0) {
		for (unsigned i = 0; i < n; i++)
			frames[i].error = xdp->down;
		return;
	}
	take_completed(xdp);
	for (unsigned i = 0; i < n; i++)
		frames[i].error = put_frame(xdp, &frames[i]);
	store_release(xdp->xdp.tx.producer, xdp->tx_at);
	wake(xdp);
	for (unsigned i = 0; unlikely(xdp->down) && i < n; i++)
		frames[i].error = xdp->down;
}

static int xdp_rx(struct net_port *port, struct net_frame *frames, unsigned n)
{
	struct xdp_port *xdp = container_of(port, struct xdp_port, port);
	const struct net_xdp_ring *rx = &xdp->xdp.rx, *fill = &xdp->xdp.fill;
	uint32_t count = load_acquire(rx->producer) - xdp->rx_at;

	if (count == 0 && sleeps(xdp, fill)) {
		recvfrom(port->fd, NULL, 0, MSG_DONTWAIT, NULL, NULL);
		count = load_acquire(rx->producer) - xdp->rx_at;
	}
	if (count > n)
		count = n;
	for (unsigned i = 0; i < count; i++)
		__builtin_prefetch(xdp->xdp.umem + descriptor(rx, xdp->rx_at + i)->addr);
	for (unsigned i = 0; i < count; i++) {
		const struct xdp_desc *desc = descriptor(rx, xdp->rx_at++);

		net_iov_write(frames[i].iov + 1, frames[i].iovcnt - 1, xdp->xdp.umem + desc->addr, desc->len);
		frames[i].len = desc->len;
		*address(fill, xdp->fill_at++) = desc->addr - desc->addr % NET_XDP_CHUNK; /* without the headroom */
	}
	if (count > 0) {
		store_release(rx->consumer, xdp->rx_at);
		store_release(fill->producer, xdp->fill_at);
	}
	return (int)count;
}

static void xdp_destroy(struct net_port *port)
{
	free(container_of(port, struct xdp_port, port));
}

static const struct net_port_ops ops = { .tx = xdp_tx, .rx = xdp_rx, .destroy = xdp_destroy };

int net_port_xdp(struct net_port **out, const struct net_xdp *with)
{
	struct xdp_port *xdp = calloc(1, sizeof(*xdp));

	if (!xdp)
		return -ENOMEM;
	xdp->port = (struct net_port){ .ops = &ops, .fd = with->fd, .rx_batch = NET_BATCH };
	xdp->xdp = *with;
	for (uint64_t i = 0; i < NET_XDP_RING; i++) {
		*address(&with->fill, xdp->fill_at++) = i * NET_XDP_CHUNK;
		xdp->free[xdp->free_count++] = (NET_XDP_RING + i) * NET_XDP_CHUNK;
	}
	store_release(with->fill.producer, xdp->fill_at);
	*out = &xdp->port;
	return 0;
}
