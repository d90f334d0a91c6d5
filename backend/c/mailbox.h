/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mailbox.h - what other threads have to say to a worker: a list, and a flag that its waits watch (mailbox.c)
 */
#ifndef KPOLL_MAILBOX_H
#define KPOLL_MAILBOX_H

#include <pthread.h>
#include <stdint.h>

#include "../../kernel/c/atomics.h"
#include "../../kernel/c/wait.h"

/* Begins each message, which malloc() made. */
struct mail {
	struct mail *next;
};

struct mailbox {
	pthread_mutex_t lock;
	struct mail *first, **end; /* under lock */
	uint32_t notified;         /* atomic */
	int fd;
};

/* mailbox_init() - Return: 0, or -errno of eventfd(2); mailbox_fini() in any case, which frees what nobody took */
int mailbox_init(struct mailbox *box);
void mailbox_fini(struct mailbox *box);

/* mailbox_watch() - Have a wait set wait for it too. Return: as wait_set_add() */
int mailbox_watch(struct mailbox *box, struct wait_set *ws, const void *cookie);

/* mailbox_post() - From any thread: hand a message over, and wake the worker */
void mailbox_post(struct mailbox *box, struct mail *mail);

/* mailbox_wake() - From any thread: have the worker look around, as if there were a message */
void mailbox_wake(struct mailbox *box);

/* mailbox_take() - By the worker. Return: all messages, the oldest first, its to free; NULL: none */
struct mail *mailbox_take(struct mailbox *box);

/* mailbox_notified() - By the worker: may there be messages? */
static inline bool mailbox_notified(const struct mailbox *box)
{
	return load_acquire(&box->notified); /* pairs with the release in mailbox_wake() */
}

#endif
