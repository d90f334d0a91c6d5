/* SPDX-License-Identifier: Apache-2.0 */
/*
 * driver.h - the driver side of a virtqueue, split (virtio 1.2 §2.7) or packed (§2.8)
 *
 * What a guest's kernel does, for those who stand in for a guest: the benchmark and the tests. It owns one area of
 * shared memory that holds the rings and the indirect tables, writes its descriptors anew for every request, as
 * Linux's drivers do, and gives each request's token back when the device has used it. Like the device side it
 * trusts nothing that it reads: a used entry that names no request in flight is -EPROTO.
 *
 * One thread owns a driver at a time. The order of calls is add, add, …, publish; poll_used until it says 0.
 */
#ifndef KPOLL_DRIVER_H
#define KPOLL_DRIVER_H

#include <stdbool.h>
#include <stdint.h>

#include "virtq.h"

/* A piece of a request: guest physical address and bytes. Written to the ring as it is, sensible or not. */
struct driver_buf {
	uint64_t addr;
	uint32_t len;
};

/* A request that came back. */
struct driver_used {
	uint64_t token;
	uint32_t len; /* bytes that the device says it wrote */
};

/* Where things lie in the driver's area, in bytes from its start. */
struct driver_layout {
	uint64_t desc;   /* split: descriptor table; packed: descriptor ring */
	uint64_t avail;  /* split: available ring; packed: driver event suppression */
	uint64_t used;   /* split: used ring; packed: device event suppression */
	uint64_t tables; /* indirect tables, one per chain that can be in flight */
	uint64_t bytes;  /* of the whole area */
};

struct driver_config {
	uint32_t size;      /* 1..32768; a power of two unless packed */
	uint32_t chain_max; /* most buffers of one request, 1..size */
	uint64_t features;  /* negotiated */
	bool no_indirect;   /* chain through the ring although INDIRECT_DESC was negotiated */
	uint8_t *area;      /* ours to access, 64-byte aligned; driver_lay_out()'s bytes; zeroed by driver_create() */
	uint64_t area_gpa;  /* the same in the address space that descriptors speak of */
	int kick_fd;        /* eventfd that is written to notify the device; -1: only count. Not owned */
};

struct driver;

/**
 * driver_lay_out() - Plan the area of a virtqueue
 * @size:	Queue size
 * @features:	Negotiated features: VIRTIO_F_RING_PACKED decides
 * @chain_max:	Most buffers of one request
 *
 * Return: 0 or -EINVAL for a size or chain that cannot be
 */
int driver_lay_out(struct driver_layout *out, uint32_t size, uint64_t features, uint32_t chain_max);

/* driver_create() - Bind to an area, which becomes an empty ring. Return: 0, -EINVAL or -ENOMEM */
int driver_create(struct driver **out, const struct driver_config *cfg);
void driver_destroy(struct driver *d);

/* driver_set_kick_fd() - Change the eventfd that notifies the device (driver_config.kick_fd) */
void driver_set_kick_fd(struct driver *d, int kick_fd);

/**
 * driver_add() - Write a request's descriptors
 * @bufs:	Its buffers, the @out device-readable ones first, then the @in device-writable ones
 * @token:	Comes back with the used entry
 *
 * The device sees the request after driver_publish().
 *
 * Return: 0; -EINVAL for no buffers or more than chain_max; -ENOSPC when the ring has no room for it now
 */
int driver_add(struct driver *d, const struct driver_buf *bufs, uint32_t out, uint32_t in, uint64_t token);

/**
 * driver_publish() - Show the device all that was added, and kick it if it asks for that
 * Return: 1 kicked, 0 not needed, or -errno of write(2)
 */
int driver_publish(struct driver *d);

/**
 * driver_poll_used() - Take back used requests, at most @max
 *
 * With interrupts enabled this arms the next one, so poll until it returns 0 before waiting.
 *
 * Return: how many, or -EPROTO when the device returned what it was not given
 */
int driver_poll_used(struct driver *d, struct driver_used *used, uint32_t max);

/* driver_more() - Has the device used anything that driver_poll_used() did not take yet? */
bool driver_more(const struct driver *d);

/* driver_interrupts_off() - Ask the device not to call. A hint: calls may still come. */
void driver_interrupts_off(struct driver *d);

/* driver_interrupts_on() - Ask for a call at the next used request. Return: true if one is there already, so don't wait */
bool driver_interrupts_on(struct driver *d);

uint32_t driver_room(const struct driver *d);      /* free descriptors of the ring */
uint32_t driver_in_flight(const struct driver *d); /* requests added and not taken back */
uint64_t driver_kicks(const struct driver *d);     /* notifications sent (or, without kick_fd, due) */

#endif
