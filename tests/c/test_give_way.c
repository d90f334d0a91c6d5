// SPDX-License-Identifier: Apache-2.0
/*
 * test_give_way.c - how long somebody sleeps between two looks at what nobody signals
 */
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "kernel/c/atomics.h"
#include "kernel/c/give_way.h"

#define MS 1000000ull

/* What is said after looks that found nothing for @waited, when nobody else wants the CPU. */
static int64_t after(uint64_t waited)
{
	/* Others do, now and then, and a probe finds them: ask again. */
	for (unsigned tries = 0; tries < 1000; tries++) {
		uint64_t now = now_ns();
		struct give_way g = { .since_ns = now - waited, .probed_ns = now };
		int64_t ns = give_way_ns(&g);

		if (!g.until_ns && now_ns() - now < 50000)
			return ns;
	}
	CHECK(!"the CPU was this thread's for 50 µs");
	return 0;
}

static void a_quick_device_is_looked_at_again_at_once(void)
{
	CHECK_EQ(after(0), 0);
	CHECK_EQ(after(MS / 2), 0);
}

static void a_slow_one_is_left_alone_for_an_eighth_of_the_wait(void)
{
	int64_t ns = after(4 * MS);

	CHECK(ns >= (int64_t)(4 * MS / 8) && ns <= (int64_t)(4 * MS / 8 + 50000 / 8));
	CHECK_EQ(after(30000 * MS), MS); /* and never for longer than this */
}

static void the_wait_begins_with_the_first_look_that_finds_nothing(void)
{
	struct give_way g = { 0 };

	give_way_ns(&g);
	CHECK(g.since_ns > 0);
	give_way_found(&g);
	CHECK_EQ(g.since_ns, 0);
}

static void whoever_else_wants_the_cpu_gets_it(void)
{
	uint64_t end = now_ns() + 20000 * MS;
	struct give_way g = { 0 };
	cpu_set_t mine;
	int64_t ns = 0;
	pid_t hog;

	CPU_ZERO(&mine);
	CPU_SET(sched_getcpu(), &mine);
	CHECK_EQ(sched_setaffinity(0, sizeof(mine), &mine), 0);
	hog = fork();
	CHECK(hog >= 0);
	if (hog == 0)
		for (;;)
			cpu_relax();
	while (ns == 0 && now_ns() < end) {
		give_way_found(&g); /* so it is not for a long wait */
		ns = give_way_ns(&g);
	}
	CHECK(ns > 0);
	CHECK(g.until_ns > now_ns() - 100 * MS);
	CHECK_EQ(kill(hog, SIGKILL), 0);
	CHECK_EQ(waitpid(hog, NULL, 0), hog);
}

int main(void)
{
	RUN(a_quick_device_is_looked_at_again_at_once);
	RUN(a_slow_one_is_left_alone_for_an_eighth_of_the_wait);
	RUN(the_wait_begins_with_the_first_look_that_finds_nothing);
	RUN(whoever_else_wants_the_cpu_gets_it);
	return 0;
}
