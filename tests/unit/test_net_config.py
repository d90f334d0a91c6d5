"""What the guest reads of its network card, field by field at the offsets of virtio 1.2 §5.1.4."""

from __future__ import annotations

import struct

import pytest

from kpoll.backend.net_config import (
    NO_OFFLOADS,
    OFFLOADS,
    NetFeature,
    NetStatus,
    config_space,
    device_features,
    usable_offloads,
)
from kpoll.vhost.features import VirtioFeature

MAC = bytes.fromhex("525400123456")
PLAIN = {
    NetFeature.VIRTIO_NET_F_MAC,
    NetFeature.VIRTIO_NET_F_STATUS,
    NetFeature.VIRTIO_NET_F_MRG_RXBUF,
}


def offered(*, offloads: NetFeature = NO_OFFLOADS, mtu: int | None = None, pairs: int = 1) -> set[NetFeature]:
    bits = device_features(offloads=offloads, mtu=mtu, pairs=pairs)
    return {bit for bit in NetFeature if bits & bit}


@pytest.mark.parametrize(
    ("name", "offset", "kind", "value"),
    [
        ("mac", 0, "6s", MAC),
        ("status", 6, "H", 1),
        ("max_virtqueue_pairs", 8, "H", 4),
        ("mtu", 10, "H", 9000),
    ],
)
def test_a_field_lies_where_the_driver_looks_for_it(name: str, offset: int, kind: str, value: object) -> None:
    space = config_space(mac=MAC, status=NetStatus.VIRTIO_NET_S_LINK_UP, pairs=4, mtu=9000)
    assert struct.unpack_from(f"<{kind}", space, offset) == (value,), name


def test_an_mtu_that_is_not_offered_and_a_link_that_is_down_are_zero() -> None:
    assert config_space(mac=MAC, status=NetStatus(0), pairs=1, mtu=None) == MAC + bytes(2) + b"\1\0" + bytes(2)


@pytest.mark.parametrize(
    ("name", "bit"),
    [
        ("CSUM", 0), ("GUEST_CSUM", 1), ("CTRL_GUEST_OFFLOADS", 2), ("MTU", 3), ("MAC", 5), ("GUEST_TSO4", 7),
        ("GUEST_TSO6", 8), ("GUEST_ECN", 9), ("GUEST_UFO", 10), ("HOST_TSO4", 11), ("HOST_TSO6", 12), ("HOST_ECN", 13),
        ("HOST_UFO", 14), ("MRG_RXBUF", 15), ("STATUS", 16), ("CTRL_VQ", 17), ("CTRL_RX", 18), ("CTRL_VLAN", 19),
        ("GUEST_ANNOUNCE", 21), ("MQ", 22), ("CTRL_MAC_ADDR", 23), ("GUEST_USO4", 54), ("GUEST_USO6", 55),
        ("HOST_USO", 56),
    ],
)  # fmt: skip
def test_a_feature_has_the_number_of_the_specification(name: str, bit: int) -> None:
    assert NetFeature[f"VIRTIO_NET_F_{name}"] == 1 << bit


def test_a_card_without_offloads_offers_what_every_card_has() -> None:
    assert offered() == PLAIN


def test_an_mtu_and_more_queues_are_offered_where_there_are_any() -> None:
    assert offered(mtu=1500) == PLAIN | {NetFeature.VIRTIO_NET_F_MTU}
    assert offered(pairs=2) == PLAIN | {NetFeature.VIRTIO_NET_F_MQ}


def test_a_back_end_that_can_do_everything_offers_everything() -> None:
    assert offered(offloads=OFFLOADS) == PLAIN | {bit for bit in NetFeature if bit & OFFLOADS}


def test_only_offloads_are_the_back_ends_to_offer() -> None:
    assert offered(offloads=NetFeature.VIRTIO_NET_F_CTRL_VQ | NetFeature.VIRTIO_NET_F_MQ) == PLAIN


@pytest.mark.parametrize("bit", [28, 29, 32, 34, 40])
def test_the_ring_features_are_offered_packed_among_them(bit: int) -> None:
    assert device_features(offloads=NO_OFFLOADS, mtu=None, pairs=1) >> bit & 1
    assert VirtioFeature(1 << bit).name


@pytest.mark.parametrize(
    ("feature", "required"),
    [
        ("GUEST_TSO4", "GUEST_CSUM"),
        ("GUEST_TSO6", "GUEST_CSUM"),
        ("GUEST_ECN", "GUEST_TSO4 GUEST_CSUM"),
        ("GUEST_ECN", "GUEST_TSO6 GUEST_CSUM"),
        ("GUEST_UFO", "GUEST_CSUM"),
        ("GUEST_USO4", "GUEST_CSUM"),
        ("GUEST_USO6", "GUEST_CSUM"),
        ("HOST_TSO4", "CSUM"),
        ("HOST_TSO6", "CSUM"),
        ("HOST_ECN", "HOST_TSO4 CSUM"),
        ("HOST_ECN", "HOST_TSO6 CSUM"),
        ("HOST_UFO", "CSUM"),
        ("HOST_USO", "CSUM"),
    ],
)
def test_an_offload_counts_only_with_all_that_it_requires(feature: str, required: str) -> None:
    wanted = NetFeature[f"VIRTIO_NET_F_{feature}"]
    needed = [NetFeature[f"VIRTIO_NET_F_{name}"] for name in required.split()]
    everything = wanted
    for bit in needed:
        everything |= bit
    assert usable_offloads(everything) == everything
    for bit in needed:
        assert not usable_offloads(everything ^ bit) & wanted


def test_what_is_no_offload_is_left_out_of_what_a_driver_negotiated() -> None:
    negotiated = device_features(offloads=OFFLOADS, mtu=1500, pairs=2)
    assert usable_offloads(negotiated) == OFFLOADS
