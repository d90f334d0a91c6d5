/* SPDX-License-Identifier: Apache-2.0 */
/* test_bench_wait.c - `kpoll bench wait`: that it counts what happens, and ends whatever happens */
#include <errno.h>
#include <sched.h>
#include <string.h>

#include "backend/c/bench_wait.h"
#include "check.h"
#include "strategies.h"

#define MS 1000000ull

static struct bench_wait_result result; /* a histogram is too large for a stack under ASan */

/* The first two CPUs that we may use; a skip where there is one. */
static struct bench_wait_config two_cpus(int strategy)
{
	struct bench_wait_config cfg = { .strategy = strategy,
					 .max_us = 200,
					 .waiter_cpu = -1,
					 .warmup_ns = 20 * MS,
					 .runtime_ns = 100 * MS,
					 .think_ns = 20000,
					 .seed = 7,
					 .stall_ns = 30000 * MS };
	cpu_set_t mine;

	CHECK_EQ(sched_getaffinity(0, sizeof(mine), &mine), 0);
	if (CPU_COUNT(&mine) < 2)
		SKIP("needs two CPUs");
	for (int cpu = 0; cfg.driver_cpu == 0; cpu++) {
		if (!CPU_ISSET(cpu, &mine))
			continue;
		if (cfg.waiter_cpu < 0)
			cfg.waiter_cpu = cpu;
		else
			cfg.driver_cpu = cpu;
	}
	return cfg;
}

static uint64_t counted(void)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < BENCH_BUCKETS; i++)
		sum += result.latency[i];
	return sum;
}

static void each_request_is_noticed_and_counted_once(int strategy)
{
	struct bench_wait_config cfg = two_cpus(strategy);

	CHECK_EQ(bench_wait_run(&cfg, &result), 0);
	CHECK(result.requests > 0);
	CHECK_EQ(counted(), result.requests);
	CHECK(result.kicks <= result.requests);
	CHECK(result.elapsed_ns >= cfg.runtime_ns);
	CHECK(result.waiter_ns > 0);
	CHECK_EQ(result.hog_ns, 0);
}

static void a_driver_that_falls_silent_costs_nothing_and_is_heard_again(int strategy)
{
	struct bench_wait_config cfg = two_cpus(strategy);

	cfg.idle = true;
	CHECK_EQ(bench_wait_run(&cfg, &result), 0);
	CHECK(result.waiter_ns < cfg.runtime_ns / 20);
	CHECK_EQ(result.requests, 1);
	CHECK_EQ(result.kicks, 1);
}

static void a_hog_on_the_same_cpu_gets_nearly_all_of_it(int strategy)
{
	struct bench_wait_config cfg = two_cpus(strategy);

	cfg.hog = true;
	cfg.max_us = 1000;
	cfg.think_ns = 500000;
	cfg.runtime_ns = 300 * MS;
	CHECK_EQ(bench_wait_run(&cfg, &result), 0);
	CHECK(result.requests > 0);
	CHECK(result.hog_ns > 4 * result.waiter_ns);
}

static void who_never_spins_is_kicked_each_time(void)
{
	struct bench_wait_config cfg = two_cpus(WAIT_OFF);

	CHECK_EQ(bench_wait_run(&cfg, &result), 0);
	CHECK_EQ(result.wait.hits, 0);
	CHECK(result.wait.sleeps > 0);
	CHECK(result.kicks > result.requests / 2); /* not where the next request is there before the waiter sleeps */
}

static void a_blind_spin_is_never_kicked_and_burns_on(void)
{
	struct bench_wait_config cfg = two_cpus(BENCH_WAIT_BLIND);

	CHECK_EQ(bench_wait_run(&cfg, &result), 0);
	CHECK(result.requests > 0);
	CHECK_EQ(result.kicks, 0);
	cfg.idle = true;
	CHECK_EQ(bench_wait_run(&cfg, &result), 0);
	CHECK(result.waiter_ns > cfg.runtime_ns / 100); /* all that others leave it */
}

static void what_cannot_be_is_refused(void)
{
	struct bench_wait_config good = two_cpus(WAIT_OFF), bad[] = { good, good, good, good, good };

	bad[0].strategy = BENCH_WAIT_BLIND - 1;
	bad[1].strategy = WAIT_MODULE + 1;
	bad[2].driver_cpu = bad[2].waiter_cpu;
	bad[3].waiter_cpu = -1;
	bad[4].driver_cpu = CPU_SETSIZE;
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		CHECK_EQ(bench_wait_run(&bad[i], &result), -EINVAL);
}

static void a_request_that_is_not_noticed_in_time_is_a_lost_wake_up(void)
{
	struct bench_wait_config cfg = two_cpus(WAIT_OFF);

	/* Nobody is as fast as a nanosecond; but who is faster than the first look at the clock isn't late. */
	cfg.stall_ns = 1;
	cfg.hog = true;
	cfg.runtime_ns = 30000 * MS;
	CHECK_EQ(bench_wait_run(&cfg, &result), -ETIMEDOUT);
}

static void a_run_that_is_stopped_ends_at_once(void)
{
	struct bench_wait_config cfg = two_cpus(WAIT_OFF);

	cfg.runtime_ns = 3600 * 1000 * MS;
	bench_wait_stop(&cfg);
	CHECK_EQ(bench_wait_run(&cfg, &result), -ECANCELED);
	cfg.idle = true;
	CHECK_EQ(bench_wait_run(&cfg, &result), -ECANCELED);
}

static void the_callers_cpus_are_its_own_again_afterwards(void)
{
	struct bench_wait_config cfg = two_cpus(WAIT_OFF);
	cpu_set_t before, after;

	sched_getaffinity(0, sizeof(before), &before);
	CHECK_EQ(bench_wait_run(&cfg, &result), 0);
	sched_getaffinity(0, sizeof(after), &after);
	CHECK(CPU_EQUAL(&before, &after));
}

int main(void)
{
	EACH(each_request_is_noticed_and_counted_once);
	EACH(a_driver_that_falls_silent_costs_nothing_and_is_heard_again);
	EACH(a_hog_on_the_same_cpu_gets_nearly_all_of_it);
	RUN(who_never_spins_is_kicked_each_time);
	RUN(a_blind_spin_is_never_kicked_and_burns_on);
	RUN(what_cannot_be_is_refused);
	RUN(a_request_that_is_not_noticed_in_time_is_a_lost_wake_up);
	RUN(a_run_that_is_stopped_ends_at_once);
	RUN(the_callers_cpus_are_its_own_again_afterwards);
	return 0;
}
