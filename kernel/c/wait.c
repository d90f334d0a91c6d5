/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wait.c - waiting for memory words and descriptors: spin while it pays and nobody minds, else arm and sleep
 *
 * THEORY OF OPERATION
 *
 * Every strategy keeps the same contract. While we look at the words ourselves the doorbells stay off: the other side
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
 * Descriptors are watched edge-triggered and never read: an eventfd reports an edge for every write whatever its
 * counter says, so a kick costs no read(2), and a hostile peer that drains a shared descriptor can't block us in one.
 *
 * A userspace spin can't see whether somebody waits for this CPU. Two tells stand in for that: a gap in time between
 * two looks (we were preempted), and a sched_yield() that takes long (somebody ran). Either ends the spin, and spins
 * stay forbidden for a while that doubles each time, so that a busy neighbour keeps nearly all of the CPU.
 */
#include "wait.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "atomics.h"

#define LOOKS_PER_CLOCK 32   /* looks at the words between two looks at the clock, about 1 µs */
#define HITS_PER_PROBE 64    /* under steady traffic, waits between two looks at the clock */
#define PROBE_EVERY_NS 50000 /* time between two sched_yield() probes: under 1 % of a spin */
#define RAN_NS 5000          /* a probe that took longer let somebody else run */
#define PREEMPTED_NS 100000  /* a gap between two looks that no interrupt explains */
#define BACKOFF_MIN_NS 1000000ull
#define BACKOFF_MAX_NS 64000000ull
#define SPIN_MIN_NS 4000u /* the adaptation starts growing from here, and below it is 0 */
#define EVENTS 16

struct wait_entry {
	struct eventfd_poll_info word;
	const void *cookie;
	uint64_t *signals;
	int fd;
	bool has_word;
};

static uint64_t load_word(uint64_t addr, uint32_t size)
{
	/* Pairs with the writer's release: what it published before the word is visible after we saw the word. */
	switch (size) {
	case 1:
		return load_acquire((const uint8_t *)(uintptr_t)addr);
	case 2:
		return load_acquire((const uint16_t *)(uintptr_t)addr);
	case 4:
		return load_acquire((const uint32_t *)(uintptr_t)addr);
	default:
		return load_acquire((const uint64_t *)(uintptr_t)addr);
	}
}

int wait_word_check(const struct eventfd_poll_info *w)
{
	uint64_t size_mask = w->size == 8 ? UINT64_MAX : (1ull << (w->size * 8 % 64)) - 1;

	if (w->size != 1 && w->size != 2 && w->size != 4 && w->size != 8)
		return -EINVAL;
	if (w->op < EVENTFD_POLL_OP_EQUAL || w->op > EVENTFD_POLL_OP_NOT_EQUAL_PTR)
		return -EINVAL;
	if (w->flags & ~(EVENTFD_POLL_F_ARM | EVENTFD_POLL_F_ARM_PTR | EVENTFD_POLL_F_INDIRECT))
		return -EINVAL;
	if (w->addr % (w->flags & EVENTFD_POLL_F_INDIRECT ? 8 : w->size) || w->mask & ~size_mask)
		return -EINVAL;
	if (w->op == EVENTFD_POLL_OP_NOT_EQUAL_PTR && w->val % w->size)
		return -EINVAL;
	if (w->flags & EVENTFD_POLL_F_ARM_PTR && !(w->flags & EVENTFD_POLL_F_ARM))
		return -EINVAL;
	if (w->flags & EVENTFD_POLL_F_ARM && w->arm_addr % w->size)
		return -EINVAL;
	return 0;
}

bool wait_word_true(const struct eventfd_poll_info *w)
{
	uint64_t addr = w->addr, val = w->val, word, mask = w->mask ? w->mask : UINT64_MAX;

	if (w->flags & EVENTFD_POLL_F_INDIRECT) {
		const struct eventfd_poll_pair *pair = (const struct eventfd_poll_pair *)(uintptr_t)addr;

		addr = READ_ONCE(pair->addr);
		val = READ_ONCE(pair->val);
	}
	word = load_word(addr, w->size);
	switch (w->op) {
	case EVENTFD_POLL_OP_EQUAL:
		return (word & mask) == (val & mask);
	case EVENTFD_POLL_OP_NOT_EQUAL:
		return (word & mask) != (val & mask);
	case EVENTFD_POLL_OP_AND:
		return (word & val & mask) != 0;
	case EVENTFD_POLL_OP_NAND:
		return (word & val & mask) == 0;
	case EVENTFD_POLL_OP_NOT_EQUAL_PTR:
		return (word & mask) != (load_word(val, w->size) & mask);
	default:
		return false;
	}
}

void wait_word_arm(const struct eventfd_poll_info *w)
{
	uint64_t value;

	if (!(w->flags & EVENTFD_POLL_F_ARM))
		return;
	value = w->flags & EVENTFD_POLL_F_ARM_PTR ? load_word(w->arm_val, w->size) : w->arm_val;
	switch (w->size) {
	case 1:
		store_relaxed((uint8_t *)(uintptr_t)w->arm_addr, (uint8_t)value);
		break;
	case 2:
		store_relaxed((uint16_t *)(uintptr_t)w->arm_addr, (uint16_t)value);
		break;
	case 4:
		store_relaxed((uint32_t *)(uintptr_t)w->arm_addr, (uint32_t)value);
		break;
	default:
		store_relaxed((uint64_t *)(uintptr_t)w->arm_addr, value);
		break;
	}
}

int wait_set_init(struct wait_set *ws, enum wait_strategy strategy, uint32_t max_us)
{
	memset(ws, 0, sizeof(*ws));
	ws->strategy = strategy;
	ws->max_ns = strategy == WAIT_OFF ? 0 : (uint64_t)max_us * 1000;
	ws->spin_ns = ws->max_ns;
	ws->backoff_ns = BACKOFF_MIN_NS;
	ws->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	return ws->epoll_fd < 0 ? -errno : 0;
}

void wait_set_fini(struct wait_set *ws)
{
	if (ws->epoll_fd >= 0)
		close(ws->epoll_fd);
	free(ws->entries);
	memset(ws, 0, sizeof(*ws));
	ws->epoll_fd = -1;
}

int wait_set_add(struct wait_set *ws, int fd, const struct eventfd_poll_info *word, const void *cookie,
		 uint64_t *signals)
{
	struct wait_entry *entry;

	if (word && wait_word_check(word) < 0)
		return -EINVAL;
	if (ws->count == ws->cap) {
		unsigned cap = ws->cap ? ws->cap * 2 : 8;
		void *grown = realloc(ws->entries, cap * sizeof(*entry));

		if (!grown)
			return -ENOMEM;
		ws->entries = grown;
		ws->cap = cap;
	}
	if (fd >= 0) {
		/* The descriptor's number, not the entry's place: entries move when one is deleted. */
		struct epoll_event event = { .events = EPOLLIN | EPOLLET, .data.fd = fd };

		if (epoll_ctl(ws->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0)
			return -errno;
	}
	entry = &ws->entries[ws->count++];
	*entry = (struct wait_entry){ .cookie = cookie, .signals = signals, .fd = fd, .has_word = word != NULL };
	if (word)
		entry->word = *word;
	return 0;
}

void wait_set_del(struct wait_set *ws, const void *cookie)
{
	for (unsigned i = 0; i < ws->count;) {
		if (ws->entries[i].cookie != cookie) {
			i++;
			continue;
		}
		if (ws->entries[i].fd >= 0)
			epoll_ctl(ws->epoll_fd, EPOLL_CTL_DEL, ws->entries[i].fd, NULL);
		ws->entries[i] = ws->entries[--ws->count];
	}
}

static bool any_word(const struct wait_set *ws)
{
	for (unsigned i = 0; i < ws->count; i++)
		if (ws->entries[i].has_word && wait_word_true(&ws->entries[i].word))
			return true;
	return false;
}

/* Ask the scheduler whether anybody else wants this CPU, at most every PROBE_EVERY_NS. Return: true if somebody ran. */
static bool somebody_else(struct wait_set *ws, uint64_t now)
{
	if (now - ws->probed_ns < PROBE_EVERY_NS)
		return false;
	sched_yield();
	ws->probed_ns = now_ns();
	if (ws->probed_ns - now < RAN_NS) {
		ws->backoff_ns = BACKOFF_MIN_NS;
		return false;
	}
	return true;
}

static void back_off(struct wait_set *ws)
{
	count_add(&ws->stats.gave_way, 1);
	ws->backoff_until_ns = now_ns() + ws->backoff_ns;
	if (ws->backoff_ns < BACKOFF_MAX_NS)
		ws->backoff_ns *= 2;
}

/* Return: true when a word's condition came true */
static bool spin(struct wait_set *ws)
{
	uint64_t start = 0, last = 0, now;

	for (;;) {
		for (unsigned i = 0; i < LOOKS_PER_CLOCK; i++) {
			if (any_word(ws)) {
				count_add(&ws->stats.hits, 1);
				return true;
			}
			cpu_relax();
		}
		now = now_ns();
		if (!start)
			start = last = now;
		if (now - last > PREEMPTED_NS || somebody_else(ws, now)) {
			back_off(ws);
			return false;
		}
		if (now - start >= ws->spin_ns) {
			count_add(&ws->stats.timeouts, 1);
			return false;
		}
		last = now;
	}
}

/* Steady traffic never spins long enough to meet a probe: ask every so many hits. */
static bool may_spin(struct wait_set *ws)
{
	uint64_t now;

	if (ws->spin_ns == 0)
		return false;
	if (ws->backoff_until_ns == 0 && ++ws->hits_since_probe < HITS_PER_PROBE)
		return true;
	ws->hits_since_probe = 0;
	now = now_ns();
	if (now < ws->backoff_until_ns)
		return false;
	ws->backoff_until_ns = 0;
	if (somebody_else(ws, now)) {
		back_off(ws);
		return false;
	}
	return true;
}

/* QEMU's way to size a spin: longer when the event came soon after we fell asleep, gone when it takes for ever. */
static void adapt(struct wait_set *ws, uint64_t slept_ns)
{
	if (slept_ns <= ws->spin_ns)
		return;
	if (slept_ns > ws->max_ns)
		ws->spin_ns /= 2;
	else
		ws->spin_ns = ws->spin_ns ? ws->spin_ns * 2 : SPIN_MIN_NS;
	if (ws->spin_ns < SPIN_MIN_NS)
		ws->spin_ns = 0;
	if (ws->spin_ns > ws->max_ns)
		ws->spin_ns = ws->max_ns;
}

static void count_signals(struct wait_set *ws, const struct epoll_event *events, int n)
{
	for (int i = 0; i < n; i++)
		for (unsigned k = 0; k < ws->count; k++)
			if (ws->entries[k].fd == events[i].data.fd && ws->entries[k].signals)
				count_add(ws->entries[k].signals, 1);
}

static int sleep_for(struct wait_set *ws, struct epoll_event *events, int64_t timeout_ns)
{
	struct timespec ts = { timeout_ns / 1000000000, timeout_ns % 1000000000 };
	int n;

	if (timeout_ns < 0)
		return epoll_wait(ws->epoll_fd, events, EVENTS, -1);
	n = epoll_pwait2(ws->epoll_fd, events, EVENTS, &ts, NULL);
	if (n < 0 && (errno == ENOSYS || errno == EPERM)) /* before Linux 5.11, or a container's policy */
		n = epoll_wait(ws->epoll_fd, events, EVENTS, (int)((timeout_ns + 999999) / 1000000));
	return n;
}

enum wait_result wait_set_wait(struct wait_set *ws, int64_t timeout_ns)
{
	struct epoll_event events[EVENTS];
	uint64_t before;
	int n;

	if (ws->strategy == WAIT_USER && may_spin(ws) && spin(ws))
		return WAIT_HIT;

	for (unsigned i = 0; i < ws->count; i++)
		if (ws->entries[i].has_word)
			wait_word_arm(&ws->entries[i].word);
	mb_full(); /* pairs with the other side's, between its store and its look at the arm word (see above) */
	if (any_word(ws))
		return WAIT_ARMED;

	count_add(&ws->stats.sleeps, 1);
	before = ws->strategy == WAIT_USER ? now_ns() : 0;
	n = sleep_for(ws, events, timeout_ns);
	count_signals(ws, events, n);
	if (ws->strategy == WAIT_USER)
		adapt(ws, now_ns() - before);
	return WAIT_ARMED;
}
