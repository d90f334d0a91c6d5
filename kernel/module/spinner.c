// SPDX-License-Identifier: GPL-2.0-only
/*
 * spinner.c - make a stock epoll_wait() spin on words of memory
 *
 * epoll spins for sockets only: it remembers the NAPI id of one socket among its
 * items, and before it sleeps it runs that NAPI, in its own context, until there
 * are events, or for net.core.busy_poll microseconds. So a wrapper is a socket,
 * and each open of the device has a NAPI that brings no packets, but looks at the
 * conditions of the wrappers made through it, and wakes those that hold. Epoll
 * then asks their ->poll().
 *
 * By itself such a spin makes room for need_resched() alone, and then goes on. To
 * end it we wake the wrappers while they name a NAPI that doesn't exist. epoll
 * remembers that one, finds that there are no events after all, finds no such
 * NAPI, and sleeps:
 *
 *	ep_busy_loop(our id) -> napi_busy_loop() -> spinner_poll()
 *	  sk_napi_id := NO_NAPI_ID; wake up; sk_napi_id := our id
 *	    ep_poll_callback(): ep->napi_id := NO_NAPI_ID, item is on the ready list
 *	  ep_busy_loop_end(): there are events
 *	ep_send_events(): there are none
 *	ep_busy_loop(NO_NAPI_ID): nothing to run, ep->napi_id := 0
 *	schedule()
 *
 * Whatever ends a spin that brought no event, this or net.core.busy_poll, epoll
 * forgets the NAPI then (ep_busy_loop()), and its next waits would sleep at once.
 * So we remind it, when it sleeps: ep_poll_callback() takes the NAPI id of an item
 * before it finds that a wake-up's key is for nothing that the item waits for. We
 * do so after each spin, as we can't know whether it found an event: a word that
 * holds may be another epoll's.
 */

#include <linux/jiffies.h>
#include <linux/ktime.h>
#include <linux/minmax.h>
#include <linux/poll.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/sched/stat.h>
#include <linux/slab.h>
#include <linux/timer.h>
#include <linux/wait.h>

#include "spinner.h"
#include "watch.h"

#ifndef CONFIG_NET_RX_BUSY_POLL
#error "eventfd_poll needs a kernel with CONFIG_NET_RX_BUSY_POLL"
#endif

/* Ids are given out from below; this one would be the four billionth. */
#define NO_NAPI_ID UINT_MAX

/*
 * Bounds how long one look at all of them keeps bottom halves and preemption off:
 * below half a millisecond where none of the pages is there, which is the worst,
 * as each takes an exception.
 */
#define WATCHES_MAX 256

/* At least one whole tick: by then epoll, which is about to sleep, has long forgotten. */
#define REMIND_TICKS 2

/* An event that no file has, and so nobody waits for. */
#define REMIND_KEY poll_to_key(EPOLLMSG)

/**
 * spinner_gives_way() - should a spin end, because somebody else needs this CPU?
 *
 * need_resched() alone comes only with preemption: until then a task that waits
 * for this CPU would wait for us, and in the long run get half of it.
 */
bool spinner_gives_way(void)
{
	return need_resched() || !single_task_running();
}

/*
 * Look at all words of this address space, and wake who waits for those that hold.
 * Returns how long the spin may last: their max_us; or 0, if one holds of which
 * EPOLLIN was not asked. Whom that wakes has no event, and would begin its spin
 * anew, for ever. We can't know whose spin this is, so others are woken none the
 * less, and have their event before they forget the NAPI.
 */
static u32 spinner_look(struct spinner *s)
{
	struct condition c;
	struct watch *w;
	bool unasked = false;
	u32 max_us = 0;
	u64 missing;
	int holds;

	list_for_each_entry(w, &s->watches, link) {
		if (!watch_condition(w, &c))
			continue;
		max_us = max(max_us, c.info.max_us ?: U32_MAX);
		holds = condition_look(&c, &missing);
		if (!holds)
			continue;
		/* What can't be read without a page fault, ->poll() will judge. */
		if (holds > 0)
			WRITE_ONCE(w->hit, true);
		watch_wake(w);
		unasked |= READ_ONCE(w->unasked);
	}
	return unasked ? 0 : max_us;
}

/* End the spin of every epoll that runs this NAPI, see the top of this file. */
static void spinner_end(struct spinner *s)
{
	struct watch *w;

	list_for_each_entry(w, &s->watches, link) {
		WRITE_ONCE(w->sk.sk_napi_id, NO_NAPI_ID);
		watch_wake(w);
		WRITE_ONCE(w->sk.sk_napi_id, s->napi.napi_id);
	}
}

/* Have every epoll with one of our wrappers spin when it waits again, see the top of this file. */
static void spinner_remind(struct timer_list *timer)
{
	struct spinner *s = from_timer(s, timer, reminder);
	struct watch *w;

	spin_lock(&s->lock);
	list_for_each_entry(w, &s->watches, link)
		__wake_up(&w->sk.sk_socket->wq.wait, TASK_NORMAL, 0, REMIND_KEY);
	spin_unlock(&s->lock);
}

/*
 * Runs in the context of the task that is in epoll_wait(), with bottom halves and
 * preemption off, and never in a softirq: nobody schedules this NAPI.
 */
static int spinner_poll(struct napi_struct *napi, int budget)
{
	struct spinner *s = container_of(napi, struct spinner, napi);
	u64 now = ktime_get_ns() / NSEC_PER_USEC;
	u32 max_us;

	spin_lock(&s->lock);
	if (!s->start_us)
		s->start_us = now;
	max_us = spinner_look(s);
	/*
	 * Also when a word holds: it may be another epoll's, or nobody's, and then
	 * ends no spin. After the look, because epoll remembers the last id that it
	 * was woken with. No word of ours at all gives a max_us of 0.
	 */
	if (now - s->start_us >= max_us || spinner_gives_way() || signal_pending(current))
		spinner_end(s);
	/* The call that ends a spin. Without a wrapper there is nobody to remind, and s may soon be gone. */
	if (!test_bit(NAPI_STATE_IN_BUSY_POLL, &napi->state)) {
		s->start_us = 0;
		if (!list_empty(&s->watches))
			mod_timer(&s->reminder, jiffies + REMIND_TICKS);
	}
	spin_unlock(&s->lock);

	napi_complete_done(napi, 0);
	return 0;
}

/**
 * spinner_new() - make a spinner, for one open of the device
 *
 * Return: the spinner, to be given back with spinner_put(); or NULL
 */
struct spinner *spinner_new(void)
{
	struct spinner *s = kzalloc(sizeof(*s), GFP_KERNEL_ACCOUNT);

	if (!s)
		return NULL;
	kref_init(&s->ref);
	spin_lock_init(&s->lock);
	INIT_LIST_HEAD(&s->watches);
	timer_setup(&s->reminder, spinner_remind, 0);
	init_dummy_netdev(&s->dev);
	netif_napi_add(&s->dev, &s->napi, spinner_poll);
	napi_enable(&s->napi);
	return s;
}

static void spinner_free(struct kref *ref)
{
	struct spinner *s = container_of(ref, struct spinner, ref);

	/*
	 * An epoll that has just lost its last wrapper may still run the NAPI, under
	 * rcu_read_lock(). It finds an empty list, and after it nobody finds the NAPI.
	 * Not napi_disable(), which would wait here for as long as that epoll spins.
	 */
	del_timer_sync(&s->reminder);
	__netif_napi_del(&s->napi);
	kfree_rcu(s, rcu);
}

/**
 * spinner_put() - drop a reference
 * @s:		the spinner
 */
void spinner_put(struct spinner *s)
{
	kref_put(&s->ref, spinner_free);
}

/**
 * spinner_add() - have a wrapper's condition looked at
 * @s:		the spinner
 * @w:		the wrapper, which holds a reference to it from now on
 *
 * Return: 0, or -ENOSPC
 */
int spinner_add(struct spinner *s, struct watch *w)
{
	int error = -ENOSPC;

	spin_lock_bh(&s->lock);
	if (s->count < WATCHES_MAX) {
		s->count++;
		kref_get(&s->ref);
		w->spinner = s;
		WRITE_ONCE(w->sk.sk_napi_id, s->napi.napi_id);
		list_add_tail(&w->link, &s->watches);
		error = 0;
	}
	spin_unlock_bh(&s->lock);
	return error;
}

/**
 * spinner_del() - have it looked at no more, if it was
 * @w:		the wrapper; when this returns nobody looks at it
 */
void spinner_del(struct watch *w)
{
	struct spinner *s = w->spinner;

	if (!s)
		return;
	spin_lock_bh(&s->lock);
	list_del(&w->link);
	s->count--;
	spin_unlock_bh(&s->lock);
	spinner_put(s);
}
