"""What the network card says about itself: feature bits and configuration space (virtio 1.2 §5.1.3, §5.1.4).

Pure functions of what is underneath: no descriptor is touched here, so every rule can be tested on its own.

There is no control queue: VIRTIO_NET_F_CTRL_VQ isn't offered, and nothing of what needs it, with one exception. QEMU
serves a control queue itself, in front of the back-end, and clears VIRTIO_NET_F_MQ unless the back-end offers it. A
guest whose front-end has no control queue refuses a card with VIRTIO_NET_F_MQ, so one queue pair comes without it.
Without VIRTIO_NET_F_GUEST_ANNOUNCE a front-end has us announce the guest after a migration (VHOST_USER_SEND_RARP).
"""

from __future__ import annotations

import struct
from enum import IntFlag
from typing import Final

from kpoll.vhost.features import RING_FEATURES, without

MTU_MIN: Final = 68  # virtio 1.2 §5.1.4.1: the device MUST set mtu to between 68 and 65535 inclusive
MTU_MAX: Final = 65535

# struct virtio_net_config: mac, status, max_virtqueue_pairs, mtu. What follows belongs to features that aren't offered.
_LAYOUT: Final = struct.Struct("<6sHHH")


class NetFeature(IntFlag):
    """Feature bits of the network device, virtio 1.2 §5.1.3."""

    VIRTIO_NET_F_CSUM = 1 << 0
    VIRTIO_NET_F_GUEST_CSUM = 1 << 1
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS = 1 << 2
    VIRTIO_NET_F_MTU = 1 << 3
    VIRTIO_NET_F_MAC = 1 << 5
    VIRTIO_NET_F_GUEST_TSO4 = 1 << 7
    VIRTIO_NET_F_GUEST_TSO6 = 1 << 8
    VIRTIO_NET_F_GUEST_ECN = 1 << 9
    VIRTIO_NET_F_GUEST_UFO = 1 << 10
    VIRTIO_NET_F_HOST_TSO4 = 1 << 11
    VIRTIO_NET_F_HOST_TSO6 = 1 << 12
    VIRTIO_NET_F_HOST_ECN = 1 << 13
    VIRTIO_NET_F_HOST_UFO = 1 << 14
    VIRTIO_NET_F_MRG_RXBUF = 1 << 15
    VIRTIO_NET_F_STATUS = 1 << 16
    VIRTIO_NET_F_CTRL_VQ = 1 << 17
    VIRTIO_NET_F_CTRL_RX = 1 << 18
    VIRTIO_NET_F_CTRL_VLAN = 1 << 19
    VIRTIO_NET_F_GUEST_ANNOUNCE = 1 << 21
    VIRTIO_NET_F_MQ = 1 << 22
    VIRTIO_NET_F_CTRL_MAC_ADDR = 1 << 23
    VIRTIO_NET_F_GUEST_USO4 = 1 << 54
    VIRTIO_NET_F_GUEST_USO6 = 1 << 55
    VIRTIO_NET_F_HOST_USO = 1 << 56


class NetStatus(IntFlag):
    """The bits of the configuration space's status field, virtio 1.2 §5.1.4."""

    VIRTIO_NET_S_LINK_UP = 1
    VIRTIO_NET_S_ANNOUNCE = 2


NO_OFFLOADS: Final = NetFeature(0)

# What a back-end may do for the guest (VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_*) or leave to it (GUEST_CSUM, GUEST_*).
OFFLOADS: Final = (
    NetFeature.VIRTIO_NET_F_CSUM
    | NetFeature.VIRTIO_NET_F_GUEST_CSUM
    | NetFeature.VIRTIO_NET_F_GUEST_TSO4
    | NetFeature.VIRTIO_NET_F_GUEST_TSO6
    | NetFeature.VIRTIO_NET_F_GUEST_ECN
    | NetFeature.VIRTIO_NET_F_GUEST_UFO
    | NetFeature.VIRTIO_NET_F_HOST_TSO4
    | NetFeature.VIRTIO_NET_F_HOST_TSO6
    | NetFeature.VIRTIO_NET_F_HOST_ECN
    | NetFeature.VIRTIO_NET_F_HOST_UFO
    | NetFeature.VIRTIO_NET_F_GUEST_USO4
    | NetFeature.VIRTIO_NET_F_GUEST_USO6
    | NetFeature.VIRTIO_NET_F_HOST_USO
)

# What net_soft.c does for the guest, where frames leave as they are.
SOFT_OFFLOADS: Final = (
    NetFeature.VIRTIO_NET_F_CSUM
    | NetFeature.VIRTIO_NET_F_HOST_TSO4
    | NetFeature.VIRTIO_NET_F_HOST_TSO6
    | NetFeature.VIRTIO_NET_F_HOST_ECN
    | NetFeature.VIRTIO_NET_F_HOST_USO
)

# virtio 1.2 §5.1.3.1, feature bit requirements: each of `bits` requires one of `one_of`. In this order one pass is
# enough: ECN requires TSO, which requires checksums.
_REQUIREMENTS: Final = (
    (
        NetFeature.VIRTIO_NET_F_GUEST_TSO4
        | NetFeature.VIRTIO_NET_F_GUEST_TSO6
        | NetFeature.VIRTIO_NET_F_GUEST_UFO
        | NetFeature.VIRTIO_NET_F_GUEST_USO4
        | NetFeature.VIRTIO_NET_F_GUEST_USO6,
        NetFeature.VIRTIO_NET_F_GUEST_CSUM,
    ),
    (
        NetFeature.VIRTIO_NET_F_HOST_TSO4
        | NetFeature.VIRTIO_NET_F_HOST_TSO6
        | NetFeature.VIRTIO_NET_F_HOST_UFO
        | NetFeature.VIRTIO_NET_F_HOST_USO,
        NetFeature.VIRTIO_NET_F_CSUM,
    ),
    (
        NetFeature.VIRTIO_NET_F_GUEST_ECN,
        NetFeature.VIRTIO_NET_F_GUEST_TSO4 | NetFeature.VIRTIO_NET_F_GUEST_TSO6,
    ),
    (
        NetFeature.VIRTIO_NET_F_HOST_ECN,
        NetFeature.VIRTIO_NET_F_HOST_TSO4 | NetFeature.VIRTIO_NET_F_HOST_TSO6,
    ),
)


def usable_offloads(features: int) -> NetFeature:
    """Return the offloads among `features` that have what they require, virtio 1.2 §5.1.3.1.

    A driver MUST NOT accept a feature without what it requires; one that does all the same gets on without it.
    """
    usable = features & int(OFFLOADS)
    for bits, one_of in _REQUIREMENTS:
        if not usable & one_of:
            usable = without(usable, bits)
    return NetFeature(usable)


def device_features(*, offloads: NetFeature, mtu: int | None, pairs: int) -> int:
    """Return the feature bits on offer: virtio-net's and the ring's.

    Args:
        offloads: What the back-end can do, among OFFLOADS.
        mtu: The guest's MTU in bytes; None where we have no opinion.
        pairs: Queue pairs on offer.

    """
    bits = (
        usable_offloads(offloads)
        | NetFeature.VIRTIO_NET_F_MAC
        | NetFeature.VIRTIO_NET_F_MRG_RXBUF
        | NetFeature.VIRTIO_NET_F_STATUS
    )
    if mtu is not None:
        bits |= NetFeature.VIRTIO_NET_F_MTU
    if pairs > 1:
        bits |= NetFeature.VIRTIO_NET_F_MQ
    return int(bits) | int(RING_FEATURES)


def config_space(*, mac: bytes, status: NetStatus, pairs: int, mtu: int | None) -> bytes:
    """Lay out struct virtio_net_config, little-endian, as far as fields of features on offer reach.

    Args:
        mac: The guest's, six bytes.
        status: Whether the link is up.
        pairs: max_virtqueue_pairs.
        mtu: In bytes, MTU_MIN .. MTU_MAX; None leaves it zero, VIRTIO_NET_F_MTU isn't offered then.

    """
    return _LAYOUT.pack(mac, status, pairs, mtu or 0)
