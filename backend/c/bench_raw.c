/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_raw.c - plain loops of system calls
 *
 * Each frame of a batch has memory of its own, as those of a guest have: one copy, by the kernel.
 */
#include "bench_raw.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "../../kernel/c/atomics.h"
#include "net_hdr.h"

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#define BATCH_MAX 64u       /* what the kernel cuts one message into (UDP_MAX_SEGMENTS) */
#define MESSAGE_MAX 65000u  /* bytes of one message, well below what IP has room for */
#define ROUNDS_PER_LOOK 16u /* between looks at the clock */
#define CONTROL CMSG_SPACE(sizeof(uint16_t))

struct udp_batch {
	struct iovec iov[BATCH_MAX];
	struct mmsghdr messages[BATCH_MAX];
	union {
		char bytes[CONTROL];
		struct cmsghdr align;
	} control[BATCH_MAX];
	uint8_t *frames;
	unsigned count; /* of messages */
};

/* Lay a batch out: messages of @each datagrams. */
static int lay_out(struct udp_batch *b, uint32_t size, uint32_t batch, uint32_t each)
{
	b->frames = calloc(batch, size);
	if (!b->frames)
		return -ENOMEM;
	for (uint32_t i = 0; i < batch; i++)
		b->iov[i] = (struct iovec){ b->frames + (size_t)i * size, size };
	for (uint32_t first = 0; first < batch; first += each) {
		struct msghdr *msg = &b->messages[b->count].msg_hdr;

		msg->msg_iov = &b->iov[first];
		msg->msg_iovlen = batch - first < each ? batch - first : each;
		if (msg->msg_iovlen > 1) {
			struct cmsghdr *cmsg;
			uint16_t segment = (uint16_t)size;

			msg->msg_control = b->control[b->count].bytes;
			msg->msg_controllen = CONTROL;
			cmsg = CMSG_FIRSTHDR(msg);
			cmsg->cmsg_level = IPPROTO_UDP;
			cmsg->cmsg_type = UDP_SEGMENT;
			cmsg->cmsg_len = CMSG_LEN(sizeof(segment));
			memcpy(CMSG_DATA(cmsg), &segment, sizeof(segment));
		}
		b->count++;
	}
	return 0;
}

static int send_batch(int fd, struct udp_batch *b, uint64_t *frames)
{
	for (unsigned done = 0; done < b->count;) {
		int n = sendmmsg(fd, b->messages + done, b->count - done, 0);

		if (n < 0 && errno != EINTR)
			return -errno;
		for (int i = 0; i < n; i++)
			*frames += b->messages[done++].msg_hdr.msg_iovlen;
	}
	return 0;
}

int bench_raw_udp(int fd, uint32_t size, uint32_t batch, bool segment, uint64_t runtime_ns,
		  struct bench_raw_result *out)
{
	struct udp_batch b = { 0 };
	uint64_t start_ns, frames = 0;
	int err;

	if (size < NET_FRAME_MIN || size > MESSAGE_MAX || batch < 1 || batch > BATCH_MAX)
		return -EINVAL;
	err = lay_out(&b, size, batch, segment ? MESSAGE_MAX / size : 1);
	start_ns = now_ns();
	while (!err) {
		for (unsigned i = 0; i < ROUNDS_PER_LOOK && !err; i++)
			err = send_batch(fd, &b, &frames);
		*out = (struct bench_raw_result){ frames, now_ns() - start_ns };
		if (out->elapsed_ns >= runtime_ns)
			break;
	}
	free(b.frames);
	return err;
}

int bench_raw_tap(int fd, uint32_t size, uint64_t runtime_ns, struct bench_raw_result *out)
{
	struct virtio_net_hdr_v1 hdr = { 0 };
	struct iovec iov[2] = { { &hdr, NET_HDR_LEN } };
	uint64_t start_ns, frames = 0;
	uint8_t *frame;
	int err = 0;

	if (size < NET_FRAME_MIN || size > NET_FRAME_MAX)
		return -EINVAL;
	frame = calloc(1, size);
	if (!frame)
		return -ENOMEM;
	memset(frame, 0xff, 6); /* as bench_net.c's: broadcast, Local Experimental 1 */
	memcpy(frame + 12, "\x88\xb5", 2);
	iov[1] = (struct iovec){ frame, size };
	start_ns = now_ns();
	while (!err) {
		for (unsigned i = 0; i < 32 * ROUNDS_PER_LOOK && !err; i++) {
			if (writev(fd, iov, 2) >= 0)
				frames++;
			else if (errno != EINTR && errno != EAGAIN)
				err = -errno;
		}
		*out = (struct bench_raw_result){ frames, now_ns() - start_ns };
		if (out->elapsed_ns >= runtime_ns)
			break;
	}
	free(frame);
	return err;
}
