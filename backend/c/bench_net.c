/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_net.c - load on a virtio network card (virtio 1.2 §5.1), measured from outside
 *
 * A frame to send has a fixed place, its header right before it, in one buffer: as Linux does it where there is headroom. So
 * have the buffers to receive into, which go back to the device as soon as they were looked at. Places are an odd number of
 * cache lines apart, for frames a power of two apart would all want the same few sets of the cache.
 *
 * The clock is read once per batch that is sent and once per batch that is found; what lies between is a round trip.
 */
#include "bench_net.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../kernel/c/atomics.h"
#include "bench_verify.h"

#define CACHE_LINE 64u
#define TURNS_PER_LOOK 16        /* turns between looks at the clock */
#define SPINS_PER_LOOK 1024      /* the same of fruitless ones */
#define GIVE_UP_NS 100000000ull  /* what has not come back after so long of silence is lost */
#define MAGIC 0x6b706f6c6c6e6574 /* "kpollnet" */

/* What our frames begin with: broadcast, of the Ethertype 0x88b5 (IEEE 802, Local Experimental 1). */
struct head {
	uint8_t dst[6], src[6], type[2];
	uint64_t magic;
	uint32_t pair;
	uint64_t number; /* from 0 on, for each pair; never repeated */
} __attribute__((packed));

_Static_assert(sizeof(struct head) <= BENCH_NET_FRAME_MIN, "every frame has room for it");

struct sent {
	uint64_t number, ns;
	bool under_way;
};

struct pair {
	struct driver *rx, *tx;
	int call_fds[2];
	uint8_t *tx_places, *rx_places;
	uint64_t tx_gpa, rx_gpa;
	struct driver_used *idle; /* places of frames that the device doesn't have */
	uint32_t idle_count;
	uint64_t next, awaited;  /* numbers: of the frame to send next; of the first one that may still come back */
	struct sent *sent;       /* echo: the last `window` frames, by number */
	uint64_t came;           /* rx: the number after the last one that came; 0: none did */
	uint32_t pieces, length; /* of the frame that is being received: buffers to come; bytes so far */
	struct head head;        /* its beginning */
	uint8_t *whole;          /* verify: all of it */
};

struct bench_net {
	struct bench_net_config cfg;
	uint32_t pair_count, window;
	struct pair *pairs;
	uint8_t *expected; /* verify: what it should be */
	uint32_t stopped;  /* atomic: set by bench_net_stop() */

	/* of the run under way */
	struct bench_net_result *result;
	int mode;
	uint64_t left, deadline_ns;
};

/* Bytes from one place to the next. */
static uint64_t stride(uint64_t bytes)
{
	return ((bytes + CACHE_LINE - 1) / CACHE_LINE | 1) * CACHE_LINE;
}

static uint64_t tx_stride(const struct bench_net_config *cfg)
{
	return stride((uint64_t)NET_HDR_LEN + cfg->size);
}

uint64_t bench_net_area_bytes(const struct bench_net_config *cfg)
{
	return (uint64_t)cfg->pairs * cfg->queue_size * (tx_stride(cfg) + stride(cfg->rx_buffer));
}

static struct head *tx_frame(const struct bench_net *b, const struct pair *p, uint64_t place)
{
	return (struct head *)(p->tx_places + place * tx_stride(&b->cfg) + NET_HDR_LEN);
}

/* What follows a frame's head: the same in all frames, or bytes of its own. */
static void fill(const struct bench_net *b, uint64_t number, uint8_t *frame)
{
	uint64_t state = (b->cfg.seed ^ (number + 1) * 0x9e3779b97f4a7c15u) | 1; /* never 0 */

	for (uint32_t at = sizeof(struct head); at < b->cfg.size; at += sizeof(state)) {
		uint64_t word = bench_random(&state);

		memcpy(frame + at, &word, b->cfg.size - at < sizeof(word) ? b->cfg.size - at : sizeof(word));
	}
}

/* The next pair's part of the area, with its frames in it. */
static void place_frames(struct bench_net *b, struct pair *p)
{
	struct head head = { .src = { 2, 0, 0, 0, 0, 2 }, .type = { 0x88, 0xb5 }, .magic = MAGIC };
	uint64_t tx_bytes = b->cfg.queue_size * tx_stride(&b->cfg);
	uint64_t at = b->pair_count * (tx_bytes + b->cfg.queue_size * stride(b->cfg.rx_buffer));

	memset(head.dst, 0xff, sizeof(head.dst));
	head.pair = b->pair_count;
	p->tx_places = b->cfg.area + at;
	p->tx_gpa = b->cfg.area_gpa + at;
	p->rx_places = p->tx_places + tx_bytes;
	p->rx_gpa = p->tx_gpa + tx_bytes;
	for (uint32_t i = 0; i < b->cfg.queue_size; i++) {
		struct head *frame = tx_frame(b, p, i);

		memset((uint8_t *)frame - NET_HDR_LEN, 0, NET_HDR_LEN);
		*frame = head;
		fill(b, 0, (uint8_t *)frame);
		p->idle[i].token = i;
	}
	p->idle_count = b->cfg.queue_size;
}

static bool config_valid(const struct bench_net_config *cfg)
{
	return cfg->pairs >= 1 && cfg->pairs <= BENCH_NET_PAIRS_MAX && cfg->queue_size >= 1 &&
	       cfg->queue_size <= VIRTQ_SIZE_MAX && cfg->size >= BENCH_NET_FRAME_MIN &&
	       cfg->size <= BENCH_NET_FRAME_MAX && cfg->rx_buffer >= NET_HDR_LEN + BENCH_NET_FRAME_MIN &&
	       cfg->rx_buffer <= NET_HDR_LEN + BENCH_NET_FRAME_MAX && cfg->batch >= 1 &&
	       cfg->batch <= BENCH_NET_BATCH_MAX && cfg->depth >= 1 && cfg->depth <= cfg->queue_size &&
	       (uintptr_t)cfg->area % CACHE_LINE == 0;
}

static bool allocate(struct bench_net *b)
{
	b->window = 1;
	while (b->window < b->cfg.depth)
		b->window *= 2;
	b->pairs = calloc(b->cfg.pairs, sizeof(*b->pairs));
	b->expected = malloc(BENCH_NET_FRAME_MAX);
	if (!b->pairs || !b->expected)
		return false;
	for (uint32_t i = 0; i < b->cfg.pairs; i++) {
		struct pair *p = &b->pairs[i];

		p->idle = calloc(b->cfg.queue_size, sizeof(*p->idle));
		p->sent = calloc(b->window, sizeof(*p->sent));
		p->whole = malloc(BENCH_NET_FRAME_MAX);
		if (!p->idle || !p->sent || !p->whole)
			return false;
	}
	return true;
}

int bench_net_create(struct bench_net **out, const struct bench_net_config *cfg)
{
	struct bench_net *b;

	if (!config_valid(cfg))
		return -EINVAL;
	b = calloc(1, sizeof(*b));
	if (!b)
		return -ENOMEM;
	b->cfg = *cfg;
	if (!allocate(b)) {
		bench_net_destroy(b);
		return -ENOMEM;
	}
	*out = b;
	return 0;
}

void bench_net_destroy(struct bench_net *b)
{
	if (!b)
		return;
	for (uint32_t i = 0; b->pairs && i < b->cfg.pairs; i++) {
		free(b->pairs[i].idle);
		free(b->pairs[i].sent);
		free(b->pairs[i].whole);
	}
	free(b->pairs);
	free(b->expected);
	free(b);
}

static int offer(struct bench_net *b, struct pair *p, uint64_t place)
{
	struct driver_buf buf = { p->rx_gpa + place * stride(b->cfg.rx_buffer), b->cfg.rx_buffer };

	return driver_add(p->rx, &buf, 0, 1, place);
}

int bench_net_add_pair(struct bench_net *b, struct driver *rx, struct driver *tx, int rx_call_fd, int tx_call_fd)
{
	struct pair *p = &b->pairs[b->pair_count];
	int err;

	if (b->pair_count == b->cfg.pairs)
		return -EINVAL;
	if (driver_room(rx) < b->cfg.queue_size || driver_room(tx) < b->cfg.queue_size)
		return -ENOSPC;
	driver_interrupts_off(rx);
	driver_interrupts_off(tx);
	p->rx = rx;
	p->tx = tx;
	p->call_fds[0] = rx_call_fd;
	p->call_fds[1] = tx_call_fd;
	place_frames(b, p);
	b->pair_count++;
	for (uint32_t i = 0; i < b->cfg.queue_size; i++) {
		err = offer(b, p, i);
		if (err)
			return err;
	}
	err = driver_publish(rx);
	return err < 0 ? err : 0;
}

void bench_net_stop(struct bench_net *b)
{
	store_release(&b->stopped, 1); /* pairs with bench_net_run()'s acquire */
}

/* How many frames this pair may send now. */
static uint32_t may_send(const struct bench_net *b, const struct pair *p)
{
	uint64_t n = b->cfg.batch;

	if (n > p->idle_count)
		n = p->idle_count;
	if (n > b->left)
		n = b->left;
	if (b->mode == BENCH_NET_ECHO && n > b->cfg.depth - (p->next - p->awaited))
		n = b->cfg.depth - (p->next - p->awaited);
	return (uint32_t)n;
}

static int send_frames(struct bench_net *b, struct pair *p)
{
	uint32_t n = may_send(b, p);
	uint64_t now;
	int err;

	if (n == 0)
		return 0;
	now = b->mode == BENCH_NET_ECHO ? now_ns() : 0;
	for (uint32_t i = 0; i < n; i++) {
		uint64_t place = p->idle[--p->idle_count].token, number = p->next++;
		struct driver_buf buf = { p->tx_gpa + place * tx_stride(&b->cfg), NET_HDR_LEN + b->cfg.size };
		struct head *frame = tx_frame(b, p, place);

		frame->number = number;
		if (unlikely(b->cfg.verify))
			fill(b, number, (uint8_t *)frame);
		p->sent[number & (b->window - 1)] = (struct sent){ number, now, true };
		err = driver_add(p->tx, &buf, 1, 0, place);
		if (err)
			return err;
	}
	b->left -= n;
	err = driver_publish(p->tx);
	return err < 0 ? err : 0;
}

/* Take back the places of frames that the device has sent. Return: how many, or -EPROTO */
static int take_back(struct bench_net *b, struct pair *p)
{
	int n = driver_poll_used(p->tx, p->idle + p->idle_count, b->cfg.batch);

	if (n > 0) {
		p->idle_count += (uint32_t)n;
		b->result->sent += (uint32_t)n;
	}
	return n;
}

/* Frame @number of ours came back. Return: false when it isn't under way */
static bool returned(struct bench_net *b, struct pair *p, uint64_t number, uint64_t now)
{
	struct sent *sent = &p->sent[number & (b->window - 1)];
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

static bool as_sent(struct bench_net *b, const struct pair *p)
{
	if (p->length != b->cfg.size)
		return false;
	if (likely(!b->cfg.verify))
		return true;
	/* Its head was looked at already; the part that says who sent whom may change on the way. */
	fill(b, p->head.number, b->expected);
	return memcmp(b->expected + sizeof(p->head), p->whole + sizeof(p->head), b->cfg.size - sizeof(p->head)) == 0;
}

/* A whole frame came to pair @p. */
static void received(struct bench_net *b, struct pair *p, uint64_t now)
{
	struct bench_net_result *result = b->result;
	struct pair *of = p->head.pair < b->pair_count ? &b->pairs[p->head.pair] : NULL;
	bool ours = p->length >= sizeof(p->head) && p->head.magic == MAGIC && of != NULL;

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
static int take_piece(struct bench_net *b, struct pair *p, const struct driver_used *used, uint64_t now)
{
	const uint8_t *at = p->rx_places + used->token * stride(b->cfg.rx_buffer);
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

static int receive(struct bench_net *b, struct pair *p)
{
	struct driver_used used[BENCH_NET_BATCH_MAX];
	int err, n = driver_poll_used(p->rx, used, b->cfg.batch);
	uint64_t now;

	if (n <= 0)
		return n;
	now = b->mode == BENCH_NET_ECHO ? now_ns() : 0;
	for (int i = 0; i < n; i++)
		__builtin_prefetch(p->rx_places + used[i].token * stride(b->cfg.rx_buffer));
	for (int i = 0; i < n; i++) {
		err = take_piece(b, p, &used[i], now);
		if (!err)
			err = offer(b, p, used[i].token);
		if (err)
			return err;
	}
	err = driver_publish(p->rx);
	return err < 0 ? err : n;
}

/* One look at every queue. Return: how much of what the mode waits for was there, or -errno */
static int turn(struct bench_net *b)
{
	int total = 0;

	for (uint32_t i = 0; i < b->pair_count; i++) {
		struct pair *p = &b->pairs[i];
		int err, rx, tx;

		rx = b->mode == BENCH_NET_TX ? 0 : receive(b, p);
		if (rx < 0)
			return rx;
		tx = b->mode == BENCH_NET_RX ? 0 : take_back(b, p);
		if (tx < 0)
			return tx;
		err = b->mode == BENCH_NET_RX ? 0 : send_frames(b, p);
		if (err)
			return err;
		total += b->mode == BENCH_NET_TX ? tx : rx;
	}
	return total;
}

/* Is there anything that will still come by itself? */
static bool under_way(const struct bench_net *b)
{
	for (uint32_t i = 0; i < b->pair_count; i++) {
		const struct pair *p = &b->pairs[i];

		if (b->mode == BENCH_NET_ECHO ? p->awaited < p->next : p->idle_count < b->cfg.queue_size)
			return true;
	}
	return false;
}

static bool finished(const struct bench_net *b)
{
	if (b->mode == BENCH_NET_RX)
		return b->left == 0 || b->result->received >= b->left;
	return b->left == 0 && !under_way(b);
}

/* What has not come back yet never will. */
static void give_up(struct bench_net *b)
{
	for (uint32_t i = 0; i < b->pair_count; i++)
		b->pairs[i].awaited = b->pairs[i].next;
}

static int loop(struct bench_net *b, uint64_t start_ns)
{
	uint64_t now, heard_ns = start_ns, silent_ns = start_ns;
	uint32_t turns = 0, fruitless = 0;
	bool heard = false;
	int n;

	while (!finished(b)) {
		n = turn(b);
		if (n < 0)
			return n;
		if (load_acquire(&b->stopped))
			return -ECANCELED;
		heard |= n > 0;
		fruitless = n > 0 ? 0 : fruitless + 1;
		if (n == 0)
			cpu_relax();
		/* The clock costs as much as a frame: it isn't read each time. */
		if (n > 0 ? ++turns % TURNS_PER_LOOK : fruitless % SPINS_PER_LOOK)
			continue;
		now = now_ns();
		if (heard)
			heard_ns = silent_ns = now;
		heard = false;
		if (now >= b->deadline_ns)
			b->left = 0;
		if (now - heard_ns > b->cfg.stall_ns)
			return -ETIMEDOUT;
		if (now - silent_ns > GIVE_UP_NS) {
			silent_ns = now;
			give_up(b);
		}
		b->result->elapsed_ns = (b->mode == BENCH_NET_RX ? now : heard_ns) - start_ns;
	}
	if (heard)
		b->result->elapsed_ns = now_ns() - start_ns;
	return 0;
}

/* Calls since the last look, of all queues. */
static uint64_t calls(const struct bench_net *b)
{
	uint64_t sum = 0, count;

	for (uint32_t i = 0; i < 2 * b->pair_count; i++)
		if (read(b->pairs[i / 2].call_fds[i % 2], &count, sizeof(count)) == sizeof(count))
			sum += count;
	return sum;
}

static uint64_t kicks(const struct bench_net *b)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < b->pair_count; i++)
		sum += driver_kicks(b->pairs[i].rx) + driver_kicks(b->pairs[i].tx);
	return sum;
}

static uint64_t numbers(const struct bench_net *b)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < b->pair_count; i++)
		sum += b->pairs[i].next;
	return sum;
}

int bench_net_run(struct bench_net *b, const struct bench_net_load *load, struct bench_net_result *out)
{
	uint64_t start_ns, kicks_before = kicks(b), numbers_before = numbers(b);
	int err;

	if ((!load->runtime_ns && !load->frames) || b->pair_count != b->cfg.pairs || load->mode < BENCH_NET_TX ||
	    load->mode > BENCH_NET_ECHO)
		return -EINVAL;
	memset(out, 0, sizeof(*out));
	calls(b);
	give_up(b);
	b->result = out;
	b->mode = load->mode;
	b->left = load->frames ? load->frames : UINT64_MAX;
	start_ns = now_ns();
	b->deadline_ns = load->runtime_ns ? start_ns + load->runtime_ns : UINT64_MAX;
	err = loop(b, start_ns);
	if (b->mode == BENCH_NET_ECHO) {
		out->sent = numbers(b) - numbers_before;
		out->lost = out->sent - out->received;
	}
	out->kicks = kicks(b) - kicks_before;
	out->calls = calls(b);
	b->result = NULL; /* the caller's memory: not kept */
	return err;
}
