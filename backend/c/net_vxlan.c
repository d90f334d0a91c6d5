/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net_vxlan.c - a port on one VXLAN segment, with one tunnel end point at the other side (RFC 7348)
 *
 * The header is 8 bytes: flags, of which only I is there, 24 reserved bits, the VNI, 8 reserved bits (§5). The socket isn't
 * connected: Linux's vxlan device, like others, chooses its source port by flow, so only the peer's address tells its datagrams
 * from others'.
 */
#include "net_datagram.h"

#include <errno.h>

#define FLAG_I 0x08 /* the VNI is valid */
#define VNI_MAX 0xffffffu

int net_port_vxlan(struct net_port **out, int fd, uint32_t vni, int peer_fd)
{
	struct net_datagram *dg;
	int rc;

	if (vni > VNI_MAX)
		return -EINVAL;
	rc = net_datagram_create(&dg, fd);
	if (rc < 0)
		return rc;
	dg->peer_len = sizeof(dg->peer);
	if (getpeername(peer_fd, (struct sockaddr *)&dg->peer, &dg->peer_len) < 0) {
		rc = -errno;
		net_port_destroy(&dg->port);
		return rc;
	}
	dg->encap_len = NET_ENCAP;
	dg->encap[0] = FLAG_I;
	dg->encap[4] = (uint8_t)(vni >> 16);
	dg->encap[5] = (uint8_t)(vni >> 8);
	dg->encap[6] = (uint8_t)vni;
	*out = &dg->port;
	return 0;
}
