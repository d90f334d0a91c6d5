"""What the guest reads of its disk, field by field at the offsets of virtio 1.2 §5.2.4."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from kpoll.backend.blk_config import BlkFeature, DiskLimits, config_space, device_features, lifetime, writes_back
from kpoll.vhost.features import VirtioFeature

NVME = DiskLimits(
    read_only=False,
    block_device=True,
    logical_block=4096,
    physical_block=16384,
    offset_align=4096,
    io_min=16384,
    io_opt=131072,
    discard_max=1 << 40,
    discard_granularity=4096,
    write_zeroes_max=1 << 20,
    max_bytes=128 << 10,
)
IMAGE = DiskLimits(
    read_only=False,
    block_device=False,
    logical_block=4096,
    physical_block=4096,
    offset_align=4096,
    discard_max=1 << 62,
    discard_granularity=4096,
    write_zeroes_max=1 << 62,
)


def field(limits: DiskLimits, offset: int, kind: str, *, capacity: int = 1000, writeback: int = 1) -> int:
    space = config_space(limits, capacity=capacity, writeback=writeback, num_queues=8, seg_max=126, ranges_max=16)
    (value,) = struct.unpack_from(f"<{kind}", space, offset)
    assert isinstance(value, int)
    return value


@pytest.mark.parametrize(
    ("name", "offset", "kind", "value"),
    [
        ("capacity", 0, "Q", 1000),
        ("size_max", 8, "I", 128 << 10),
        ("seg_max", 12, "I", 126),
        ("geometry", 16, "I", 0),
        ("blk_size", 20, "I", 4096),
        ("physical_block_exp", 24, "B", 2),
        ("alignment_offset", 25, "B", 0),
        ("min_io_size", 26, "H", 4),
        ("opt_io_size", 28, "I", 32),
        ("writeback", 32, "B", 1),
        ("num_queues", 34, "H", 8),
        ("max_discard_sectors", 36, "I", (2 << 30) // 512),
        ("max_discard_seg", 40, "I", 16),
        ("discard_sector_alignment", 44, "I", 8),
        ("max_write_zeroes_sectors", 48, "I", 2048),
        ("max_write_zeroes_seg", 52, "I", 16),
        ("write_zeroes_may_unmap", 56, "B", 1),
    ],
)
def test_a_field_lies_where_the_driver_looks_for_it(name: str, offset: int, kind: str, value: int) -> None:
    assert field(NVME, offset, kind) == value, name


def test_an_image_has_blocks_of_512_on_any_filesystem_and_tells_its_real_ones() -> None:
    assert field(IMAGE, 20, "I") == 512
    assert field(IMAGE, 24, "B") == 3


@pytest.mark.parametrize(
    ("max_bytes", "size_max"), [(0, 1 << 20), (512, 64 << 10), (1 << 40, 1 << 20), (200_000, 196_608)]
)
def test_size_max_is_whole_blocks_and_neither_tiny_nor_endless(max_bytes: int, size_max: int) -> None:
    assert field(replace(NVME, max_bytes=max_bytes), 8, "I") == size_max


@pytest.mark.parametrize(
    ("alignment_offset", "physical_block", "blocks"),
    [
        *((0, 4096, 0), (3072, 4096, 6), (3000, 4096, 0)),
        *((61440, 4096, 0), (64512, 4096, 6)),  # io_min's units begin some physical blocks later, as on RAID
        *((255 * 512, 1 << 18, 255), (256 * 512, 1 << 18, 0)),
    ],
)
def test_alignment_offset_is_in_blocks_within_a_physical_one_or_left_out(
    alignment_offset: int, physical_block: int, blocks: int
) -> None:
    disk = replace(NVME, logical_block=512, physical_block=physical_block, alignment_offset=alignment_offset)
    assert field(disk, 25, "B") == blocks


@pytest.mark.parametrize(("max_segments", "seg_max"), [(0, 126), (1, 1), (127, 126), (0xFFFFFFFF, 126), (32, 32)])
def test_seg_max_is_what_device_and_data_path_take_at_once(max_segments: int, seg_max: int) -> None:
    assert field(replace(NVME, max_segments=max_segments), 12, "I") == seg_max


def test_numbers_too_large_for_their_field_are_capped() -> None:
    huge = replace(NVME, io_min=1 << 31, io_opt=1 << 45, discard_max=(1 << 64) - 1)
    assert field(huge, 26, "H") == 0xFFFF
    assert field(huge, 28, "I") == 0xFFFFFFFF
    assert field(huge, 36, "I") == (2 << 30) // 512


def test_every_limit_of_one_discard_is_a_multiple_of_its_granularity() -> None:
    odd = replace(NVME, discard_granularity=12288)
    assert field(odd, 36, "I") * 512 % 12288 == 0


FULL = {
    BlkFeature.VIRTIO_BLK_F_SIZE_MAX,
    BlkFeature.VIRTIO_BLK_F_SEG_MAX,
    BlkFeature.VIRTIO_BLK_F_BLK_SIZE,
    BlkFeature.VIRTIO_BLK_F_TOPOLOGY,
    BlkFeature.VIRTIO_BLK_F_MQ,
    BlkFeature.VIRTIO_BLK_F_FLUSH,
    BlkFeature.VIRTIO_BLK_F_CONFIG_WCE,
    BlkFeature.VIRTIO_BLK_F_DISCARD,
    BlkFeature.VIRTIO_BLK_F_WRITE_ZEROES,
}


def test_a_disk_offers_all_that_it_serves_and_nothing_else() -> None:
    assert {bit for bit in BlkFeature if device_features(NVME) & bit} == FULL


def test_wear_is_offered_only_where_it_is_known() -> None:
    offered = device_features(NVME, lifetime=True)
    assert {bit for bit in BlkFeature if offered & bit} == FULL | {BlkFeature.VIRTIO_BLK_F_LIFETIME}


@pytest.mark.parametrize(
    ("percent_used", "spare", "pre_eol_info", "typ_b"),
    [
        *((0, (100, 10), 1, 1), (9, (21, 10), 1, 1), (10, (20, 10), 2, 2), (99, (11, 10), 2, 10)),
        *((100, (10, 10), 3, 11), (255, (0, 10), 3, 11), (0, (0, 0), 0, 1)),
    ],
)
def test_wear_goes_by_tenths_and_spare_capacity_tells_of_the_end(
    percent_used: int, spare: tuple[int, int], pre_eol_info: int, typ_b: int
) -> None:
    assert struct.unpack("<HHH", lifetime(percent_used, *spare)) == (pre_eol_info, 0, typ_b)


def test_a_read_only_disk_says_so_and_takes_nothing_away_from_itself() -> None:
    offered = device_features(replace(NVME, read_only=True))
    assert {bit for bit in BlkFeature if offered & bit} == FULL - {
        BlkFeature.VIRTIO_BLK_F_DISCARD,
        BlkFeature.VIRTIO_BLK_F_WRITE_ZEROES,
    } | {BlkFeature.VIRTIO_BLK_F_RO}


def test_what_the_disk_underneath_lacks_is_neither_offered_nor_described() -> None:
    plain = replace(NVME, discard_max=0, write_zeroes_max=0)
    assert not device_features(plain) & (BlkFeature.VIRTIO_BLK_F_DISCARD | BlkFeature.VIRTIO_BLK_F_WRITE_ZEROES)
    assert [field(plain, offset, "I") for offset in range(36, 60, 4)] == [0] * 6


@pytest.mark.parametrize("bit", [28, 29, 32, 34, 40])
def test_the_ring_features_are_offered_packed_among_them(bit: int) -> None:
    assert device_features(NVME) >> bit & 1
    assert VirtioFeature(1 << bit).name


FLUSH, WCE = BlkFeature.VIRTIO_BLK_F_FLUSH, BlkFeature.VIRTIO_BLK_F_CONFIG_WCE


@pytest.mark.parametrize(
    ("negotiated", "writeback", "cached"),
    [
        (0, 1, False),
        (FLUSH, 1, True),
        (FLUSH, 0, True),
        (FLUSH | WCE, 1, True),
        (FLUSH | WCE, 0, False),
        (WCE, 1, False),
    ],
)
def test_a_write_may_be_cached_only_if_the_driver_can_flush_or_said_so(
    negotiated: int, writeback: int, *, cached: bool
) -> None:
    assert writes_back(negotiated, writeback) is cached
