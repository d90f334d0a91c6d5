/* SPDX-License-Identifier: Apache-2.0 */
/*
 * strategies.h - the wait set's strategies that the running kernel has, so that one program shows all of them anywhere
 *
 * In a test VM, where everything takes long, the environment asks for less: KPOLL_TEST_STRATEGY names the only one to
 * show, which has to be there, and KPOLL_TEST_SHORTER divides what is repeated for chance's sake.
 */
#ifndef KPOLL_TEST_STRATEGIES_H
#define KPOLL_TEST_STRATEGIES_H

#include <string.h>

#include "check.h"
#include "kernel/c/wait.h"

static const char *const strategy_names[] = {
	[WAIT_OFF] = "off",
	[WAIT_USER] = "user",
	[WAIT_KERNEL] = "kernel",
	[WAIT_MODULE] = "module",
};

/* Can this host wait that way? Asked by doing it; the answer to "no" is the errno. */
static inline int strategy_missing(int strategy)
{
	uint32_t memory = 0;
	struct eventfd_poll_info word = { .addr = (uintptr_t)&memory, .size = 4, .op = EVENTFD_POLL_OP_NOT_EQUAL };
	struct wait_set ws;
	int rc = wait_set_init(&ws, strategy, 1);

	if (rc == 0)
		rc = wait_set_add(&ws, -1, &word, &ws, NULL);
	wait_set_fini(&ws);
	return -rc;
}

static inline unsigned repeated(unsigned times)
{
	const char *shorter = getenv("KPOLL_TEST_SHORTER");

	return shorter ? times / (unsigned)atoi(shorter) : times;
}

/* Show something for each strategy, or say why not. */
static inline void each_strategy(void (*show)(int strategy))
{
	const char *only = getenv("KPOLL_TEST_STRATEGY");

	for (int strategy = WAIT_OFF; strategy <= WAIT_MODULE; strategy++) {
		int missing;

		if (only && strcmp(only, strategy_names[strategy]))
			continue;
		missing = strategy_missing(strategy);
		if (only)
			CHECK_EQ(missing, 0);
		if (missing) {
			printf("  %s: skip: this host has none: %s\n", strategy_names[strategy], strerror(missing));
			continue;
		}
		printf("  %s\n", strategy_names[strategy]);
		fflush(stdout);
		show(strategy);
	}
}

/* As RUN() of check.h. */
#define EACH(behaviour)                     \
	do {                                \
		printf("%s\n", #behaviour); \
		each_strategy(behaviour);   \
	} while (0)

#endif
