/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wait_watch.c - each word on an eventfd that the kernel watches it by: EVENTFD_SET_POLL, of the patch or of the module
 *
 * The eventfds are made here, one for each word, and nobody ever writes them: a kick descriptor is a shared object, whose
 * condition the other side could change. Entry i's is fds[WAIT_AT(i)], or -1, which ppoll passes over. A socket's entry has
 * the socket itself there.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "../uapi/eventfd_poll_module.h"
#include "wait_set.h"

int wait_watch_init(struct wait_set *ws)
{
	int rc = wait_watch_grow(ws, 0); /* ppoll wants fds[0] even where no entry ever comes */

	if (rc < 0 || ws->strategy == WAIT_KERNEL)
		return rc;
	/* Now, and not at the first word: the sandbox closes in between. */
	ws->module_fd = open(EVENTFD_POLL_DEVICE, O_RDWR | O_CLOEXEC);
	return ws->module_fd < 0 ? -errno : 0;
}

void wait_watch_fini(struct wait_set *ws)
{
	for (unsigned i = 0; i < ws->count; i++)
		wait_watch_del(ws, i);
	if (ws->module_fd >= 0)
		close(ws->module_fd);
	free(ws->fds);
}

int wait_watch_grow(struct wait_set *ws, unsigned cap)
{
	struct pollfd *fds = realloc(ws->fds, WAIT_AT(cap) * sizeof(*fds));

	if (!fds)
		return -ENOMEM;
	fds[0] = (struct pollfd){ .fd = ws->epoll_fd, .events = POLLIN };
	ws->fds = fds;
	return 0;
}

/* Turn an eventfd into the module's wrapper around it, which keeps it alive. Return: a descriptor or -errno */
static int wrap(struct wait_set *ws, int eventfd)
{
	int fd = ioctl(ws->module_fd, EVENTFD_POLL_WRAP, (unsigned long)eventfd);

	if (fd < 0)
		fd = -errno;
	close(eventfd);
	return fd;
}

/* What the kernel is asked to watch for an entry's word. */
static struct eventfd_poll_info condition(struct wait_set *ws, const struct eventfd_poll_info *word)
{
	struct eventfd_poll_info info = *word;

	info.max_us = (uint32_t)(ws->max_ns / 1000);
	if (ws->strategy == WAIT_MODULE) {
		info.flags &= ~(uint32_t)(EVENTFD_POLL_F_ARM | EVENTFD_POLL_F_ARM_PTR);
		info.arm_addr = info.arm_val = 0;
	} else if (!(info.flags & EVENTFD_POLL_F_ARM)) {
		/* Written with the word's size, like any arm word: a part of `armed` where that is less than all of it. */
		info.flags |= EVENTFD_POLL_F_ARM;
		info.arm_addr = (uintptr_t)&ws->armed;
		info.arm_val = 1;
	}
	return info;
}

static bool lends(const struct wait_set *ws, const struct eventfd_poll_info *word)
{
	return ws->strategy == WAIT_KERNEL && !(word->flags & EVENTFD_POLL_F_ARM);
}

int wait_watch_add(struct wait_set *ws, unsigned at)
{
	const struct wait_entry *entry = &ws->entries[at];
	struct eventfd_poll_info info;
	int fd, rc;

	ws->fds[WAIT_AT(at)] = (struct pollfd){ .fd = entry->socket ? entry->fd : -1, .events = POLLIN };
	if (!entry->has_word)
		return 0;
	fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (ws->strategy == WAIT_MODULE) {
		fd = wrap(ws, fd);
		if (fd < 0)
			return fd;
	}
	info = condition(ws, &entry->word);
	if (ioctl(fd, EVENTFD_SET_POLL, &info) < 0) {
		rc = -errno;
		close(fd);
		return rc;
	}
	ws->fds[WAIT_AT(at)].fd = fd;
	ws->lenders += lends(ws, &entry->word);
	return 0;
}

void wait_watch_mute(struct wait_set *ws, unsigned at)
{
	const struct wait_entry *entry = &ws->entries[at];

	ws->fds[WAIT_AT(at)] = (struct pollfd){ .fd = entry->muted ? -1 : entry->fd, .events = POLLIN };
}

/*
 * Closing is enough: a condition goes with the last close of its file, and there is no other reference. The descriptor
 * was made here, close-on-exec, and never given away; and nobody is inside ppoll with it, for the thread that waits is
 * the one that deletes. So once this returns the kernel neither reads the word nor writes the arm word, and the memory
 * may go.
 */
void wait_watch_del(struct wait_set *ws, unsigned at)
{
	struct pollfd *word = &ws->fds[WAIT_AT(at)];

	if (ws->entries[at].socket) { /* its owner's to close */
		word->fd = -1;
		return;
	}
	if (word->fd < 0) {
		ws->lost -= ws->entries[at].has_word;
		return;
	}
	close(word->fd);
	word->fd = -1;
	ws->lenders -= lends(ws, &ws->entries[at].word);
}

void wait_watch_move(struct wait_set *ws, unsigned to, unsigned from)
{
	ws->fds[WAIT_AT(to)] = ws->fds[WAIT_AT(from)];
	ws->fds[WAIT_AT(from)].fd = -1;
}

bool wait_set_word_wakes(const struct wait_set *ws, uint64_t addr)
{
	char path[64], text[1024];
	ssize_t len = 0;
	unsigned i;
	int fd;

	for (i = 0; i < ws->count; i++)
		if (ws->entries[i].has_word && ws->entries[i].word.addr == addr)
			break;
	if (ws->strategy != WAIT_KERNEL || i == ws->count)
		return false;
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", ws->fds[WAIT_AT(i)].fd);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		len = read(fd, text, sizeof(text) - 1);
		close(fd);
	}
	text[len > 0 ? len : 0] = '\0';
	return strstr(text, "eventfd-poll-wake:\taio\n") != NULL;
}

/*
 * A front-end may truncate its memory and grow it again before we touch it: nothing is broken then, yet an arm word that
 * couldn't be written once makes the kernel report POLLERR until it is given the condition anew. Where it doesn't take
 * that either (truncated again, most likely), it must not be asked any more, or each ppoll would return at once, for
 * ever: the word is lost to it, and armed and looked at by us from now on.
 */
static void watch_again(struct wait_set *ws, unsigned at)
{
	struct eventfd_poll_info info = condition(ws, &ws->entries[at].word);

	if (ioctl(ws->fds[WAIT_AT(at)].fd, EVENTFD_SET_POLL, &info) == 0)
		return;
	wait_watch_del(ws, at);
	ws->lost++;
}

/*
 * POLLERR: the kernel can't reach a word or its arm word, most likely guest memory that the front-end truncated. Touch
 * both, so that our own fault handler learns of it (vhost/c/mem.c) and the queue breaks; or we would be back here at
 * once, for ever. Return: whether there was one
 */
bool wait_watch_touch(struct wait_set *ws)
{
	bool any = false;

	for (unsigned i = 0; i < ws->count; i++) {
		if (!ws->entries[i].has_word || !(ws->fds[WAIT_AT(i)].revents & (POLLERR | POLLNVAL)))
			continue;
		any = true;
		wait_word_true(&ws->entries[i].word);
		wait_word_arm(&ws->entries[i].word);
		watch_again(ws, i);
	}
	return any;
}
