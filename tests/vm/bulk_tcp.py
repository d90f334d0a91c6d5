"""Bulk TCP of a guest: its card on kpoll's tap, against the same card on QEMU's own (`-netdev tap`).

    .venv/bin/python -m tests.vm.bulk_tcp

Three guests are booted at once and stay idle but for the one whose turn it is: iperf3 runs in it, to the host and back,
in rounds of turned order. Without KVM, QEMU 7.2 has no MSI-X for a vhost-user card; so there is a guest on QEMU's tap
without it as well, the same one in all else, and the ratio is kpoll's to that one.

Needs root, `.ci/setup vm`, and a quiet machine: what is compared is the medians of one run.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click
import trio

from tests.threads import cost
from tests.vm.child import running
from tests.vm.daemon import kpoll_net
from tests.vm.demo_net import GUEST, IPERF3, MAC, received
from tests.vm.guest import qemu, qemu_card
from tests.vm.network import own_network
from tests.vm.traffic import HOST, guest_interface, host_interface, ip4

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.vm.guest import Guest

TAP = "vm"
KPOLL, OWN_TAP, OWN_TAP_MSIX = "kpoll", "QEMU's tap", "QEMU's tap, MSI-X"
DIRECTIONS = {"guest to host": "", "host to guest": " --reverse"}
LOAD_MAX = 1.0
BITS_PER_GIB = 8 << 30


@dataclass(frozen=True)
class Turn:
    """What one run of iperf3 gave: what the receiver got, and what the host spent on it beside the guest's own CPU."""

    gbps: float
    cpu_s_per_gib: float


@dataclass
class Contender:
    """A guest on a tap, and what it has been measured at.

    Attributes:
        name: What the table calls it.
        guest: Booted, with its card up.
        pids: The processes that serve it: QEMU, and kpoll if it has part in it.
        vcpu: The name of QEMU's thread that is the guest's CPU.
        turns: By direction, one for each round.

    """

    name: str
    guest: Guest
    pids: tuple[int, ...]
    vcpu: str
    turns: dict[str, list[Turn]] = field(default_factory=lambda: {direction: [] for direction in DIRECTIONS})

    async def measure(self, direction: str, seconds: float) -> None:
        """Have a turn."""
        before = self._cpu_ns()
        command = f"{IPERF3} --client {ip4(HOST)} --time {seconds:g} --format m{DIRECTIONS[direction]}"
        bits_per_s = received(await self.guest.run(command)) * 1e6
        used = (self._cpu_ns() - before) / 1e9
        self.turns[direction].append(Turn(bits_per_s / 1e9, used / (bits_per_s * seconds / BITS_PER_GIB)))

    def median(self, direction: str, what: str) -> float:
        """Return the median of the rounds."""
        value: float = statistics.median(getattr(turn, what) for turn in self.turns[direction])
        return value

    def _cpu_ns(self) -> int:
        return sum(cost(pid).cpu_ns - cost(pid, self.vcpu).cpu_ns for pid in self.pids)


async def boot(stack: AsyncExitStack, name: str, folder: Path, accel: str) -> Contender:
    """Boot a guest on a tap in a network of its own, at whose other end iperf3 listens."""
    network = await stack.enter_async_context(own_network())
    pids: tuple[int, ...] = ()
    if name == KPOLL:
        daemon = await stack.enter_async_context(kpoll_net(folder, f"tap:{TAP}", network=network))
        pids = (daemon.child.pid,)
        devices = qemu_card(daemon.socket, mac=MAC, accel=accel)
    else:
        vectors = ",vectors=0" if name == OWN_TAP and accel == "tcg" else ""
        devices = [
            *("-netdev", f"tap,id=net,ifname={TAP},script=no,downscript=no"),
            *("-device", f"virtio-net-pci,netdev=net,mac={MAC}{vectors}"),
        ]
    devices += ["-name", "guest,debug-threads=on"]
    guest = await stack.enter_async_context(qemu(devices, accel=accel, network=network, programs=(IPERF3,)))
    await host_interface(network, TAP)
    server = await stack.enter_async_context(running("iperf3", network.inside(IPERF3, "--server", "--forceflush")))
    await server.expect(lambda line: "listening" in line, "its port", seconds=60)
    await guest_interface(guest, GUEST)
    return Contender(name, guest, (*pids, guest.child.pid), f"CPU 0/{accel.upper()}")


async def compare(rounds: int, seconds: float, accel: str) -> list[Contender]:
    """Measure all of them in turns; return them, kpoll's first and the one that it is compared with next."""
    names = (KPOLL, OWN_TAP, OWN_TAP_MSIX) if accel == "tcg" else (KPOLL, OWN_TAP)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        contenders = [await boot(stack, name, folder, accel) for name in names]
        for number in range(rounds):
            click.echo(f"round {number + 1} of {rounds}", err=True)
            for direction in DIRECTIONS:
                for contender in contenders if number % 2 == 0 else reversed(contenders):
                    await contender.measure(direction, seconds)
        return contenders


def table(contenders: Sequence[Contender]) -> str:
    """Return the medians, and kpoll's against QEMU's, as a table in Markdown."""
    heads = ["direction", "metric", *(contender.name for contender in contenders), "ratio", "bar"]
    rows = [heads, ["---"] * len(heads)]
    for direction in DIRECTIONS:
        for what, unit, bar in (("gbps", "Gbit/s", ">= 1.00"), ("cpu_s_per_gib", "CPU s/GiB", "")):
            medians = [contender.median(direction, what) for contender in contenders]
            ratio = medians[0] / medians[1]
            rows.append([direction, unit, *(f"{value:.3g}" for value in medians), f"{ratio:.2f}", bar])
    return "\n".join(f"| {' | '.join(row)} |".replace("|  |", "| |") for row in rows)


@click.command(help=__doc__)
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(min=1), help="Of each guest and direction.")
@click.option("--seconds", default=5.0, show_default=True, help="How long iperf3 runs each time.")
@click.option("--accel", default="tcg", show_default=True, type=click.Choice(["tcg", "kvm"]))
def main(rounds: int, seconds: float, accel: str) -> None:
    """Compare, and print what came out."""
    load = os.getloadavg()[0]
    if load > LOAD_MAX:
        click.echo(f"the machine is not quiet (load {load:.1f}): its figures say little", err=True)
    contenders = trio.run(compare, rounds, seconds, accel)
    for contender in contenders:
        for direction, turns in contender.turns.items():
            each = ", ".join(f"{turn.gbps:.2f} ({turn.cpu_s_per_gib:.2f})" for turn in turns)
            click.echo(f"{contender.name}, {direction}: {each}")
    click.echo(table(contenders))


if __name__ == "__main__":
    main()
