/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net_datagram_tx.c - frames to datagrams, as many as may be in one message
 *
 * THEORY OF OPERATION
 *
 * Frames of one size that follow each other, the segments of a large one above all, share a message that the kernel cuts up
 * again as late as it can (UDP_SEGMENT, udp(7)): its whole way down is gone once, not once per frame. A shorter frame may end a
 * message, a longer one begins the next. A batch's messages leave in one sendmmsg(2).
 *
 * Frames of a usual size are copied, end to end, so that a message's are one iovec: from many the kernel copies each with a
 * call of its own, and waits each time for memory that another CPU wrote. It costs less to copy twice (docs/benchmarks.md).
 * Larger frames, and the payload of segments, stay where they are, and the kernel copies them from there.
 *
 * The kernel refuses a message whose datagrams don't fit the path's MTU, where single ones are fragmented. Its datagrams then
 * leave one by one, and the size is remembered as one that doesn't go: for a minute, since paths change.
 *
 * What an earlier datagram met on its way (an ICMP error) is told to whichever call comes next, once. So a call that failed
 * is tried again before its message is blamed.
 */
#include "net_datagram.h"

#include <errno.h>
#include <netinet/udp.h>
#include <string.h>

#include "net_soft.h"

#define PIECES_MAX 64u     /* UDP_MAX_SEGMENTS, as it first was */
#define MESSAGE_MAX 65507u /* UDP over IPv4 carries no more */
#define MESSAGE_IOVS 1024u /* UIO_MAXIOV */
#define COPIED 2048u       /* most bytes of a datagram that is copied */
#define AGAIN_NS 60000000000ull
#define FLAGS (MSG_DONTWAIT | MSG_NOSIGNAL)

static void blame(struct net_frame *frames, const struct tx_message *msg, int error)
{
	for (unsigned i = msg->first; i <= msg->last; i++)
		if (frames[i].error == 0)
			frames[i].error = error;
}

/* One sendmsg(2), tried twice. Return: 0 or -errno */
static int send_one(const struct net_datagram *dg, const struct msghdr *hdr)
{
	int error = 0;

	for (unsigned tries = 0; tries < 2; tries += error != EINTR) {
		if (sendmsg(dg->port.fd, hdr, FLAGS) >= 0)
			return 0;
		error = errno;
		if (error == EAGAIN || error == ENOBUFS)
			return -EAGAIN;
	}
	return -error;
}

/*
 * The next datagram of a message's rest, @iov to @end: whole iovecs of @size bytes together, or as many bytes of one that holds
 * several, taken off it. @part is where these are then told. Return: iovecs behind it
 */
static unsigned next_piece(struct iovec *iov, const struct iovec *end, uint32_t size, struct iovec *part,
			   struct msghdr *hdr)
{
	unsigned n = 0;
	size_t len = 0;

	if (iov->iov_len > size) {
		*part = (struct iovec){ iov->iov_base, size };
		iov->iov_base = (uint8_t *)iov->iov_base + size;
		iov->iov_len -= size;
		hdr->msg_iov = part;
		hdr->msg_iovlen = 1;
		return 0;
	}
	while (iov + n < end && len < size)
		len += iov[n++].iov_len;
	hdr->msg_iov = iov;
	hdr->msg_iovlen = n;
	return n;
}

/* Send a message's datagrams one by one. Return: 0 or the first one's -errno that failed */
static int send_pieces(const struct net_datagram *dg, const struct tx_message *msg, struct msghdr hdr)
{
	struct iovec *iov = hdr.msg_iov, *end = iov + hdr.msg_iovlen, part;
	int rc = 0;

	hdr.msg_control = NULL;
	hdr.msg_controllen = 0;
	while (iov < end) {
		int sent;

		iov += next_piece(iov, end, msg->size, &part, &hdr);
		sent = send_one(dg, &hdr);
		if (rc == 0)
			rc = sent;
	}
	return rc;
}

/* What is said to a message with UDP_SEGMENT that may be right for one datagram. */
static bool refuses_segments(int error)
{
	return error == EINVAL || error == EMSGSIZE || error == EIO || error == EOPNOTSUPP;
}

/* The message at @i was refused for @error, which may be an earlier one's. Return: 0 or -errno, what is said of its own */
static int send_again(struct net_datagram *dg, unsigned i, int error)
{
	const struct tx_message *msg = &dg->tx[i];
	int rc;

	if (error == EAGAIN || error == ENOBUFS)
		return -EAGAIN;
	if (msg->pieces == 1 || !refuses_segments(error))
		store_relaxed(&dg->port.error, (uint32_t)error);
	if (error == EFAULT)
		return -EFAULT;
	rc = send_one(dg, &dg->tx_hdrs[i].msg_hdr);
	if (rc < 0 && msg->pieces > 1 && refuses_segments(-rc)) {
		uint32_t most = rc == -EINVAL || rc == -EMSGSIZE ? msg->size - 1 : 0;

		rc = send_pieces(dg, msg, dg->tx_hdrs[i].msg_hdr);
		if (rc == 0) { /* it was the size, then */
			dg->segment_max = most;
			dg->again_ns = now_ns() + AGAIN_NS;
		}
	}
	if (rc < 0 && rc != -EAGAIN)
		store_relaxed(&dg->port.error, (uint32_t)-rc);
	return rc;
}

/* Send what was made, and begin anew. Return: 0, or -EAGAIN: the socket is full */
static int flush(struct net_datagram *dg, struct net_frame *frames)
{
	unsigned count = dg->messages;

	dg->messages = dg->iovs = 0;
	dg->headers_len = 0;
	for (unsigned i = 0; i < count;) {
		int rc, sent = sendmmsg(dg->port.fd, dg->tx_hdrs + i, count - i, FLAGS);

		if (likely(sent > 0)) {
			i += (unsigned)sent;
			continue;
		}
		if (errno == EINTR)
			continue;
		rc = send_again(dg, i, errno);
		if (rc < 0)
			blame(frames, &dg->tx[i], rc);
		i++;
		if (rc == -EAGAIN) {
			for (; i < count; i++)
				blame(frames, &dg->tx[i], -EAGAIN);
			return -EAGAIN;
		}
	}
	return 0;
}

/* Have room for one more datagram. Return: as of flush() */
static int reserve(struct net_datagram *dg, struct net_frame *frames, unsigned iovs, uint32_t headers)
{
	if (likely(dg->messages < TX_MESSAGES && dg->iovs + iovs <= TX_IOVS && dg->headers_len + headers <= TX_HEADERS))
		return 0;
	return flush(dg, frames);
}

/* Whether a datagram may be one more of the last message's. */
static bool joins(const struct net_datagram *dg, unsigned iovs, uint32_t len)
{
	const struct tx_message *msg = &dg->tx[dg->messages - 1];

	return len <= msg->size && msg->len == msg->pieces * msg->size && msg->size <= dg->segment_max &&
	       msg->pieces < PIECES_MAX && msg->len + len <= MESSAGE_MAX &&
	       dg->tx_hdrs[dg->messages - 1].msg_hdr.msg_iovlen + iovs <= MESSAGE_IOVS;
}

static void cut_into_segments(struct msghdr *hdr, struct tx_message *msg)
{
	uint16_t size = (uint16_t)msg->size;
	struct cmsghdr *cmsg;

	hdr->msg_control = msg->control.bytes;
	hdr->msg_controllen = sizeof(msg->control.bytes);
	cmsg = CMSG_FIRSTHDR(hdr);
	cmsg->cmsg_level = SOL_UDP;
	cmsg->cmsg_type = UDP_SEGMENT;
	cmsg->cmsg_len = CMSG_LEN(sizeof(size));
	memcpy(CMSG_DATA(cmsg), &size, sizeof(size));
}

/* The next @iovs of tx_iov[], or the end of the last one, are a datagram of @len bytes, of a frame. */
static void append(struct net_datagram *dg, unsigned frame, unsigned iovs, uint32_t len)
{
	struct tx_message *msg;
	struct msghdr *hdr;

	if (dg->messages == 0 || !joins(dg, iovs, len)) {
		msg = &dg->tx[dg->messages];
		msg->first = frame;
		msg->pieces = msg->len = 0;
		msg->size = len;
		dg->tx_hdrs[dg->messages++].msg_hdr = (struct msghdr){
			.msg_name = dg->peer_len ? &dg->peer : NULL,
			.msg_namelen = dg->peer_len,
			.msg_iov = dg->tx_iov + dg->iovs,
		};
	}
	msg = &dg->tx[dg->messages - 1];
	hdr = &dg->tx_hdrs[dg->messages - 1].msg_hdr;
	hdr->msg_iovlen += iovs;
	dg->iovs += iovs;
	msg->last = frame;
	msg->len += len;
	if (++msg->pieces == 2)
		cut_into_segments(hdr, msg);
}

/* A frame as it is, copied behind the one before it. Return: as of flush() */
static int add_copied(struct net_datagram *dg, struct net_frame *frames, unsigned i)
{
	const struct net_frame *f = &frames[i];
	uint32_t len = dg->encap_len + f->len;
	struct iovec *iov;
	uint8_t *at;

	if (reserve(dg, frames, 1, len) < 0)
		return -EAGAIN;
	iov = dg->tx_iov + dg->iovs;
	at = dg->headers + dg->headers_len;
	memcpy(at, dg->encap, dg->encap_len);
	net_iov_read(f->iov + 1, f->iovcnt - 1, at + dg->encap_len, f->len);
	dg->headers_len += len;
	if (dg->messages > 0 && joins(dg, 1, len) && (uint8_t *)iov[-1].iov_base + iov[-1].iov_len == at) {
		iov[-1].iov_len += len;
		append(dg, i, 0, len);
	} else {
		*iov = (struct iovec){ at, len };
		append(dg, i, 1, len);
	}
	return 0;
}

/* A frame as it is, where it is. Return: as of flush() */
static int add_whole(struct net_datagram *dg, struct net_frame *frames, unsigned i)
{
	const struct net_frame *f = &frames[i];
	struct iovec *iov;
	unsigned n = f->iovcnt - 1;

	if (reserve(dg, frames, f->iovcnt, 0) < 0)
		return -EAGAIN;
	iov = dg->tx_iov + dg->iovs;
	if (dg->encap_len)
		*iov++ = (struct iovec){ dg->encap, dg->encap_len };
	memcpy(iov, f->iov + 1, n * sizeof(*iov));
	append(dg, i, n + (dg->encap_len > 0), dg->encap_len + f->len);
	return 0;
}

/* A frame that net_soft.c completes: one datagram per segment. Return: as of flush(); -EBADMSG */
static int add_segments(struct net_datagram *dg, struct net_frame *frames, unsigned i)
{
	struct net_soft soft;
	int rc = net_soft_begin(&soft, &frames[i]);

	while (rc == 0 && soft.segments > 0) {
		uint32_t len = dg->encap_len + net_soft_len(&soft), headers = dg->encap_len + soft.header_len;
		struct iovec *iov;
		unsigned n;
		uint8_t *at;

		rc = reserve(dg, frames, frames[i].iovcnt + 1, headers);
		if (rc < 0)
			break;
		iov = dg->tx_iov + dg->iovs;
		at = dg->headers + dg->headers_len;
		memcpy(at, dg->encap, dg->encap_len);
		n = net_soft_next(&soft, at + dg->encap_len, iov);
		iov[0] = (struct iovec){ at, headers };
		dg->headers_len += headers;
		append(dg, i, n, len);
	}
	return rc;
}

void net_datagram_tx(struct net_port *port, struct net_frame *frames, unsigned n)
{
	struct net_datagram *dg = net_datagram_of(port);
	int full = 0;

	if (unlikely(dg->again_ns) && now_ns() >= dg->again_ns) {
		dg->segment_max = UINT16_MAX;
		dg->again_ns = 0;
	}
	for (unsigned i = 0; i < n; i++) {
		int rc;

		frames[i].error = 0;
		if (full)
			rc = full;
		else if (net_soft_needed(&frames[i]))
			rc = add_segments(dg, frames, i);
		else if (dg->encap_len + frames[i].len <= COPIED)
			rc = add_copied(dg, frames, i);
		else
			rc = add_whole(dg, frames, i);
		if (rc < 0)
			frames[i].error = rc;
		if (rc == -EAGAIN)
			full = rc;
	}
	flush(dg, frames);
}
