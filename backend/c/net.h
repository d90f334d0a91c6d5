/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net.h - the virtio network device's data path (virtio 1.2 §5.1): frames from a tx queue to a port, and back to an rx queue
 *
 * net_lane is one queue pair and its port; virtqueue 2n receives and 2n + 1 sends (§5.1.2). The two directions share
 * nothing but their turns: one that is stopped, broken or has no room doesn't hold up the other.
 */
#ifndef KPOLL_NET_H
#define KPOLL_NET_H

#include <stdbool.h>
#include <stdint.h>

#include "lane.h"
#include "net_port.h"

#define NET_TX_SEG_MAX 256 /* buffers of one frame to send, pieces at a memory region's border included */
#define NET_RX_SEG_MAX 32  /* the same of one chain to receive into */

enum net_direction { NET_RX, NET_TX };

/* Why a frame was dropped: kpoll_net_drops_total{reason}, see net_drop_name(). */
enum net_drop {
	NET_DROP_HEADER,    /* its header lies, or asks for what was not negotiated */
	NET_DROP_LENGTH,    /* shorter than an Ethernet header, or longer than NET_FRAME_MAX */
	NET_DROP_NO_BUFFER, /* rx: more than the buffers that the driver had made available */
	NET_DROP_TOO_LONG,  /* rx: more than one buffer, without MRG_RXBUF */
	NET_DROP_FULL,      /* tx: the port takes no more now */
	NET_DROP_REFUSED,   /* tx: the port doesn't take this frame, or any; net_port.error says why */
	NET_DROP_FOREIGN,   /* rx: of another VXLAN segment or sender */
	NET_DROP_DISABLED,  /* tx: the front-end has disabled the queue */
	NET_DROPS,
};

struct net_stats {
	uint64_t packets, bytes; /* that arrived; bytes without the header */
	uint64_t drops[NET_DROPS];
};

struct net_lane;
struct net_queue;

/* net_drop_name() - The reason as the snake_case word of metrics */
const char *net_drop_name(enum net_drop reason);

/* net_lane_create() - A queue pair's lane on a port, which stays the caller's and must outlive it. Return: 0 or -ENOMEM */
int net_lane_create(struct net_lane **out, struct net_port *port);
void net_lane_destroy(struct net_lane *lane);
struct lane *net_lane_base(struct net_lane *lane);
/* net_lane_plug() - Another port, from when the lane is next joined (worker_join_lane()); until then the old one is in use */
void net_lane_plug(struct lane *lane, struct net_port *port);

/* net_queue_create() - A virtqueue's place in the device, NULL when out of memory; bound before each start */
struct net_queue *net_queue_create(uint16_t index);
void net_queue_destroy(struct net_queue *q);
/* net_queue_bind() - Return: 0; virtq_init()'s errors; -ENOMEM */
int net_queue_bind(struct net_queue *q, const struct virtq_config *cfg, const struct mem_table *mem);
/* net_queue_discard() - Between net_queue_bind() and the start: drop what the driver sends, or don't (as bound) */
void net_queue_discard(struct net_queue *q, bool discard);
struct queue *net_queue_base(struct net_queue *q);
const struct net_stats *net_queue_stats(const struct net_queue *q);

#endif
