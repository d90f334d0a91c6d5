"""The entropy device of kpoll.vhost.examples in an unmodified QEMU: Linux' virtio_rng driver reads from it."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

from trio.testing import trio_test

from tests.vm.child import running
from tests.vm.guest import qemu

if TYPE_CHECKING:
    from pathlib import Path


@trio_test
async def test_linux_reads_entropy_from_the_example_device(tmp_path: Path) -> None:
    """The driver names the device, reads from it, and the device outlives the guest."""
    path = tmp_path / "rng.sock"
    command = [sys.executable, "-u", "-m", "kpoll.vhost.examples.rng", "--socket-path", str(path)]
    devices = ["-chardev", f"socket,id=rng,path={path}", "-device", "vhost-user-rng-pci,chardev=rng"]
    async with running("the entropy device", command) as backend:
        await backend.expect(lambda line: "listening" in line, "its socket", 20)
        async with qemu(devices) as guest:
            assert await guest.run("cat /sys/class/misc/hw_random/rng_current") == "virtio_rng.0"
            reads = "for n in 1 2; do dd if=/dev/hwrng bs=4096 count=4 status=none | sha256sum; done"
            first, second = (await guest.run(reads)).splitlines()
            assert first != second
            zeros = await guest.run("dd if=/dev/zero bs=4096 count=4 status=none | sha256sum")
            assert zeros not in (first, second)
            await guest.power_off()
        await backend.expect(lambda line: "frontend_disconnected" in line, "the guest's end", 20)
        backend.signal(signal.SIGTERM)
        assert await backend.wait(20) == 0
