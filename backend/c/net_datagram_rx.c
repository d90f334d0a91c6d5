/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net_datagram_rx.c - datagrams to frames
 *
 * THEORY OF OPERATION
 *
 * The kernel hands over datagrams of one sender and one size in one piece (UDP_GRO, udp(7)), and how many there are nobody knows
 * before. So they are received into buffers of our own and copied from there, frame by frame, as the driver has room: what
 * the one copy costs is little beside the way through the kernel that each datagram no longer goes alone.
 */
#include "net_datagram.h"

#include <errno.h>
#include <netinet/udp.h>
#include <string.h>
#include <sys/mman.h>

#define BUFFER (NET_ROOM + NET_ENCAP)
#define STRIDE (BUFFER + 322u) /* beginnings that don't all fall into the same lines of a cache */

int net_datagram_map_buffers(struct net_datagram *dg)
{
	void *at = mmap(NULL, (size_t)NET_BATCH * STRIDE, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (at == MAP_FAILED)
		return -ENOMEM;
	dg->buffers = at;
	for (unsigned i = 0; i < NET_BATCH; i++)
		dg->rx[i].iov = (struct iovec){ dg->buffers + (size_t)i * STRIDE, BUFFER };
	return 0;
}

void net_datagram_unmap_buffers(struct net_datagram *dg)
{
	munmap(dg->buffers, (size_t)NET_BATCH * STRIDE);
}

/* Receive up to @n messages. Return: how many, 0, or -errno: the last error met, where errors are all there is */
static int receive(struct net_datagram *dg, unsigned n)
{
	int error = EINTR;

	for (unsigned i = 0; i < n; i++)
		dg->rx_hdrs[i].msg_hdr = (struct msghdr){
			.msg_name = dg->peer_len ? &dg->rx[i].from : NULL,
			.msg_namelen = dg->peer_len ? sizeof(dg->rx[i].from) : 0,
			.msg_iov = &dg->rx[i].iov,
			.msg_iovlen = 1,
			.msg_control = dg->rx[i].control.bytes,
			.msg_controllen = sizeof(dg->rx[i].control.bytes),
		};
	/* Errors hide datagrams that are there. */
	for (unsigned tries = 0; tries < NET_BATCH; tries++) {
		int got = recvmmsg(dg->port.fd, dg->rx_hdrs, n, MSG_DONTWAIT, NULL);

		if (likely(got >= 0))
			return got;
		error = errno;
		if (error == EAGAIN)
			return 0;
		if (error != EINTR)
			store_relaxed(&dg->port.error, (uint32_t)error);
	}
	return -error;
}

/* The length of each of a message's datagrams but the last. */
static uint32_t segment_size(struct mmsghdr *mmsg)
{
	struct msghdr *hdr = &mmsg->msg_hdr;

	for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(hdr); cmsg; cmsg = CMSG_NXTHDR(hdr, cmsg)) {
		int size;

		if (cmsg->cmsg_level != SOL_UDP || cmsg->cmsg_type != UDP_GRO)
			continue;
		memcpy(&size, CMSG_DATA(cmsg), sizeof(size));
		if (size > 0)
			return (uint32_t)size;
	}
	return mmsg->msg_len;
}

static bool from_peer(const struct net_datagram *dg, const struct sockaddr_storage *from)
{
	if (from->ss_family != dg->peer.ss_family)
		return false;
	if (from->ss_family == AF_INET)
		return ((const struct sockaddr_in *)from)->sin_addr.s_addr ==
		       ((const struct sockaddr_in *)&dg->peer)->sin_addr.s_addr;
	return memcmp(&((const struct sockaddr_in6 *)from)->sin6_addr,
		      &((const struct sockaddr_in6 *)&dg->peer)->sin6_addr, sizeof(struct in6_addr)) == 0;
}

/* RFC 7348 §4, §5: the I flag must be set and the VNI ours; all other bits are ignored. */
static bool encap_is_ours(const struct net_datagram *dg, const uint8_t *encap)
{
	return encap[0] & 0x08 && memcmp(encap + 4, dg->encap + 4, 3) == 0;
}

/* Take the next datagram off the message that is being handed out. */
static void take(struct net_datagram *dg, struct net_frame *f)
{
	struct mmsghdr *mmsg = &dg->rx_hdrs[dg->next];
	struct rx_message *msg = &dg->rx[dg->next];
	const uint8_t *at = (const uint8_t *)msg->iov.iov_base + dg->at;
	uint32_t len;

	if (dg->at == 0) {
		dg->size = segment_size(mmsg);
		dg->foreign = dg->peer_len && !from_peer(dg, &msg->from);
	}
	len = dg->size;
	if (len > mmsg->msg_len - dg->at)
		len = mmsg->msg_len - dg->at;
	dg->at += len;
	if (dg->at >= mmsg->msg_len) {
		dg->next++;
		dg->at = 0;
	}
	if (dg->encap_len && (dg->foreign || len < dg->encap_len || !encap_is_ours(dg, at))) {
		f->error = -EPROTO;
		return;
	}
	f->len = len - dg->encap_len;
	net_iov_write(f->iov + 1, f->iovcnt - 1, at + dg->encap_len, f->len);
}

int net_datagram_rx(struct net_port *port, struct net_frame *frames, unsigned n)
{
	struct net_datagram *dg = net_datagram_of(port);
	unsigned i;

	if (dg->next == dg->received) {
		int got = receive(dg, n);

		dg->next = 0;
		dg->received = got > 0 ? (unsigned)got : 0;
		if (got <= 0)
			return got;
	}
	for (i = 0; i < n && dg->next < dg->received; i++)
		take(dg, &frames[i]);
	return (int)i;
}
