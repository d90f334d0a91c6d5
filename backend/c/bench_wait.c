/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_wait.c - one driver, one waiter, at times a hog: what the strategies of the wait set are worth
 *
 * THEORY OF OPERATION
 *
 * The wait set has two entries, as that of a worker with one split virtqueue without EVENT_IDX (virtq_split_watch()): a
 * kick eventfd with avail.idx, which is compared with a shadow index and has used.flags as arm word; and a flag like the
 * mailbox's. The waiter does what a worker does between two requests, and nothing else:
 *
 *	driver (the calling thread, CPU a)	waiter (CPU b)			hog (CPU b)
 *	t0 := clock				wait_set_wait()			computes
 *	avail.idx := n		(release)
 *	full barrier
 *	reads used.flags: on -> writes kick	returns; was armed -> used.flags := off
 *						avail.idx != shadow: t1 := clock, shadow := n
 *	sees used.idx = n, counts t1 - t0	used.idx := n	(release)
 *	thinks for a while			wait_set_wait()
 *
 * CPU times come from schedstat, so that what the kernel does on the waiter's behalf is the waiter's.
 */
#include "bench_wait.h"

#include <errno.h>
#include <linux/virtio_ring.h>
#include <pthread.h>
#include <sched.h>
#include <stdalign.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "../../kernel/c/atomics.h"
#include "../../kernel/c/signal_fd.h"
#include "bench_verify.h"

#define SPINS_PER_LOOK 1024 /* fruitless looks for an answer between looks at the clock */
#define SLICE_NS 10000000   /* of idling, between looks whether to stop */

struct thread {
	pthread_t thread;
	pid_t tid; /* atomic: 0 until it runs */
	bool made;
};

struct stage {
	/* Each on a cache line of its own, as they are in a virtqueue. */
	alignas(64) uint16_t avail_idx; /* the driver's */
	alignas(64) uint16_t used_flags;
	alignas(64) uint16_t used_idx; /* the waiter's, and: */
	uint64_t noticed_ns;
	alignas(64) uint16_t shadow;
	struct wait_set set;
	alignas(64) uint32_t stop; /* atomic: the threads shall end */

	/* The driver's own. */
	alignas(64) struct bench_wait_config *cfg;
	struct bench_wait_result *out;
	struct thread waiter, hog;
	uint64_t random;
	int kick_fd;
};

/* What is counted at both ends of a measurement. */
struct reading {
	uint64_t now, waiter_ns, hog_ns;
	struct wait_stats wait;
};

static enum wait_result blind_spin(struct stage *s)
{
	while (load_acquire(&s->avail_idx) == s->shadow && !load_acquire(&s->stop))
		cpu_relax();
	return WAIT_HIT;
}

static void *waiter_main(void *arg)
{
	struct stage *s = arg;
	bool blind = s->cfg->strategy == BENCH_WAIT_BLIND;

	store_release(&s->waiter.tid, gettid());
	while (!load_acquire(&s->stop)) { /* pairs with end(), which signals after it */
		enum wait_result result = blind ? blind_spin(s) : wait_set_wait(&s->set, -1);
		uint16_t idx;

		if (result == WAIT_ARMED)
			store_relaxed(&s->used_flags, VRING_USED_F_NO_NOTIFY);
		idx = load_acquire(&s->avail_idx); /* pairs with request() */
		if (idx == s->shadow)
			continue;
		s->noticed_ns = now_ns();
		s->shadow = idx;
		store_release(&s->used_idx, idx); /* pairs with answered() */
	}
	return NULL;
}

static void *hog_main(void *arg)
{
	struct stage *s = arg;

	store_release(&s->hog.tid, gettid());
	while (!load_acquire(&s->stop))
		; /* no cpu_relax(): a hypervisor would take the CPU from who spins politely */
	return NULL;
}

static int make_thread(struct stage *s, struct thread *t, void *(*run)(void *))
{
	pthread_attr_t attr;
	cpu_set_t cpus;
	int rc;

	CPU_ZERO(&cpus);
	CPU_SET(s->cfg->waiter_cpu, &cpus);
	rc = pthread_attr_init(&attr);
	if (rc != 0)
		return -rc;
	rc = pthread_attr_setaffinity_np(&attr, sizeof(cpus), &cpus);
	if (rc == 0)
		rc = pthread_create(&t->thread, &attr, run, s);
	pthread_attr_destroy(&attr);
	if (rc != 0)
		return -rc;
	t->made = true;
	while (!load_acquire(&t->tid)) /* it is runnable, and we are not on its CPU */
		sched_yield();
	return 0;
}

/* CPU time of a thread: the first number of its schedstat, nanoseconds. Return: 0 or -ENODATA */
static int cpu_ns(pid_t tid, uint64_t *ns)
{
	unsigned long long ran = 0;
	char path[64];
	FILE *file;
	int n;

	snprintf(path, sizeof(path), "/proc/self/task/%d/schedstat", tid);
	file = fopen(path, "re");
	if (!file)
		return -ENODATA;
	n = fscanf(file, "%llu", &ran);
	fclose(file);
	*ns = ran;
	return n == 1 ? 0 : -ENODATA; /* 0 is a thread that has yet to get its CPU */
}

static int take(struct stage *s, struct reading *r)
{
	int rc = cpu_ns(s->waiter.tid, &r->waiter_ns);

	r->hog_ns = 0;
	if (rc == 0 && s->hog.made)
		rc = cpu_ns(s->hog.tid, &r->hog_ns);
	r->wait = wait_set_stats(&s->set);
	r->now = now_ns();
	return rc;
}

static bool stopped(const struct stage *s)
{
	return load_relaxed(&s->cfg->stopped);
}

/* Spin until the waiter has seen request @idx. Return: 0, -ETIMEDOUT or -ECANCELED */
static int answered(struct stage *s, uint16_t idx, uint64_t sent_ns)
{
	for (;;) {
		for (unsigned i = 0; i < SPINS_PER_LOOK; i++) {
			if (load_acquire(&s->used_idx) == idx) /* pairs with waiter_main() */
				return 0;
			cpu_relax();
		}
		if (stopped(s))
			return -ECANCELED;
		if (now_ns() - sent_ns > s->cfg->stall_ns)
			return -ETIMEDOUT;
	}
}

/* One request, to its answer, as virtio 1.2 §2.7.13 has a driver do it. */
static int request(struct stage *s)
{
	struct bench_wait_result *out = s->out;
	uint16_t idx = (uint16_t)(s->avail_idx + 1);
	uint64_t sent_ns = now_ns(), latency;
	int rc;

	store_release(&s->avail_idx, idx); /* pairs with waiter_main(), and with whoever else looks at the word */
	mb_full();                         /* pairs with the barrier after arming (wait.c) */
	if (!(load_relaxed(&s->used_flags) & VRING_USED_F_NO_NOTIFY)) {
		signal_fd(s->kick_fd);
		out->kicks++;
	}
	rc = answered(s, idx, sent_ns);
	if (rc < 0)
		return rc;
	latency = s->noticed_ns > sent_ns ? s->noticed_ns - sent_ns : 0;
	out->requests++;
	out->latency[bench_bucket_of(latency)]++;
	if (latency > out->latency_max_ns)
		out->latency_max_ns = latency;
	return 0;
}

/* Requests with pauses between them, for so long. The pauses spin: a sleep would have its own latency. */
static int send_for(struct stage *s, uint64_t ns)
{
	uint64_t start = now_ns();

	while (now_ns() - start < ns) {
		uint64_t pause, since;
		int rc = request(s);

		if (rc < 0)
			return rc;
		pause = bench_pause_ns(&s->random, s->cfg->think_ns);
		for (since = now_ns(); now_ns() - since < pause && !stopped(s);)
			cpu_relax();
	}
	return stopped(s) ? -ECANCELED : 0;
}

static int sleep_for(struct stage *s, uint64_t ns)
{
	uint64_t start = now_ns(), gone;

	for (gone = 0; gone < ns; gone = now_ns() - start) {
		struct timespec ts = { .tv_nsec = (long)(ns - gone < SLICE_NS ? ns - gone : SLICE_NS) };

		if (stopped(s))
			return -ECANCELED;
		nanosleep(&ts, NULL);
	}
	return 0;
}

static int measure(struct stage *s)
{
	const struct bench_wait_config *cfg = s->cfg;
	struct bench_wait_result *out = s->out;
	struct reading before, after;
	int rc;

	rc = request(s); /* the waiter is there; idle: it has seen traffic, and now it ends */
	if (rc == 0)
		rc = cfg->idle ? sleep_for(s, cfg->warmup_ns) : send_for(s, cfg->warmup_ns);
	if (rc == 0)
		rc = take(s, &before);
	if (rc < 0)
		return rc;
	memset(out, 0, sizeof(*out));
	rc = cfg->idle ? sleep_for(s, cfg->runtime_ns) : send_for(s, cfg->runtime_ns);
	if (rc == 0)
		rc = take(s, &after);
	if (rc == 0 && cfg->idle)
		rc = request(s); /* and it still hears */
	if (rc < 0)
		return rc;
	out->elapsed_ns = after.now - before.now;
	out->waiter_ns = after.waiter_ns - before.waiter_ns;
	out->hog_ns = after.hog_ns - before.hog_ns;
	out->wait = (struct wait_stats){
		.hits = after.wait.hits - before.wait.hits,
		.gave_way = after.wait.gave_way - before.wait.gave_way,
		.timeouts = after.wait.timeouts - before.wait.timeouts,
		.sleeps = after.wait.sleeps - before.wait.sleeps,
	};
	return 0;
}

static int begin(struct stage *s)
{
	const struct eventfd_poll_info mailbox = {
		/* its doorbell is the kick, see end() */
		.addr = (uintptr_t)&s->stop,
		.size = sizeof(s->stop),
		.op = EVENTFD_POLL_OP_NOT_EQUAL,
	};
	const struct eventfd_poll_info avail = {
		.addr = (uintptr_t)&s->avail_idx,
		.size = sizeof(s->avail_idx),
		.op = EVENTFD_POLL_OP_NOT_EQUAL_PTR,
		.val = (uintptr_t)&s->shadow,
		.flags = EVENTFD_POLL_F_ARM,
		.arm_addr = (uintptr_t)&s->used_flags,
		.arm_val = 0,
	};
	bool blind = s->cfg->strategy == BENCH_WAIT_BLIND;
	int rc;

	s->used_flags = VRING_USED_F_NO_NOTIFY;
	s->kick_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (s->kick_fd < 0)
		return -errno;
	rc = wait_set_init(&s->set, blind ? WAIT_OFF : (enum wait_strategy)s->cfg->strategy, s->cfg->max_us);
	if (rc == 0)
		rc = wait_set_add(&s->set, s->kick_fd, &avail, s, NULL);
	if (rc == 0)
		rc = wait_set_add(&s->set, -1, &mailbox, s, NULL);
	if (rc == 0)
		rc = make_thread(s, &s->waiter, waiter_main);
	if (rc == 0 && s->cfg->hog)
		rc = make_thread(s, &s->hog, hog_main);
	return rc;
}

static void end(struct stage *s)
{
	store_release(&s->stop, 1);
	signal_fd(s->kick_fd); /* whatever it waits for: this ends every sleep */
	if (s->waiter.made)
		pthread_join(s->waiter.thread, NULL);
	if (s->hog.made)
		pthread_join(s->hog.thread, NULL);
	wait_set_fini(&s->set);
	if (s->kick_fd >= 0)
		close(s->kick_fd);
}

static bool may_run_on(const cpu_set_t *cpus, int cpu)
{
	return cpu >= 0 && cpu < CPU_SETSIZE && CPU_ISSET(cpu, cpus);
}

int bench_wait_run(struct bench_wait_config *cfg, struct bench_wait_result *out)
{
	struct stage s = { .cfg = cfg, .out = out, .random = cfg->seed ? cfg->seed : 1, .set.epoll_fd = -1 };
	cpu_set_t mine, driver;
	int rc;

	memset(out, 0, sizeof(*out));
	if (cfg->strategy < BENCH_WAIT_BLIND || cfg->strategy > WAIT_MODULE || cfg->waiter_cpu == cfg->driver_cpu)
		return -EINVAL;
	if (sched_getaffinity(0, sizeof(mine), &mine) < 0)
		return -errno;
	if (!may_run_on(&mine, cfg->waiter_cpu) || !may_run_on(&mine, cfg->driver_cpu))
		return -EINVAL;
	CPU_ZERO(&driver);
	CPU_SET(cfg->driver_cpu, &driver);
	if (sched_setaffinity(0, sizeof(driver), &driver) < 0)
		return -errno;
	rc = begin(&s);
	if (rc == 0)
		rc = measure(&s);
	end(&s);
	sched_setaffinity(0, sizeof(mine), &mine);
	return rc;
}

void bench_wait_stop(struct bench_wait_config *cfg)
{
	store_relaxed(&cfg->stopped, 1);
}
