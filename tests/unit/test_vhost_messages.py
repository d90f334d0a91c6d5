"""The wire format: what goes in comes out, and what cannot be is refused before anything is made of it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kpoll.vhost.features import ProtocolFeature, VirtioFeature, names, without
from kpoll.vhost.messages import FDS_MAX, RULES, Header, Request, pack_reply, pack_request, parse
from kpoll.vhost.payloads import (
    CONFIG_SPACE_MAX,
    PAYLOAD_MAX,
    U64,
    Config,
    Empty,
    MacAddress,
    MemoryRegion,
    MemoryRegions,
    MessageError,
    Payload,
    SingleMemoryRegion,
    VringAddr,
    VringFd,
    VringState,
)

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
half = st.integers(1, 2**63)
regions = st.builds(MemoryRegion, half, half, half, half)
PAYLOADS: dict[type[Payload], st.SearchStrategy[Payload]] = {
    Empty: st.just(Empty()),
    U64: st.builds(U64, u64),
    MacAddress: st.builds(MacAddress, st.binary(min_size=6, max_size=6)),
    VringFd: st.builds(VringFd, st.integers(0, 255), st.booleans()),
    VringState: st.builds(VringState, u32, u32),
    VringAddr: st.builds(VringAddr, u32, u32, u64, u64, u64, u64),
    MemoryRegions: st.builds(MemoryRegions, st.lists(regions, max_size=8).map(tuple)),
    SingleMemoryRegion: st.builds(SingleMemoryRegion, regions),
    Config: st.builds(
        lambda offset, data: Config(offset, len(data), 0, data), st.integers(0, 256), st.binary(max_size=256)
    ),
}
anything = st.sampled_from(sorted(RULES)).flatmap(
    lambda request: st.tuples(st.just(Request(request)), PAYLOADS[RULES[request].payload])
)


ONE_REGION = "0100000000000000 0200000000000000 0300000000000000 0400000000000000"


def split(message: bytes) -> tuple[Header, bytes]:
    return Header.unpack(message[:12]), message[12:]


@given(anything, st.booleans())
def test_every_request_survives_the_wire(message: tuple[Request, Payload], need_reply: bool) -> None:
    request, payload = message
    header, data = split(pack_request(request, payload, need_reply=need_reply))
    assert (header.need_reply, header.is_reply, header.size) == (need_reply, False, len(data))
    assert parse(header, data, RULES[request].fds) == (request, payload)


@given(anything, st.data())
def test_every_request_that_is_cut_short_is_refused(message: tuple[Request, Payload], data: st.DataObject) -> None:
    request, payload = message
    _, whole = split(pack_request(request, payload))
    if isinstance(payload, Config):
        whole = whole[:12]  # a request for configuration may end after its header
    if whole:
        cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
        with pytest.raises(MessageError):
            parse(Header(request, 1, len(cut)), cut, 0)


@given(st.integers(0, 50), st.integers(0, 8), st.binary(max_size=300))
def test_whatever_bytes_arrive_are_parsed_or_refused(request: int, fds: int, data: bytes) -> None:
    try:
        known, payload = parse(Header(request, 1, len(data)), data, fds)
    except MessageError:
        return
    assert isinstance(payload, RULES[known].payload)


@pytest.mark.parametrize(
    ("message", "wire"),
    [
        (pack_request(1, Empty()), "01000000 01000000 00000000"),
        (pack_request(8, VringState(1, 128), need_reply=True), "08000000 09000000 08000000 01000000 80000000"),
        (pack_reply(17, U64(4)), "11000000 05000000 08000000 0400000000000000"),
        (pack_request(12, VringFd(3, has_fd=False)), "0c000000 01000000 08000000 0301000000000000"),
        (
            pack_request(5, MemoryRegions((MemoryRegion(1, 2, 3, 4),))),
            "05000000 01000000 28000000 0100000000000000 " + ONE_REGION,
        ),
        (
            pack_request(37, SingleMemoryRegion(MemoryRegion(1, 2, 3, 4))),
            "25000000 01000000 28000000 0000000000000000 " + ONE_REGION,
        ),
        (
            pack_request(9, VringAddr(1, 0, 0x1000, 0x2000, 0x3000, 0)),
            "09000000 01000000 28000000 01000000 00000000 00100000 00000000 00200000 00000000 00300000 00000000"
            + "00" * 8,
        ),
        (pack_request(24, Config(8, 2, 0, b"ab")), "18000000 01000000 0e000000 08000000 02000000 00000000 6162"),
    ],
)
def test_the_wire_looks_as_the_specification_draws_it(message: bytes, wire: str) -> None:
    assert message == bytes.fromhex(wire)


@pytest.mark.parametrize(
    ("flags", "size"), [(0, 0), (2, 0), (3, 0), (1, PAYLOAD_MAX + 1), (1, 2**32 - 1)], ids=lambda n: f"{n:#x}"
)
def test_a_header_that_loses_the_stream_is_fatal(flags: int, size: int) -> None:
    with pytest.raises(MessageError) as caught:
        Header.unpack(struct.pack("=III", 1, flags, size))
    assert caught.value.fatal


def test_set_mem_table_may_carry_the_unused_slots() -> None:
    payload = MemoryRegions((MemoryRegion(1, 2, 3, 4),))
    assert MemoryRegions.unpack(payload.pack().ljust(8 + 8 * 32, b"\xff")) == payload


@pytest.mark.parametrize("count", [9, 0xFFFFFFFF])
def test_more_than_eight_regions_are_refused(count: int) -> None:
    with pytest.raises(MessageError, match="more than 8"):
        MemoryRegions.unpack(struct.pack("=II", count, 0) + bytes(32 * 9))


@pytest.mark.parametrize(
    "region",
    [
        (0, 0, 0, 0),
        (2**64 - 1, 2, 0, 0),
        (0, 2, 2**64 - 1, 0),
        (0, 2, 0, 2**64 - 1),
        (2**64 - 1, 2**64 - 1, 0, 0),
    ],
)
def test_a_region_that_is_empty_or_wraps_is_refused(region: tuple[int, int, int, int]) -> None:
    with pytest.raises(MessageError):
        MemoryRegion.unpack(struct.pack("=QQQQ", *region))


@pytest.mark.parametrize(("offset", "size"), [(0, CONFIG_SPACE_MAX + 1), (CONFIG_SPACE_MAX, 1), (2**32 - 1, 2**32 - 1)])
def test_configuration_space_has_an_end(offset: int, size: int) -> None:
    with pytest.raises(MessageError, match="beyond"):
        Config.unpack(struct.pack("=III", offset, size, 0))


def test_unknown_bits_beside_a_vring_index_are_refused() -> None:
    with pytest.raises(MessageError, match="0x200"):
        VringFd.unpack(struct.pack("=Q", 0x200))


@pytest.mark.parametrize("request_", sorted(RULES))
def test_no_request_takes_more_descriptors_than_belong_to_it(request_: int) -> None:
    with pytest.raises(MessageError, match="file descriptors"):
        parse(Header(request_, 1, 0), b"", RULES[request_].fds + 1)
    assert RULES[request_].fds <= FDS_MAX


def test_names_spell_out_known_bits_and_give_the_others_as_one_mask() -> None:
    bits = VirtioFeature.VIRTIO_F_VERSION_1 | 1 << 63
    assert names(bits, VirtioFeature) == ["VIRTIO_F_VERSION_1", "0x8000000000000000"]
    assert names(0, ProtocolFeature) == []


@given(u64, u64)
def test_clearing_bits_knows_no_unnamed_ones(bits: int, unwanted: int) -> None:
    assert without(VirtioFeature(bits), VirtioFeature(unwanted)) == bits & (unwanted ^ (2**64 - 1))
