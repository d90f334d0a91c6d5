"""Memory tables: immutable, sharing the mappings that stay, giving back those that don't."""

from __future__ import annotations

import errno
import gc
import os
from typing import TYPE_CHECKING

import pytest

from kpoll.vhost.memory import MEM_SLOTS_MAX, GuestMemoryError, MemoryTable, map_region
from kpoll.vhost.payloads import MemoryRegion
from tests.wire.harness import resources

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kpoll.vhost.memory import MappedRegion

PAGE = 4096


@pytest.fixture(scope="module", autouse=True)
def no_garbage() -> None:
    """Let go of what earlier tests left in cycles, so that it doesn't go while we count descriptors."""
    gc.collect()


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 4 * PAGE)
    for page in range(4):
        os.pwrite(fd, f"page {page}".encode(), page * PAGE)
    yield fd
    os.close(fd)


def mapped(fd: int, gpa: int, page: int = 0, size: int = PAGE) -> MappedRegion:
    return map_region(MemoryRegion(gpa, size, 0x7000_0000_0000 + gpa, page * PAGE), fd)


def test_reads_across_regions_that_touch(memfd: int) -> None:
    table = MemoryTable([mapped(memfd, PAGE, page=3), mapped(memfd, 0, page=1)])
    assert table.read(PAGE - 2, 8) == b"\0\0page 3"
    assert table.size == 2 * PAGE
    table.close()


@pytest.mark.parametrize(("gpa", "length"), [(PAGE - 2, 3), (PAGE, 1), (2**64 - 1, 2), (0, 2**40)])
def test_reads_nothing_beyond_the_table(memfd: int, gpa: int, length: int) -> None:
    table = MemoryTable([mapped(memfd, 0)])
    with pytest.raises(GuestMemoryError) as caught:
        table.read(gpa, length)
    assert caught.value.errno == errno.EFAULT
    table.close()


def test_a_successor_keeps_the_regions_that_both_have(memfd: int) -> None:
    held = resources()
    stays, goes = mapped(memfd, 0, page=2), mapped(memfd, PAGE)
    old = MemoryTable([stays, goes])
    new = MemoryTable([stays])
    old.close(successor=new)
    assert resources()[1] == held[1] + 1
    assert new.read(0, 6) == b"page 2"
    new.close()
    assert resources() == held


def test_overlapping_regions_make_no_table_and_stay_the_callers(memfd: int) -> None:
    held = resources()
    regions = [mapped(memfd, 0, size=2 * PAGE), mapped(memfd, PAGE)]
    with pytest.raises(GuestMemoryError, match="overlap") as caught:
        MemoryTable(regions)
    assert caught.value.errno == errno.EINVAL
    for region in regions:
        region.unmap()
    assert resources() == held


def test_a_table_has_no_more_than_509_slots(memfd: int) -> None:
    regions = [mapped(memfd, i * PAGE) for i in range(MEM_SLOTS_MAX + 1)]
    with pytest.raises(GuestMemoryError, match="more than 509"):
        MemoryTable(regions)
    MemoryTable(regions[:-1]).close()
    regions[-1].unmap()


def test_finds_a_region_by_its_addresses_and_size_alone(memfd: int) -> None:
    region = mapped(memfd, 0, page=1)
    table = MemoryTable([region])
    uva = region.region.user_address
    assert table.find(MemoryRegion(0, PAGE, uva, 4711)) is region
    for other in (MemoryRegion(1, PAGE, uva, 0), MemoryRegion(0, 1, uva, 0), MemoryRegion(0, PAGE, 0, 0)):
        assert table.find(other) is None
    table.close()
