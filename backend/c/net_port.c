/* SPDX-License-Identifier: Apache-2.0 */
/* net_port.c - what ports share: copying to and from the pieces of a frame, telling of errors, and their end */
#include "net_port.h"

#include <string.h>

size_t net_iov_write_pieces(const struct iovec *iov, unsigned count, const void *from, size_t len)
{
	size_t done = 0;

	for (unsigned i = 0; i < count && done < len; i++) {
		size_t n = iov[i].iov_len < len - done ? iov[i].iov_len : len - done;

		memcpy(iov[i].iov_base, (const uint8_t *)from + done, n);
		done += n;
	}
	return done;
}

size_t net_iov_read_pieces(const struct iovec *iov, unsigned count, void *to, size_t len)
{
	size_t done = 0;

	for (unsigned i = 0; i < count && done < len; i++) {
		size_t n = iov[i].iov_len < len - done ? iov[i].iov_len : len - done;

		copy_once((uint8_t *)to + done, iov[i].iov_base, n);
		done += n;
	}
	return done;
}

uint32_t net_port_take_error(struct net_port *port)
{
	return exchange_relaxed(&port->error, 0);
}

void net_port_destroy(struct net_port *port)
{
	if (port)
		port->ops->destroy(port);
}
