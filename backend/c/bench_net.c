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
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../../kernel/c/atomics.h"
#include "bench_net_load.h"

#define TURNS_PER_LOOK 16        /* turns between looks at the clock */
#define SPINS_PER_LOOK 1024      /* the same of fruitless ones */
#define GIVE_UP_NS 1000000000ull /* what has not come back after so long of silence is lost */

static uint64_t tx_stride(const struct bench_net_config *cfg)
{
	return bench_net_stride((uint64_t)NET_HDR_LEN + cfg->size);
}

uint64_t bench_net_area_bytes(const struct bench_net_config *cfg)
{
	return (uint64_t)cfg->pairs * cfg->queue_size * (tx_stride(cfg) + bench_net_stride(cfg->rx_buffer));
}

static struct bench_head *tx_frame(const struct bench_net *b, const struct bench_pair *p, uint64_t place)
{
	return (struct bench_head *)(p->tx_places + place * tx_stride(&b->cfg) + NET_HDR_LEN);
}

/* The next pair's part of the area, with its frames in it. */
static void place_frames(struct bench_net *b, struct bench_pair *p)
{
	struct bench_head head = { .src = { 2, 0, 0, 0, 0, 2 }, .type = { 0x88, 0xb5 }, .magic = BENCH_NET_MAGIC };
	uint64_t tx_bytes = b->cfg.queue_size * tx_stride(&b->cfg);
	uint64_t at = b->pair_count * (tx_bytes + b->cfg.queue_size * bench_net_stride(b->cfg.rx_buffer));

	memset(head.dst, 0xff, sizeof(head.dst));
	head.pair = b->pair_count;
	p->tx_places = b->cfg.area + at;
	p->tx_gpa = b->cfg.area_gpa + at;
	p->rx_places = p->tx_places + tx_bytes;
	p->rx_gpa = p->tx_gpa + tx_bytes;
	for (uint32_t i = 0; i < b->cfg.queue_size; i++) {
		struct bench_head *frame = tx_frame(b, p, i);

		memset((uint8_t *)frame - NET_HDR_LEN, 0, NET_HDR_LEN);
		*frame = head;
		bench_net_fill(b, 0, (uint8_t *)frame);
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
	       (!cfg->feed || bench_datagrams_count(cfg->feed) <= cfg->depth) &&
	       (uintptr_t)cfg->area % BENCH_NET_LINE == 0;
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
		struct bench_pair *p = &b->pairs[i];

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

int bench_net_add_pair(struct bench_net *b, struct driver *rx, struct driver *tx, int rx_call_fd, int tx_call_fd)
{
	struct bench_pair *p = &b->pairs[b->pair_count];
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
		err = bench_net_offer(b, p, i);
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
static uint32_t may_send(const struct bench_net *b, const struct bench_pair *p)
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

static int send_frames(struct bench_net *b, struct bench_pair *p)
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
		struct bench_head *frame = tx_frame(b, p, place);

		frame->number = number;
		if (unlikely(b->cfg.verify))
			bench_net_fill(b, number, (uint8_t *)frame);
		p->sent[number & (b->window - 1)] = (struct bench_sent){ number, now, true };
		err = driver_add(p->tx, &buf, 1, 0, place);
		if (err)
			return err;
	}
	b->left -= n;
	err = driver_publish(p->tx);
	return err < 0 ? err : 0;
}

/* Take back the places of frames that the device has sent. Return: how many, or -EPROTO */
static int take_back(struct bench_net *b, struct bench_pair *p)
{
	int n = driver_poll_used(p->tx, p->idle + p->idle_count, b->cfg.batch);

	if (n > 0) {
		p->idle_count += (uint32_t)n;
		b->result->sent += (uint32_t)n;
	}
	return n;
}

/*
 * Be the other end of a path as well: what arrives there goes back. In this thread, so that a machine of two CPUs has one for
 * the back-end and one for all the rest.
 */
static int reflect(struct bench_net *b)
{
	ssize_t n;

	for (uint32_t i = 0; i < b->cfg.batch; i++) {
		n = recv(b->cfg.reflect_fd, b->expected, BENCH_NET_FRAME_MAX, MSG_DONTWAIT);
		if (n < 0 && errno == EAGAIN)
			break;
		if (n < 0 || send(b->cfg.reflect_fd, b->expected, (size_t)n, 0) < 0)
			return -errno;
	}
	return 0;
}

/* Be the other end of a path, from which frames come. In this thread, as above. */
static int feed(struct bench_net *b)
{
	/* What a former run sent may still come: signed. */
	int64_t under_way = (int64_t)(b->fed - b->result->received);

	if (under_way > (int64_t)(b->cfg.depth - bench_datagrams_count(b->cfg.feed)))
		return 0;
	return bench_datagrams_send(b->cfg.feed, b->cfg.feed_fd, &b->fed);
}

/* One look at every queue. Return: how much of what the mode waits for was there, or -errno */
static int turn(struct bench_net *b)
{
	int total = 0;

	if (unlikely(b->cfg.reflect_fd >= 0)) {
		int err = reflect(b);

		if (err)
			return err;
	}
	if (unlikely(b->cfg.feed) && b->mode == BENCH_NET_RX) {
		int err = feed(b);

		if (err)
			return err;
	}
	for (uint32_t i = 0; i < b->pair_count; i++) {
		struct bench_pair *p = &b->pairs[i];
		int err, rx, tx;

		rx = b->mode == BENCH_NET_TX ? 0 : bench_net_receive(b, p);
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
		const struct bench_pair *p = &b->pairs[i];

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
	b->fed = b->result->received;
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
	b->result = out;
	give_up(b);
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
