/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wait_set.h - what the wait set and its strategies share
 *
 * Private to kernel/c/wait*.c; everybody else includes wait.h.
 */
#ifndef KPOLL_WAIT_SET_H
#define KPOLL_WAIT_SET_H

#include <sys/epoll.h>

#include "wait.h"

#define WAIT_EVENTS 16 /* signals taken from epoll at a time */

struct wait_entry {
	struct eventfd_poll_info word;
	const void *cookie;
	uint64_t *signals;
	int fd;
	bool has_word;
	bool socket; /* readable until it is read; has no word */
	bool muted;  /* a socket that isn't waited for now */
	bool napi;   /* a socket for which the kernel may poll a network card's queue: SO_BUSY_POLL is above 0 */
};

/* Does the condition of any word hold now? */
static inline bool wait_any_word(const struct wait_set *ws)
{
	for (unsigned i = 0; i < ws->count; i++)
		if (ws->entries[i].has_word && wait_word_true(&ws->entries[i].word))
			return true;
	return false;
}

/*
 * wait_arm_all() - Turn every doorbell on, and execute the full barrier that has to come before the last look
 * wait_count_signals() - Count what epoll reported; @n may be an error
 * wait_take_signals() - Take what epoll has gathered, and count it. Return: how many, or -1
 */
void wait_arm_all(const struct wait_set *ws);
int wait_take_signals(struct wait_set *ws);
void wait_count_signals(struct wait_set *ws, const struct epoll_event *events, int n);

/* wait_user.c. wait_user_spin(): did a condition come true? wait_user_slept(): how long the sleep after it took */
void wait_user_init(struct wait_set *ws);
bool wait_user_spin(struct wait_set *ws);
void wait_user_slept(struct wait_set *ws, uint64_t slept_ns);

/*
 * wait_watch.c, for WAIT_KERNEL and WAIT_MODULE. Words are named by their entry's index. Return: 0 or -errno
 * wait_watch_grow(): room for @cap entries. wait_watch_mute(): the socket's entry has changed its mind. wait_watch_move(): the entry at @from is to be the one at @to.
 * wait_watch_touch(): after a ppoll(2), look after the words that the kernel couldn't reach. Return: were there any?
 */
#define WAIT_AT(i) (1 + (i)) /* in fds, which begins with the epoll descriptor */
int wait_watch_init(struct wait_set *ws);
void wait_watch_fini(struct wait_set *ws);
int wait_watch_grow(struct wait_set *ws, unsigned cap);
int wait_watch_add(struct wait_set *ws, unsigned at);
void wait_watch_mute(struct wait_set *ws, unsigned at);
void wait_watch_del(struct wait_set *ws, unsigned at);
void wait_watch_move(struct wait_set *ws, unsigned to, unsigned from);
bool wait_watch_touch(struct wait_set *ws);

/* wait_kernel.c, likewise */
void wait_kernel_init(struct wait_set *ws);
enum wait_result wait_kernel_wait(struct wait_set *ws, int64_t timeout_ns);

#endif
