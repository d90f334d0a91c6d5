"""The example device, vhost-user-rng, is one that an unmodified QEMU attaches and Linux reads."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from trio.testing import trio_test

from tests.vm.child import running
from tests.vm.guest import qemu

if TYPE_CHECKING:
    from pathlib import Path


@trio_test
async def test_linux_reads_random_numbers_from_the_example_device(tmp_path: Path) -> None:
    """/dev/hwrng is ours, gives what is asked for, and never the same twice."""
    socket = tmp_path / "rng.sock"
    command = [sys.executable, "-m", "kpoll.vhost.examples.rng", "--socket-path", str(socket)]
    devices = ["-chardev", f"socket,id=rng,path={socket}", "-device", "vhost-user-rng-pci,chardev=rng"]
    async with running("the rng example", command) as example:
        await example.expect(lambda line: "listening" in line, "the line that it listens", seconds=30)
        async with qemu(devices) as guest:
            assert "virtio_rng" in await guest.run("cat /sys/class/misc/hw_random/rng_current")
            await guest.run("head -c 65536 /dev/hwrng > /tmp/first; head -c 65536 /dev/hwrng > /tmp/second")
            assert await guest.run("wc -c < /tmp/first") == "65536"
            await guest.run("! cmp -s /tmp/first /tmp/second")
            await guest.run("! head -c 65536 /dev/zero | cmp -s - /tmp/first")
            await guest.power_off()
