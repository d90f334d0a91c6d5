/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mailbox.c - what other threads have to say to a worker
 *
 * THEORY OF OPERATION
 *
 * QEMU's aio_notify() pattern, a flag and an eventfd: the flag is one of the words that a spin watches, the eventfd ends
 * a sleep.
 *
 *	another thread			worker
 *	list += message  (lock)
 *	notified := 1    (release)	spins: sees notified, or
 *	write(fd)			sleeps: woken by the edge; either way then
 *					notified := 0
 *					takes the list (lock)
 *
 * The flag is cleared before the list is taken, so a message posted in between is found twice at worst, never missed.
 */
#include "mailbox.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "../../kernel/c/signal_fd.h"

int mailbox_init(struct mailbox *box)
{
	*box = (struct mailbox){ .fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) };
	box->end = &box->first;
	pthread_mutex_init(&box->lock, NULL);
	return box->fd < 0 ? -errno : 0;
}

void mailbox_fini(struct mailbox *box)
{
	while (box->first) {
		struct mail *next = box->first->next;

		free(box->first);
		box->first = next;
	}
	if (box->fd >= 0)
		close(box->fd);
	pthread_mutex_destroy(&box->lock);
}

int mailbox_watch(struct mailbox *box, struct wait_set *ws, const void *cookie)
{
	struct eventfd_poll_info word = {
		.addr = (uintptr_t)&box->notified,
		.size = sizeof(box->notified),
		.op = EVENTFD_POLL_OP_NOT_EQUAL,
	};

	return wait_set_add(ws, box->fd, &word, cookie, NULL);
}

void mailbox_wake(struct mailbox *box)
{
	store_release(&box->notified, 1); /* pairs with the acquire in mailbox_notified() and in the wait set */
	signal_fd(box->fd);
}

void mailbox_post(struct mailbox *box, struct mail *mail)
{
	mail->next = NULL;
	pthread_mutex_lock(&box->lock);
	*box->end = mail;
	box->end = &mail->next;
	pthread_mutex_unlock(&box->lock);
	mailbox_wake(box);
}

struct mail *mailbox_take(struct mailbox *box)
{
	struct mail *taken;

	store_relaxed(&box->notified, 0);
	mb_full(); /* pairs with mailbox_post(): either we find the message, or its notified := 1 comes after our 0 */
	pthread_mutex_lock(&box->lock);
	taken = box->first;
	box->first = NULL;
	box->end = &box->first;
	pthread_mutex_unlock(&box->lock);
	return taken;
}
