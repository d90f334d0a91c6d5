/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_blk.c - closed-loop load on a virtio block device (virtio 1.2 §5.2), measured from outside
 *
 * A request has a fixed place: one cache line for its header and status byte, as in Linux's struct virtblk_req, and
 * a page-aligned data buffer. What came back together is sent anew together, in batches of at most BATCH: a guest
 * with several tasks does not hold all its requests back for the last answer, and a larger batch would make device
 * and driver take turns instead of working side by side. The clock is read twice per batch: before it is
 * published and after it was found used; what lies between is what the histogram counts.
 */
#include <errno.h>
#include <linux/virtio_blk.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "../../kernel/c/atomics.h"
#include "../../kernel/c/signal_fd.h"
#include "bench_blk.h"
#include "bench_verify.h"

#define BATCH 16
#define PAGE 4096u
#define SECTOR 512u
#define SPINS_PER_LOOK 1024 /* fruitless turns between looks at the clock */
#define SLEEP_MS 100        /* longest sleep between looks at the clock */

struct meta {
	struct virtio_blk_outhdr header;
	uint8_t status;
	uint8_t pad[64 - sizeof(struct virtio_blk_outhdr) - 1];
};

struct request {
	struct meta *meta;
	uint8_t *data;
	struct driver_buf *bufs;
	uint64_t started_ns, block;
	uint32_t generation; /* verify: of what it writes */
	bool write;
};

struct queue {
	struct driver *driver;
	int call_fd;
	struct request *requests;
};

struct bench {
	struct bench_config cfg;
	uint32_t segments, queue_count;
	struct queue *queues;
	struct request *requests;
	struct driver_buf *bufs;
	int epoll_fd, stop_fd;
	uint32_t stopped; /* atomic: set by bench_stop() */

	struct bench_verify verify; /* if cfg.verify */

	/* of the run under way */
	struct bench_result *result;
	int rw;
	uint64_t random, cursor, left, deadline_ns, think_ns, in_flight;
};

static uint64_t requests_of(const struct bench_config *cfg)
{
	return (uint64_t)cfg->queues * cfg->iodepth;
}

static uint64_t data_stride(const struct bench_config *cfg)
{
	return ((uint64_t)cfg->block_size + PAGE - 1) / PAGE * PAGE;
}

static uint64_t metas_bytes(const struct bench_config *cfg)
{
	return (requests_of(cfg) * sizeof(struct meta) + PAGE - 1) / PAGE * PAGE;
}

uint64_t bench_area_bytes(const struct bench_config *cfg)
{
	return metas_bytes(cfg) + requests_of(cfg) * data_stride(cfg);
}

uint32_t bench_chain_max(const struct bench_config *cfg)
{
	return 2 + (uint32_t)(((uint64_t)cfg->block_size + cfg->segment_max - 1) / cfg->segment_max);
}

/* Lay the requests out in the area: header and status in one line, data in pages; what writes carry is incompressible. */
static void place_requests(struct bench *b)
{
	uint8_t *data = b->cfg.area + metas_bytes(&b->cfg);
	struct meta *metas = (struct meta *)b->cfg.area;
	uint32_t chain = b->segments + 2;

	for (uint64_t i = 0; i < requests_of(&b->cfg); i++) {
		struct request *r = &b->requests[i];
		struct driver_buf *bufs = r->bufs = &b->bufs[i * chain];
		uint64_t meta_gpa = b->cfg.area_gpa + i * sizeof(struct meta);

		r->meta = &metas[i];
		r->data = data + i * data_stride(&b->cfg);
		bufs[0] = (struct driver_buf){ meta_gpa, sizeof(r->meta->header) };
		for (uint32_t s = 0; s < b->segments; s++) {
			uint64_t at = (uint64_t)s * b->cfg.segment_max;
			uint64_t rest = b->cfg.block_size - at;

			bufs[1 + s].addr = b->cfg.area_gpa + (uint64_t)(r->data - b->cfg.area) + at;
			bufs[1 + s].len = (uint32_t)(rest < b->cfg.segment_max ? rest : b->cfg.segment_max);
		}
		bufs[chain - 1] = (struct driver_buf){ meta_gpa + offsetof(struct meta, status), 1 };
		for (uint32_t w = 0; w < b->cfg.block_size / sizeof(uint64_t); w++)
			((uint64_t *)r->data)[w] = bench_random(&b->random);
	}
}

static bool config_valid(const struct bench_config *cfg)
{
	return cfg->queues >= 1 && cfg->queues <= BENCH_QUEUES_MAX && cfg->iodepth >= 1 &&
	       cfg->iodepth <= VIRTQ_SIZE_MAX && cfg->block_size >= SECTOR && cfg->block_size % SECTOR == 0 &&
	       cfg->segment_max >= SECTOR && cfg->segment_max % SECTOR == 0 && cfg->blocks >= 1 &&
	       cfg->blocks <= UINT64_MAX / cfg->block_size && (uintptr_t)cfg->area % PAGE == 0;
}

int bench_create(struct bench **out, const struct bench_config *cfg)
{
	struct epoll_event stop = { .events = EPOLLIN };
	struct bench *b;
	int err = -ENOMEM;

	if (!config_valid(cfg))
		return -EINVAL;
	b = calloc(1, sizeof(*b));
	if (!b)
		return -ENOMEM;
	b->cfg = *cfg;
	b->segments = bench_chain_max(cfg) - 2;
	b->random = cfg->seed * 2 + 0x9e3779b97f4a7c15u; /* odd, so never 0 */
	b->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	b->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	b->queues = calloc(cfg->queues, sizeof(*b->queues));
	b->requests = calloc(requests_of(cfg), sizeof(*b->requests));
	b->bufs = calloc(requests_of(cfg) * (b->segments + 2), sizeof(*b->bufs));
	if (!b->queues || !b->requests || !b->bufs)
		goto fail;
	if (cfg->verify && bench_verify_init(&b->verify, cfg->blocks, cfg->block_size, cfg->seed))
		goto fail;
	if (b->epoll_fd < 0 || b->stop_fd < 0 || epoll_ctl(b->epoll_fd, EPOLL_CTL_ADD, b->stop_fd, &stop)) {
		err = -errno;
		goto fail;
	}
	place_requests(b);
	*out = b;
	return 0;
fail:
	bench_destroy(b);
	return err;
}

void bench_destroy(struct bench *b)
{
	if (!b)
		return;
	if (b->epoll_fd >= 0)
		close(b->epoll_fd);
	if (b->stop_fd >= 0)
		close(b->stop_fd);
	free(b->queues);
	free(b->requests);
	free(b->bufs);
	bench_verify_fini(&b->verify);
	free(b);
}

int bench_add_queue(struct bench *b, struct driver *d, int call_fd)
{
	/* Edge-triggered and never read on the way: each signal wakes, and the counter is the number of calls. */
	struct epoll_event ev = { .events = EPOLLIN | EPOLLET };

	if (b->queue_count == b->cfg.queues)
		return -EINVAL;
	if (epoll_ctl(b->epoll_fd, EPOLL_CTL_ADD, call_fd, &ev))
		return -errno;
	driver_interrupts_off(d);
	b->queues[b->queue_count].driver = d;
	b->queues[b->queue_count].call_fd = call_fd;
	b->queues[b->queue_count].requests = &b->requests[(uint64_t)b->queue_count * b->cfg.iodepth];
	b->queue_count++;
	return 0;
}

void bench_stop(struct bench *b)
{
	store_release(&b->stopped, 1); /* pairs with bench_run()'s acquire */
	signal_fd(b->stop_fd);
}

/* The next block to touch. The high half of a product scales a random number to a range without dividing. */
static uint64_t next_block(struct bench *b)
{
	uint64_t block;

	if (b->rw == BENCH_READ || b->rw == BENCH_WRITE) {
		block = b->cursor++;
		if (b->cursor == b->cfg.blocks)
			b->cursor = 0;
	} else {
		block = (uint64_t)((unsigned __int128)bench_random(&b->random) * b->cfg.blocks >> 64);
	}
	return block;
}

static bool next_is_write(struct bench *b)
{
	if (b->rw == BENCH_RANDRW)
		return bench_random(&b->random) >> 63;
	return b->rw == BENCH_WRITE || b->rw == BENCH_RANDWRITE;
}

static int send_one(struct bench *b, struct queue *q, uint32_t index)
{
	struct request *r = &q->requests[index];
	uint32_t out = 1, in = 1;

	r->write = next_is_write(b);
	r->block = next_block(b);
	if (unlikely(b->cfg.verify)) {
		r->block = bench_verify_claim(&b->verify, r->block); /* ends: there are more blocks than requests */
		if (r->write)
			r->generation = bench_verify_fill(&b->verify, r->block, (uint64_t *)r->data);
		else
			memset(r->data, 0, b->cfg.block_size); /* an old answer must not pass for the new one */
	}
	r->meta->header.type = r->write ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN;
	r->meta->header.ioprio = 0;
	r->meta->header.sector = r->block * (b->cfg.block_size / SECTOR);
	r->meta->status = 0xff;
	*(r->write ? &out : &in) += b->segments;
	return driver_add(q->driver, r->bufs, out, in, index);
}

/* Send what there is a place for (@indices), as one batch. */
static int send_batch(struct bench *b, struct queue *q, const struct driver_used *places, uint32_t n)
{
	uint64_t now;
	int err;

	if (n > b->left)
		n = (uint32_t)b->left;
	if (n == 0)
		return 0;
	for (uint32_t i = 0; i < n; i++) {
		err = send_one(b, q, (uint32_t)places[i].token);
		if (err)
			return err;
	}
	b->left -= n;
	b->in_flight += n;
	now = now_ns();
	for (uint32_t i = 0; i < n; i++)
		q->requests[places[i].token].started_ns = now;
	err = driver_publish(q->driver);
	return err < 0 ? err : 0;
}

static void compare(struct bench *b, const struct request *r, bool ok)
{
	uint64_t wrong;
	int rc;

	if (r->write) {
		bench_verify_written(&b->verify, r->block, r->generation, ok);
		return;
	}
	rc = bench_verify_read(&b->verify, r->block, (const uint64_t *)r->data, ok, &wrong);
	b->result->checked += rc != 0;
	if (rc < 0 && b->result->mismatches++ == 0) {
		b->result->mismatch_block = r->block;
		b->result->mismatch_offset = wrong;
	}
}

static void take_back(struct bench *b, struct request *r, uint64_t now)
{
	struct bench_result *result = b->result;
	uint64_t latency = now - r->started_ns;
	bool ok = r->meta->status == VIRTIO_BLK_S_OK;

	*(r->write ? &result->writes : &result->reads) += 1;
	result->errors += !ok;
	result->latency_sum_ns += latency;
	result->latency[bench_bucket_of(latency)]++;
	if (unlikely(latency > result->latency_max_ns))
		result->latency_max_ns = latency;
	if (unlikely(b->cfg.verify))
		compare(b, r, ok);
}

/* As a program does between two requests. It spins: a sleep would have its own latency. */
static void think(struct bench *b)
{
	uint64_t since = now_ns(), pause = bench_pause_ns(&b->random, b->think_ns);

	while (now_ns() - since < pause && !load_acquire(&b->stopped))
		cpu_relax();
}

/* One look at every queue. Return: requests that came back, or -errno */
static int turn(struct bench *b, uint64_t *now)
{
	struct driver_used used[BATCH];
	int total = 0;

	for (uint32_t i = 0; i < b->queue_count; i++) {
		struct queue *q = &b->queues[i];
		int err, n = driver_poll_used(q->driver, used, BATCH);

		if (n <= 0) {
			if (n < 0)
				return n;
			continue;
		}
		*now = now_ns();
		for (int k = 0; k < n; k++)
			take_back(b, &q->requests[used[k].token], *now);
		b->in_flight -= (uint32_t)n;
		if (*now >= b->deadline_ns)
			b->left = 0;
		if (b->think_ns && b->left)
			think(b);
		err = send_batch(b, q, used, (uint32_t)n);
		if (err)
			return err;
		total += n;
	}
	return total;
}

/* Wait for interrupts, as a guest does: on, look again, sleep, off. */
static void sleep_for_calls(struct bench *b)
{
	struct epoll_event events[8];
	bool more = false;

	for (uint32_t i = 0; i < b->queue_count; i++)
		more |= driver_interrupts_on(b->queues[i].driver);
	if (!more)
		epoll_wait(b->epoll_fd, events, 8,
			   SLEEP_MS); /* why it returned does not matter: all is looked at again */
	for (uint32_t i = 0; i < b->queue_count; i++)
		driver_interrupts_off(b->queues[i].driver);
}

static int start_all(struct bench *b)
{
	for (uint32_t i = 0; i < b->queue_count; i++) {
		for (uint32_t first = 0; first < b->cfg.iodepth; first += BATCH) {
			struct driver_used places[BATCH];
			uint32_t n;
			int err;

			for (n = 0; n < BATCH && first + n < b->cfg.iodepth; n++)
				places[n].token = first + n;
			err = send_batch(b, &b->queues[i], places, n);
			if (err)
				return err;
		}
	}
	return 0;
}

static int loop(struct bench *b)
{
	uint64_t now = now_ns(), heard_ns = now;
	uint32_t fruitless = 0;
	int n;

	while (b->in_flight) {
		n = turn(b, &now);
		if (n < 0)
			return n;
		if (load_acquire(&b->stopped))
			return -ECANCELED;
		if (n > 0) {
			heard_ns = now;
			fruitless = 0;
			continue;
		}
		if (b->cfg.sleep)
			sleep_for_calls(b);
		else
			cpu_relax();
		if (b->cfg.sleep || ++fruitless % SPINS_PER_LOOK == 0) {
			if (now_ns() - heard_ns > b->cfg.stall_ns)
				return -ETIMEDOUT;
		}
	}
	return 0;
}

/* Calls since the last look, of all queues. */
static uint64_t calls(const struct bench *b)
{
	uint64_t sum = 0, count;

	for (uint32_t i = 0; i < b->queue_count; i++)
		if (read(b->queues[i].call_fd, &count, sizeof(count)) == sizeof(count))
			sum += count;
	return sum;
}

static uint64_t kicks(const struct bench *b)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < b->queue_count; i++)
		sum += driver_kicks(b->queues[i].driver);
	return sum;
}

int bench_run(struct bench *b, const struct bench_load *load, struct bench_result *out)
{
	uint64_t start_ns, kicks_before = kicks(b);
	int err;

	if ((!load->runtime_ns && !load->requests) || b->queue_count != b->cfg.queues || load->rw < BENCH_READ ||
	    load->rw > BENCH_RANDRW || (b->cfg.verify && b->cfg.blocks <= requests_of(&b->cfg)))
		return -EINVAL;
	memset(out, 0, sizeof(*out));
	calls(b);
	b->result = out;
	b->rw = load->rw;
	b->cursor = 0;
	b->left = load->requests ? load->requests : UINT64_MAX;
	b->think_ns = load->think_ns;
	b->in_flight = 0;
	start_ns = now_ns();
	b->deadline_ns = load->runtime_ns ? start_ns + load->runtime_ns : UINT64_MAX;
	err = start_all(b);
	if (!err)
		err = loop(b);
	out->elapsed_ns = now_ns() - start_ns;
	out->kicks = kicks(b) - kicks_before;
	out->calls = calls(b);
	b->result = NULL; /* the caller's memory: not kept */
	return err;
}
