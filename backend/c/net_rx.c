/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net_rx.c - one turn of an rx queue (virtio 1.2 §5.1.6.3, §5.1.6.4)
 *
 * THEORY OF OPERATION
 *
 * All that the driver makes available is popped at once and held: a worker that waits sees then by the avail index whether
 * there is more, and a queue with buffers but no frames lets it sleep. Frames are received straight into the held buffers.
 *
 * How long a frame is, nobody knows before it is there. So the port gets the room that the last frame would have needed
 * (one buffer, when it receives several frames at once), and behind it a spill of our own. What lands in the spill is
 * copied on into the next held buffers if the driver merges buffers, and if not the frame is dropped. A port that receives
 * a batch has had the buffers after the first frame's filled with the frames after it; those it left empty come next:
 *
 *	held:      a  b  c  d  e  f          received 2 of 3 frames, the first with a tail in its spill
 *	room of:   0  1  2
 *	used for:  0  1  0  0                pushed as a c d, b
 *
 * A frame longer than all that is held is dropped, as a network card does. QEMU keeps it and stops reading until the driver
 * has added enough, which may be never; meanwhile the frames behind it, which would fit, are lost somewhere else.
 *
 * A port that lends its frames (net_port.h) needs no such guess: what it lends is copied into as many buffers as it takes, and
 * into one with few instructions.
 *
 * A frame that is dropped in the midst of a batch leaves its buffer behind others that are used. It is filled next. Should
 * the queue stop before that, the ring can't be rewound across what was used after it: it is given back empty.
 */
#include "net_queue.h"

#include <errno.h>
#include <string.h>

#define REFILL 256u       /* chains popped in one turn */
#define PREFETCH_AHEAD 8u /* buffers */
#define CACHE_LINE 64u
#define GATHER_IOVS 1000u /* what readv(2) takes (UIO_MAXIOV), header and spill apart */

/* The i-th of the held buffers. */
static struct net_buf *held(const struct net_queue *q, uint32_t i)
{
	uint32_t at = q->first + i;

	return &q->bufs[at < q->bufs_count ? at : at - q->bufs_count];
}

static bool merges(const struct net_queue *q)
{
	return q->features >> VIRTIO_NET_F_MRG_RXBUF & 1;
}

/* The pieces of guest memory that a held buffer is made of: chain.in_count of them. */
static const struct iovec *pieces(const struct net_queue *q, const struct net_buf *buf)
{
	return likely(buf->chain.in_count == 1) ? &buf->iov : q->pieces[buf - q->bufs];
}

/* Put a chain into a place of the held ones. */
static void hold(struct net_queue *q, struct net_buf *buf, const struct virtq_chain *chain, uint32_t turn,
		 const struct iovec *iov)
{
	buf->chain = *chain;
	buf->turn = turn;
	buf->iov = iov[0];
	if (unlikely(chain->in_count > 1))
		memcpy(q->pieces[buf - q->bufs], iov, chain->in_count * sizeof(*iov));
}

/* Hold the @n chains that were popped, behind the @count that are. Return: how many were as they should be */
static unsigned hold_burst(struct net_lane *lane, struct net_queue *q, uint32_t count, unsigned n)
{
	const struct iovec *iov = lane->iov;

	for (unsigned i = 0; i < n; i++) {
		const struct virtq_chain *chain = &lane->chains[i];

		/* §5.1.6.3: writable, and room for a header at least */
		if (unlikely(chain->out_count > 0 || chain->in_len < NET_HDR_LEN)) {
			virtq_refuse_burst(&q->queue.vq, chain, n - i);
			return i;
		}
		hold(q, held(q, count + i), chain, q->popped++, iov);
		iov += chain->in_count;
	}
	return n;
}

static unsigned refill(struct net_lane *lane, struct net_queue *q)
{
	struct virtq *vq = &q->queue.vq;
	uint32_t before = q->queue.in_flight, count = before;
	unsigned n, max;

	do {
		max = q->bufs_count - count < NET_BATCH ? q->bufs_count - count : NET_BATCH;
		/* As many as ring entries: a driver that has more in flight reuses buffers we still hold. */
		if (unlikely(max == 0 && virtq_more(vq)))
			virtq_fail(vq, VIRTQ_FAULT_TOO_MANY);
		n = virtq_pop_burst(vq, &(struct virtq_burst){ .chains = lane->chains,
							       .max = max,
							       .iov = lane->iov,
							       .cap = NET_LANE_IOVS,
							       .seg_max = NET_RX_SEG_MAX });
		count += hold_burst(lane, q, count, n);
	} while (n == NET_BATCH && count - before < REFILL);
	store_relaxed(&q->queue.in_flight, count);
	if (unlikely(vq->fault != VIRTQ_FAULT_NONE))
		lane_fail(&lane->lane, &q->queue, VIRTQ_FAULT_NONE);
	return count - before;
}

/* Where a frame is to be received. */
struct room {
	uint32_t bufs;   /* how many of the held ones */
	uint64_t direct; /* bytes of frame in them */
	uint8_t *spill;
};

/*
 * Make room from the held buffer @at on for @want bytes of frame, or for what one buffer holds. Return: iovecs used.
 */
static unsigned make_room(struct net_lane *lane, struct net_queue *q, uint32_t at, uint32_t want, unsigned i,
			  struct iovec *iov, struct room *room)
{
	struct net_frame *f = &lane->frames[i];
	size_t skip = NET_HDR_LEN;
	unsigned n = 0;

	memset(&f->hdr, 0, sizeof(f->hdr));
	iov[n++] = (struct iovec){ &f->hdr, NET_HDR_LEN };
	*room = (struct room){ .spill = lane->spill + (size_t)i * NET_ROOM };
	do {
		const struct net_buf *buf = held(q, at + room->bufs++);

		room->direct += buf->chain.in_len - skip;
		for (unsigned k = 0; k < buf->chain.in_count; k++) {
			const struct iovec *piece = &pieces(q, buf)[k];

			if (piece->iov_len > skip)
				iov[n++] = (struct iovec){ (uint8_t *)piece->iov_base + skip, piece->iov_len - skip };
			skip -= skip < piece->iov_len ? skip : piece->iov_len;
		}
	} while (room->direct < want && at + room->bufs < q->queue.in_flight && n + NET_RX_SEG_MAX < GATHER_IOVS);
	iov[n++] = (struct iovec){ room->spill, NET_ROOM };
	f->iov = iov;
	f->iovcnt = n;
	f->len = 0;
	f->error = 0;
	return n;
}

/*
 * Check a frame, and say how many held buffers it takes: @at, and those from @next on. Its header is made ready for the driver.
 * Return: 0 when it was dropped
 */
static uint32_t accept_frame(struct net_queue *q, struct virtio_net_hdr_v1 *hdr, uint32_t len, uint32_t at,
			     uint32_t next)
{
	uint64_t space = held(q, at)->chain.in_len - NET_HDR_LEN;
	uint32_t bufs = 1;

	if (unlikely(len < NET_FRAME_MIN || len > NET_FRAME_MAX))
		return net_drop(q, NET_DROP_LENGTH), 0;
	if (unlikely(!net_hdr_rx(hdr, len, q->features)))
		return net_drop(q, NET_DROP_HEADER), 0;
	for (; space < len; bufs++) {
		if (!merges(q))
			return net_drop(q, NET_DROP_TOO_LONG), 0;
		if (next + bufs - 1 >= q->queue.in_flight)
			return net_drop(q, NET_DROP_NO_BUFFER), 0;
		space += held(q, next + bufs - 1)->chain.in_len;
	}
	hdr->num_buffers = (uint16_t)bufs; /* §5.1.6.4.1: 1 without MRG_RXBUF */
	q->last_len = len;
	count_add(&q->stats.packets, 1);
	count_add(&q->stats.bytes, len);
	return bufs;
}

/*
 * Give the driver the frame that was received into the held buffer @at: with as many of those from *@next on as it needs,
 * the first of which may be part of its room. Return: false when it was dropped
 */
static bool deliver(struct net_queue *q, struct net_frame *f, const struct room *room, uint32_t at, uint32_t *next)
{
	uint32_t bufs, done = 0;

	if (unlikely(f->error))
		return net_drop(q, NET_DROP_FOREIGN), false;
	bufs = accept_frame(q, &f->hdr, f->len, at, *next);

	for (uint32_t k = 0; k < bufs; k++) {
		const struct net_buf *buf = held(q, k == 0 ? at : *next + k - 1);
		uint32_t head = k == 0 ? NET_HDR_LEN : 0, left = f->len - done;
		uint32_t len = buf->chain.in_len - head < left ? buf->chain.in_len - head : left;

		if (k == 0)
			net_iov_write(pieces(q, buf), buf->chain.in_count, &f->hdr, NET_HDR_LEN);
		if (k >= room->bufs)
			net_iov_write(pieces(q, buf), buf->chain.in_count, room->spill + (done - room->direct), len);
		virtq_push(&q->queue.vq, &buf->chain, head + len);
		done += len;
	}
	if (bufs == 0)
		return false;
	*next += bufs - 1;
	return true;
}

/* Copy a frame that a port lends into the held buffers from @at on. Return: how many it took; 0 when it was dropped */
static uint32_t copy_lent(struct net_queue *q, const struct net_frame *f, uint32_t at)
{
	uint32_t bufs, left = NET_HDR_LEN + f->len;
	const uint8_t *from = (const uint8_t *)f->lent;

	if (unlikely(at == q->queue.in_flight)) /* the frames before it took more than one each */
		return net_drop(q, NET_DROP_NO_BUFFER), 0;
	bufs = accept_frame(q, f->lent, f->len, at, at + 1);
	for (uint32_t k = 0; k < bufs; k++) {
		const struct net_buf *buf = held(q, at + k);
		uint32_t len = buf->chain.in_len < left ? buf->chain.in_len : left;

		net_iov_write(pieces(q, buf), buf->chain.in_count, from, len);
		virtq_push(&q->queue.vq, &buf->chain, len);
		from += len;
		left -= len;
	}
	return bufs;
}

/* Have the beginning of a held buffer travel here to be written: the driver has looked at it since it was last. */
static void prefetch(const struct net_queue *q, uint32_t at)
{
	const uint8_t *to = held(q, at)->iov.iov_base;

	__builtin_prefetch(to, 1);
	__builtin_prefetch(to + CACHE_LINE, 1);
}

/*
 * copy_lent() of plain frames that fit one buffer each, as nearly all do: the first of @n into the first held buffers. Return:
 * how many come before one that isn't so
 */
static unsigned copy_fitting(struct net_queue *q, const struct net_frame *frames, unsigned n)
{
	uint64_t bytes = 0;
	unsigned i;

	for (i = 0; i < n && i < PREFETCH_AHEAD; i++)
		prefetch(q, i);
	for (i = 0; i < n; i++) {
		const struct net_buf *buf = held(q, i);
		struct virtio_net_hdr_v1 *hdr = frames[i].lent;
		uint32_t len = frames[i].len;

		if (unlikely(len - NET_FRAME_MIN > NET_FRAME_MAX - NET_FRAME_MIN || !net_hdr_plain(hdr) ||
			     buf->chain.in_count != 1 || buf->chain.in_len < NET_HDR_LEN + len))
			break;
		if (i + PREFETCH_AHEAD < n)
			prefetch(q, i + PREFETCH_AHEAD);
		*hdr = (struct virtio_net_hdr_v1){ .num_buffers = 1 };
		memcpy(buf->iov.iov_base, hdr, NET_HDR_LEN + len);
		virtq_push(&q->queue.vq, &buf->chain, NET_HDR_LEN + len);
		bytes += len;
		q->last_len = len;
	}
	count_add(&q->stats.packets, i);
	count_add(&q->stats.bytes, bytes);
	return i;
}

/* The first @count buffers are the driver's again. */
static void let_go(struct net_queue *q, uint32_t count)
{
	q->first = (uint32_t)(held(q, count) - q->bufs);
	store_relaxed(&q->queue.in_flight, q->queue.in_flight - count);
}

/* Of the first @count held buffers only those that are marked were left: keep these, in order, as the first ones. */
static void advance(struct net_queue *q, uint32_t count, const bool *left, unsigned marks)
{
	uint32_t to = count;

	for (unsigned i = marks; i-- > 0;)
		if (unlikely(left[i]) && --to != i)
			hold(q, held(q, to), &held(q, i)->chain, held(q, i)->turn, pieces(q, held(q, i)));
	let_go(q, to);
}

/* Receive once, up to @max frames. Return: how many, dropped ones too; 0: there is none; -errno as of rx() */
static int receive(struct net_lane *lane, struct net_queue *q, unsigned max)
{
	struct net_port *port = lane->port;
	struct room rooms[NET_BATCH];
	bool left[NET_BATCH];
	struct iovec *iov = lane->iov;
	uint32_t next, want = port->rx_batch == 1 && merges(q) ? q->last_len : 0;
	int n;

	for (unsigned i = 0; i < max; i++)
		iov += make_room(lane, q, i, want, i, iov, &rooms[i]);
	n = port->ops->rx(port, lane->frames, max);
	if (n <= 0)
		return n;
	next = (uint32_t)n;
	for (int i = 0; i < n; i++)
		left[i] = !deliver(q, &lane->frames[i], &rooms[i], (uint32_t)i, &next);
	advance(q, next, left, (unsigned)n);
	return n;
}

/* The same of a port that lends its frames: each takes the next buffers, and none when it is dropped. */
static int borrow(struct net_lane *lane, struct net_queue *q, unsigned max)
{
	int n = lane->port->ops->rx(lane->port, lane->frames, max);
	unsigned i = n > 0 ? copy_fitting(q, lane->frames, (unsigned)n) : 0;
	uint32_t at = i;

	for (; (int)i < n; i++)
		at += copy_lent(q, &lane->frames[i], at);
	let_go(q, at);
	return n;
}

unsigned net_rx_poll(struct net_lane *lane, struct net_queue *q)
{
	unsigned work = refill(lane, q), frames = 0;

	while (frames < NET_BATCH && q->queue.in_flight > 0 && q->queue.state == QUEUE_RUNNING) {
		unsigned max = NET_BATCH - frames;
		int n;

		if (max > lane->port->rx_batch)
			max = lane->port->rx_batch;
		if (max > q->queue.in_flight)
			max = q->queue.in_flight;
		n = lane->port->lends ? borrow(lane, q, max) : receive(lane, q, max);
		lane->failing = n < 0 && n != -EFAULT;
		if (n == -EFAULT)
			lane_fail(&lane->lane, &q->queue, VIRTQ_FAULT_MEMORY_GONE);
		if (n <= 0)
			break;
		frames += (unsigned)n;
	}
	virtq_publish(&q->queue.vq);
	return work + frames;
}

unsigned net_rx_give_back(struct net_queue *q)
{
	uint32_t count = q->queue.in_flight, n = count;

	for (; n > 0 && held(q, n - 1)->turn == q->popped - 1; n--, q->popped--)
		virtq_unpop(&q->queue.vq, &held(q, n - 1)->chain);
	for (; n > 0; n--)
		virtq_push(&q->queue.vq, &held(q, n - 1)->chain, 0);
	virtq_publish(&q->queue.vq);
	store_relaxed(&q->queue.in_flight, 0);
	return count;
}
