"""What the disk says about itself: feature bits and configuration space (virtio 1.2 §5.2.3, §5.2.4).

Pure functions of what is underneath: no descriptor is touched here, so every rule can be tested on its own.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntFlag
from typing import Final

from kpoll.vhost._core import lib
from kpoll.vhost.features import RING_FEATURES

from .config import SECTOR

CAPACITY_SIZE: Final = 8  # the first field
WRITEBACK_OFFSET: Final = 32  # struct virtio_blk_config's one writable field

# Largest extent of one DISCARD or WRITE_ZEROES range: a whole one goes to a helper thread in a single call, and the
# queue can't be stopped before that returns.
EXTENT_MAX: Final = 2 << 30
SEGMENT_MIN: Final = 64 << 10
SEGMENT_MAX: Final = int(lib.BLK_SIZE_MAX)
_U8: Final = (1 << 8) - 1
_U32: Final = (1 << 32) - 1

# struct virtio_blk_config: capacity, size_max, seg_max, geometry, blk_size, topology, writeback, num_queues,
# max_discard_*, max_write_zeroes_*, and from secure erase on zeros.
_LAYOUT: Final = struct.Struct("<Q I I HBB I BBHI BxH III IIB3x III".replace(" ", ""))

_LIFETIME: Final = struct.Struct("<HHH")  # struct virtio_blk_lifetime: pre_eol_info, device_lifetime_est_typ_a, _b
LIFETIME_BYTES: Final = _LIFETIME.size


class BlkFeature(IntFlag):
    """Feature bits of the block device, virtio 1.2 §5.2.3."""

    VIRTIO_BLK_F_SIZE_MAX = 1 << 1
    VIRTIO_BLK_F_SEG_MAX = 1 << 2
    VIRTIO_BLK_F_GEOMETRY = 1 << 4
    VIRTIO_BLK_F_RO = 1 << 5
    VIRTIO_BLK_F_BLK_SIZE = 1 << 6
    VIRTIO_BLK_F_FLUSH = 1 << 9
    VIRTIO_BLK_F_TOPOLOGY = 1 << 10
    VIRTIO_BLK_F_CONFIG_WCE = 1 << 11
    VIRTIO_BLK_F_MQ = 1 << 12
    VIRTIO_BLK_F_DISCARD = 1 << 13
    VIRTIO_BLK_F_WRITE_ZEROES = 1 << 14
    VIRTIO_BLK_F_LIFETIME = 1 << 15


@dataclass(frozen=True, kw_only=True)
class DiskLimits:
    """What the file or device underneath can do; sizes in bytes, 0 where it has no such thing or no limit.

    `write_cache`: what was written may be lost until it is flushed.
    """

    read_only: bool
    block_device: bool
    logical_block: int
    physical_block: int
    offset_align: int = 1
    io_min: int = 0
    io_opt: int = 0
    alignment_offset: int = 0
    discard_max: int = 0
    discard_granularity: int = 0
    write_zeroes_max: int = 0
    max_bytes: int = 0
    max_segments: int = 0
    write_cache: bool = True

    @property
    def blk_size(self) -> int:
        """The guest's block size.

        A file's is always 512: the partition table inside the image counts in it, and has to stay readable when the
        image moves to a filesystem on other disks. What O_DIRECT refuses goes through the page cache.
        """
        return self.logical_block if self.block_device else SECTOR

    @property
    def physical_exp(self) -> int:
        """How many of the guest's blocks make a physical one, as a power of two."""
        physical = max(self.physical_block, self.offset_align, self.blk_size)
        return (physical // self.blk_size).bit_length() - 1

    @property
    def alignment_blocks(self) -> int:
        """Where the first whole physical block begins, in blocks; 0 as well where the field can't say it.

        The kernel counts to where io_min's units begin (bdev_alignment_offset()), which may be several such blocks.
        """
        blocks, rest = divmod(self.alignment_offset, self.blk_size)
        blocks %= 1 << self.physical_exp
        return blocks if not rest and blocks <= _U8 else 0

    @property
    def discards(self) -> bool:
        """Whether DISCARD is on offer."""
        return not self.read_only and self.discard_max >= SECTOR

    @property
    def writes_zeroes(self) -> bool:
        """Whether WRITE_ZEROES is on offer."""
        return not self.read_only and self.write_zeroes_max >= SECTOR

    def extent_sectors(self, limit: int) -> int:
        """Return the longest range in sectors that a request may name, out of the device's `limit` in bytes."""
        extent = min(limit, EXTENT_MAX)
        unit = max(self.discard_granularity, self.blk_size)
        return (extent // unit * unit or extent) // SECTOR


def device_features(limits: DiskLimits, *, lifetime: bool = False) -> int:
    """Return the feature bits on offer: virtio-blk's and the ring's.

    Args:
        limits: What is underneath.
        lifetime: Whether it is known how worn that is.

    """
    bits = (
        BlkFeature.VIRTIO_BLK_F_SIZE_MAX
        | BlkFeature.VIRTIO_BLK_F_SEG_MAX
        | BlkFeature.VIRTIO_BLK_F_BLK_SIZE
        | BlkFeature.VIRTIO_BLK_F_TOPOLOGY
        | BlkFeature.VIRTIO_BLK_F_FLUSH
        | BlkFeature.VIRTIO_BLK_F_CONFIG_WCE
        | BlkFeature.VIRTIO_BLK_F_MQ
    )
    if limits.read_only:
        bits |= BlkFeature.VIRTIO_BLK_F_RO
    if limits.discards:
        bits |= BlkFeature.VIRTIO_BLK_F_DISCARD
    if limits.writes_zeroes:
        bits |= BlkFeature.VIRTIO_BLK_F_WRITE_ZEROES
    if lifetime:
        bits |= BlkFeature.VIRTIO_BLK_F_LIFETIME
    return int(bits) | int(RING_FEATURES)


def lifetime(percent_used: int, avail_spare: int, spare_thresh: int) -> bytes:
    """Lay out struct virtio_blk_lifetime (virtio 1.2 §5.2.6) for an NVMe device.

    What is left of the spare capacity tells whether the end of life is near; wear goes by tenths, and a device that has
    outlived its estimate is beyond ten. It is told for MLC cells (`typ_b`), which stand for all that aren't SLC: NVMe
    doesn't say which a device has.

    Args:
        percent_used: Of its estimated life; may exceed 100.
        avail_spare: Spare capacity that is left, in percent.
        spare_thresh: What the device warns below; with both 0 it doesn't tell, as emulated ones.

    """
    told = avail_spare > 0 or spare_thresh > 0
    near = 3 if avail_spare <= 10 else 2 if avail_spare <= 20 else 1  # urgent, warning, normal
    return _LIFETIME.pack(near if told else 0, 0, min(percent_used // 10 + 1, 11))


def writes_back(features: int, writeback: int) -> bool:
    """Decide the cache mode from the negotiated features and the `writeback` field, virtio 1.2 §5.2.5.

    A driver that didn't negotiate FLUSH can't flush, so each of its writes has to be durable when it completes. One
    that did flushes when it needs to, unless it has CONFIG_WCE as well and the field says that it doesn't.
    """
    if not features & BlkFeature.VIRTIO_BLK_F_FLUSH:
        return False
    return bool(writeback) or not features & BlkFeature.VIRTIO_BLK_F_CONFIG_WCE


def config_space(
    limits: DiskLimits, *, capacity: int, writeback: int, num_queues: int, seg_max: int, ranges_max: int
) -> bytes:
    """Lay out struct virtio_blk_config, little-endian.

    Args:
        limits: What is underneath.
        capacity: The disk's size in sectors.
        writeback: The field's current value, 0 or 1.
        num_queues: Virtqueues on offer.
        seg_max: Data segments that the data path takes in one request.
        ranges_max: Ranges that it takes in one DISCARD or WRITE_ZEROES.

    """
    block = limits.blk_size
    # What the device takes at once has two bounds (max_bytes and max_segments), a virtio request one on the number of
    # its segments and one on the size of each; none on the whole. So a request may be larger than the device takes,
    # which works: the kernel cuts it, and the pieces run side by side (with interrupts: io_in_one_piece()). To rule
    # that out, seg_max * size_max would have to be max_bytes: a guest whose pages lie one after the other would then
    # have to send a large request in many small ones, each dearer to guest and host than such a cut.
    size_max = min(max(limits.max_bytes or SEGMENT_MAX, SEGMENT_MIN), SEGMENT_MAX) // block * block
    zeroes, discards = limits.writes_zeroes, limits.discards
    return _LAYOUT.pack(
        capacity,
        size_max,
        min(seg_max, limits.max_segments or seg_max),
        0,  # geometry: VIRTIO_BLK_F_GEOMETRY isn't offered
        0,
        0,
        block,
        limits.physical_exp,  # physical_block_exp
        limits.alignment_blocks,  # alignment_offset
        min(max(limits.io_min // block, 1), 0xFFFF),  # min_io_size
        min(limits.io_opt // block, _U32),  # opt_io_size
        writeback,
        num_queues,
        limits.extent_sectors(limits.discard_max) if discards else 0,
        ranges_max if discards else 0,
        max(limits.discard_granularity, block) // SECTOR if discards else 0,  # discard_sector_alignment
        limits.extent_sectors(limits.write_zeroes_max) if zeroes else 0,
        ranges_max if zeroes else 0,
        int(zeroes and limits.discard_max > 0),  # write_zeroes_may_unmap
        0,  # max_secure_erase_sectors and what follows: VIRTIO_BLK_F_SECURE_ERASE isn't offered
        0,
        0,
    )
