"""Feature bits: virtio's (virtio 1.2 §6), as far as they concern the ring, and vhost-user's own."""

from __future__ import annotations

from enum import IntFlag
from typing import Final


class VirtioFeature(IntFlag):
    """Device-independent virtio feature bits, and the one that vhost-user took from virtio's reserved range."""

    VIRTIO_F_NOTIFY_ON_EMPTY = 1 << 24
    VHOST_F_LOG_ALL = 1 << 26
    VIRTIO_F_ANY_LAYOUT = 1 << 27
    VIRTIO_F_INDIRECT_DESC = 1 << 28
    VIRTIO_F_EVENT_IDX = 1 << 29
    VHOST_USER_F_PROTOCOL_FEATURES = 1 << 30
    VIRTIO_F_VERSION_1 = 1 << 32
    VIRTIO_F_ACCESS_PLATFORM = 1 << 33
    VIRTIO_F_RING_PACKED = 1 << 34
    VIRTIO_F_IN_ORDER = 1 << 35
    VIRTIO_F_ORDER_PLATFORM = 1 << 36
    VIRTIO_F_NOTIFICATION_DATA = 1 << 38
    VIRTIO_F_RING_RESET = 1 << 40


# What the virtqueues of this library (c/virtq.h) serve, whatever the device.
RING_FEATURES: Final = (
    VirtioFeature.VIRTIO_F_INDIRECT_DESC
    | VirtioFeature.VIRTIO_F_EVENT_IDX
    | VirtioFeature.VIRTIO_F_VERSION_1
    | VirtioFeature.VIRTIO_F_RING_PACKED
    | VirtioFeature.VIRTIO_F_RING_RESET
)


class ProtocolFeature(IntFlag):
    """VHOST_USER_PROTOCOL_F_*: extensions of the vhost-user protocol itself."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CROSS_ENDIAN = 1 << 6
    CRYPTO_SESSION = 1 << 7
    PAGEFAULT = 1 << 8
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    HOST_NOTIFIER = 1 << 11
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    INBAND_NOTIFICATIONS = 1 << 14
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16


def without(bits: int, unwanted: int) -> int:
    """Clear bits. Not `bits & ~unwanted`: an IntFlag's complement has only the bits that its class has names for."""
    return int(bits) & ~int(unwanted)


def names(bits: int, *flags: type[IntFlag] | None) -> list[str]:
    """Spell out a bit mask for the log: the names of known bits, then one hexadecimal mask of all others."""
    known = {int(flag): flag.name or "" for kind in flags if kind is not None for flag in kind}
    unknown = without(bits, sum(known))
    return [known[bit] for bit in sorted(known) if bits & bit] + ([f"{unknown:#x}"] if unknown else [])
