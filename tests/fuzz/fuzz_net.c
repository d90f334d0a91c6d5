/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_net.c - whatever a driver asks of the card, and whatever comes over the wire: frames are made of the guest's memory
 * alone, guests get the wire's bytes alone, every chain comes back once, and each frame is counted
 *
 * Input: fuzz_guest.h's, where the queue described is the transmitq. The receiveq lies SECOND further on, its avail.idx
 * where the driver has it. Byte 0: bit 5 MRG_RXBUF, bits 6 and 7 the port (see choose_port()); byte 1: bits 6 and 7 the
 * offloads. The wire's frames lie at TAPE: a header and a length each, filled with what follows. Through VXLAN they come as
 * datagrams, with another VNI or less than a header where that header says so.
 *
 * The port under the lane is a judge in front of a real one, and sees all that the lane does. What the daemon holds of
 * others - the spill, the echo's slots, the headers of frames before - is full of POISON, which must not reach the guest.
 */
#include <arpa/inet.h>
#include <linux/virtio_net.h>
#include <sys/socket.h>

#include "backend/c/net_queue.h"
#include "backend/c/net_soft.h"
#include "fuzz_guest.h"
#include "fuzz_poison.h"

#define SECOND 16384u
#define TAPE 20480u
#define F(name) (1ull << VIRTIO_NET_F_##name)
#define VNI 0x123456u
#define POISONED 2048u /* bytes at the start of each spill and slot: enough to see, and quick to write anew */

static struct judge {
	struct net_port port;
	struct net_port *real; /* NULL: the wire */
	const uint8_t *tape;
	size_t tape_left;
	uint64_t handed, sent, sent_bytes, received; /* frames */
} judge;

static struct net_port *null_port, *echo_port, *vxlan_port;
static int far_end; /* the other end of the VXLAN tunnel: a datagram socket */
static struct net_lane *lane;
static struct net_queue *queues[2];

static const uint8_t encap[8] = { 8, 0, 0, 0, VNI >> 16 & 255, VNI >> 8 & 255, VNI & 255, 0 }; /* RFC 7348 §5 */

static bool in_guest(const struct iovec *iov)
{
	for (unsigned i = 0; i < 2; i++) {
		size_t at = (size_t)((uint8_t *)iov->iov_base - (uint8_t *)mem_map_ptr(maps[i]));

		if (at < REGION && iov->iov_len <= REGION - at)
			return true;
	}
	return false;
}

static size_t total(const struct iovec *iov, unsigned count)
{
	size_t sum = 0;

	for (unsigned i = 0; i < count; i++)
		sum += iov[i].iov_len;
	return sum;
}

static void judge_segments(const struct net_frame *f)
{
	static struct net_soft soft;
	static struct iovec iov[NET_TX_SEG_MAX + 1];
	uint8_t headers[NET_SOFT_HEADERS];
	uint64_t payload = 0;
	uint32_t header_len, segments;

	poison(&soft, sizeof(soft));
	if (net_soft_begin(&soft, f) < 0)
		return;
	segments = soft.segments;
	header_len = soft.header_len;
	MUST(segments > 0 && segments <= NET_SOFT_SEGMENTS && header_len <= NET_SOFT_HEADERS);
	while (soft.segments > 0) {
		uint32_t len = net_soft_len(&soft);
		unsigned n = net_soft_next(&soft, headers, iov);

		MUST(--segments == soft.segments && n <= f->iovcnt && total(iov, n) == len);
		MUST(iov[0].iov_base == headers && iov[0].iov_len == header_len && !is_poisoned(headers, header_len));
		for (unsigned i = 1; i < n; i++)
			MUST(in_guest(&iov[i]));
		payload += len - header_len;
	}
	MUST(payload == f->len - header_len);
}

static void judge_tx(struct net_port *port, struct net_frame *frames, unsigned n)
{
	(void)port;
	MUST(n > 0 && n <= NET_BATCH);
	for (unsigned i = 0; i < n; i++) {
		struct net_frame *f = &frames[i];

		MUST(f->len >= NET_FRAME_MIN && f->len <= NET_FRAME_MAX);
		MUST(f->iov[0].iov_base == &f->hdr && f->iov[0].iov_len == NET_HDR_LEN);
		MUST(f->iovcnt <= 1 + NET_TX_SEG_MAX && total(f->iov + 1, f->iovcnt - 1) == f->len);
		for (unsigned k = 1; k < f->iovcnt; k++)
			MUST(in_guest(&f->iov[k]));
		if (net_soft_needed(f))
			judge_segments(f);
		f->error = 0;
	}
	if (judge.real)
		judge.real->ops->tx(judge.real, frames, n);
	judge.handed += n;
	for (unsigned i = 0; i < n; i++) {
		judge.sent += frames[i].error == 0;
		judge.sent_bytes += frames[i].error == 0 ? frames[i].len : 0;
	}
}

/* The next frame on the wire: its header and length, and so many of the bytes behind them, again and again. */
static bool from_tape(struct net_frame *f)
{
	static uint8_t frame[NET_ROOM];
	const size_t head = NET_HDR_LEN + 3;
	size_t piece;

	if (judge.tape_left <= head)
		return false;
	memcpy(&f->hdr, judge.tape, NET_HDR_LEN);
	f->len = (uint32_t)(judge.tape[12] | judge.tape[13] << 8 | (judge.tape[14] & 1) << 16) % (NET_ROOM + 1);
	judge.tape += head;
	judge.tape_left -= head;
	piece = judge.tape_left < 16 ? judge.tape_left : 16;
	for (size_t i = 0; i < f->len; i++)
		frame[i] = judge.tape[i % piece];
	judge.tape += piece;
	judge.tape_left -= piece;
	MUST(net_iov_write(f->iov + 1, f->iovcnt - 1, frame, f->len) == f->len);
	return true;
}

/* The frames of the wire into the tunnel: the first bytes of their headers become VXLAN's, some of them as they should be. */
static void fill_tunnel(void)
{
	static uint8_t datagram[8 + NET_ROOM];
	struct iovec iov[2] = { { datagram, 0 }, { datagram + 8, NET_ROOM } };
	struct net_frame f = { .iov = iov, .iovcnt = 2 };
	size_t len;

	for (unsigned i = 0; i < NET_BATCH && from_tape(&f); i++) {
		memcpy(datagram, &f.hdr, 8);
		if (f.hdr.flags == 0)
			memcpy(datagram, encap, sizeof(encap));
		len = f.hdr.num_buffers == 1 ? f.hdr.gso_size % 8 : 8 + f.len;
		send(far_end, datagram, len > 65507 ? 65507 : len, MSG_DONTWAIT);
	}
}

static int judge_rx(struct net_port *port, struct net_frame *frames, unsigned n)
{
	static const struct virtio_net_hdr_v1 zeros;
	int got = 0;

	MUST(n > 0 && n <= port->rx_batch);
	for (unsigned i = 0; !port->lends && i < n; i++) {
		struct net_frame *f = &frames[i];
		const struct iovec *spill = &f->iov[f->iovcnt - 1];

		MUST(f->iov[0].iov_base == &f->hdr && memcmp(&f->hdr, &zeros, sizeof(zeros)) == 0 && f->len == 0);
		MUST(f->iovcnt >= 2 && f->iovcnt <= 1024 && spill->iov_len >= NET_ROOM);
		for (unsigned k = 1; k < f->iovcnt - 1; k++)
			MUST(in_guest(&f->iov[k]));
	}
	if (judge.real)
		got = judge.real->ops->rx(judge.real, frames, n);
	else
		while (got < (int)n && from_tape(&frames[got]))
			got++;
	judge.received += got > 0 ? (unsigned)got : 0;
	return got;
}

static const struct net_port_ops judge_ops = { .tx = judge_tx, .rx = judge_rx };

/* Take what a port still holds. Return: frames */
static unsigned drain(struct net_port *port)
{
	static uint8_t room[NET_ROOM];
	struct iovec iov[2] = { { NULL, 0 }, { room, NET_ROOM } };
	struct net_frame frames[NET_BATCH];
	unsigned n = 0;
	int got;

	for (unsigned i = 0; i < NET_BATCH; i++)
		frames[i] = (struct net_frame){ .iov = iov, .iovcnt = 2 };
	while ((got = port->ops->rx(port, frames, NET_BATCH)) > 0)
		n += (unsigned)got;
	return n;
}

/* The slots that the echo uses first held somebody else's frames before. */
static void poison_echo(void)
{
	static uint8_t frame[POISONED];
	struct net_frame f = { .iovcnt = 2, .len = POISONED };
	struct iovec iov[2] = { { &f.hdr, NET_HDR_LEN }, { frame, POISONED } };

	poison(frame, sizeof(frame));
	poison(&f.hdr, sizeof(f.hdr));
	f.iov = iov;
	for (unsigned i = 0; i < NET_BATCH; i++)
		echo_port->ops->tx(echo_port, &f, 1);
	MUST(drain(echo_port) == NET_BATCH);
}

/* A tunnel over the loopback interface, both ends bound and each other's peer. */
static void make_tunnel(void)
{
	struct sockaddr_in at[2];
	int fds[2], asked;

	for (unsigned i = 0; i < 2; i++) {
		socklen_t len = sizeof(at[i]);

		at[i] = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
		fds[i] = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		MUST(fds[i] >= 0 && bind(fds[i], (struct sockaddr *)&at[i], len) == 0);
		MUST(getsockname(fds[i], (struct sockaddr *)&at[i], &len) == 0);
	}
	far_end = fds[1];
	asked = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0); /* for its peer alone */
	MUST(asked >= 0 && connect(asked, (struct sockaddr *)&at[1], sizeof(at[1])) == 0);
	MUST(connect(far_end, (struct sockaddr *)&at[0], sizeof(at[0])) == 0);
	MUST(net_port_vxlan(&vxlan_port, fds[0], VNI, asked) == 0);
	close(asked);
}

/* All that left the card: our header, a frame, and nobody's memory. */
static void judge_tunnel(void)
{
	static uint8_t datagram[NET_ROOM + 8];
	ssize_t len;

	while ((len = recv(far_end, datagram, sizeof(datagram), MSG_DONTWAIT)) >= 0) {
		MUST(len >= (ssize_t)(sizeof(encap) + NET_FRAME_MIN) && memcmp(datagram, encap, sizeof(encap)) == 0);
		MUST(!is_poisoned(datagram, (size_t)len));
	}
}

/* So did the memory that the tunnel receives into. */
static void poison_tunnel(void)
{
	static uint8_t datagram[POISONED];

	poison(datagram, sizeof(datagram));
	for (unsigned i = 0; i < NET_BATCH; i++)
		MUST(send(far_end, datagram, sizeof(datagram), MSG_DONTWAIT) > 0);
	MUST(drain(vxlan_port) == NET_BATCH);
}

static void make_card(void)
{
	if (lane)
		return;
	MUST(net_port_null(&null_port, 1514) == 0 && net_port_echo(&echo_port) == 0);
	make_tunnel();
	judge.port = (struct net_port){ .ops = &judge_ops, .fd = -1 };
	MUST(net_lane_create(&lane, &judge.port) == 0);
	for (uint16_t i = 0; i < 2; i++) {
		queues[i] = net_queue_create(i);
		MUST(queues[i] != NULL);
	}
}

static void choose_port(const uint8_t *data, size_t size)
{
	unsigned port = data[0] >> 6;

	judge.real = port == 0 ? null_port : port == 1 ? echo_port : port == 2 ? vxlan_port : NULL;
	judge.port.lends = judge.real && judge.real->lends;
	judge.port.rx_batch = port == 3 && data[0] & 32 ? 1 : NET_BATCH;
	judge.tape = data + TAPE;
	judge.tape_left = size > TAPE ? size - TAPE : 0;
	judge.handed = judge.sent = judge.sent_bytes = judge.received = 0;
}

static uint64_t features(const uint8_t *data)
{
	static const uint64_t offloads[4] = {
		0,
		F(CSUM) | F(GUEST_CSUM),
		F(CSUM) | F(GUEST_CSUM) | F(HOST_TSO4) | F(GUEST_TSO4) | F(HOST_TSO6) | F(GUEST_TSO6) | F(HOST_ECN) |
			F(GUEST_ECN),
		F(CSUM) | F(GUEST_CSUM) | F(HOST_TSO4) | F(HOST_TSO6) | F(HOST_UFO) | F(HOST_USO) | F(GUEST_UFO) |
			F(GUEST_USO4) | F(GUEST_USO6),
	};

	return offloads[data[1] >> 6] | (data[0] & 32 ? F(MRG_RXBUF) : 0);
}

static uint64_t drops(const struct net_stats *stats)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < NET_DROPS; i++)
		sum += stats->drops[i];
	return sum;
}

/* How far pops are ahead of pushes, in ring positions. */
static uint16_t ahead(const struct virtq *vq)
{
	return (uint16_t)(vq->avail_idx - vq->used_idx + (vq->avail_wrap != vq->used_wrap ? vq->size : 0));
}

/*
 * Nothing of the queue is in flight: was every chain that was popped also pushed? A fault keeps the chain that shows it.
 * @before: ahead() when the queue was bound, where a driver may lie of where it was
 */
static void judge_ring(const struct virtq *vq, uint16_t before)
{
	MUST(vq->unpublished == 0);
	if (vq->fault == VIRTQ_FAULT_NONE)
		MUST(ahead(vq) == before);
	else if (!vq->packed)
		MUST((uint16_t)(ahead(vq) - before) <= 1);
}

static void serve(void)
{
	struct lane *base = net_lane_base(lane);
	struct queue *rx = net_queue_base(queues[NET_RX]), *tx = net_queue_base(queues[NET_TX]);
	const struct lane_ops *ops = base->ops;
	uint16_t before[2] = { ahead(&rx->vq), ahead(&tx->vq) };

	for (unsigned i = 0; i < 2; i++)
		MUST(lane_add(base, net_queue_base(queues[i])) == 0);
	/* A packed driver's input may offer itself for ever, as each use writes the ring; turns are what we bound. */
	for (unsigned turns = 0; ops->poll(base) > 0 && turns < 32; turns++) {
		MUST(rx->in_flight <= rx->vq.size && tx->in_flight == 0);
		MUST(rx->vq.unpublished == 0 && tx->vq.unpublished == 0);
	}
	for (unsigned i = 0; i < 2; i++)
		queue_set_state(net_queue_base(queues[i]), QUEUE_STOPPING);
	ops->poll(base);
	for (unsigned i = 0; i < 2; i++) {
		struct queue *q = net_queue_base(queues[i]);

		MUST(q->in_flight == 0);
		lane_remove(base, q);
		queue_set_state(q, QUEUE_STOPPED);
		judge_ring(&q->vq, before[i]);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct net_stats before[2], now[2];
	struct virtq_config cfg;

	make_card();
	if (size > MEMORY || is_poisoned(data, size) || !fuzz_guest(data, size, &cfg))
		return 0;
	choose_port(data, size);
	cfg.features |= features(data);
	for (unsigned i = 2; i-- > 0;) { /* transmitq, receiveq */
		if (net_queue_bind(queues[i], &cfg, table) < 0)
			return 0;
		before[i] = *net_queue_stats(queues[i]);
		cfg.desc_uva += SECOND;
		cfg.avail_uva += SECOND;
		cfg.used_uva += SECOND;
	}
	poison_echo();
	if (judge.real == vxlan_port) {
		poison_tunnel();
		fill_tunnel();
	}
	for (unsigned i = 0; i < NET_BATCH; i++)
		poison(lane->spill + (size_t)i * NET_ROOM, POISONED);
	poison(lane->frames, sizeof(lane->frames));
	serve();
	for (unsigned i = 0; i < 2; i++) {
		now[i] = *net_queue_stats(queues[i]);
		MUST(!is_poisoned(mem_map_ptr(maps[i]), REGION));
	}
	MUST(now[NET_TX].packets - before[NET_TX].packets == judge.sent);
	MUST(now[NET_TX].bytes - before[NET_TX].bytes == judge.sent_bytes);
	MUST(drops(&now[NET_TX]) - drops(&before[NET_TX]) >= judge.handed - judge.sent);
	MUST(now[NET_RX].packets - before[NET_RX].packets + drops(&now[NET_RX]) - drops(&before[NET_RX]) ==
	     judge.received);
	drain(echo_port);
	drain(vxlan_port);
	judge_tunnel();
	return 0;
}
