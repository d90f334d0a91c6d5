/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wait_kernel.c - the kernel looks at the words: EVENTFD_SET_POLL, by the patched kernel or by the module
 *
 * THEORY OF OPERATION
 *
 * Each word hangs on an eventfd of our own, which nobody ever writes, with the condition set once. A wait is one ppoll(2)
 * over the set's epoll descriptor (which gathers kicks, completions and whatever else is signalled) and these eventfds.
 * The kernel spins while that is allowed and nobody else wants the CPU. Then, with all waiters registered, it writes the
 * arm words, looks again, and sleeps:
 *
 *	kernel, for the waiter			other side
 *	looks, looks, looks			word := new, reads arm word: off -> no signal: no kick, no VM exit
 *	...
 *	arm words := on, `armed` := 1		word := new
 *	full barrier				full barrier
 *	reads word: old -> sleeps		reads arm word: on -> signals, which wakes
 *	reads word: new -> returns		reads arm word: off -> no signal needed
 *
 * Were the doorbells turned on? `armed` tells: an arm word of our own, which the kernel stores like the others. It is
 * lent to a word that has no doorbell itself (the mailbox's, a completion ring's).
 *
 * The module can't arm. So the doorbells are on while it spins, and the kernel's first look, which comes after it has
 * registered the waiter, is the second look of the contract:
 *
 *	waiter					other side
 *	arm words := on (here)
 *	full barrier				word := new
 *	ppoll: registers the waiter		full barrier
 *	ppoll: reads word: old -> spins, sleeps	reads arm word: on -> signals, which ends the spin or the sleep
 *
 * A word that the kernel lost (see watch_again()) is armed and looked at here before each ppoll, like WAIT_OFF's.
 *
 * Why ppoll and not one epoll for everything: epoll busy-polls the queue of one socket only, ppoll of all of them.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "../uapi/eventfd_poll_module.h"
#include "atomics.h"
#include "wait_set.h"

/* fds[0] is the epoll descriptor, fds[1 + i] the eventfd of entry i's word, or -1, which ppoll passes over. */
#define AT(i) (1 + (i))

/* Return: what a sysctl says, or as much as can be: net.core.busy_poll isn't to be seen outside the initial namespace */
static uint64_t read_us(const char *path)
{
	FILE *file = fopen(path, "re");
	uint32_t us = UINT32_MAX;

	if (!file)
		return us;
	if (fscanf(file, "%" SCNu32, &us) != 1)
		us = UINT32_MAX;
	fclose(file);
	return us;
}

/*
 * How long the kernel spins for us, as its administrator has it now: only to tell, in statistics, how a spin ended. Not
 * known, it is as long as we ask for; 0 would say that polling is off.
 */
static uint64_t budget_ns(const struct wait_set *ws)
{
	uint64_t net = read_us("/proc/sys/net/core/busy_poll") * 1000;
	uint64_t own = read_us("/proc/sys/fs/eventfd_busy_poll") * 1000;
	uint64_t budget = net > own ? net : own;

	return budget < ws->max_ns ? budget : ws->max_ns;
}

int wait_kernel_init(struct wait_set *ws)
{
	int rc = wait_kernel_grow(ws, 0); /* ppoll wants fds[0] even where no entry ever comes */

	ws->budget_ns = budget_ns(ws);
	if (rc < 0 || ws->strategy == WAIT_KERNEL)
		return rc;
	/* Now, and not at the first word: the sandbox closes in between. */
	ws->module_fd = open(EVENTFD_POLL_DEVICE, O_RDWR | O_CLOEXEC);
	return ws->module_fd < 0 ? -errno : 0;
}

void wait_kernel_fini(struct wait_set *ws)
{
	for (unsigned i = 0; i < ws->count; i++)
		wait_kernel_del(ws, i);
	if (ws->module_fd >= 0)
		close(ws->module_fd);
	free(ws->fds);
}

int wait_kernel_grow(struct wait_set *ws, unsigned cap)
{
	struct pollfd *fds = realloc(ws->fds, AT(cap) * sizeof(*fds));

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

int wait_kernel_add(struct wait_set *ws, unsigned at)
{
	const struct wait_entry *entry = &ws->entries[at];
	struct eventfd_poll_info info;
	int fd, rc;

	ws->fds[AT(at)] = (struct pollfd){ .fd = -1, .events = POLLIN };
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
	ws->fds[AT(at)].fd = fd;
	ws->lenders += lends(ws, &entry->word);
	return 0;
}

/*
 * Closing is enough: a condition goes with the last close of its file, and there is no other reference. The descriptor
 * was made here, close-on-exec, and never given away; and nobody is inside ppoll with it, for the thread that waits is
 * the one that deletes. So once this returns the kernel neither reads the word nor writes the arm word, and the memory
 * may go.
 */
void wait_kernel_del(struct wait_set *ws, unsigned at)
{
	struct pollfd *word = &ws->fds[AT(at)];

	if (word->fd < 0) {
		ws->lost -= ws->entries[at].has_word;
		return;
	}
	close(word->fd);
	word->fd = -1;
	ws->lenders -= lends(ws, &ws->entries[at].word);
}

void wait_kernel_move(struct wait_set *ws, unsigned to, unsigned from)
{
	ws->fds[AT(to)] = ws->fds[AT(from)];
	ws->fds[AT(from)].fd = -1;
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
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", ws->fds[AT(i)].fd);
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

	if (ioctl(ws->fds[AT(at)].fd, EVENTFD_SET_POLL, &info) == 0)
		return;
	wait_kernel_del(ws, at);
	ws->lost++;
}

/*
 * POLLERR: the kernel can't reach a word or its arm word, most likely guest memory that the front-end truncated. Touch
 * both, so that our own fault handler learns of it (vhost/c/mem.c) and the queue breaks; or we would be back here at
 * once, for ever. Return: whether there was one
 */
static bool touch_unreachable(struct wait_set *ws)
{
	bool any = false;

	for (unsigned i = 0; i < ws->count; i++) {
		if (!(ws->fds[AT(i)].revents & (POLLERR | POLLNVAL)))
			continue;
		any = true;
		wait_word_true(&ws->entries[i].word);
		wait_word_arm(&ws->entries[i].word);
		watch_again(ws, i);
	}
	return any;
}

/*
 * Spin, or sleep, until something happens, and take the edges that epoll has gathered.
 * Return: as ppoll(2). *@armed: doorbells were turned on, by us, since the kernel couldn't
 */
static int wait_in_kernel(struct wait_set *ws, int64_t timeout_ns, bool *armed)
{
	struct timespec ts = { timeout_ns / 1000000000, timeout_ns % 1000000000 };
	struct epoll_event events[WAIT_EVENTS];
	int n = ppoll(ws->fds, AT(ws->count), timeout_ns < 0 ? NULL : &ts, NULL);

	if (n <= 0)
		return n;
	*armed |= touch_unreachable(ws);
	if (ws->fds[0].revents)
		wait_count_signals(ws, events, epoll_wait(ws->epoll_fd, events, WAIT_EVENTS, 0));
	return n;
}

/* The kernel armed and slept, or was about to. Whether it ran out of budget before, the clock tells only roughly. */
static void count_sleep(struct wait_set *ws, uint64_t took_ns)
{
	count_add(&ws->stats.sleeps, 1);
	if (ws->budget_ns > 0)
		count_add(took_ns < ws->budget_ns ? &ws->stats.gave_way : &ws->stats.timeouts, 1);
}

enum wait_result wait_kernel_wait(struct wait_set *ws, int64_t timeout_ns)
{
	bool armed = ws->strategy == WAIT_MODULE || ws->lenders == 0;
	uint64_t before;
	int n;

	if (wait_any_word(ws)) { /* there is work already: no system call */
		count_add(&ws->stats.hits, 1);
		return WAIT_HIT;
	}
	if (ws->strategy == WAIT_MODULE || ws->lost > 0) {
		wait_arm_all(ws);
		if (ws->lost > 0 && wait_any_word(ws)) /* nobody else takes the second look at these */
			return WAIT_ARMED;
		count_add(&ws->stats.sleeps, 1);
		wait_in_kernel(ws, timeout_ns, &armed);
		return WAIT_ARMED;
	}
	store_relaxed(&ws->armed, 0); /* the kernel's store comes later, in a system call of this very thread */
	before = now_ns();
	n = wait_in_kernel(ws, timeout_ns, &armed);
	armed |= load_relaxed(&ws->armed) != 0;
	if (armed)
		count_sleep(ws, now_ns() - before);
	else if (n >= 0)
		count_add(n > 0 ? &ws->stats.hits : &ws->stats.timeouts, 1);
	return armed ? WAIT_ARMED : WAIT_HIT;
}
