"""A guest's driver that breaks one rule of the ring: its queue stops, with one line in the log; its siblings go on.

The rings are written by hand (hostile.py), against the real daemon. Each case names the fault that the
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
from tests.cli.hostile import CHAINS, DATA, NEXT, RING, SIZE, WRITE, RingByHand

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Hostile:
    """Two queues on one disk: 0 is written by hand, 1 behaves."""

    def __init__(self, where: Path, *, packed: bool) -> None:
        """Connect and set both queues up."""
        self.frontend = Frontend(where)
        self.frontend.negotiate(RING | (VirtioFeature.VIRTIO_F_RING_PACKED if packed else 0), PROTOCOL)
        self.bad = RingByHand(self.frontend, 0)
        self.good = Driver(self.frontend, 1, size=SIZE)
        self.data = self.bad.data

    def good_queue_reads(self) -> bool:
        """Read a sector through the other queue."""
        gpa = self.data.gpa + DATA
        struct.pack_into("<IIQ", self.data.mmap, DATA, IN, 0, 0)
        self.data.mmap[DATA + 1024] = 0xFF
        self.good.add([Buffer(gpa, 16)], [Buffer(gpa + 256, SECTOR), Buffer(gpa + 1024, 1)], 0)
        self.good.publish()
        self.good.wait()
        return self.data.mmap[DATA + 1024] == 0


def no_status_byte(ring: RingByHand) -> None:
    ring.desc(0, ring.gpa, 16, 0)


def half_a_header(ring: RingByHand) -> None:
    ring.desc(0, ring.gpa, 8, NEXT, 1)
    ring.desc(1, ring.gpa + 64, 1, WRITE)


CASES = [*CHAINS, (no_status_byte, "request"), (half_a_header, "request")]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


def expect_one_queue_broken(daemon: Daemon, guest: Hostile, kind: str) -> None:
    fault = daemon.logged("queue_fault")
    assert (fault["queue"], fault["kind"], fault["level"]) == (0, kind, "error")
    assert guest.bad.driver.vring.wait_err()
    assert guest.good_queue_reads()
    guest.bad.driver.vring.kick()  # a broken queue stays broken, and says no more
    assert guest.good_queue_reads()
    guest.frontend.close()
    daemon.logged("frontend_disconnected")
    assert daemon.stop() == 0
    assert len([line for line in daemon.log if line["event"] == "queue_fault"]) == 1


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize(("write", "kind"), CASES, ids=[write.__name__ for write, _ in CASES])
def test_a_bad_chain_stops_its_queue_alone(
    tmp_path: Path, image: Path, write: Callable[[RingByHand], None], kind: str, *, packed: bool
) -> None:
    with Daemon("blk", "--socket-path", tmp_path / "s", "--blk-file", image) as daemon:
        daemon.logged("listening")
        guest = Hostile(tmp_path / "s", packed=packed)
        write(guest.bad)
        guest.bad.offer()
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
        guest.bad.desc(0, guest.bad.gpa, 16, NEXT if following else 0, following)
        guest.bad.offer(head, idx)
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
        guest.bad.desc(0, guest.bad.gpa, 16, flags, buffer_id)
        guest.bad.offer()
        expect_one_queue_broken(daemon, guest, kind)
