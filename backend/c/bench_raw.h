/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_raw.h - the same frames into the same socket or tap, without any virtqueue before it: what a back-end can reach at best
 */
#ifndef KPOLL_BENCH_RAW_H
#define KPOLL_BENCH_RAW_H

#include <stdbool.h>
#include <stdint.h>

struct bench_raw_result {
	uint64_t frames, elapsed_ns;
};

/**
 * bench_raw_udp() - Send datagrams, as many system calls as it takes, for so long
 * @fd:		A connected UDP socket
 * @size:	Bytes of a datagram
 * @batch:	Datagrams per sendmmsg(2), 1..64
 * @segment:	As few messages as there can be, of many datagrams each (UDP_SEGMENT)
 *
 * Return: 0; -EINVAL for what can't be; -errno of sendmmsg(2)
 */
int bench_raw_udp(int fd, uint32_t size, uint32_t batch, bool segment, uint64_t runtime_ns,
		  struct bench_raw_result *out);

/**
 * bench_raw_tap() - Write frames, one per writev(2): a tap takes no more at once
 * @fd:		A tap with IFF_VNET_HDR, its headers NET_HDR_LEN long
 *
 * Return: 0; -EINVAL; -errno of writev(2)
 */
int bench_raw_tap(int fd, uint32_t size, uint64_t runtime_ns, struct bench_raw_result *out);

#endif
