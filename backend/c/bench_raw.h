/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_raw.h - the same frames into and out of the same sockets or tap, without any virtqueue: what a back-end can reach at best
 */
#ifndef KPOLL_BENCH_RAW_H
#define KPOLL_BENCH_RAW_H

#include <stdbool.h>
#include <stdint.h>

#include "bench_datagrams.h"
#include "net_xdp.h"

struct bench_raw_result {
	uint64_t frames, elapsed_ns;
};

/**
 * bench_raw_udp() - Send datagrams, as many system calls as it takes, for so long
 * @fd:		A connected UDP socket
 * @batch:	What to send, again and again
 *
 * Return: 0; -errno of sendmmsg(2)
 */
int bench_raw_udp(int fd, struct bench_datagrams *batch, uint64_t runtime_ns, struct bench_raw_result *out);

/**
 * bench_raw_tap() - Write frames, one per writev(2): a tap takes no more at once
 * @fd:		A tap with IFF_VNET_HDR, its headers NET_HDR_LEN long
 * @size:	Bytes of a frame
 *
 * Return: 0; -EINVAL for what can't be; -errno of writev(2)
 */
int bench_raw_tap(int fd, uint32_t size, uint64_t runtime_ns, struct bench_raw_result *out);

/**
 * bench_raw_xdp() - Send frames through an AF_XDP socket, the same few chunks again and again, and nothing copied into them
 * @with:	A bound socket, whose rings nobody has touched
 * @size:	Bytes of a frame
 * @batch:	Frames per sendto(2), at least 1
 *
 * Return: 0; -EINVAL for what can't be; -errno of sendto(2)
 */
int bench_raw_xdp(const struct net_xdp *with, uint32_t size, uint32_t batch, uint64_t runtime_ns,
		  struct bench_raw_result *out);

/**
 * bench_raw_receive() - Receive datagrams with recvmmsg(2), and sleep when there is none, for so long
 * @fd:		A UDP socket; with UDP_GRO where many are to come in one message
 * @size:	Bytes of a datagram
 * @came:	Counts what came, while it runs; atomic
 *
 * Return: 0; -EINVAL for what can't be; -ENOMEM; -errno of recvmmsg(2)
 */
int bench_raw_receive(int fd, uint32_t size, uint64_t runtime_ns, uint64_t *came, struct bench_raw_result *out);

/**
 * bench_raw_feed() - Send to who receives, on another CPU, with so many under way
 * @fd:		A connected UDP socket
 * @depth:	Datagrams under way at most: at least those of the batch, and fewer than the receiver's socket has room for
 * @came:	What the receiver has counted; atomic
 * @stop:	Not 0: return; atomic
 *
 * Return: 0; -EINVAL; -errno of sendmmsg(2)
 */
int bench_raw_feed(int fd, struct bench_datagrams *batch, uint32_t depth, const uint64_t *came, const uint32_t *stop);

#endif
