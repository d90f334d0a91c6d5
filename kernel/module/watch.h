/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * watch.h - the wrapper: a descriptor that stands for an eventfd and a condition
 */
#ifndef EVENTFD_POLL_WATCH_H
#define EVENTFD_POLL_WATCH_H

#include <net/sock.h>

#include "condition.h"

struct spinner;

/**
 * struct watch - a wrapper
 * @sk:		what makes it a socket; must come first. Its wait queue is the socket's.
 * @eventfd:	the eventfd's file
 * @spinner:	the NAPI that looks at the condition for epoll
 * @link:	in @spinner's list
 * @lock:	protects @condition
 * @condition:	the condition
 * @hit:	a spinning epoll has seen the condition hold, and will ask for it
 * @unasked:	who asked last did not ask for EPOLLIN, and so is not told that it holds
 * @start_us:	when the poll() or select() that spins began
 */
struct watch {
	struct sock sk;
	struct file *eventfd;
	struct spinner *spinner;
	struct list_head link;
	spinlock_t lock;
	struct condition condition;
	bool hit;
	bool unasked;
	u64 start_us;
};

int watch_new(struct spinner *s, int eventfd);
bool watch_condition(struct watch *w, struct condition *c);
void watch_wake(struct watch *w);

static inline struct watch *watch_of(const struct socket *sock)
{
	return container_of(sock->sk, struct watch, sk);
}

#endif
