/* SPDX-License-Identifier: Apache-2.0 */
/*
 * give_way.c - looks without end give the CPU away: to whoever else wants it, and when they have found nothing for long
 *
 * Somebody else: sched_yield(2) lets him run, if there is one, and then the kernel has counted one more switch that this
 * thread didn't ask for. The count alone would take a short kernel thread for a neighbour, the time alone a CPU that its
 * hypervisor stopped; so it takes both. Sleeps between looks follow, for a while that doubles each time: a timer ends them,
 * so the neighbour keeps nearly all of the CPU, and completions are still found.
 *
 * For long: a device that hasn't answered for PATIENCE_NS won't be found much sooner by looking all the time. A sleep is
 * then an eighth of the wait so far, so that it adds no more than that to it.
 */
#include "give_way.h"

#include <sched.h>
#include <stdbool.h>
#include <sys/resource.h>

#include "atomics.h"

#define PROBE_EVERY_NS 50000  /* between two questions to the scheduler: they cost about 1 µs */
#define PROBE_STALE_NS 500000 /* what was counted before says nothing of now */
#define RAN_NS 5000           /* a sched_yield() that took longer let somebody run */
#define BACKOFF_MIN_NS 1000000u
#define BACKOFF_MAX_NS 64000000u
#define PATIENCE_NS 1000000u
#define PAUSE_MIN_NS 50000u
#define PAUSE_MAX_NS 1000000u

/* Times that this thread had to leave the CPU though it could have run on. */
static long switches(void)
{
	struct rusage usage;

	return getrusage(RUSAGE_THREAD, &usage) < 0 ? 0 : usage.ru_nivcsw;
}

static bool somebody_else(struct give_way *g, uint64_t now)
{
	uint64_t age = now - g->probed_ns;
	long before;

	if (age < PROBE_EVERY_NS)
		return false;
	before = age < PROBE_STALE_NS ? g->switches : switches();
	sched_yield();
	g->probed_ns = now_ns();
	g->switches = switches();
	if (g->switches != before && g->probed_ns - now > RAN_NS)
		return true;
	g->backoff_ns = BACKOFF_MIN_NS;
	return false;
}

int64_t give_way_ns(struct give_way *g)
{
	uint64_t now = now_ns(), waited;

	if (!g->since_ns)
		g->since_ns = now;
	if (now < g->until_ns)
		return PAUSE_MIN_NS;
	if (somebody_else(g, now)) {
		if (!g->backoff_ns)
			g->backoff_ns = BACKOFF_MIN_NS;
		g->until_ns = g->probed_ns + g->backoff_ns;
		if (g->backoff_ns < BACKOFF_MAX_NS)
			g->backoff_ns *= 2;
		return PAUSE_MIN_NS;
	}
	waited = now - g->since_ns;
	if (waited < PATIENCE_NS)
		return 0;
	return waited / 8 < PAUSE_MAX_NS ? (int64_t)(waited / 8) : PAUSE_MAX_NS;
}
