/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wait_user.c - a spin in userspace: as long as it pays, and only while nobody else wants this CPU
 *
 * How long: as QEMU sizes its own. A sleep that ended soon would have been worth a longer spin; one that lasted says
 * that no spin would have helped. So the budget doubles, halves, and falls to nothing when there is nothing to do.
 *
 * Whether: userspace can't see if somebody waits for this CPU. Two tells stand in for that: a gap in time between two
 * looks (we were preempted), and a sched_yield() that takes long (somebody ran). Either ends the spin, and spins stay
 * forbidden for a while that doubles each time, so that a busy neighbour keeps nearly all of the CPU.
 */
#include <sched.h>
#include <sys/socket.h>

#include "atomics.h"
#include "wait_set.h"

#define LOOKS_PER_CLOCK 32   /* looks at the words between two looks at the clock, about 1 µs */
#define HITS_PER_PROBE 64    /* under steady traffic, waits between two looks at the clock */
#define PROBE_EVERY_NS 50000 /* time between two sched_yield() probes: under 1 % of a spin */
#define RAN_NS 5000          /* a probe that took longer let somebody else run */
#define PREEMPTED_NS 100000  /* a gap between two looks that no interrupt explains */
#define BACKOFF_MIN_NS 1000000ull
#define BACKOFF_MAX_NS 64000000ull
#define SPIN_MIN_NS 4000u /* the adaptation starts growing from here, and below it is 0 */

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

/*
 * Has a socket anything? If not, poll the network cards: epoll_wait(2) doesn't when it isn't to wait, poll(2) only with
 * net.core.busy_poll above 0, but receiving does. It is asked for no byte and takes none, so what it finds is seen next time.
 */
static bool ask_sockets(struct wait_set *ws)
{
	if (wait_take_signals(ws) > 0)
		return true;
	for (unsigned i = 0; i < ws->count; i++)
		if (ws->entries[i].napi && !ws->entries[i].muted)
			recv(ws->entries[i].fd, NULL, 0, MSG_PEEK | MSG_DONTWAIT);
	return false;
}

/* Return: true when a word's condition came true */
static bool spin(struct wait_set *ws)
{
	uint64_t start = 0, last = 0, now;

	for (;;) {
		for (unsigned i = 0; i < LOOKS_PER_CLOCK; i++) {
			if (wait_any_word(ws)) {
				count_add(&ws->stats.hits, 1);
				return true;
			}
			cpu_relax();
		}
		if (unlikely(ws->sockets) && ask_sockets(ws)) {
			count_add(&ws->stats.hits, 1);
			return true;
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

void wait_user_init(struct wait_set *ws)
{
	ws->spin_ns = ws->max_ns;
	ws->backoff_ns = BACKOFF_MIN_NS;
}

bool wait_user_spin(struct wait_set *ws)
{
	return may_spin(ws) && spin(ws);
}

void wait_user_slept(struct wait_set *ws, uint64_t slept_ns)
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
