// SPDX-License-Identifier: Apache-2.0
/*
 * helper.c - an engine's threads for what would block its worker
 *
 * Two lists under one mutex: `pending` from the worker to the threads, `done` back. This is the slow way by design
 * (a flush takes as long as the device's cache is deep), so the lists are plain; what matters is that the worker pays
 * nothing while it has nothing here: io_helper_reap() looks at a counter of its own first. The worker can wait for
 * done.first to become non-NULL in memory, or for the eventfd, which is written after each completion.
 *
 * Order: requests run side by side and finish in any order. A flush covers every write that completed before the
 * flush was queued (virtio 1.2 §5.2.6.2 asks for no more): such a write has left the kernel's hands or sits in the
 * page cache of the inode that fdatasync(2) is called on, whichever descriptor or thread carried it.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "../../kernel/c/signal_fd.h"
#include "engine.h"
#include "helper.h"
#include "sync.h"

#define IO_HELPER_THREADS_MAX 4

struct io_helper {
	struct io_target *target;
	int event_fd;  /* never read, so it only ever rises; 2^64 - 2 completions are out of reach */
	unsigned here; /* the worker's own count: handed in and not come back */
	int (*submit)(struct io_engine *e, struct io_req *r);
	struct io_engine *engine; /* what submit is called with */

	pthread_mutex_t lock; /* of all below */
	pthread_cond_t wake;
	struct io_list pending, done;
	unsigned pending_count;
	unsigned idle, threads;
	bool stop;
	pthread_t thread[IO_HELPER_THREADS_MAX];
};

/* The caller holds the lock. done.first is also read without it: by io_helper_reap() and by whoever waits on the word. */
static void done_push(struct io_helper *h, struct io_req *r)
{
	r->next = NULL;
	if (h->done.first)
		h->done.last->next = r;
	h->done.last = r;
	if (!h->done.first)
		store_release(&h->done.first, r); /* pairs with load_acquire in io_helper_reap() */
}

static void *helper_main(void *arg)
{
	struct io_helper *h = arg;
	struct io_bounce bounce = { 0 };

	pthread_setname_np(pthread_self(), "kpoll-io");
	pthread_mutex_lock(&h->lock);
	for (;;) {
		struct io_req *r;

		while (!h->pending.first && !h->stop) {
			h->idle++;
			pthread_cond_wait(&h->wake, &h->lock);
			h->idle--;
		}
		r = io_list_pop(&h->pending);
		if (!r)
			break;
		h->pending_count--;
		pthread_mutex_unlock(&h->lock);

		if (r->resubmit && h->submit(h->engine, r) == 0) { /* from here on @r may be the worker's again */
			pthread_mutex_lock(&h->lock);
			continue;
		}
		r->res = io_sync(h->target, r, &bounce);

		pthread_mutex_lock(&h->lock);
		done_push(h, r);
		pthread_mutex_unlock(&h->lock);
		signal_fd(h->event_fd);
		pthread_mutex_lock(&h->lock);
	}
	pthread_mutex_unlock(&h->lock);
	io_bounce_free(&bounce);
	return NULL;
}

/* The caller holds the lock. */
static int helper_spawn(struct io_helper *h)
{
	sigset_t all, before;
	int ret;

	/* Signals are the steering thread's; but a fault in guest memory must reach its handler on the thread that made it. */
	sigfillset(&all);
	sigdelset(&all, SIGBUS);
	sigdelset(&all, SIGSEGV);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	ret = pthread_create(&h->thread[h->threads], NULL, helper_main, h);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (!ret)
		h->threads++;
	return -ret;
}

void io_helper_queue(struct io_helper *h, struct io_req *r)
{
	int ret = 0;

	r->in_helper = true;
	h->here++;
	pthread_mutex_lock(&h->lock);
	if (h->idle <= h->pending_count && h->threads < IO_HELPER_THREADS_MAX)
		ret = helper_spawn(h);
	if (h->threads) {
		h->pending_count++;
		io_list_push(&h->pending, r);
		pthread_cond_signal(&h->wake);
		pthread_mutex_unlock(&h->lock);
	} else { /* not even one: the request fails with what pthread_create(3) said */
		r->res = ret;
		done_push(h, r);
		pthread_mutex_unlock(&h->lock);
		signal_fd(h->event_fd);
	}
}

void io_helper_submitter(struct io_helper *h, int (*submit)(struct io_engine *e, struct io_req *r), struct io_engine *e)
{
	h->submit = submit;
	h->engine = e;
}

void io_helper_left(struct io_helper *h, struct io_stats *stats)
{
	h->here--;
	count_add(&stats->helped, 1);
}

bool io_helper_busy(const struct io_helper *h)
{
	return h->here > 0;
}

unsigned io_helper_reap(struct io_helper *h, struct io_req **done, unsigned max, struct io_stats *stats)
{
	unsigned n = 0;

	if (likely(!h->here) || !load_acquire(&h->done.first)) /* pairs with store_release in done_push() */
		return 0;
	pthread_mutex_lock(&h->lock);
	while (n < max && h->done.first) {
		struct io_req *r = h->done.first;

		store_release(&h->done.first, r->next);
		done[n++] = r;
	}
	pthread_mutex_unlock(&h->lock);
	h->here -= n;
	count_add(&stats->helped, n);
	return n;
}

void io_helper_wait(struct io_helper *h, struct io_wait *w)
{
	*w = (struct io_wait){
		.fd = h->event_fd,
		.has_word = true,
		.word = {
			.addr = (uintptr_t)&h->done.first,
			.size = sizeof(h->done.first),
			.op = EVENTFD_POLL_OP_NOT_EQUAL,
			.val = 0,
		},
	};
}

int io_helper_create(struct io_helper **out, struct io_target *t)
{
	struct io_helper *h = calloc(1, sizeof(*h));
	int ret;

	if (!h)
		return -ENOMEM;
	h->target = t;
	h->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (h->event_fd < 0) {
		ret = -errno;
		free(h);
		return ret;
	}
	pthread_mutex_init(&h->lock, NULL); /* neither can fail with default attributes on Linux */
	pthread_cond_init(&h->wake, NULL);
	*out = h;
	return 0;
}

void io_helper_destroy(struct io_helper *h)
{
	if (!h)
		return;
	pthread_mutex_lock(&h->lock);
	h->stop = true;
	pthread_cond_broadcast(&h->wake);
	pthread_mutex_unlock(&h->lock);
	for (unsigned i = 0; i < h->threads; i++)
		pthread_join(h->thread[i], NULL);
	pthread_cond_destroy(&h->wake);
	pthread_mutex_destroy(&h->lock);
	close(h->event_fd);
	free(h);
}
