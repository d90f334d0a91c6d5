/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_raw.c - plain loops of system calls that send
 *
 * Each frame of a batch has memory of its own, as those of a guest have: one copy, by the kernel.
 */
#include "bench_raw.h"

#include <errno.h>
#include <linux/if_xdp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "../../kernel/c/atomics.h"
#include "net_hdr.h"

#define ROUNDS_PER_LOOK 16u /* between looks at the clock */
#define XDP_CHUNKS 128u     /* that are sent in turns: few enough for the cache, and as many as may be under way */

/* As bench_net.c's: broadcast, Local Experimental 1. */
static void address(uint8_t *frame)
{
	memset(frame, 0xff, 6);
	memcpy(frame + 12, "\x88\xb5", 2);
}

int bench_raw_udp(int fd, struct bench_datagrams *batch, uint64_t runtime_ns, struct bench_raw_result *out)
{
	uint64_t start_ns = now_ns();
	int err = 0;

	*out = (struct bench_raw_result){ 0 };
	while (!err && out->elapsed_ns < runtime_ns) {
		for (unsigned i = 0; i < ROUNDS_PER_LOOK && !err; i++)
			err = bench_datagrams_send(batch, fd, &out->frames);
		out->elapsed_ns = now_ns() - start_ns;
	}
	return err;
}

int bench_raw_tap(int fd, uint32_t size, uint64_t runtime_ns, struct bench_raw_result *out)
{
	struct virtio_net_hdr_v1 hdr = { 0 };
	struct iovec iov[2] = { { &hdr, NET_HDR_LEN } };
	uint64_t start_ns;
	uint8_t *frame;
	int err = 0;

	if (size < NET_FRAME_MIN || size > NET_FRAME_MAX)
		return -EINVAL;
	frame = calloc(1, size);
	if (!frame)
		return -ENOMEM;
	address(frame);
	iov[1] = (struct iovec){ frame, size };
	*out = (struct bench_raw_result){ 0 };
	start_ns = now_ns();
	while (!err && out->elapsed_ns < runtime_ns) {
		for (unsigned i = 0; i < 32 * ROUNDS_PER_LOOK && !err; i++) {
			if (writev(fd, iov, 2) >= 0)
				out->frames++;
			else if (errno != EINTR && errno != EAGAIN)
				err = -errno;
		}
		out->elapsed_ns = now_ns() - start_ns;
	}
	free(frame);
	return err;
}

/* Send what was put into the tx ring up to @at, and take back what was sent. Return: 0 or -errno of sendto(2) */
static int xdp_push(const struct net_xdp *with, uint32_t at)
{
	store_release(with->tx.producer, at);
	while (load_acquire(with->tx.consumer) != at) {
		mb_full(); /* as net_xdp.c's sleeps() */
		if (!with->busy_poll && !(load_relaxed(with->tx.flags) & XDP_RING_NEED_WAKEUP))
			continue;
		if (sendto(with->fd, NULL, 0, MSG_DONTWAIT | MSG_NOSIGNAL, NULL, 0) < 0 && errno != EAGAIN &&
		    errno != EBUSY && errno != ENOBUFS && errno != EINTR)
			return -errno;
	}
	return 0;
}

int bench_raw_xdp(const struct net_xdp *with, uint32_t size, uint32_t batch, uint64_t runtime_ns,
		  struct bench_raw_result *out)
{
	uint64_t start_ns = now_ns();
	uint32_t at = 0, back;
	int err = 0;

	if (size < NET_FRAME_MIN || size > with->frame_max || batch < 1 || batch > XDP_CHUNKS)
		return -EINVAL;
	for (uint64_t i = 0; i < XDP_CHUNKS; i++)
		address(with->umem + i * NET_XDP_CHUNK);
	*out = (struct bench_raw_result){ 0 };
	while (!err && out->elapsed_ns < runtime_ns) {
		for (unsigned i = 0; i < ROUNDS_PER_LOOK && !err; i++) {
			back = load_acquire(with->completion.producer);
			store_release(with->completion.consumer, back);
			if (at - back > XDP_CHUNKS - batch)
				continue;
			for (unsigned n = 0; n < batch; n++, at++)
				((struct xdp_desc *)with->tx.entries)[at % NET_XDP_RING] = (struct xdp_desc){
					.addr = (uint64_t)(at % XDP_CHUNKS) * NET_XDP_CHUNK,
					.len = size,
				};
			err = xdp_push(with, at);
			out->frames += batch;
		}
		out->elapsed_ns = now_ns() - start_ns;
	}
	return err;
}
