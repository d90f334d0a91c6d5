"""A booted guest that runs shell commands: unmodified QEMU or user-mode Linux with vhost-user devices."""

from __future__ import annotations

import base64
import shlex
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.vm.child import Child, running
from tests.vm.image import qemu_boot, uml_boot

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.vm.network import Network

BOOT_SECONDS = 120  # 2-4 s on a quiet machine; a busy CI machine gets its time
COMMAND_SECONDS = 120
MEMORY = "256M"


class GuestError(AssertionError):
    """A command in the guest failed; carries its exit status and output."""


@dataclass
class Guest:
    """A guest whose init waits for commands on the console (see image.INIT)."""

    child: Child

    async def run(self, command: str, seconds: float = COMMAND_SECONDS) -> str:
        """Run shell commands in the guest (sh -e) and return what they print, without the last line's end.

        Raises:
            GuestError: when they exit other than 0.
            ChildError: when the guest is gone, or says nothing within `seconds`.

        """
        await self.begin(command)
        return await self.finish(command, seconds)

    async def begin(self, command: str) -> None:
        """Start commands without waiting for them; finish() does that."""
        await self.child.send(base64.b64encode(command.encode()).decode() + "\n")

    async def finish(self, command: str = "the command", seconds: float = COMMAND_SECONDS) -> str:
        """Wait for what begin() started; as run() otherwise."""
        start = len(self.child.lines)
        status = await self.child.expect(lambda line: line.startswith("@@ "), f"the end of: {command}", seconds)
        output = "\n".join(self.child.lines[start:-1]).strip("\n")
        if status != "@@ 0":
            raise GuestError(f"in {self.child.name}: exit status {status[3:]} from\n{command}\n{output}")
        return output

    async def says(self, word: str, seconds: float = COMMAND_SECONDS) -> None:
        """Wait for a line of the running command that is exactly `word`."""
        await self.child.expect(lambda line: line == word, f"the line {word!r}", seconds)

    async def power_off(self, seconds: float = 60) -> None:
        """Turn the guest off, as `poweroff` does, and wait until its machine is gone."""
        await self.begin("sync; poweroff -f")
        await self.child.wait(seconds)


async def timed(guest: Guest, command: str) -> float:
    """Run a command in the guest and return its seconds, by the guest's clock."""
    stamp = "cut -d ' ' -f 1 /proc/uptime"
    output = await guest.run(f"{stamp}\n{command} >/dev/null 2>&1\n{stamp}")
    start, *_, end = (float(line) for line in output.splitlines())
    return max(end - start, 0.01)


def qemu_disk(
    socket: Path,
    *,
    name: str = "disk",
    queues: int = 1,
    packed: bool = False,
    event_idx: bool = True,
    queue_size: int = 128,
) -> list[str]:
    """Return QEMU's arguments for a disk served on a vhost-user socket; each disk of a guest has another name."""

    def switch(on: bool) -> str:
        return "on" if on else "off"

    return [
        *("-chardev", f"socket,id={name},path={socket}"),
        "-device",
        (
            f"vhost-user-blk-pci,chardev={name},num-queues={queues},queue-size={queue_size},"
            f"packed={switch(packed)},event_idx={switch(event_idx)}"
        ),
    ]


def qemu_card(
    socket: Path,
    *,
    mac: str,
    queue_pairs: int = 1,
    options: str = "",
    name: str = "card",
    accel: str = "tcg",
    reconnects: bool = False,
) -> list[str]:
    """Return QEMU's arguments for a network card served on a vhost-user socket.

    Args:
        socket: where.
        mac: the card's address, which is QEMU's to say.
        queue_pairs: how many.
        options: further properties of virtio-net-pci, such as "packed=on,csum=off".
        name: another one for each card of a guest.
        accel: as of qemu().
        reconnects: whether QEMU waits for another daemon when one has gone.

    """
    properties = [f"netdev=net-{name}", f"mac={mac}"]
    if accel == "tcg":
        properties.append("vectors=0")  # QEMU 7.2 takes MSI-X of a vhost-user card for KVM's, and crashes without KVM
    if queue_pairs > 1:
        properties.append("mq=on")
    if options:
        properties.append(options)
    return [
        *("-chardev", f"socket,id={name},path={socket}{',reconnect=1' if reconnects else ''}"),
        *("-netdev", f"vhost-user,id=net-{name},chardev={name},queues={queue_pairs}"),
        *("-device", f"virtio-net-pci,{','.join(properties)}"),
    ]


def qemu_command(devices: list[str], *, cpus: int = 1, accel: str = "tcg", programs: tuple[str, ...] = ()) -> list[str]:
    """Return a command line for an unmodified QEMU that boots the test guest on its serial console."""
    boot = qemu_boot(programs)
    return [
        "qemu-system-x86_64",
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"),
        *("-machine", f"q35,accel={accel},memory-backend=mem"),
        # KVM inside TCG was seen to take a guest's TSC deadline for one that is minutes away: its sleeps did not end.
        *("-cpu", "max" if accel == "tcg" else "host,tsc-deadline=off"),
        *("-smp", str(cpus), "-m", MEMORY),
        *("-object", f"memory-backend-memfd,id=mem,size={MEMORY},share=on"),
        *("-kernel", str(boot.kernel), "-initrd", str(boot.initramfs)),
        *("-append", "console=ttyS0 quiet panic=-1 tsc=reliable mitigations=off"),
        *devices,
    ]


@asynccontextmanager
async def qemu(
    devices: list[str],
    *,
    cpus: int = 1,
    accel: str = "tcg",
    network: Network | None = None,
    programs: tuple[str, ...] = (),
) -> AsyncIterator[Guest]:
    """Boot an unmodified QEMU for the length of the block.

    Args:
        devices: further arguments, as qemu_disk() makes them.
        cpus: virtual CPUs; Linux uses at most that many queues.
        accel: "tcg", or "kvm" where the user says that it works.
        network: the network namespace that QEMU runs in, else ours.
        programs: of the host, which the guest has too.

    """
    command = qemu_command(devices, cpus=cpus, accel=accel, programs=programs)
    if network is not None:
        command = network.inside(*command)
    async with running(f"QEMU ({shlex.join(devices)})", command) as child:
        yield await _booted(child)


@asynccontextmanager
async def uml(*, disk: Path | None = None, card: Path | None = None) -> AsyncIterator[Guest]:
    """Boot user-mode Linux for the length of the block, with what is served on vhost-user sockets.

    Args:
        disk: becomes /dev/vda.
        card: becomes eth0.

    """
    boot = uml_boot()
    devices = [f"virtio_uml.device={disk}:2"] if disk else []  # VIRTIO_ID_BLOCK
    devices += [f"virtio_uml.device={card}:1"] if card else []  # VIRTIO_ID_NET
    command = [
        str(boot.kernel),
        f"initrd={boot.initramfs}",
        *(f"mem={MEMORY}", "con=null", "con0=fd:0,fd:1", "quiet", "panic=-1"),
        *devices,
    ]
    async with running("user-mode Linux", command) as child:
        yield await _booted(child)


async def _booted(child: Child) -> Guest:
    await child.expect(lambda line: line == "@@ ready", "its boot", BOOT_SECONDS)
    child.lines.clear()
    return Guest(child)
