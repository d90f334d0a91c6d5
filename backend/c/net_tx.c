/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net_tx.c - one turn of a tx queue (virtio 1.2 §5.1.6.2)
 *
 * THEORY OF OPERATION
 *
 * A chain is a header and a frame, cut into descriptors wherever the driver likes (§2.7.4.1). The header is copied once and
 * checked; the frame stays where it is, and the port sends it from there. The whole batch is back in the used ring when the
 * turn ends, so a tx queue never has anything in flight. So are the chains of a disabled queue, unsent: vhost-user has a ring
 * that is started and disabled processed without side effects.
 *
 * One iovec before each chain's is kept free for our copy of the header: what a port writes is then one iovec array.
 */
#include "net_queue.h"

#include <errno.h>

/* Make a frame of a chain's buffers; @iov[0] is free. Return: whether to send it; else it was counted */
static bool parse(struct net_queue *q, const struct virtq_chain *chain, struct iovec *iov, struct net_frame *f)
{
	unsigned used = 0;

	if (likely(iov[1].iov_len > NET_HDR_LEN)) {
		copy_once(&f->hdr, iov[1].iov_base, NET_HDR_LEN);
		iov[1].iov_base = (uint8_t *)iov[1].iov_base + NET_HDR_LEN;
		iov[1].iov_len -= NET_HDR_LEN;
	} else {
		used = virtq_take(iov + 1, &f->hdr, NET_HDR_LEN);
	}
	f->iov = iov + used;
	f->iovcnt = 1 + chain->out_count - used;
	f->len = chain->out_len - NET_HDR_LEN;
	if (unlikely(f->len < NET_FRAME_MIN || f->len > NET_FRAME_MAX))
		return net_drop(q, NET_DROP_LENGTH), false;
	if (unlikely(!net_hdr_tx(&f->hdr, f->len, q->features)))
		return net_drop(q, NET_DROP_HEADER), false;
	f->iov[0] = (struct iovec){ &f->hdr, NET_HDR_LEN };
	return true;
}

/* Hand frames to the port, and count what became of them. Return: 0, or -EFAULT: guest memory is gone */
static int send_frames(struct net_lane *lane, struct net_queue *q, unsigned n)
{
	uint64_t packets = 0, bytes = 0;
	int rc = 0;

	lane->port->ops->tx(lane->port, lane->frames, n);
	for (unsigned i = 0; i < n; i++) {
		const struct net_frame *f = &lane->frames[i];

		if (likely(f->error == 0)) {
			packets++;
			bytes += f->len;
		} else if (f->error == -EFAULT) {
			rc = -EFAULT;
		} else if (f->error == -EBADMSG) {
			net_drop(q, NET_DROP_HEADER);
		} else {
			net_drop(q, f->error == -EAGAIN ? NET_DROP_FULL : NET_DROP_REFUSED);
		}
	}
	count_add(&q->stats.packets, packets);
	count_add(&q->stats.bytes, bytes);
	return rc;
}

/*
 * §5.1.6.2: chains are readable, and a header at least. There is nobody to tell which rule one breaks. Return: how many come
 * before the first of @n that does
 */
static unsigned check_chains(struct net_lane *lane, struct net_queue *q, unsigned n)
{
	const struct iovec *iov = lane->iov;

	for (unsigned i = 0; i < n; i++) {
		const struct virtq_chain *chain = &lane->chains[i];

		if (unlikely(chain->in_count > 0 || chain->out_len < NET_HDR_LEN)) {
			virtq_refuse_burst(&q->queue.vq, chain, n - i);
			return i;
		}
		__builtin_prefetch(iov[1].iov_base); /* headers travel here while the next chains are checked */
		iov += 1 + chain->out_count;
	}
	return n;
}

unsigned net_tx_poll(struct net_lane *lane, struct net_queue *q)
{
	struct virtq *vq = &q->queue.vq;
	struct iovec *iov = lane->iov;
	unsigned n, discarded = 0, frames = 0;

	n = virtq_pop_burst(vq, &(struct virtq_burst){ .chains = lane->chains,
						       .max = NET_BATCH,
						       .iov = lane->iov,
						       .cap = NET_LANE_IOVS,
						       .seg_max = NET_TX_SEG_MAX,
						       .gap = 1 });
	n = check_chains(lane, q, n);
	if (unlikely(q->discard)) {
		discarded = n;
		count_add(&q->stats.drops[NET_DROP_DISABLED], n);
	}
	for (unsigned i = discarded; i < n; i++) {
		frames += parse(q, &lane->chains[i], iov, &lane->frames[frames]);
		iov += 1 + lane->chains[i].out_count;
	}
	if (frames > 0 && send_frames(lane, q, frames) < 0)
		virtq_fail(vq, VIRTQ_FAULT_MEMORY_GONE);
	virtq_push_burst(vq, lane->chains, n);
	virtq_publish(vq);
	if (unlikely(vq->fault != VIRTQ_FAULT_NONE))
		lane_fail(&lane->lane, &q->queue, VIRTQ_FAULT_NONE);
	return n;
}
