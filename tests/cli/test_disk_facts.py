"""What a guest is told of its disk is what the block device below says of itself; a loop device stands for it here."""

from __future__ import annotations

import os
import struct
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.harness import IN, KPOLL, OUT, SECTOR, Daemon, Guest, refused

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
SIZE_MAX, PHYSICAL_BLOCK_EXP, ALIGNMENT_OFFSET, WRITEBACK = 8, 24, 25, 32  # in struct virtio_blk_config


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.touch()
    os.truncate(path, 16 * MIB)
    return path


@pytest.fixture
def sock(tmp_path: Path) -> Path:
    return tmp_path / "s"


@contextmanager
def limit(device: Path, name: str, value: str) -> Iterator[None]:
    """Have the kernel believe something of a block device for a while."""
    knob = Path("/sys/block") / device.name / "queue" / name
    before = knob.read_text()
    knob.write_text(value)
    try:
        yield
    finally:
        knob.write_text(before)


def told(guest: Guest, offset: int, kind: str) -> int:
    """Return a field of struct virtio_blk_config."""
    (value,) = struct.unpack(f"<{kind}", guest.frontend.get_config(offset, struct.calcsize(f"<{kind}")))
    assert isinstance(value, int)
    return value


@contextmanager
def partition(device: Path) -> Iterator[Path]:
    """Make all but the first MiB of a block device a partition, for a while."""
    subprocess.run(["addpart", device, "1", "2048", str(15 * MIB // SECTOR)], check=True)
    try:
        yield Path(f"{device}p1")
    finally:
        subprocess.run(["delpart", device, "1"], check=True)


def modes(daemon: Daemon) -> list[bool]:
    """Return the cache modes that the log tells of."""
    return [line["write_back"] for line in daemon.log if line["event"] == "cache_mode"]


@pytest.mark.parametrize("part", [False, True], ids=["disk", "partition"])
def test_a_device_without_a_write_cache_is_writethrough_until_the_driver_says_otherwise(
    loop_device: Path, sock: Path, *, part: bool
) -> None:
    with (
        limit(loop_device, "write_cache", "write through"),
        partition(loop_device) as first,
        Daemon("blk", "--socket-path", sock, "--blk-file", first if part else loop_device) as daemon,
    ):
        assert daemon.logged("started")["write_cache"] is False
        daemon.logged("listening")
        with Guest(sock) as guest:
            assert guest.frontend.get_config(WRITEBACK, 1) == b"\0"
            assert guest.request(OUT, 0, out=b"x" * SECTOR)[0] == 0
            guest.frontend.set_config(WRITEBACK, b"\1")
            assert guest.frontend.get_config(WRITEBACK, 1) == b"\1"
        daemon.logged("frontend_disconnected")
        assert daemon.stop() == 0
    assert modes(daemon) == [True]


@pytest.mark.parametrize("part", [False, True], ids=["disk", "partition"])
def test_a_device_with_a_write_cache_begins_with_writeback(loop_device: Path, sock: Path, *, part: bool) -> None:
    with (
        partition(loop_device) as first,
        Daemon("blk", "--socket-path", sock, "--blk-file", first if part else loop_device) as daemon,
    ):
        assert daemon.logged("started")["write_cache"] is True
        daemon.logged("listening")
        with Guest(sock) as guest:
            assert guest.frontend.get_config(WRITEBACK, 1) == b"\1"
        daemon.logged("frontend_disconnected")
        assert daemon.stop() == 0
    assert modes(daemon) == [True]


@pytest.mark.parametrize("engine", ["aio", "io_uring"])
def test_a_request_may_be_larger_than_the_device_takes_at_once(loop_device: Path, sock: Path, engine: str) -> None:
    data = os.urandom(MIB // 2)
    with (
        limit(loop_device, "max_sectors_kb", "128"),
        Daemon("blk", "--socket-path", sock, "--blk-file", loop_device, "--engine", engine) as daemon,
    ):
        daemon.logged("listening")
        with Guest(sock) as guest:
            assert told(guest, SIZE_MAX, "I") == 128 << 10
            assert guest.request(OUT, 8, out=data)[0] == 0
            assert guest.request(IN, 8, length=len(data)) == (0, data)
        assert daemon.stop() == 0


def test_a_disk_that_does_not_begin_with_a_whole_physical_block_says_where_one_begins(
    loop_device: Path, sock: Path, tmp_path: Path
) -> None:
    """No such disk can be made here, so the kernel's answers are put in its mouth.

    They can only be the same, so the physical block is an odd one: 3072 bytes. The guest is told four blocks of 512,
    the largest power of two within. One begins at 3072, and so does one four blocks before.
    """
    trace, serve = tmp_path / "trace", ("blk", "--socket-path", sock, "--blk-file", loop_device)
    strace = ("strace", "-D", "-f", "-P", loop_device, "-o", trace)
    with Daemon(*serve, program=(*strace, "-e", "trace=ioctl", KPOLL)) as daemon:
        daemon.logged("listening")
        assert daemon.stop() == 0
    asked = [line for line in trace.read_text().splitlines() if "ioctl(" in line]
    first, last = (n for n, line in enumerate(asked, 1) if "BLKPBSZGET" in line or "BLKALIGNOFF" in line)
    when = f"{first}..{last}+{last - first}"
    answer = f"inject=ioctl:poke_exit=@arg3={(3072).to_bytes(4, 'little').hex()}:when={when}"
    with Daemon(*serve, program=(*strace, "-e", answer, KPOLL)) as daemon:
        daemon.logged("listening")
        with Guest(sock) as guest:
            assert (told(guest, PHYSICAL_BLOCK_EXP, "B"), told(guest, ALIGNMENT_OFFSET, "B")) == (2, 2)
        assert daemon.stop() == 0


def test_a_device_that_is_write_protected_is_only_read(loop_device: Path, sock: Path) -> None:
    subprocess.run(["blockdev", "--setro", loop_device], check=True)
    serve = ("blk", "--socket-path", sock, "--blk-file", loop_device)
    line = refused(*serve, code=1)
    assert f"{loop_device}: is read-only (write-protected, or blockdev --setro): use --read-only" in line
    with Daemon(*serve, "--read-only") as daemon:
        daemon.logged("listening")
        with Guest(sock) as guest:
            assert guest.request(IN, 0, length=SECTOR) == (0, bytes(SECTOR))
        assert daemon.stop() == 0
    subprocess.run(["blockdev", "--setrw", loop_device], check=True)
