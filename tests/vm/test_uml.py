"""The virtio_blk driver of Linux, in user-mode Linux, uses a disk that `kpoll blk` serves: a real driver in 2 s."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest
from trio.testing import trio_test

from tests.vm.daemon import kpoll_blk
from tests.vm.guest import uml

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
SIZE = 64 * MIB


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Give a sparse disk image."""
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


@pytest.mark.parametrize("poll", ["user", "off"])
@pytest.mark.parametrize("engine", ["aio", "io_uring"])
@trio_test
async def test_what_the_guest_wrote_is_on_the_host_and_reads_back(
    tmp_path: Path, image: Path, engine: str, poll: str
) -> None:
    """Every engine and polling strategy carries the same data both ways."""
    async with (
        kpoll_blk(tmp_path, image, "--engine", engine, "--poll", poll) as daemon,
        uml(disk=daemon.socket) as guest,
    ):
        wrote = await guest.run("""
            dd if=/dev/urandom of=/tmp/random bs=1M count=32 status=none
            dd if=/tmp/random of=/dev/vda bs=64k oflag=direct conv=fsync status=none
            dd if=/dev/vda bs=4k count=8192 iflag=direct status=none | cmp - /tmp/random
            sha256sum < /tmp/random""")
        assert hashlib.sha256(image.read_bytes()[: 32 * MIB]).hexdigest() == wrote.split()[0]
        await guest.power_off()
    assert image.stat().st_size == SIZE


@trio_test
async def test_a_file_system_survives_the_guest_and_the_daemon(tmp_path: Path, image: Path) -> None:
    """Partition, ext4, files, trim, power off; a new daemon and a new guest find it whole."""
    async with kpoll_blk(tmp_path, image) as daemon, uml(disk=daemon.socket) as guest:
        await guest.run("""
            echo 'label: gpt
            ,,' | sfdisk -q /dev/vda
            mkfs.ext4 -q /dev/vda1
            mount /dev/vda1 /mnt
            for n in 1 2 3 4; do dd if=/dev/urandom of=/mnt/$n bs=1M count=4 conv=fsync status=none; done
            rm /mnt/4
            fstrim /mnt
            cd /mnt && sha256sum 1 2 3 > sums
            cd / && umount /mnt""")
        await guest.power_off()
        assert await daemon.stop() == 0
    async with kpoll_blk(tmp_path, image) as daemon, uml(disk=daemon.socket) as guest:
        await guest.run("e2fsck -fn /dev/vda1; mount -o ro /dev/vda1 /mnt; cd /mnt; sha256sum -c sums")


@trio_test
async def test_the_guest_reads_the_serial_number(tmp_path: Path, image: Path) -> None:
    """GET_ID carries what --serial says."""
    async with kpoll_blk(tmp_path, image, "--serial", "kpoll-1") as daemon, uml(disk=daemon.socket) as guest:
        assert await guest.run("cat /sys/block/vda/serial") == "kpoll-1"
