"""Run inside the test VM: an unmodified QEMU with KVM boots Debian's cloud kernel to its init, and powers off."""

from __future__ import annotations

import trio

from tests.vm.guest import qemu


async def main() -> None:
    """Print what the guest says of itself."""
    async with qemu([], accel="kvm") as guest:
        print("guest:", await guest.run("uname -r"))
        print("hypervisor:", await guest.run("grep -o -m 1 hypervisor /proc/cpuinfo"))
        await guest.power_off()
        print("off")


if __name__ == "__main__":
    trio.run(main)
