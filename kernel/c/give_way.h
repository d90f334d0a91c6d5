/* SPDX-License-Identifier: Apache-2.0 */
/*
 * give_way.h - how long somebody waits between two looks at what nobody will ever signal
 *
 * The completion of polled I/O raises no interrupt: it has to be looked for, again and again, by a system call that looks.
 * While the device is quick and nobody else wants the CPU, at once; otherwise with sleeps in between.
 */
#ifndef KPOLL_GIVE_WAY_H
#define KPOLL_GIVE_WAY_H

#include <stdint.h>

/* One thread's; zeros to begin with. */
struct give_way {
	uint64_t since_ns;   /* the first look of those that have found nothing; 0: none since something was found */
	uint64_t probed_ns;  /* when the scheduler was last asked whether anybody else wants the CPU */
	uint64_t until_ns;   /* somebody did: sleeps between looks until then */
	uint64_t backoff_ns; /* how long the next time */
	long switches;       /* times that this thread had to leave the CPU, as of then */
};

/* give_way_found() - A look found something */
static inline void give_way_found(struct give_way *g)
{
	g->since_ns = 0;
}

/* give_way_ns() - A look found nothing. Return: 0 to look again at once, else how long to sleep before, in ns */
int64_t give_way_ns(struct give_way *g);

#endif
