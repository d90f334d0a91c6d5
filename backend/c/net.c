/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net.c - the network device: its lanes and queues come and go; one turn of a lane
 *
 * THEORY OF OPERATION
 *
 * A turn sends a batch (net_tx.c), then receives one (net_rx.c), so that what a port gives back at once is there in the same
 * turn. A port's descriptor stays readable until its frames are taken, and a turn that moved something is followed by another
 * one. After a turn that moved nothing the worker waits: for the port if there is room for what comes of it, else for the
 * driver alone, whose next buffers end the wait. A port that can't receive (its interface is gone) isn't waited for either,
 * but asked again now and then.
 */
#include "net_queue.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define ASK_AGAIN_NS 100000000 /* a port that fails */
#define SEND_AGAIN_NS 100000   /* a port that has frames left */
#define BUFS_KEPT 256 /* buffers' memory that a stopped queue may keep: rings are stopped and started now and then */

static const char *const drop_names[NET_DROPS] = {
	[NET_DROP_HEADER] = "header",     [NET_DROP_LENGTH] = "length",     [NET_DROP_NO_BUFFER] = "no_buffer",
	[NET_DROP_TOO_LONG] = "too_long", [NET_DROP_FULL] = "full",         [NET_DROP_REFUSED] = "refused",
	[NET_DROP_FOREIGN] = "foreign",   [NET_DROP_DISABLED] = "disabled",
};

const char *net_drop_name(enum net_drop reason)
{
	return (unsigned)reason < NET_DROPS ? drop_names[reason] : "unknown";
}

/* §5.1.2: receiveq1, transmitq1, receiveq2, ... */
static enum net_direction direction(const struct queue *q)
{
	return q->index % 2 ? NET_TX : NET_RX;
}

/* Wait for the port, or don't. Return: 0; 1 when that must be tried again */
static unsigned listen_to_port(struct net_lane *lane, bool room)
{
	bool mute = !room || lane->failing;

	if (!lane->ws || lane->port->fd < 0 || mute == lane->muted)
		return 0;
	if (wait_set_mute(lane->ws, lane->port->fd, mute) < 0)
		return 1;
	lane->muted = mute;
	return 0;
}

static unsigned lane_poll(struct lane *base)
{
	struct net_lane *lane = container_of(base, struct net_lane, lane);
	unsigned work = 0;
	bool room = false;

	lane_check_memory(base);
	if (unlikely(lane->port->unsent))
		lane->port->ops->tx(lane->port, lane->frames, 0);
	for (unsigned i = 0; i < base->count; i++) {
		struct queue *q = base->queues[i];

		if (direction(q) == NET_TX && q->state == QUEUE_RUNNING)
			work += net_tx_poll(lane, container_of(q, struct net_queue, queue));
	}
	for (unsigned i = 0; i < base->count; i++) {
		struct net_queue *q = container_of(base->queues[i], struct net_queue, queue);

		if (direction(&q->queue) == NET_TX)
			continue;
		if (q->queue.state == QUEUE_RUNNING)
			work += net_rx_poll(lane, q);
		else if (q->queue.state == QUEUE_STOPPING)
			work += net_rx_give_back(q);
		room |= q->queue.state == QUEUE_RUNNING && q->queue.in_flight > 0;
	}
	return work > 0 ? work : listen_to_port(lane, room);
}

static int lane_join(struct lane *base, struct wait_set *ws)
{
	struct net_lane *lane = container_of(base, struct net_lane, lane);
	int rc;

	if (lane->next)
		lane->port = lane->next;
	lane->next = NULL;
	lane->muted = lane->failing = false;
	rc = lane->port->fd < 0 ? 0 : wait_set_add_socket(ws, lane->port->fd, base);
	lane->ws = rc < 0 ? NULL : ws; /* what isn't waited for can't be muted, which would be tried for ever */
	return rc;
}

static int64_t lane_sleep_timeout_ns(struct lane *base)
{
	const struct net_lane *lane = container_of(base, struct net_lane, lane);

	if (unlikely(lane->port->unsent))
		return SEND_AGAIN_NS;
	return lane->failing ? ASK_AGAIN_NS : -1;
}

/* A deep queue's buffers are the kernel's again; zeros, when they are next used. */
static void queue_release(struct lane *lane, struct queue *base)
{
	struct net_port *port = container_of(lane, struct net_lane, lane)->port;
	struct net_queue *q = container_of(base, struct net_queue, queue);

	if (port->ops->forget)
		port->ops->forget(port);
	if (q->bufs_count <= BUFS_KEPT)
		return;
	madvise(q->bufs, q->bufs_count * sizeof(*q->bufs), MADV_DONTNEED);
	madvise(q->pieces, q->bufs_count * sizeof(*q->pieces), MADV_DONTNEED);
}

static const struct lane_ops ops = {
	.poll = lane_poll,
	.join = lane_join,
	.sleep_timeout_ns = lane_sleep_timeout_ns,
	.release = queue_release,
};

/* Memory that costs nothing until it is touched. Return: NULL when there is none */
static void *map_pages(size_t bytes)
{
	void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return at == MAP_FAILED ? NULL : at;
}

int net_lane_create(struct net_lane **out, struct net_port *port)
{
	struct net_lane *lane = calloc(1, sizeof(*lane));

	if (!lane)
		return -ENOMEM;
	lane_init(&lane->lane, &ops);
	lane->port = port;
	lane->spill = map_pages((size_t)NET_BATCH * NET_ROOM);
	if (!lane->spill) {
		free(lane);
		return -ENOMEM;
	}
	*out = lane;
	return 0;
}

void net_lane_destroy(struct net_lane *lane)
{
	if (!lane)
		return;
	munmap(lane->spill, (size_t)NET_BATCH * NET_ROOM);
	free(lane);
}

struct lane *net_lane_base(struct net_lane *lane)
{
	return &lane->lane;
}

void net_lane_plug(struct lane *base, struct net_port *port)
{
	container_of(base, struct net_lane, lane)->next = port;
}

struct net_queue *net_queue_create(uint16_t index)
{
	struct net_queue *q = calloc(1, sizeof(*q));

	if (q)
		q->queue.index = index;
	return q;
}

static void free_bufs(struct net_queue *q)
{
	if (q->bufs)
		munmap(q->bufs, q->bufs_count * sizeof(*q->bufs));
	if (q->pieces)
		munmap(q->pieces, q->bufs_count * sizeof(*q->pieces));
	q->bufs = NULL;
	q->pieces = NULL;
	q->bufs_count = 0;
}

void net_queue_destroy(struct net_queue *q)
{
	if (!q)
		return;
	free_bufs(q);
	free(q);
}

static int make_bufs(struct net_queue *q, uint32_t count)
{
	if (q->bufs_count == count)
		return 0;
	free_bufs(q);
	q->bufs_count = count;
	q->bufs = map_pages(count * sizeof(*q->bufs));
	q->pieces = map_pages(count * sizeof(*q->pieces));
	if (q->bufs && q->pieces)
		return 0;
	free_bufs(q);
	return -ENOMEM;
}

int net_queue_bind(struct net_queue *q, const struct virtq_config *cfg, const struct mem_table *mem)
{
	int rc = queue_bind(&q->queue, cfg, mem);

	q->features = cfg->features;
	q->first = q->last_len = 0;
	q->discard = false;
	if (rc < 0 || direction(&q->queue) == NET_TX)
		return rc;
	return make_bufs(q, cfg->size);
}

void net_queue_discard(struct net_queue *q, bool discard)
{
	q->discard = discard;
}

struct queue *net_queue_base(struct net_queue *q)
{
	return &q->queue;
}

const struct net_stats *net_queue_stats(const struct net_queue *q)
{
	return &q->stats;
}
