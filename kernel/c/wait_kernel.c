/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wait_kernel.c - a wait in which the kernel looks at the words, patched or by its module
 *
 * THEORY OF OPERATION
 *
 * Each word hangs on an eventfd of our own (wait_watch.c), with the condition set once. A wait is one ppoll(2) over the
 * set's epoll descriptor (which gathers kicks, completions and whatever else is signalled) and these eventfds.
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
 * A word that the kernel lost (watch_again() in wait_watch.c) is armed and looked at here before each ppoll, like
 * WAIT_OFF's; one that has no doorbell makes sleeps short.
 *
 * Why ppoll and not one epoll for everything: epoll busy-polls the queue of one socket only, ppoll of all of them.
 */
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>

#include "atomics.h"
#include "wait_set.h"

#define LOST_NS 1000000

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

void wait_kernel_init(struct wait_set *ws)
{
	ws->budget_ns = budget_ns(ws);
}

/*
 * Spin, or sleep, until something happens, and take the edges that epoll has gathered.
 * Return: as ppoll(2). *@armed: doorbells were turned on, by us, since the kernel couldn't
 */
static int wait_in_kernel(struct wait_set *ws, int64_t timeout_ns, bool *armed)
{
	struct timespec ts = { timeout_ns / 1000000000, timeout_ns % 1000000000 };
	int n = ppoll(ws->fds, WAIT_AT(ws->count), timeout_ns < 0 ? NULL : &ts, NULL);

	if (n <= 0)
		return n;
	*armed |= wait_watch_touch(ws);
	if (ws->fds[0].revents)
		wait_take_signals(ws);
	return n;
}

/* The kernel armed and slept, or was about to. Whether it ran out of budget before, the clock tells only roughly. */
static void count_sleep(struct wait_set *ws, uint64_t took_ns)
{
	count_add(&ws->stats.sleeps, 1);
	if (ws->budget_ns > 0)
		count_add(took_ns < ws->budget_ns ? &ws->stats.gave_way : &ws->stats.timeouts, 1);
}

/*
 * A lost word without a doorbell, such as a completion ring's tail, wakes nobody: it is looked at now and then.
 * Return: the longest sleep that this allows, ns; or -1
 */
static int64_t longest_sleep_ns(const struct wait_set *ws, int64_t timeout_ns)
{
	for (unsigned i = 0; i < ws->count; i++)
		if (ws->entries[i].has_word && ws->fds[WAIT_AT(i)].fd < 0 &&
		    !(ws->entries[i].word.flags & EVENTFD_POLL_F_ARM) && (timeout_ns < 0 || timeout_ns > LOST_NS))
			return LOST_NS;
	return timeout_ns;
}

enum wait_result wait_kernel_wait(struct wait_set *ws, int64_t timeout_ns)
{
	bool armed = ws->lenders == 0; /* none: nothing can tell, so perhaps */
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
		wait_in_kernel(ws, ws->lost > 0 ? longest_sleep_ns(ws, timeout_ns) : timeout_ns, &armed);
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
