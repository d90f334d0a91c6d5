/* SPDX-License-Identifier: Apache-2.0 */
/*
 * per_io.c - an I/O engine alone, for callgrind and strace to count what it costs per read
 *
 * per_io FILE ENGINE plain|pinned DEPTH READS: 4 KiB at random places, DEPTH at a time; pinned: the memory is registered.
 * callgrind collects inside engine_*(). In between all of a batch completes, so that one look finds it; but polled engines look
 * again and again. Prints the reads, and on stderr the looks that were system calls, and all CPU time in ns.
 */
#include <stdlib.h>
#include <time.h>

#include "tests/c/test_io.h"

#define BLOCK 4096u
#define DEPTH_MAX 64

static struct io_req requests[DEPTH_MAX];
static unsigned long looks;

static __attribute__((noinline)) void engine_hand_over(struct io_engine *e, unsigned depth)
{
	for (unsigned i = 0; i < depth; i++)
		io_queue(e, &requests[i]);
	io_submit_all(e);
}

static __attribute__((noinline)) unsigned engine_collect(struct io_engine *e, struct io_req **done, unsigned depth)
{
	return io_reap(e, done, depth);
}

/* The ring's tail is in memory; its head is where the word points to. */
static void wait_for(struct io_engine *e, unsigned depth)
{
	struct io_wait waits[IO_WAITS_MAX];
	const uint32_t *tail, *head;

	io_waits(e, waits);
	tail = (const uint32_t *)(uintptr_t)waits[0].word.addr;
	head = (const uint32_t *)(uintptr_t)waits[0].word.val;
	while (!e->polled && __atomic_load_n(tail, __ATOMIC_ACQUIRE) - *head < depth)
		;
}

static void batch(struct io_engine *e, unsigned depth)
{
	struct io_req *done[DEPTH_MAX];
	unsigned back = 0;

	engine_hand_over(e, depth);
	looks++;
	wait_for(e, depth);
	while (back < depth) {
		unsigned n = engine_collect(e, done, depth);

		for (unsigned i = 0; i < n; i++)
			CHECK_EQ(done[i]->res, 0);
		back += n;
		if (e->polled) {
			io_submit_all(e);
			looks++;
		}
	}
}

int main(int argc, char **argv)
{
	bool pin = argc == 6 && strcmp(argv[3], "pinned") == 0;
	unsigned depth = argc == 6 ? (unsigned)atoi(argv[4]) : 0;
	unsigned reads = argc == 6 ? (unsigned)atoi(argv[5]) : 0;
	uint8_t *memory = pages(DEPTH_MAX * BLOCK);
	struct iovec iov[DEPTH_MAX], all = { memory, DEPTH_MAX * BLOCK };
	struct io_engine *e;
	struct io_target t;
	struct timespec cpu;
	unsigned block = 1;

	CHECK(depth >= 1 && depth <= DEPTH_MAX && reads > 0 && reads % depth == 0);
	CHECK_EQ(io_target_open(&t, argv[1], true), 0);
	CHECK_EQ(io_engine_create(&e, argv[2], &t, DEPTH_MAX), 0);
	CHECK(!pin || io_engine_pin(e, &all, 1) == 0);
	for (unsigned left = reads; left > 0; left -= depth) {
		for (unsigned i = 0; i < depth; i++) {
			block = block * 1103515245u + 12345u;
			iov[i] = (struct iovec){ memory + i * BLOCK, BLOCK };
			requests[i] = (struct io_req){ .op = IO_READ, .iov = &iov[i], .iovcnt = 1, .len = BLOCK };
			requests[i].offset = (block >> 8) % (t.size / BLOCK) * BLOCK;
		}
		batch(e, depth);
	}
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
	printf("%llu\n", (unsigned long long)e->stats.completions);
	fprintf(stderr, "%lu looks, %lld ns\n", looks, cpu.tv_sec * 1000000000ll + cpu.tv_nsec);
	CHECK_EQ(e->stats.helped, 0);
	io_engine_destroy(e);
	io_target_close(&t);
	free(memory);
	return 0;
}
