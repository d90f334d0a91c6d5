/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_net_rx.c - what came: frames put together from buffers, ours known by their numbers (virtio 1.2 §5.1.6.4)
 */
#include <errno.h>

#include "../../kernel/c/atomics.h"
#include "bench_net_load.h"

int bench_net_offer(struct bench_net *b, struct bench_pair *p, uint64_t place)
{
	struct driver_buf buf = { p->rx_gpa + place * bench_net_stride(b->cfg.rx_buffer), b->cfg.rx_buffer };

	return driver_add(p->rx, &buf, 0, 1, place);
}

/* Frame @number of ours came back. Return: false when it isn't under way */
static bool returned(struct bench_net *b, struct bench_pair *p, uint64_t number, uint64_t now)
{
	struct bench_sent *sent = &p->sent[number & (b->window - 1)];
	uint64_t rtt = now - sent->ns;

	if (!sent->under_way || sent->number != number)
		return false;
	sent->under_way = false;
	if (number >= p->awaited) /* those before it were lost, or will be late */
		p->awaited = number + 1;
	b->result->rtt_sum_ns += rtt;
	b->result->rtt[bench_bucket_of(rtt)]++;
	if (unlikely(rtt > b->result->rtt_max_ns))
		b->result->rtt_max_ns = rtt;
	return true;
}

static bool as_sent(struct bench_net *b, const struct bench_pair *p)
{
	if (p->length != b->cfg.size)
		return false;
	if (likely(!b->cfg.verify))
		return true;
	/* Its head was looked at already; the part that says who sent whom may change on the way. */
	bench_net_fill(b, p->head.number, b->expected);
	return memcmp(b->expected + sizeof(p->head), p->whole + sizeof(p->head), b->cfg.size - sizeof(p->head)) == 0;
}

/* A whole frame came to pair @p. */
static void received(struct bench_net *b, struct bench_pair *p, uint64_t now)
{
	struct bench_net_result *result = b->result;
	struct bench_pair *of = p->head.pair < b->pair_count ? &b->pairs[p->head.pair] : NULL;
	bool ours = p->length >= sizeof(p->head) && p->head.magic == BENCH_NET_MAGIC && of != NULL;

	if (b->mode == BENCH_NET_ECHO)
		ours = ours && returned(b, of, p->head.number, now);
	result->foreign += !ours;
	if (ours && unlikely(!as_sent(b, p)) && result->mismatches++ == 0)
		result->mismatch_number = p->head.number;
	if (ours && b->mode == BENCH_NET_RX) {
		if (of->came && p->head.number > of->came)
			result->lost += p->head.number - of->came;
		of->came = p->head.number + 1;
	}
	if (ours || b->mode == BENCH_NET_RX) {
		result->received++;
		result->bytes += p->length;
	}
}

/* A buffer came, with a frame or a piece of one (§5.1.6.3.2). Return: 0, or -EBADMSG */
static int take_piece(struct bench_net *b, struct bench_pair *p, const struct driver_used *used, uint64_t now)
{
	const uint8_t *at = p->rx_places + used->token * bench_net_stride(b->cfg.rx_buffer);
	uint32_t len = used->len;

	if (len > b->cfg.rx_buffer)
		return -EBADMSG;
	if (p->pieces == 0) {
		struct virtio_net_hdr_v1 hdr;

		if (len < NET_HDR_LEN + NET_FRAME_MIN)
			return -EBADMSG;
		memcpy(&hdr, at, sizeof(hdr));
		p->pieces = b->cfg.mrg_rxbuf ? hdr.num_buffers : 1;
		if (p->pieces == 0)
			return -EBADMSG;
		at += NET_HDR_LEN;
		len -= NET_HDR_LEN;
		p->length = 0;
		memcpy(&p->head, at, sizeof(p->head)); /* the buffer has room for it, whatever is in it */
	}
	if (len > BENCH_NET_FRAME_MAX - p->length)
		return -EBADMSG;
	if (unlikely(b->cfg.verify))
		memcpy(p->whole + p->length, at, len);
	p->length += len;
	if (--p->pieces == 0)
		received(b, p, now);
	return 0;
}

int bench_net_receive(struct bench_net *b, struct bench_pair *p)
{
	struct driver_used used[BENCH_NET_BATCH_MAX];
	int err, n = driver_poll_used(p->rx, used, b->cfg.batch);
	uint64_t now;

	if (n <= 0)
		return n;
	now = b->mode == BENCH_NET_ECHO ? now_ns() : 0;
	for (int i = 0; i < n; i++)
		__builtin_prefetch(p->rx_places + used[i].token * bench_net_stride(b->cfg.rx_buffer));
	for (int i = 0; i < n; i++) {
		err = take_piece(b, p, &used[i], now);
		if (!err)
			err = bench_net_offer(b, p, used[i].token);
		if (err)
			return err;
	}
	err = driver_publish(p->rx);
	return err < 0 ? err : n;
}
