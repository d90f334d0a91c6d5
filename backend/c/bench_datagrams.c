/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_datagrams.c - sendmmsg(2) of a batch, with UDP_SEGMENT (udp(7)) or without
 */
#include "bench_datagrams.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "net_hdr.h"

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#define MESSAGE_MAX 65000u /* bytes of one message, well below what IP has room for */
#define CONTROL CMSG_SPACE(sizeof(uint16_t))

struct bench_datagrams {
	struct iovec iov[BENCH_DATAGRAMS_MAX];
	struct mmsghdr messages[BENCH_DATAGRAMS_MAX];
	union {
		char bytes[CONTROL];
		struct cmsghdr align;
	} control[BENCH_DATAGRAMS_MAX];
	uint8_t *area;
	uint32_t count, message_count;
};

/* Have the kernel cut a message into datagrams of @size bytes. */
static void cut(struct msghdr *msg, char *control, uint32_t size)
{
	uint16_t segment = (uint16_t)size;
	struct cmsghdr *cmsg;

	msg->msg_control = control;
	msg->msg_controllen = CONTROL;
	cmsg = CMSG_FIRSTHDR(msg);
	cmsg->cmsg_level = IPPROTO_UDP;
	cmsg->cmsg_type = UDP_SEGMENT;
	cmsg->cmsg_len = CMSG_LEN(sizeof(segment));
	memcpy(CMSG_DATA(cmsg), &segment, sizeof(segment));
}

static void lay_out(struct bench_datagrams *d, const uint8_t *bytes, uint32_t size, uint32_t each)
{
	for (uint32_t i = 0; i < d->count; i++) {
		uint8_t *at = d->area + (size_t)i * size;

		memcpy(at, bytes, size);
		d->iov[i] = (struct iovec){ at, size };
	}
	for (uint32_t first = 0; first < d->count; first += each) {
		struct msghdr *msg = &d->messages[d->message_count].msg_hdr;

		msg->msg_iov = &d->iov[first];
		msg->msg_iovlen = d->count - first < each ? d->count - first : each;
		if (msg->msg_iovlen > 1)
			cut(msg, d->control[d->message_count].bytes, size);
		d->message_count++;
	}
}

int bench_datagrams_create(struct bench_datagrams **out, const uint8_t *bytes, uint32_t size, uint32_t count,
			   uint32_t each)
{
	struct bench_datagrams *d;

	if (size < NET_FRAME_MIN || size > MESSAGE_MAX || count < 1 || count > BENCH_DATAGRAMS_MAX || each < 1)
		return -EINVAL;
	d = calloc(1, sizeof(*d));
	if (!d)
		return -ENOMEM;
	d->count = count;
	d->area = malloc((size_t)count * size);
	if (!d->area) {
		free(d);
		return -ENOMEM;
	}
	lay_out(d, bytes, size, each < MESSAGE_MAX / size ? each : MESSAGE_MAX / size);
	*out = d;
	return 0;
}

void bench_datagrams_destroy(struct bench_datagrams *d)
{
	if (!d)
		return;
	free(d->area);
	free(d);
}

int bench_datagrams_send(struct bench_datagrams *d, int fd, uint64_t *sent)
{
	for (unsigned done = 0; done < d->message_count;) {
		int n = sendmmsg(fd, d->messages + done, d->message_count - done, 0);

		if (n < 0 && errno != EINTR)
			return -errno;
		for (int i = 0; i < n; i++)
			*sent += d->messages[done++].msg_hdr.msg_iovlen;
	}
	return 0;
}

uint32_t bench_datagrams_count(const struct bench_datagrams *d)
{
	return d->count;
}
