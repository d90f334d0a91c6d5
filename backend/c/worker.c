/* SPDX-License-Identifier: Apache-2.0 */
/*
 * worker.c - the loop of a worker thread
 *
 * THEORY OF OPERATION
 *
 * A worker turns its lanes until a turn moves nothing, then waits in its wait set, where every running queue, every
 * engine and the mailbox have an entry. State is prepared by the steering thread, applied here between two turns, and
 * acknowledged: a queue belongs to the worker from the START command until it stores STOPPED, which it does only when
 * nothing of that queue is in flight and the wait set no longer names its memory.
 */
#include "worker.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "../../kernel/c/atomics.h"
#include "../../kernel/c/give_way.h"
#include "../../kernel/c/signal_fd.h"
#include "mailbox.h"

#define LANES 16
#define UNWATCHED_NS 1000000
#define NO_KICK_POLL_NS 200000 /* a driver without a kick descriptor wants to be polled (SET_VRING_KICK, bit 8) */

enum command_op { COMMAND_START, COMMAND_STOP, COMMAND_JOIN, COMMAND_EXIT };

struct command {
	struct mail mail;
	enum command_op op;
	struct lane *lane;
	struct queue *queue;
	int kick_fd;
};

/* A queue that this worker holds. */
struct held {
	struct lane *lane;
	struct queue *queue;
	bool no_kick;
};

struct worker {
	struct wait_set wait;
	struct worker_stats stats;
	struct give_way give_way; /* while a lane has to be turned for what nobody signals */
	struct lane *lanes[LANES];
	unsigned lane_count;
	struct held *held;
	unsigned held_count, held_cap;
	unsigned no_kick; /* held queues that have no kick descriptor */
	bool stopping;    /* some held queue is STOPPING */
	bool exiting;
	struct mailbox mailbox; /* of commands */
	int event_fd;

	pthread_t thread;
	uint32_t running; /* atomic: thread is valid */
};

int worker_create(struct worker **out, int strategy, uint32_t max_us)
{
	struct worker *w;
	int rc;

	if (strategy < WAIT_OFF || strategy > WAIT_MODULE)
		return -EINVAL;
	w = calloc(1, sizeof(*w));
	if (!w)
		return -ENOMEM;
	w->wait.epoll_fd = -1;
	w->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	rc = w->event_fd < 0 ? -errno : 0;
	rc = mailbox_init(&w->mailbox) ?: rc;
	if (rc == 0)
		rc = wait_set_init(&w->wait, strategy, max_us);
	if (rc == 0)
		rc = mailbox_watch(&w->mailbox, &w->wait, w);
	/* Memory may turn out to be gone while doorbells are armed, just before a sleep. */
	if (rc == 0 && mem_broken_fd() >= 0)
		rc = wait_set_add(&w->wait, mem_broken_fd(), NULL, w, NULL);
	if (rc < 0) {
		worker_destroy(w);
		return rc;
	}
	*out = w;
	return 0;
}

void worker_destroy(struct worker *w)
{
	if (!w)
		return;
	wait_set_fini(&w->wait);
	mailbox_fini(&w->mailbox);
	if (w->event_fd >= 0)
		close(w->event_fd);
	free(w->held);
	free(w);
}

int worker_event_fd(const struct worker *w)
{
	return w->event_fd;
}

int worker_add_lane(struct worker *w, struct lane *lane)
{
	int rc;

	if (w->lane_count == LANES)
		return -ENOMEM;
	rc = lane->ops->join(lane, &w->wait);
	if (rc < 0) {
		wait_set_del(&w->wait, lane);
		return rc;
	}
	w->lanes[w->lane_count++] = lane;
	return 0;
}

void worker_wake(struct worker *w)
{
	mailbox_wake(&w->mailbox);
}

static int post(struct worker *w, struct command command)
{
	struct command *c = malloc(sizeof(*c));

	if (!c)
		return -ENOMEM;
	*c = command;
	mailbox_post(&w->mailbox, &c->mail);
	return 0;
}

int worker_start_queue(struct worker *w, struct lane *lane, struct queue *q, int kick_fd)
{
	return post(w, (struct command){ .op = COMMAND_START, .lane = lane, .queue = q, .kick_fd = kick_fd });
}

int worker_stop_queue(struct worker *w, struct queue *q)
{
	return post(w, (struct command){ .op = COMMAND_STOP, .queue = q });
}

int worker_stop(struct worker *w)
{
	return post(w, (struct command){ .op = COMMAND_EXIT });
}

int worker_join_lane(struct worker *w, struct lane *lane)
{
	return post(w, (struct command){ .op = COMMAND_JOIN, .lane = lane });
}

static int hold(struct worker *w, struct lane *lane, struct queue *q, bool no_kick)
{
	if (w->held_count == w->held_cap) {
		unsigned cap = w->held_cap ? w->held_cap * 2 : 8;
		void *grown = realloc(w->held, cap * sizeof(*w->held));

		if (!grown)
			return -ENOMEM;
		w->held = grown;
		w->held_cap = cap;
	}
	w->held[w->held_count++] = (struct held){ lane, q, no_kick };
	w->no_kick += no_kick;
	return 0;
}

/*
 * What it means that a queue couldn't be started, for the log. Its ring was inside guest memory a moment ago; the kernel
 * that can't read it now (-EFAULT) says that the front-end truncated it. Everything else is about what was asked of us: a
 * kick descriptor that can't be watched, or more queues than there are descriptors or memory for.
 */
static enum virtq_fault start_fault(int error)
{
	return error == -EFAULT ? VIRTQ_FAULT_MEMORY_GONE : VIRTQ_FAULT_REQUEST;
}

static void start_queue(struct worker *w, const struct command *c)
{
	struct eventfd_poll_info word;
	int rc;

	virtq_watch(&c->queue->vq, &word);
	rc = hold(w, c->lane, c->queue, c->kick_fd < 0);
	if (rc == 0)
		rc = wait_set_add(&w->wait, c->kick_fd, &word, c->queue, &w->stats.kicks);
	if (rc == 0)
		rc = lane_add(c->lane, c->queue);
	if (rc < 0) {
		virtq_fail(&c->queue->vq, start_fault(rc));
		wait_set_del(&w->wait, c->queue);
		queue_set_state(c->queue, QUEUE_BROKEN);
	} else {
		virtq_notify_off(&c->queue->vq);
	}
	signal_fd(w->event_fd);
}

static bool is_held(const struct worker *w, const struct queue *q)
{
	for (unsigned i = 0; i < w->held_count; i++)
		if (w->held[i].queue == q)
			return true;
	return false;
}

static void stop_queue(struct worker *w, struct queue *q)
{
	if (!is_held(w, q)) { /* never started, for want of memory, or stopped already */
		queue_set_state(q, QUEUE_STOPPED);
		signal_fd(w->event_fd);
		return;
	}
	/* Its words would stay true for ever now that nobody pops: out of the wait set at once. */
	wait_set_del(&w->wait, q);
	queue_set_state(q, QUEUE_STOPPING);
	w->stopping = true;
}

static void join_lane(struct worker *w, struct lane *lane)
{
	wait_set_del(&w->wait, lane);
	lane->join_error = lane->ops->join(lane, &w->wait);
	if (lane->join_error < 0)
		wait_set_del(&w->wait, lane);
	store_release(&lane->joined, lane->joined + 1); /* pairs with the acquire in lane_joined() */
	signal_fd(w->event_fd);
}

static void take_commands(struct worker *w)
{
	struct mail *mail = mailbox_take(&w->mailbox);

	while (mail) {
		struct command *c = container_of(mail, struct command, mail);

		mail = mail->next;
		if (c->op == COMMAND_START)
			start_queue(w, c);
		else if (c->op == COMMAND_STOP)
			stop_queue(w, c->queue);
		else if (c->op == COMMAND_JOIN)
			join_lane(w, c->lane);
		else
			w->exiting = true;
		free(c);
	}
	for (unsigned i = 0; w->exiting && i < w->held_count; i++)
		stop_queue(w, w->held[i].queue);
}

/* Let go of the queues that have drained. */
static void settle(struct worker *w)
{
	struct eventfd_poll_info doorbell;
	bool released = false;

	w->stopping = false;
	for (unsigned i = 0; i < w->held_count;) {
		struct held *h = &w->held[i];

		if (queue_state(h->queue) != QUEUE_STOPPING) {
			i++;
			continue;
		}
		if (queue_in_flight(h->queue) > 0) {
			w->stopping = true;
			i++;
			continue;
		}
		virtq_publish(&h->queue->vq);
		/* A successor that waits for kicks expects to find the doorbell on. */
		virtq_watch(&h->queue->vq, &doorbell);
		wait_word_arm(&doorbell);
		lane_remove(h->lane, h->queue);
		if (h->lane->ops->release)
			h->lane->ops->release(h->lane, h->queue);
		queue_set_state(h->queue, QUEUE_STOPPED); /* from here on it is Python's */
		w->no_kick -= h->no_kick;
		*h = w->held[--w->held_count];
		released = true;
	}
	if (released)
		signal_fd(w->event_fd);
}

/* A broken queue's avail index never moves again: stop watching it, and tell. */
static void bury_broken(struct worker *w)
{
	for (unsigned i = 0; i < w->lane_count; i++) {
		struct queue *q;

		while ((q = lane_broken(w->lanes[i])) != NULL) {
			wait_set_del(&w->wait, q);
			signal_fd(w->event_fd);
		}
	}
}

static void wait_for_work(struct worker *w)
{
	int64_t timeout = w->no_kick ? NO_KICK_POLL_NS : -1;
	enum wait_result how;

	for (unsigned i = 0; i < w->lane_count; i++) {
		struct lane *lane = w->lanes[i];
		int64_t t = lane->ops->sleep_timeout_ns ? lane->ops->sleep_timeout_ns(lane) : -1;

		/* Its engine isn't in the wait set, see join_lane(): what completes wakes nobody. */
		if (unlikely(lane->join_error < 0) && (t < 0 || t > UNWATCHED_NS))
			t = UNWATCHED_NS;
		if (t >= 0 && (timeout < 0 || t < timeout))
			timeout = t;
	}
	if (timeout == 0) {
		timeout = give_way_ns(&w->give_way);
		if (timeout == 0)
			return; /* a turn looks at all that a wait would have looked at */
		how = wait_set_sleep(&w->wait, timeout);
	} else {
		how = wait_set_wait(&w->wait, timeout);
	}
	for (unsigned i = 0; how == WAIT_ARMED && i < w->lane_count; i++)
		lane_notify_off(w->lanes[i]);
}

int worker_run(struct worker *w)
{
	w->thread = pthread_self();
	store_release(&w->running, 1);
	for (;;) {
		unsigned work = 0;

		if (unlikely(mailbox_notified(&w->mailbox)))
			take_commands(w);
		for (unsigned i = 0; i < w->lane_count; i++)
			work += w->lanes[i]->ops->poll(w->lanes[i]);
		bury_broken(w);
		if (unlikely(w->stopping))
			settle(w);
		if (unlikely(w->exiting) && w->held_count == 0)
			break;
		if (work == 0)
			wait_for_work(w);
		else
			give_way_found(&w->give_way);
	}
	store_release(&w->running, 0);
	return 0;
}

void worker_stats(struct worker *w, struct worker_stats *out)
{
	struct timespec ts;
	clockid_t clock;

	out->wait = wait_set_stats(&w->wait);
	out->kicks = load_relaxed(&w->stats.kicks);
	out->cpu_ns = 0;
	if (load_acquire(&w->running) && pthread_getcpuclockid(w->thread, &clock) == 0 &&
	    clock_gettime(clock, &ts) == 0)
		out->cpu_ns = (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}
