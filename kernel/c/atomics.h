/* SPDX-License-Identifier: Apache-2.0 */
/*
 * atomics.h - every atomic access and barrier of the data plane, under one name each
 *
 * Memory that two parties touch at once (a guest's rings, the kernel's AIO ring, the mailbox between Python's
 * thread and a worker) is only ever read and written through these. Each use names, in a comment beside it, the
 * access on the other side that it pairs with.
 */
#ifndef KPOLL_ATOMICS_H
#define KPOLL_ATOMICS_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#if defined(__x86_64__)
#include <x86intrin.h>
#endif

/* One access of a scalar, exactly once: the compiler may neither repeat, split nor invent it. */
#define READ_ONCE(x) __atomic_load_n(&(x), __ATOMIC_RELAXED)
#define WRITE_ONCE(x, v) __atomic_store_n(&(x), (v), __ATOMIC_RELAXED)

/*
 * Copy out of memory that somebody else may be writing: after this the compiler can't go back and read it again,
 * which it might with a plain memcpy() into a local.
 */
static inline void copy_once(void *dst, const void *src, size_t len)
{
	memcpy(dst, src, len);
	__asm__ volatile("" : : "r"(dst) : "memory");
}

/* Nothing after the load moves before it; nothing before the store moves after it. */
#define load_acquire(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define store_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)

/* Counters that one thread writes and another only reads for display need no order, only no tearing. */
#define load_relaxed(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define store_relaxed(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define exchange_relaxed(p, v) __atomic_exchange_n((p), (v), __ATOMIC_RELAXED)
#define count_add(p, n) store_relaxed((p), load_relaxed(p) + (n))

/* Full barrier: the only one that orders an earlier store before a later load (virtio 1.2 §2.7.13.4.1's "memory barrier"). */
static inline void mb_full(void)
{
	atomic_thread_fence(memory_order_seq_cst);
}

/* Loads before it stay before loads after it; likewise stores. */
static inline void mb_read(void)
{
	atomic_thread_fence(memory_order_acquire);
}

static inline void mb_write(void)
{
	atomic_thread_fence(memory_order_release);
}

/* Tell the CPU that this is a spin: saves power, frees the sibling thread, avoids the mis-speculation at the loop's end. */
static inline void cpu_relax(void)
{
#if defined(__x86_64__)
	_mm_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield" ::: "memory");
#else
	atomic_signal_fence(memory_order_seq_cst);
#endif
}

/* Monotonic time in nanoseconds. A vDSO call, about 25 ns: once per batch, never per request. */
static inline uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define container_of(p, type, member) ((type *)((char *)(p)-offsetof(type, member)))

#endif
