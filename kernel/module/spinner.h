/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * spinner.h - what makes a stock epoll_wait() spin on words of memory
 */
#ifndef EVENTFD_POLL_SPINNER_H
#define EVENTFD_POLL_SPINNER_H

#include <linux/kref.h>
#include <linux/list.h>
#include <linux/netdevice.h>
#include <linux/spinlock.h>
#include <linux/timer.h>

/**
 * struct spinner - a NAPI, of which epoll believes that it brings packets
 * @ref:	the open device, and each wrapper that was made through it
 * @rcu:	frees it all
 * @lock:	protects @watches and @count
 * @watches:	what the NAPI looks at, struct watch
 * @count:	how many these are
 * @start_us:	when the spin under way began; 0: none is under way
 * @reminder:	after a spin, makes epoll remember us
 * @napi:	what epoll finds by its id
 * @dev:	a NAPI needs a device
 */
struct spinner {
	struct kref ref;
	struct rcu_head rcu;
	spinlock_t lock;
	struct list_head watches;
	unsigned int count;
	u64 start_us;
	struct timer_list reminder;
	struct napi_struct napi;
	struct net_device dev;
};

struct watch;

struct spinner *spinner_new(void);
void spinner_put(struct spinner *s);
int spinner_add(struct spinner *s, struct watch *w);
void spinner_del(struct watch *w);
bool spinner_gives_way(void);

#endif
