/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wait.h - the wait set: where a worker waits for doorbells, memory words, or both
 *
 * A wait set is a list of entries: a file descriptor (or -1), and optionally a memory word with a condition,
 * described by the same struct that EVENTFD_SET_POLL takes. wait_set_wait() returns as soon as any word's
 * condition holds or any descriptor is signalled. The strategies behind it keep one contract (see wait.c).
 */
#ifndef KPOLL_WAIT_H
#define KPOLL_WAIT_H

#include <stdbool.h>
#include <stdint.h>

#include "../uapi/eventfd_poll.h"

enum wait_strategy {
	WAIT_OFF,    /* never spin: arm the doorbells, sleep */
	WAIT_USER,   /* spin in userspace for a while, giving way, then as WAIT_OFF */
	WAIT_KERNEL, /* the kernel spins, arms and sleeps: EVENTFD_SET_POLL, of a patched kernel */
	WAIT_MODULE, /* arm, then the kernel spins and sleeps: the eventfd_poll module */
};

/* How one wait ended. */
enum wait_result {
	WAIT_HIT = 0,   /* something came while nobody slept: doorbells are still off */
	WAIT_ARMED = 1, /* the doorbells were turned on (and perhaps a sleep followed): turn them off again */
};

struct wait_stats {
	uint64_t hits;     /* spins that ended with a condition, or a signal */
	uint64_t gave_way; /* spins that ended because somebody else wants the CPU */
	uint64_t timeouts; /* spins that ran out of budget */
	uint64_t sleeps; /* waits that reached the sleeping syscall; WAIT_KERNEL: that really slept, or were about to */
};

struct wait_entry;
struct pollfd;

struct wait_set {
	int epoll_fd;
	enum wait_strategy strategy;
	unsigned count, cap;
	struct wait_entry *entries;
	unsigned sockets; /* entries that wait_set_add_socket() made, and that aren't muted */
	struct wait_stats stats;
	uint64_t max_ns; /* upper bound of a spin */

	/* WAIT_USER */
	uint64_t spin_ns;          /* what the adaptation currently grants, 0..max_ns */
	uint64_t probed_ns;        /* when this thread last asked whether anybody else wants the CPU */
	uint64_t backoff_until_ns; /* no spin before this moment: somebody did */
	uint64_t backoff_ns;
	uint32_t hits_since_probe;

	/* WAIT_KERNEL, WAIT_MODULE */
	struct pollfd *fds; /* what ppoll(2) gets */
	int module_fd;
	unsigned lenders;   /* words whose arm word is `armed` */
	unsigned lost;      /* words that the kernel no longer watches */
	uint64_t armed;     /* written by the kernel just before it sleeps; the set must not move */
	uint64_t budget_ns; /* of the kernel's spins, as far as we know */
};

/**
 * wait_set_init() - Make an empty wait set, which must stay where it is
 * @max_us:	Longest spin in microseconds. WAIT_KERNEL, WAIT_MODULE: not 0, and the kernel's administrator may allow less.
 *
 * Return: 0; -errno of epoll_create1(2); WAIT_MODULE: -errno of opening the module's device. wait_set_fini() in any case.
 */
int wait_set_init(struct wait_set *ws, enum wait_strategy strategy, uint32_t max_us);
void wait_set_fini(struct wait_set *ws);

/**
 * wait_set_add() - Add an entry
 * @fd:		Descriptor to wait on, watched edge-triggered and never read; or -1 for a word alone
 * @word:	Condition (copied), or NULL. F_ARM: this set writes the arm word before it sleeps.
 * @cookie:	Names the entry for wait_set_del(); remove the entry before closing @fd
 * @signals:	Incremented each time @fd is found signalled, or NULL
 *
 * Not to be called while another thread is in wait_set_wait() on the same set.
 *
 * Return: 0; -EINVAL for a malformed word; -ENOMEM; -errno of epoll_ctl(2); WAIT_KERNEL, WAIT_MODULE: -errno of eventfd(2)
 * and of the ioctl (-ENOTTY: this kernel has no EVENTFD_SET_POLL; -EFAULT: the word or its arm word isn't there)
 */
int wait_set_add(struct wait_set *ws, int fd, const struct eventfd_poll_info *word, const void *cookie,
		 uint64_t *signals);

/**
 * wait_set_add_socket() - Add a descriptor that stays readable until somebody reads what is there: a socket, a tap
 * @fd:		As of wait_set_add(), but it ends each wait for as long as it is readable or has an error, not once per edge
 * @cookie:	Likewise
 *
 * WAIT_KERNEL and WAIT_MODULE hand it to the one ppoll(2) beside the words, so that the kernel busy-polls its network card's
 * queue (SO_BUSY_POLL) and looks at the words in the same loop. WAIT_USER asks for it while it spins, at a system call each, and
 * one more where SO_BUSY_POLL is above 0, which polls the card.
 *
 * Return: 0; -ENOMEM; -errno of epoll_ctl(2)
 */
int wait_set_add_socket(struct wait_set *ws, int fd, const void *cookie);

/*
 * wait_set_mute() - Don't wait for a socket, as long as there is no room for what it has; or do again
 *
 * Return: 0; -ENOENT when no entry is this socket's; unmuting: -ENOMEM, -errno of epoll_ctl(2)
 */
int wait_set_mute(struct wait_set *ws, int fd, bool muted);

/* wait_set_del() - Remove every entry added with @cookie */
void wait_set_del(struct wait_set *ws, const void *cookie);

/*
 * wait_set_word_wakes() - Does every change of the word at @addr wake a sleeper of this set, whether anybody signals or not?
 *
 * So it is for the tail of an AIO ring under WAIT_KERNEL: the kernel that completes the request knows who watches.
 */
bool wait_set_word_wakes(const struct wait_set *ws, uint64_t addr);

/**
 * wait_set_wait() - Wait until an entry's condition holds or its descriptor is signalled
 * @timeout_ns:	Longest sleep in nanoseconds, or -1
 *
 * May return early for no reason; callers look at everything again anyway.
 */
enum wait_result wait_set_wait(struct wait_set *ws, int64_t timeout_ns);

/* wait_set_sleep() - As wait_set_wait(), without a spin of our own before it: for a nap between two looks at something else */
enum wait_result wait_set_sleep(struct wait_set *ws, int64_t timeout_ns);

/* wait_set_stats() - The counters so far, from any thread */
struct wait_stats wait_set_stats(const struct wait_set *ws);

/* wait_word_true() - Does the condition hold now? Reads the word once (with F_INDIRECT the pair first). */
bool wait_word_true(const struct eventfd_poll_info *word);

/* wait_word_arm() - Write the arm word, if the condition has one. The caller provides the full barrier after it. */
void wait_word_arm(const struct eventfd_poll_info *word);

/* wait_word_check() - Return: 0 if the condition is well-formed, else -EINVAL (the rules of EVENTFD_SET_POLL) */
int wait_word_check(const struct eventfd_poll_info *word);

#endif
