"""Guest memory: every way to share it, none to share too much, and none that goes away under a running vring."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from kpoll.vhost.features import ProtocolFeature
from kpoll.vhost.frontend import Frontend, FrontendError
from kpoll.vhost.memory import survive_truncation
from kpoll.vhost.messages import Request, pack_request
from kpoll.vhost.payloads import MemoryRegion, MemoryRegions, SingleMemoryRegion, VringAddr
from tests.wire.harness import SIZE, Backend, RecordingDevice, add_ring_memory, resources, set_up

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PAGE = 4096
WITHOUT_SLOTS = ~ProtocolFeature.CONFIGURE_MEM_SLOTS


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 16 * PAGE)
    yield fd
    os.close(fd)


def set_mem_table(frontend: Frontend, regions: Sequence[MemoryRegion], fds: Sequence[int]) -> None:
    frontend.request(Request.SET_MEM_TABLE, MemoryRegions(tuple(regions)), fds)


def add_mem_reg(frontend: Frontend, region: MemoryRegion, fd: int) -> None:
    frontend.request(Request.ADD_MEM_REG, SingleMemoryRegion(region), [fd])


def region(gpa: int, size: int = PAGE, offset: int = 0) -> MemoryRegion:
    return MemoryRegion(guest_address=gpa, size=size, user_address=0x7000_0000_0000 + gpa, mmap_offset=offset)


def memory_of(device: RecordingDevice, index: int = 0) -> list[tuple[int, int]]:
    return [(mapped.region.guest_address, mapped.region.size) for mapped in device.running[index][0].memory.regions]


def test_set_mem_table_may_come_twice(backend: Backend, device: RecordingDevice) -> None:
    with backend.negotiated(WITHOUT_SLOTS) as frontend:
        memory = add_ring_memory(frontend)
        frontend.set_mem_table()
        set_up(frontend, memory)
        frontend.set_mem_table()
        assert memory_of(device) == [(memory.gpa, memory.size)]
        assert [call[0] for call in device.calls[-3:]] == ["start", "stop", "start"]


def test_a_region_need_be_no_multiple_of_a_page(backend: Backend, device: RecordingDevice) -> None:
    with backend.negotiated() as frontend:
        memory = frontend.add_memory(3 * PAGE + 123)
        memory.mmap[-5:] = b"guest"
        set_up(frontend, memory)
        assert device.running[0][0].memory.read(memory.gpa + memory.size - 5, 5) == b"guest"


def test_a_region_may_start_anywhere_in_its_file(backend: Backend, device: RecordingDevice, memfd: int) -> None:
    os.pwrite(memfd, b"guest", PAGE + 100)
    with backend.negotiated() as frontend:
        add_mem_reg(frontend, region(0, 5, offset=PAGE + 100), memfd)
        set_up(frontend, add_ring_memory(frontend))
        assert device.running[0][0].memory.read(0, 5) == b"guest"


def test_eight_regions_fit_into_one_set_mem_table(backend: Backend, device: RecordingDevice, memfd: int) -> None:
    with backend.negotiated() as frontend:
        set_mem_table(frontend, [region(i * PAGE, offset=i * PAGE) for i in range(8)], [memfd] * 8)
        assert backend.events("memory_changed")[-1]["regions"] == 8
        set_up(frontend, add_ring_memory(frontend))
        assert len(memory_of(device)) == 9


def test_509_slots_can_be_filled_and_no_more(backend: Backend, memfd: int) -> None:
    with backend.negotiated() as frontend:
        for i in range(509):
            add_mem_reg(frontend, region(i * PAGE), memfd)
        with pytest.raises(FrontendError, match="failed"):
            add_mem_reg(frontend, region(509 * PAGE), memfd)
        frontend.request(Request.REM_MEM_REG, SingleMemoryRegion(region(17 * PAGE)))
        add_mem_reg(frontend, region(509 * PAGE), memfd)


def test_rem_mem_reg_ignores_the_offset_and_closes_a_descriptor_that_does_not_belong(
    backend: Backend, memfd: int
) -> None:
    with backend.negotiated() as frontend:
        add_mem_reg(frontend, region(0), memfd)
        frontend.request(Request.REM_MEM_REG, SingleMemoryRegion(region(0, offset=3 * PAGE)), [memfd])
        assert backend.events("memory_changed")[-1]["regions"] == 0


def test_removing_a_region_that_is_not_there_fails(backend: Backend, memfd: int) -> None:
    with backend.negotiated() as frontend:
        add_mem_reg(frontend, region(0), memfd)
        for other in (region(PAGE), region(0, 2 * PAGE), MemoryRegion(0, PAGE, 1, 0)):
            with pytest.raises(FrontendError, match="failed"):
                frontend.request(Request.REM_MEM_REG, SingleMemoryRegion(other))


@pytest.mark.parametrize(
    "regions",
    [
        [region(0, 2 * PAGE), region(PAGE)],
        [region(0), region(0)],
        [region(0, 17 * PAGE)],
        [region(0, PAGE, offset=16 * PAGE)],
        [MemoryRegion((1 << 64) - PAGE, PAGE, 0, 0)],
        [MemoryRegion(0, PAGE, (1 << 64) - PAGE, 0)],
        [MemoryRegion(0, PAGE, 0, (1 << 64) - PAGE)],
    ],
    ids=[
        "overlap",
        "same twice",
        "longer than its file",
        "beyond its file",
        "up to the end of guest addresses",
        "up to the end of user addresses",
        "offset beyond any file",
    ],
)
def test_an_impossible_table_is_refused_and_the_old_one_stays(
    backend: Backend, device: RecordingDevice, memfd: int, regions: list[MemoryRegion]
) -> None:
    with backend.negotiated() as frontend:
        memory = add_ring_memory(frontend)
        set_up(frontend, memory)
        held = resources()
        with pytest.raises(FrontendError, match="failed"):
            set_mem_table(frontend, regions, [memfd] * len(regions))
        assert memory_of(device) == [(memory.gpa, memory.size)]
        assert device.count("stop") == 0, "the ring did not even notice"
        assert resources() == held


def test_a_used_ring_in_the_available_ring_is_refused_though_they_are_mapped_apart(
    backend: Backend, device: RecordingDevice, memfd: int
) -> None:
    with backend.negotiated() as frontend:
        one, twin = region(0), region(PAGE)  # of the same page of the file
        add_mem_reg(frontend, one, memfd)
        add_mem_reg(frontend, twin, memfd)
        desc, avail = one.user_address, one.user_address + 254
        used_flags_is_avail_idx = twin.user_address + 256
        frontend.setup_vring(0, SIZE, desc, avail, used_flags_is_avail_idx)
        with pytest.raises(FrontendError, match="failed"):
            frontend.enable(0)
        assert not device.running
        used_behind = twin.user_address + 512
        frontend.request(Request.SET_VRING_ADDR, VringAddr(0, 0, desc, used_behind, avail, 0))
        assert list(device.running) == [0], "what lies apart may be mapped twice"


@pytest.mark.parametrize("fds", [0, 1, 3])
def test_every_region_needs_its_own_descriptor(backend: Backend, memfd: int, fds: int) -> None:
    with backend.negotiated() as frontend, pytest.raises(FrontendError, match="failed"):
        set_mem_table(frontend, [region(0), region(PAGE)], [memfd] * fds)


def test_memory_that_is_no_file_is_refused(backend: Backend) -> None:
    ours, theirs = os.pipe()
    with backend.negotiated() as frontend, pytest.raises(FrontendError, match="failed"):
        add_mem_reg(frontend, region(0), ours)
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize("how", ["SET_MEM_TABLE", "ADD_MEM_REG", "REM_MEM_REG"])
def test_memory_changes_only_while_all_rings_stand_still(
    backend: Backend, device: RecordingDevice, memfd: int, how: str
) -> None:
    with backend.negotiated() as frontend:
        memory = add_ring_memory(frontend)
        add_mem_reg(frontend, region(0), memfd)
        set_up(frontend, memory, index=0, base=3)
        set_up(frontend, memory, index=1, base=4)
        device.calls.clear()
        if how == "SET_MEM_TABLE":
            frontend.set_mem_table()
        elif how == "ADD_MEM_REG":
            add_mem_reg(frontend, region(PAGE), memfd)
        else:
            frontend.request(Request.REM_MEM_REG, SingleMemoryRegion(region(0)))
        assert device.calls == [("stop", 0), ("stop", 1), ("start", 0, 3), ("start", 1, 4)]


def test_memory_stays_until_the_last_ring_has_drained(backend: Backend, device: RecordingDevice, memfd: int) -> None:
    with backend.negotiated() as frontend:
        memory = add_ring_memory(frontend)
        add_mem_reg(frontend, region(0), memfd)
        set_up(frontend, memory)
        os.pwrite(memfd, b"in flight", 0)
        table = device.running[0][0].memory
        device.hold_stops = True
        frontend.send(pack_request(Request.REM_MEM_REG, SingleMemoryRegion(region(0)), need_reply=True))
        assert device.stopping.wait(10)
        assert table.read(0, 9) == b"in flight", "the removed region can still be touched"
        device.release.set()
        frontend.receive()
        assert memory_of(device) == [(memory.gpa, memory.size)]


def test_a_ring_whose_memory_is_replaced_piecemeal_waits_for_it(backend: Backend, device: RecordingDevice) -> None:
    """QEMU changes a region's bounds by REM_MEM_REG and ADD_MEM_REG while the guest runs."""
    with backend.negotiated() as frontend:
        memory = add_ring_memory(frontend)
        frontend.add_memory(PAGE)  # so that there is some memory all the time
        set_up(frontend, memory, base=6)
        frontend.request(Request.REM_MEM_REG, SingleMemoryRegion(memory.region))
        assert not device.running
        assert len(backend.events("vring_start_failed")) == 1
        add_mem_reg(frontend, memory.region, memory.fd)
        assert device.calls[-1] == ("start", 0, 6)


def test_truncated_memory_reads_as_zeros_and_the_table_tells(backend: Backend, device: RecordingDevice) -> None:
    survive_truncation()
    with backend.negotiated() as frontend:
        memory = add_ring_memory(frontend)
        hole = frontend.add_memory(PAGE)
        set_up(frontend, memory)
        table = device.running[0][0].memory
        hole.mmap[:5] = b"guest"
        assert table.read(hole.gpa, 5) == b"guest"
        assert not table.broken
        os.ftruncate(hole.fd, 0)
        assert table.read(hole.gpa, 5) == bytes(5)
        assert table.broken
