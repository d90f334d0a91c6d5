"""What is no raw image isn't served as one, and no two programs write to one image: neither ours nor QEMU's."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.cli.harness import PATIENCE_S, Daemon, refused

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(MIB))
    return path


def qemu_io(image: Path, command: str, *options: str) -> subprocess.CompletedProcess[str]:
    words = ["qemu-io", "-f", "raw", *options, "-c", command, str(image)]
    return subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


@pytest.mark.parametrize("kind", ["qcow2", "vmdk", "vhdx", "vdi", "qed"])
def test_an_image_in_another_format_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "disk.img"
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, path, "8M"], check=True)
    os.truncate(path, -(-path.stat().st_size // MIB) * MIB)
    line = refused("blk", "--socket-path", tmp_path / "s", "--blk-file", path, code=1)
    assert f"is a {kind} image".lower() in line.lower()
    assert "qemu-img convert -O raw" in line


def test_a_second_writer_is_refused_and_may_come_when_the_first_has_left(tmp_path: Path, image: Path) -> None:
    with Daemon("blk", "--socket-path", tmp_path / "s", "--blk-file", image) as first:
        first.logged("listening")
        for options in ([], ["--read-only"]):
            line = refused("blk", "--socket-path", tmp_path / "t", "--blk-file", image, *options, code=1)
            assert "another process has this image open" in line
        assert first.stop() == 0
    with Daemon("blk", "--socket-path", tmp_path / "s", "--blk-file", image) as second:
        second.logged("listening")
        assert second.stop() == 0


def test_readers_share_and_keep_writers_out(tmp_path: Path, image: Path) -> None:
    arguments = ("--blk-file", image, "--read-only")
    with (
        Daemon("blk", "--socket-path", tmp_path / "s", *arguments) as first,
        Daemon("blk", "--socket-path", tmp_path / "t", *arguments) as second,
    ):
        first.logged("listening")
        second.logged("listening")
        assert qemu_io(image, "read 0 512", "-r").returncode == 0
        assert qemu_io(image, "write 0 512").returncode == 1
        line = refused("blk", "--socket-path", tmp_path / "u", "--blk-file", image, code=1)
        assert "another process has this image open" in line
        assert (first.stop(), second.stop()) == (0, 0)


def test_qemu_does_not_write_to_what_we_serve(tmp_path: Path, image: Path) -> None:
    with Daemon("blk", "--socket-path", tmp_path / "s", "--blk-file", image) as daemon:
        daemon.logged("listening")
        refusal = qemu_io(image, "write 0 512")
        assert refusal.returncode == 1
        assert "lock" in refusal.stderr
        assert daemon.stop() == 0
    assert qemu_io(image, "write 0 512").returncode == 0


def test_we_do_not_write_to_what_qemu_serves(tmp_path: Path, image: Path) -> None:
    words = ["qemu-io", "-f", "raw", str(image)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as qemu:
        assert qemu.stdin is not None
        assert qemu.stdout is not None
        qemu.stdin.write("write 0 512\n")
        qemu.stdin.flush()
        while "wrote" not in qemu.stdout.readline():  # it is open, then
            assert qemu.poll() is None
        line = refused("blk", "--socket-path", tmp_path / "s", "--blk-file", image, code=1)
        assert "another process has this image open" in line
        qemu.communicate("quit\n", timeout=PATIENCE_S)


def test_a_block_device_that_somebody_has_exclusively_is_only_read(tmp_path: Path, loop_device: Path) -> None:
    arguments = ("--socket-path", tmp_path / "s", "--blk-file", loop_device)
    holder = os.open(loop_device, os.O_RDONLY | os.O_EXCL)  # as a mount does
    try:
        assert "is mounted or used exclusively" in refused("blk", *arguments, code=1)
        with Daemon("blk", *arguments, "--read-only") as daemon:
            daemon.logged("listening")
            assert daemon.stop() == 0
    finally:
        os.close(holder)
