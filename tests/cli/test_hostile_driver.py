"""A guest's driver that breaks one rule of the ring: its queue stops, with one line in the log; its siblings go on.

The rings are written by hand, over what `Driver` laid out, against the real daemon. Each case names the fault that the
log and the metrics give it. The C tests go through more variants of each; here it is what the host's people see.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from kpoll.vhost.driver import Buffer, Driver
from kpoll.vhost.features import VirtioFeature
from kpoll.vhost.frontend import Frontend
from tests.cli.harness import IN, PROTOCOL, SECTOR, Daemon

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RING = VirtioFeature.VIRTIO_F_VERSION_1 | VirtioFeature.VIRTIO_F_INDIRECT_DESC
NEXT, WRITE, INDIRECT = 1, 2, 4
PACKED_AVAIL = 1 << 7
SIZE = 16
TABLE, DATA = 0x1000, 0x2000  # in the guest's data memory
FAR = 1 << 40  # a guest physical address that no region has


class Hostile:
    """Two queues on one disk: 0 is written by hand, 1 behaves."""

    def __init__(self, where: Path, *, packed: bool) -> None:
        """Connect and set both queues up."""
        self.packed = packed
        self.frontend = Frontend(where)
        self.frontend.negotiate(RING | (VirtioFeature.VIRTIO_F_RING_PACKED if packed else 0), PROTOCOL)
        self.bad, self.good = (Driver(self.frontend, index, size=SIZE) for index in range(2))
        self.data = self.frontend.add_memory(1 << 16)

    def desc(self, i: int, addr: int, length: int, flags: int, following: int = 0) -> None:
        """Write a descriptor of the bad queue: `following` is next (split) or the buffer id (packed)."""
        self._write(self.bad.memory.mmap, self.bad.layout.desc + 16 * i, addr, length, flags, following)

    def table(self, i: int, addr: int, length: int, flags: int, following: int = 0) -> None:
        """Write an entry of the indirect table at TABLE."""
        self._write(self.data.mmap, TABLE + 16 * i, addr, length, flags, following, entry=True)

    def _write(
        self, memory: object, at: int, addr: int, length: int, flags: int, following: int, *, entry: bool = False
    ) -> None:
        words = (following, flags | (0 if entry else PACKED_AVAIL)) if self.packed else (flags, following)
        struct.pack_into("<QIHH", memory, at, addr, length, *words)  # type: ignore[arg-type]

    def offer(self, head: int = 0, idx: int = 1) -> None:
        """Split: make `head` available, with avail.idx as given. Packed rings need no more than their descriptors."""
        if not self.packed:
            struct.pack_into("<HHH", self.bad.memory.mmap, self.bad.layout.avail, 0, idx, head)
        self.bad.vring.kick()

    @property
    def gpa(self) -> int:
        """Where data buffers may lie."""
        return self.data.gpa + DATA

    def good_queue_reads(self) -> bool:
        """Read a sector through the other queue."""
        struct.pack_into("<IIQ", self.data.mmap, DATA, IN, 0, 0)
        self.data.mmap[DATA + 1024] = 0xFF
        self.good.add([Buffer(self.gpa, 16)], [Buffer(self.gpa + 256, SECTOR), Buffer(self.gpa + 1024, 1)], 0)
        self.good.publish()
        self.good.wait()
        return self.data.mmap[DATA + 1024] == 0


def loop(g: Hostile) -> None:
    for i in range(SIZE):
        g.desc(i, g.gpa, 16, NEXT, (i + 1) % SIZE)


def outside(g: Hostile) -> None:
    g.desc(0, FAR, 16, 0)


def wrapping(g: Hostile) -> None:
    g.desc(0, 2**64 - 8, 16, 0)


def beyond_the_end(g: Hostile) -> None:
    g.desc(0, g.data.gpa + g.data.size - 8, 16, 0)


def zero_length(g: Hostile) -> None:
    g.desc(0, g.gpa, 0, 0)


def too_many(g: Hostile) -> None:
    g.desc(0, g.data.gpa + TABLE, 16 * 200, INDIRECT)
    for i in range(200):
        g.table(i, g.gpa, 16, NEXT if i < 199 else 0, i + 1)


def indirect_in_indirect(g: Hostile) -> None:
    g.desc(0, g.data.gpa + TABLE, 16, INDIRECT)
    g.table(0, g.data.gpa + TABLE, 16, INDIRECT)


def indirect_and_next(g: Hostile) -> None:
    g.desc(0, g.data.gpa + TABLE, 16, INDIRECT | NEXT, 1)


def indirect_odd_length(g: Hostile) -> None:
    g.desc(0, g.data.gpa + TABLE, 17, INDIRECT)


def indirect_outside(g: Hostile) -> None:
    g.desc(0, FAR, 16, INDIRECT)


def readable_after_writable(g: Hostile) -> None:
    g.desc(0, g.gpa, 16, WRITE | NEXT, 1)
    g.desc(1, g.gpa, 16, 0)


def no_status_byte(g: Hostile) -> None:
    g.desc(0, g.gpa, 16, 0)


def half_a_header(g: Hostile) -> None:
    g.desc(0, g.gpa, 8, NEXT, 1)
    g.desc(1, g.gpa + 64, 1, WRITE)


CHAINS = [
    (loop, "loop"),
    (outside, "address"),
    (wrapping, "address"),
    (beyond_the_end, "address"),
    (zero_length, "zero_length"),
    (too_many, "too_many"),
    (indirect_in_indirect, "indirect_nested"),
    (indirect_and_next, "indirect_nested"),
    (indirect_odd_length, "indirect_length"),
    (indirect_outside, "address"),
    (readable_after_writable, "order"),
    (no_status_byte, "request"),
    (half_a_header, "request"),
]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


def expect_one_queue_broken(daemon: Daemon, guest: Hostile, kind: str) -> None:
    fault = daemon.logged("queue_fault")
    assert (fault["queue"], fault["kind"], fault["level"]) == (0, kind, "error")
    assert guest.bad.vring.wait_err()
    assert guest.good_queue_reads()
    guest.bad.vring.kick()  # a broken queue stays broken, and says no more
    assert guest.good_queue_reads()
    guest.frontend.close()
    daemon.logged("frontend_disconnected")
    assert daemon.stop() == 0
    assert len([line for line in daemon.log if line["event"] == "queue_fault"]) == 1


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize(("write", "kind"), CHAINS, ids=[write.__name__ for write, _ in CHAINS])
def test_a_bad_chain_stops_its_queue_alone(
    tmp_path: Path, image: Path, write: Callable[[Hostile], None], kind: str, *, packed: bool
) -> None:
    with Daemon("blk", "--socket-path", tmp_path / "s", "--blk-file", image) as daemon:
        daemon.logged("listening")
        guest = Hostile(tmp_path / "s", packed=packed)
        write(guest)
        guest.offer()
        expect_one_queue_broken(daemon, guest, kind)


@pytest.mark.parametrize(
    ("head", "following", "idx", "kind"),
    [
        (SIZE, 0, 1, "desc_index"),
        (0, SIZE, 1, "desc_index"),
        (0, 0, SIZE + 1, "avail_idx"),
        (0, 0, 0xFFFF, "avail_idx"),
    ],
    ids=["head_outside", "next_outside", "idx_ahead", "idx_behind"],
)
def test_a_bad_index_stops_its_queue_alone(
    tmp_path: Path, image: Path, head: int, following: int, idx: int, kind: str
) -> None:
    with Daemon("blk", "--socket-path", tmp_path / "s", "--blk-file", image) as daemon:
        daemon.logged("listening")
        guest = Hostile(tmp_path / "s", packed=False)
        guest.desc(0, guest.gpa, 16, NEXT if following else 0, following)
        guest.offer(head, idx)
        expect_one_queue_broken(daemon, guest, kind)


@pytest.mark.parametrize(
    ("flags", "buffer_id", "kind"), [(0, SIZE, "buffer_id"), (NEXT, 0, "incomplete")], ids=["buffer_id", "no_end"]
)
def test_a_bad_packed_descriptor_stops_its_queue_alone(
    tmp_path: Path, image: Path, flags: int, buffer_id: int, kind: str
) -> None:
    with Daemon("blk", "--socket-path", tmp_path / "s", "--blk-file", image) as daemon:
        daemon.logged("listening")
        guest = Hostile(tmp_path / "s", packed=True)
        guest.desc(0, guest.gpa, 16, flags, buffer_id)
        guest.offer()
        expect_one_queue_broken(daemon, guest, kind)
