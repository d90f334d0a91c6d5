"""An unmodified QEMU and Debian's own kernel use a disk that `kpoll blk` serves."""

from __future__ import annotations

import hashlib
import os
import signal
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import trio_test

from tests.threads import assert_idle
from tests.vm.daemon import kpoll_blk
from tests.vm.guest import Guest, GuestError, qemu, qemu_disk

if TYPE_CHECKING:
    from pathlib import Path

    from tests.vm.daemon import Daemon

MIB = 1 << 20
SIZE = 64 * MIB
SECTOR = 512
VIRTIO_RING_F_EVENT_IDX = 29
VIRTIO_F_RING_PACKED = 34


def blank(path: Path) -> Path:
    """Make a sparse disk image; return it."""
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Give a sparse disk image."""
    return blank(tmp_path / "disk.img")


def sha256(path: Path, offset: int, length: int) -> str:
    """Hash a part of a file."""
    with path.open("rb") as file:
        file.seek(offset)
        return hashlib.sha256(file.read(length)).hexdigest()


def allocated(path: Path) -> int:
    """Return how many bytes of a file are on the disk."""
    return path.stat().st_blocks * 512


async def no_io_errors(guest: Guest) -> None:
    """Check that the guest's kernel saw no I/O error."""
    await guest.run("! dmesg | grep -iE 'I/O error|blk_update|timed out'")


async def carries_both_ways(guest: Guest, disk: str, image: Path, daemon: Daemon, queues: int) -> None:
    """Write to a disk from every CPU, which has a queue of its own, and read that back."""
    part = 4 * MIB
    wrote = await guest.run(f"""
        dd if=/dev/urandom of=/tmp/random bs=1M count={part * queues // MIB} status=none
        cpu=0
        while [ $cpu -lt {queues} ]; do
            taskset $((1 << cpu)) dd if=/tmp/random of=/dev/{disk} bs=64k count=64 skip=$((cpu * 64)) \\
                seek=$((cpu * 64)) oflag=direct conv=notrunc,fsync 2>/tmp/dd.$cpu &
            pids="$pids $!"
            cpu=$((cpu + 1))
        done
        for pid in $pids; do wait $pid; done
        sha256sum < /tmp/random""")
    written = wrote.split()[0]
    assert sha256(image, 0, part * queues) == written
    read = await guest.run(
        f"dd if=/dev/{disk} bs=4k count={part * queues // 4096} iflag=direct status=none | sha256sum"
    )
    assert read.split()[0] == written

    metrics = await daemon.metrics()
    for queue in range(queues):
        assert metrics.total("kpoll_requests_total", op="write", queue=str(queue)) > 0
    assert metrics.total("kpoll_requests_total", op="flush") > 0
    assert metrics.total("kpoll_request_bytes_total", op="write") == part * queues
    assert metrics.total("kpoll_request_errors_total") == 0
    assert metrics.total("kpoll_queue_faults_total") == 0


@pytest.mark.parametrize("queues", [1, 4], ids=["1_queue", "4_queues"])
@trio_test
async def test_what_every_cpu_wrote_is_on_the_host(tmp_path: Path, queues: int) -> None:
    """All queues of every ring format carry data both ways, and a flush reaches the device. A disk for each format."""
    formats = {"vda": (False, True), "vdb": (False, False), "vdc": (True, True), "vdd": (True, False)}
    async with AsyncExitStack() as stack:
        served: dict[str, tuple[Path, Daemon]] = {}
        devices: list[str] = []
        for disk, (packed, event_idx) in formats.items():
            folder = tmp_path / disk
            folder.mkdir()
            image = blank(folder / "disk.img")
            daemon = await stack.enter_async_context(kpoll_blk(folder, image))
            devices += qemu_disk(daemon.socket, name=disk, queues=queues, packed=packed, event_idx=event_idx)
            served[disk] = image, daemon
        guest = await stack.enter_async_context(qemu(devices, cpus=queues))
        for disk, (packed, event_idx) in formats.items():
            negotiated = await guest.run(f"cat /sys/block/{disk}/device/features")
            assert negotiated[VIRTIO_F_RING_PACKED] == str(int(packed))
            assert negotiated[VIRTIO_RING_F_EVENT_IDX] == str(int(event_idx))
            assert len((await guest.run(f"ls /sys/block/{disk}/mq")).split()) == queues
            await carries_both_ways(guest, disk, *served[disk], queues)
        await no_io_errors(guest)
        await guest.power_off()


@trio_test
async def test_the_largest_ring_and_requests_of_many_pieces(tmp_path: Path, image: Path) -> None:
    """A ring of QEMU's maximum, 1024 entries, with requests of a megabyte."""
    async with kpoll_blk(tmp_path, image) as daemon, qemu(qemu_disk(daemon.socket, queue_size=1024)) as guest:
        written = await guest.run("""
            dd if=/dev/urandom of=/tmp/random bs=1M count=32 status=none
            dd if=/tmp/random of=/dev/vda bs=1M oflag=direct conv=fsync status=none
            sha256sum < /tmp/random
            dd if=/dev/vda bs=1M count=32 iflag=direct status=none | cmp - /tmp/random""")
        assert sha256(image, 0, 32 * MIB) == written.split()[0]
        await no_io_errors(guest)


@trio_test
async def test_discard_gives_space_back_to_the_host(tmp_path: Path, image: Path) -> None:
    """What the guest discards becomes a hole in the image, and reads as zeros."""
    async with kpoll_blk(tmp_path, image) as daemon, qemu(qemu_disk(daemon.socket)) as guest:
        await guest.run("dd if=/dev/urandom of=/dev/vda bs=1M count=32 oflag=direct conv=fsync status=none")
        full = allocated(image)
        await guest.run(f"blkdiscard -o {8 * MIB} -l {16 * MIB} /dev/vda")
        assert allocated(image) <= full - 16 * MIB
        await guest.run("dd if=/dev/vda bs=1M skip=8 count=16 iflag=direct status=none | cmp -n 16777216 - /dev/zero")
        assert (await daemon.metrics()).total("kpoll_requests_total", op="discard") > 0
        await no_io_errors(guest)


@pytest.mark.parametrize(("how", "keeps_space"), [("--punch-hole", False), ("--zero-range", True)])
@trio_test
async def test_write_zeroes_with_and_without_unmap(tmp_path: Path, image: Path, how: str, keeps_space: bool) -> None:
    """Linux asks for zeros that may be unmapped (punch hole) and for zeros that may not (zero range)."""
    async with kpoll_blk(tmp_path, image) as daemon, qemu(qemu_disk(daemon.socket)) as guest:
        await guest.run("dd if=/dev/urandom of=/dev/vda bs=1M count=32 oflag=direct conv=fsync status=none")
        full = allocated(image)
        await guest.run(f"/usr/bin/fallocate {how} -o {4 * MIB} -l {8 * MIB} /dev/vda")
        await guest.run("dd if=/dev/vda bs=1M skip=4 count=8 iflag=direct status=none | cmp -n 8388608 - /dev/zero")
        assert (allocated(image) > full - MIB) is keeps_space
        assert (await daemon.metrics()).total("kpoll_requests_total", op="write_zeroes") > 0
        await no_io_errors(guest)


@trio_test
async def test_a_grown_image_reaches_the_running_guest(tmp_path: Path, image: Path) -> None:
    """The guest sees the new size without asking, and can use the new space."""
    async with kpoll_blk(tmp_path, image) as daemon, qemu(qemu_disk(daemon.socket)) as guest:
        assert int(await guest.run("cat /sys/block/vda/size")) == SIZE // SECTOR
        await guest.begin(f"""
            echo watching
            until [ "$(cat /sys/block/vda/size)" = {2 * SIZE // SECTOR} ]; do :; done
            dd if=/dev/urandom of=/tmp/last bs=1M count=1 status=none
            dd if=/tmp/last of=/dev/vda bs=1M seek={2 * SIZE // MIB - 1} oflag=direct conv=fsync status=none
            sha256sum < /tmp/last""")
        await guest.says("watching")
        with image.open("r+b") as file:
            file.truncate(2 * SIZE)
        written = (await guest.finish("the new size", seconds=60)).splitlines()[-1].split()[0]
        assert sha256(image, 2 * SIZE - MIB, MIB) == written
        await no_io_errors(guest)


@trio_test
async def test_a_disk_that_stops_keeps_the_guest_waiting_and_no_error_reaches_it(tmp_path: Path, image: Path) -> None:
    """--on-error stop: while half of the image is cut off all wait; once it is mended SIGHUP has all done."""
    half = hashlib.sha256(b"kpoll").digest() * (SIZE // 2 // 32)

    def mend() -> None:
        with image.open("r+b") as file:
            file.seek(SIZE // 2)
            file.write(half)
            os.fsync(file.fileno())

    def read(block: int, to: str) -> str:
        """Read a block, and don't wait for it."""
        return (
            f"dd if=/dev/vda bs=4k skip={block} count=1 iflag=direct of=/tmp/{to} 2>/dev/null & echo $! > /tmp/{to}.pid"
        )

    mend()
    async with (
        kpoll_blk(tmp_path, image, "--on-error", "stop") as daemon,
        qemu(qemu_disk(daemon.socket, queues=2), cpus=2) as guest,
    ):
        os.truncate(image, SIZE // 2)
        await guest.run(read(SIZE // 2 // 4096, "lost"))
        assert (await daemon.logged("disk_errors"))["stopped"] is True
        await guest.run(read(0, "there"))
        while (await daemon.metrics()).total("kpoll_requests_kept") < 2:
            pass
        await guest.run("for each in lost there; do kill -0 $(cat /tmp/$each.pid); done")
        mend()
        daemon.child.signal(signal.SIGHUP)
        assert (await daemon.logged("disk_resumed"))["waiting"] == 2
        sums = await guest.run("""
            for each in lost there; do
                while kill -0 $(cat /tmp/$each.pid) 2>/dev/null; do :; done
                sha256sum < /tmp/$each
            done""")
        blocks = half[:4096], bytes(4096)
        assert [line.split()[0] for line in sums.splitlines()] == [hashlib.sha256(each).hexdigest() for each in blocks]
        await no_io_errors(guest)
        assert (await daemon.logged("disk_errors_over"))["reported"] == 0


@trio_test
async def test_a_read_only_disk_refuses_writes(tmp_path: Path, image: Path) -> None:
    """The guest knows that the disk is read-only, reads it, and cannot change it."""
    content = hashlib.sha256(b"kpoll").digest() * (MIB // 32)
    image.write_bytes(content)
    async with kpoll_blk(tmp_path, image, "--read-only") as daemon, qemu(qemu_disk(daemon.socket)) as guest:
        assert await guest.run("cat /sys/block/vda/ro") == "1"
        read = await guest.run("sha256sum < /dev/vda")
        assert read.split()[0] == hashlib.sha256(content).hexdigest()
        with pytest.raises(GuestError):
            await guest.run("dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct")
    assert image.read_bytes() == content


@trio_test
async def test_a_second_guest_is_served_after_the_first_has_left(tmp_path: Path, image: Path) -> None:
    """It finds what the first one wrote; the daemon was never restarted."""
    async with kpoll_blk(tmp_path, image) as daemon:
        async with qemu(qemu_disk(daemon.socket)) as guest:
            written = await guest.run(
                "head -c 4096 /dev/urandom > /tmp/r; dd if=/tmp/r of=/dev/vda bs=4k oflag=direct "
                "conv=fsync 2>/dev/null; sha256sum < /tmp/r"
            )
            await guest.power_off()
        async with qemu(qemu_disk(daemon.socket, packed=True)) as guest:
            assert await guest.run("dd if=/dev/vda bs=4k count=1 iflag=direct status=none | sha256sum") == written
            await guest.power_off()
        assert await daemon.stop() == 0


@trio_test
async def test_a_guest_killed_in_the_middle_of_writing_leaves_a_daemon_that_serves_the_next(
    tmp_path: Path, image: Path
) -> None:
    """A front-end that vanishes with requests in flight costs nothing but itself."""
    async with kpoll_blk(tmp_path, image) as daemon:
        async with qemu(qemu_disk(daemon.socket, queues=4), cpus=4) as guest:
            await guest.begin("""
                for cpu in 1 2 4 8; do
                    (while :; do taskset $cpu dd if=/dev/zero of=/dev/vda bs=64k oflag=direct status=none || :; done) &
                done
                until [ "$(awk '{ print $7 }' /sys/block/vda/stat)" -gt 65536 ]; do :; done
                echo busy
                wait""")
            await guest.says("busy")
            guest.child.signal(signal.SIGKILL)
        async with qemu(qemu_disk(daemon.socket)) as guest:
            await guest.run("dd if=/dev/vda bs=1M count=8 iflag=direct of=/dev/null status=none")
            await no_io_errors(guest)
        assert await daemon.stop() == 0


@trio_test
async def test_sigterm_finishes_what_is_in_flight_and_the_guest_goes_on_with_the_next_daemon(
    tmp_path: Path, image: Path
) -> None:
    """QEMU reconnects to a daemon started anew; the writing guest notices nothing and misses nothing."""
    devices = ["-chardev", f"socket,id=disk,path={tmp_path / 'disk.sock'},reconnect=1"]
    devices += ["-device", "vhost-user-blk-pci,chardev=disk,num-queues=1"]
    async with kpoll_blk(tmp_path, image) as first, qemu(devices) as guest:
        await guest.begin("""
            dd if=/dev/urandom of=/tmp/random bs=1M count=16 status=none
            dd if=/tmp/random of=/dev/vda bs=4k count=1024 oflag=direct conv=notrunc status=none
            echo writing
            dd if=/tmp/random of=/dev/vda bs=4k oflag=direct conv=notrunc,fsync status=none
            dd if=/dev/vda bs=64k count=256 iflag=direct status=none | cmp - /tmp/random
            sha256sum < /tmp/random""")
        await guest.says("writing")
        with trio.fail_after(2):
            assert await first.stop() == 0
        async with kpoll_blk(tmp_path, image) as second:
            written = (await guest.finish("writing", seconds=60)).splitlines()[-1].split()[0]
            assert sha256(image, 0, 16 * MIB) == written
            assert (await second.metrics()).total("kpoll_requests_total", op="write") > 0
            await no_io_errors(guest)


@pytest.mark.parametrize("poll", ["user", "off"])
@trio_test
async def test_an_idle_guest_costs_nothing(tmp_path: Path, image: Path, poll: str) -> None:
    """With a connected guest that does no I/O, the daemon takes under 0.2 % of a CPU and never wakes up by itself."""
    window_s = 5
    async with kpoll_blk(tmp_path, image, "--poll", poll) as daemon, qemu(qemu_disk(daemon.socket)) as guest:
        await guest.run("dd if=/dev/vda bs=4k count=1024 iflag=direct of=/dev/null status=none")
        before = daemon.cost()
        await trio.sleep(window_s)  # the measurement itself, not a wait for something to happen
        assert_idle(daemon.cost() - before, window_s)
        await guest.run("dd if=/dev/vda bs=4k count=1 iflag=direct of=/dev/null status=none")
