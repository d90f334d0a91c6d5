/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wait.c - the wait set: waiting for memory words and descriptors, in whichever way this host does it best
 *
 * THEORY OF OPERATION
 *
 * Every strategy keeps the same contract. While somebody looks at the words the doorbells stay off: the other side
 * stores, and that is all. Before a sleep each doorbell is armed, a full barrier executed, and each word looked at once
 * more; only then does the thread sleep. So no store is missed:
 *
 *	waiter				other side (virtio driver, AIO ring, mailbox)
 *	arm word := on			word := new
 *	full barrier			full barrier
 *	reads word: old -> sleeps	reads arm word: on -> signals the descriptor
 *	reads word: new -> returns	reads arm word: off -> no signal needed
 *
 * One of the two loads must see the other side's store; the impossible case is both reading the old value.
 *
 * Who does which part is what the strategies differ in:
 *
 *			WAIT_OFF	WAIT_USER	WAIT_MODULE	WAIT_KERNEL
 *	spins		nobody		wait_user.c	the kernel	the kernel
 *	arms		this file	this file	wait_kernel.c	the kernel
 *	looks again	this file	this file	the kernel	the kernel
 *	sleeps in	epoll		epoll		ppoll		ppoll
 *
 * A socket is another thing: it has a queue behind it, stays readable until that is empty, and is read by its owner
 * alone. It is waited for as it is (wait_set_add_socket()).
 *
 * Doorbells' descriptors are watched edge-triggered and never read: an eventfd reports an edge for every write whatever its
 * counter says, so a kick costs no read(2), and a hostile peer that drains a shared descriptor can't block us in one.
 */
#include "wait.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "atomics.h"
#include "wait_set.h"

static bool kernel_watches(const struct wait_set *ws)
{
	return ws->strategy == WAIT_KERNEL || ws->strategy == WAIT_MODULE;
}

int wait_set_init(struct wait_set *ws, enum wait_strategy strategy, uint32_t max_us)
{
	memset(ws, 0, sizeof(*ws));
	ws->strategy = strategy;
	ws->module_fd = -1;
	ws->max_ns = strategy == WAIT_OFF ? 0 : (uint64_t)max_us * 1000;
	wait_user_init(ws);
	ws->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (ws->epoll_fd < 0)
		return -errno;
	if (!kernel_watches(ws))
		return 0;
	wait_kernel_init(ws);
	return wait_watch_init(ws);
}

void wait_set_fini(struct wait_set *ws)
{
	if (kernel_watches(ws))
		wait_watch_fini(ws);
	if (ws->epoll_fd >= 0)
		close(ws->epoll_fd);
	free(ws->entries);
	memset(ws, 0, sizeof(*ws));
	ws->epoll_fd = -1;
}

static int grow(struct wait_set *ws)
{
	unsigned cap = ws->cap ? ws->cap * 2 : 8;
	void *grown;
	int rc;

	if (ws->count < ws->cap)
		return 0;
	grown = realloc(ws->entries, cap * sizeof(*ws->entries));
	if (!grown)
		return -ENOMEM;
	ws->entries = grown;
	rc = kernel_watches(ws) ? wait_watch_grow(ws, cap) : 0;
	if (rc == 0)
		ws->cap = cap;
	return rc;
}

/* Is it epoll that waits for an entry's descriptor? Sockets stand beside the words where there is a ppoll. */
static bool in_epoll(const struct wait_set *ws, const struct wait_entry *entry)
{
	return entry->fd >= 0 && !entry->muted && !(entry->socket && kernel_watches(ws));
}

static int epoll_add(const struct wait_set *ws, const struct wait_entry *entry)
{
	/* The descriptor's number, not the entry's place: entries move when one is deleted. */
	struct epoll_event event = { .events = EPOLLIN | (entry->socket ? 0 : EPOLLET), .data.fd = entry->fd };

	if (!in_epoll(ws, entry))
		return 0;
	return epoll_ctl(ws->epoll_fd, EPOLL_CTL_ADD, entry->fd, &event) < 0 ? -errno : 0;
}

static void epoll_del(const struct wait_set *ws, const struct wait_entry *entry)
{
	if (in_epoll(ws, entry))
		epoll_ctl(ws->epoll_fd, EPOLL_CTL_DEL, entry->fd, NULL);
}

static int add(struct wait_set *ws, struct wait_entry entry)
{
	int rc = grow(ws);

	if (rc < 0)
		return rc;
	ws->entries[ws->count] = entry;
	rc = kernel_watches(ws) ? wait_watch_add(ws, ws->count) : 0;
	if (rc < 0)
		return rc;
	rc = epoll_add(ws, &entry);
	if (rc < 0) {
		if (kernel_watches(ws))
			wait_watch_del(ws, ws->count);
		return rc;
	}
	ws->count++;
	ws->sockets += entry.socket;
	return 0;
}

int wait_set_add(struct wait_set *ws, int fd, const struct eventfd_poll_info *word, const void *cookie,
		 uint64_t *signals)
{
	struct wait_entry entry = { .cookie = cookie, .signals = signals, .fd = fd, .has_word = word != NULL };

	if (word && wait_word_check(word) < 0)
		return -EINVAL;
	if (word)
		entry.word = *word;
	return add(ws, entry);
}

int wait_set_add_socket(struct wait_set *ws, int fd, const void *cookie)
{
	int us = 0;
	socklen_t len = sizeof(us);

	getsockopt(fd, SOL_SOCKET, SO_BUSY_POLL, &us, &len); /* a tap has none */
	return add(ws, (struct wait_entry){ .cookie = cookie, .fd = fd, .socket = true, .napi = us > 0 });
}

int wait_set_mute(struct wait_set *ws, int fd, bool muted)
{
	struct wait_entry *entry = ws->entries;
	int rc = 0;

	while (entry < ws->entries + ws->count && !(entry->socket && entry->fd == fd))
		entry++;
	if (entry == ws->entries + ws->count)
		return -ENOENT;
	if (entry->muted == muted)
		return 0;
	if (muted)
		epoll_del(ws, entry);
	entry->muted = muted;
	if (!muted)
		rc = epoll_add(ws, entry);
	if (rc < 0) {
		entry->muted = true;
		return rc;
	}
	if (kernel_watches(ws))
		wait_watch_mute(ws, (unsigned)(entry - ws->entries));
	ws->sockets += muted ? -1u : 1u;
	return 0;
}

void wait_set_del(struct wait_set *ws, const void *cookie)
{
	for (unsigned i = 0; i < ws->count;) {
		if (ws->entries[i].cookie != cookie) {
			i++;
			continue;
		}
		epoll_del(ws, &ws->entries[i]);
		if (kernel_watches(ws))
			wait_watch_del(ws, i);
		ws->sockets -= ws->entries[i].socket && !ws->entries[i].muted;
		if (i == --ws->count)
			continue;
		ws->entries[i] = ws->entries[ws->count];
		if (kernel_watches(ws))
			wait_watch_move(ws, i, ws->count);
	}
}

struct wait_stats wait_set_stats(const struct wait_set *ws)
{
	return (struct wait_stats){
		.hits = load_relaxed(&ws->stats.hits),
		.gave_way = load_relaxed(&ws->stats.gave_way),
		.timeouts = load_relaxed(&ws->stats.timeouts),
		.sleeps = load_relaxed(&ws->stats.sleeps),
	};
}

void wait_arm_all(const struct wait_set *ws)
{
	for (unsigned i = 0; i < ws->count; i++)
		if (ws->entries[i].has_word)
			wait_word_arm(&ws->entries[i].word);
	mb_full(); /* pairs with the other side's, between its store and its look at the arm word (see above) */
}

void wait_count_signals(struct wait_set *ws, const struct epoll_event *events, int n)
{
	for (int i = 0; i < n; i++)
		for (unsigned k = 0; k < ws->count; k++)
			if (ws->entries[k].fd == events[i].data.fd && ws->entries[k].signals)
				count_add(ws->entries[k].signals, 1);
}

int wait_take_signals(struct wait_set *ws)
{
	struct epoll_event events[WAIT_EVENTS];
	int n = epoll_wait(ws->epoll_fd, events, WAIT_EVENTS, 0);

	wait_count_signals(ws, events, n);
	return n;
}

static int sleep_for(struct wait_set *ws, struct epoll_event *events, int64_t timeout_ns)
{
	struct timespec ts = { timeout_ns / 1000000000, timeout_ns % 1000000000 };
	int n;

	if (timeout_ns < 0)
		return epoll_wait(ws->epoll_fd, events, WAIT_EVENTS, -1);
	n = epoll_pwait2(ws->epoll_fd, events, WAIT_EVENTS, &ts, NULL);
	if (n < 0 && (errno == ENOSYS || errno == EPERM)) /* before Linux 5.11, or a container's policy */
		n = epoll_wait(ws->epoll_fd, events, WAIT_EVENTS, (int)((timeout_ns + 999999) / 1000000));
	return n;
}

/* Arm the doorbells, look once more, and sleep: WAIT_OFF and WAIT_USER. @slept: gets how long, ns; or NULL */
static void arm_and_sleep(struct wait_set *ws, int64_t timeout_ns, uint64_t *slept)
{
	struct epoll_event events[WAIT_EVENTS];
	uint64_t before;
	int n;

	wait_arm_all(ws);
	if (wait_any_word(ws))
		return;

	count_add(&ws->stats.sleeps, 1);
	before = slept ? now_ns() : 0;
	n = sleep_for(ws, events, timeout_ns);
	wait_count_signals(ws, events, n);
	if (slept)
		*slept = now_ns() - before;
}

enum wait_result wait_set_wait(struct wait_set *ws, int64_t timeout_ns)
{
	uint64_t slept = 0;

	if (ws->strategy != WAIT_USER)
		return wait_set_sleep(ws, timeout_ns);
	if (wait_user_spin(ws))
		return WAIT_HIT;
	arm_and_sleep(ws, timeout_ns, &slept);
	if (slept)
		wait_user_slept(ws, slept);
	return WAIT_ARMED;
}

enum wait_result wait_set_sleep(struct wait_set *ws, int64_t timeout_ns)
{
	if (kernel_watches(ws))
		return wait_kernel_wait(ws, timeout_ns);
	arm_and_sleep(ws, timeout_ns, NULL);
	return WAIT_ARMED;
}
