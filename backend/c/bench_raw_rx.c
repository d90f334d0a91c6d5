/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_raw_rx.c - a plain loop of system calls that receives, and one on another CPU that has it something to receive
 *
 * The feeder looks at what the receiver has counted, so that no more is under way than a socket has room for: what is lost
 * costs nobody the same. It spins; the receiver sleeps, so that its CPU time is what receiving takes.
 */
#include "bench_raw.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "../../kernel/c/atomics.h"

#define ROUNDS_PER_LOOK 16u   /* between looks at the clock */
#define MESSAGES 32u          /* per recvmmsg(2) */
#define SLEEP_MS 10           /* at most, so that the end is seen */
#define ROOM 65536u           /* for a message of many datagrams */
#define GIVE_UP_NS 100000000u /* what has not come after so long of silence is lost */

int bench_raw_receive(int fd, uint32_t size, uint64_t runtime_ns, uint64_t *came, struct bench_raw_result *out)
{
	struct mmsghdr messages[MESSAGES] = { 0 };
	struct iovec iov[MESSAGES];
	uint64_t start_ns;
	uint8_t *area;
	int err = 0;

	if (size < 1)
		return -EINVAL;
	area = malloc((size_t)MESSAGES * ROOM);
	if (!area)
		return -ENOMEM;
	for (unsigned i = 0; i < MESSAGES; i++) {
		iov[i] = (struct iovec){ area + (size_t)i * ROOM, ROOM };
		messages[i].msg_hdr = (struct msghdr){ .msg_iov = &iov[i], .msg_iovlen = 1 };
	}
	*out = (struct bench_raw_result){ 0 };
	start_ns = now_ns();
	while (!err && out->elapsed_ns < runtime_ns) {
		for (unsigned i = 0; i < ROUNDS_PER_LOOK && !err; i++) {
			int n = recvmmsg(fd, messages, MESSAGES, MSG_DONTWAIT, NULL);

			if (n < 0 && errno == EAGAIN)
				poll(&(struct pollfd){ fd, POLLIN, 0 }, 1, SLEEP_MS);
			else if (n < 0 && errno != EINTR)
				err = -errno;
			for (int j = 0; j < n; j++)
				out->frames += (messages[j].msg_len + size - 1) / size;
			store_release(came, out->frames);
		}
		out->elapsed_ns = now_ns() - start_ns;
	}
	free(area);
	return err;
}

int bench_raw_feed(int fd, struct bench_datagrams *batch, uint32_t depth, const uint64_t *came, const uint32_t *stop)
{
	uint64_t sent = 0, seen = 0, seen_ns = now_ns();
	int err = 0;

	if (depth < bench_datagrams_count(batch))
		return -EINVAL;
	while (!err && !load_acquire(stop)) {
		uint64_t now, there = load_acquire(came);

		if (sent - there <= depth - bench_datagrams_count(batch)) {
			err = bench_datagrams_send(batch, fd, &sent);
			continue;
		}
		cpu_relax();
		now = now_ns();
		if (there != seen) {
			seen = there;
			seen_ns = now;
		} else if (now - seen_ns > GIVE_UP_NS) {
			sent = there;
		}
	}
	return err;
}
