/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net_port.h - where a network card's frames go to and come from: a tap, a UDP socket, nowhere, back
 *
 * A port moves batches of frames between guest memory and itself, never waits, and has one owner thread. It doesn't know
 * of virtqueues: net.c gives it iovecs, checks headers, counts.
 *
 * What a full port can't take is lost and counted, as behind vhost-net and in any switch. QEMU's own tap and dgram hold the
 * guest's queue up instead until the descriptor is writable: nothing is lost at that place, but one slow receiver holds up
 * what goes to all others, and TCP learns of it late.
 */
#ifndef KPOLL_NET_PORT_H
#define KPOLL_NET_PORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>

#include "net_hdr.h"

#define NET_BATCH 32u                /* most frames in one tx() or rx() */
#define NET_ROOM (NET_FRAME_MAX + 2) /* a frame, and enough to see that one is longer than any may be */

/*
 * A frame to send, or room for one to receive. iov[0] is always `hdr`, ours; the others are the frame. In rx the last of
 * them is our own spill, so that there are at least NET_ROOM bytes whatever the guest's buffers hold.
 */
struct net_frame {
	struct virtio_net_hdr_v1 hdr; /* tx: checked. rx: zeros; the port writes what it knows */
	struct iovec *iov;
	unsigned iovcnt;
	struct virtio_net_hdr_v1 *lent; /* rx of a port that lends: header and frame, set by the port */
	uint32_t len;                   /* the frame's bytes, its header apart; rx: set by the port */
	int error; /* tx: set by the port. rx: 0; the port sets -EPROTO where it is none of this card's */
};

struct net_port;

struct net_port_ops {
	/*
	 * Send the frames, in order. Sets each one's error: 0; -EAGAIN, the port is full and the frame is lost; -EFAULT, its
	 * memory is gone; -EBADMSG, it isn't what its header says; -errno, why this frame can't be sent
	 */
	void (*tx)(struct net_port *port, struct net_frame *frames, unsigned n);
	/*
	 * Receive up to @n frames (at most rx_batch). Return: how many; 0 when there is none; -EFAULT: memory is gone;
	 * -errno: it can't receive, and may again later
	 *
	 * A port that lends has its frames in memory of its own, each in one piece with room for its header before it. It says
	 * where (lent, len) and what header, instead of filling iov. They are the caller's until the next tx() or rx().
	 */
	int (*rx)(struct net_port *port, struct net_frame *frames, unsigned n);
	/* A queue stops: its guest may be gone, and the next one is not to receive what it sent. NULL: nothing is kept */
	void (*forget)(struct net_port *port);
	void (*destroy)(struct net_port *port);
};

struct net_port {
	const struct net_port_ops *ops;
	int fd;            /* readable when there is something to receive; -1: what there is comes of our own doing */
	unsigned rx_batch; /* frames that one rx() can take */
	bool unsent;       /* frames wait for another tx(), be it of none, in a while */
	bool lends;        /* see rx() */
	uint32_t error;    /* atomic: the errno that sending or receiving met last; 0 none since it was last taken */
};

/* net_port_none() - No cable: what is sent is refused. The same one for everybody, who need not free it */
struct net_port *net_port_none(void);
/* net_port_null() - Copies what is sent into a buffer of its own; @source bytes are received as often as there is room, 0: never */
int net_port_null(struct net_port **out, uint32_t source);
/* net_port_echo() - What is sent is received, as it was. Return (these two): 0, -EINVAL for an impossible size, -ENOMEM */
int net_port_echo(struct net_port **out);
/*
 * net_port_tap() - An open tap with IFF_NO_PI and IFF_VNET_HDR, which is made non-blocking, its headers NET_HDR_LEN long.
 * Return: 0; -EINVAL for another kind of tap or tun; -ENOMEM; -errno of fcntl(2), ioctl(2)
 */
int net_port_tap(struct net_port **out, int fd);
/* net_port_udp() - A connected datagram socket. Return: 0; -EINVAL for another type; -ENOMEM; -errno of getsockopt(2) */
int net_port_udp(struct net_port **out, int fd);
/*
 * net_port_vxlan() - A bound datagram socket; frames go to where @peer_fd is connected to, a socket asked for this alone.
 * Return: as net_port_udp(); -EINVAL for a VNI beyond 24 bits
 */
int net_port_vxlan(struct net_port **out, int fd, uint32_t vni, int peer_fd);
/* net_port_take_error() - What error is, and then is 0; in any thread. For the log */
uint32_t net_port_take_error(struct net_port *port);
/* net_port_destroy() - Free the port; its descriptor is who opened it's to close */
void net_port_destroy(struct net_port *port);

/* net_iov_write(), net_iov_read() - Copy to, or from, the start of an iovec. Return: bytes that it had room for, or held */
size_t net_iov_write_pieces(const struct iovec *iov, unsigned count, const void *from, size_t len);
static inline size_t net_iov_write(const struct iovec *iov, unsigned count, const void *from, size_t len)
{
	if (unlikely(count == 0 || iov->iov_len < len))
		return net_iov_write_pieces(iov, count, from, len);
	memcpy(iov->iov_base, from, len);
	return len;
}

size_t net_iov_read_pieces(const struct iovec *iov, unsigned count, void *to, size_t len);
static inline size_t net_iov_read(const struct iovec *iov, unsigned count, void *to, size_t len)
{
	if (unlikely(count == 0 || iov->iov_len < len))
		return net_iov_read_pieces(iov, count, to, len);
	copy_once(to, iov->iov_base, len);
	return len;
}

#endif
