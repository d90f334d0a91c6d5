"""An act of `make demo`: a guest pings the host, and runs iperf3 with it, over a card that kpoll serves.

The host's end is a tap in a network of the demo's own, so that the host's real one is neither needed nor touched.
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from tests.vm.child import running
from tests.vm.daemon import kpoll_net
from tests.vm.guest import qemu, qemu_card
from tests.vm.network import NetworkError, own_network
from tests.vm.traffic import HOST, guest_interface, host_interface, ip4, ip6

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.vm.guest import Guest
    from tests.vm.network import Network
    from tests.vm.stage import Stage

IPERF3 = "/usr/bin/iperf3"
MAC = "52:54:00:12:34:56"
GUEST = 2
SECONDS = 3


async def act(stage: Stage, folder: Path, log: Path, accel: str) -> None:
    """Show the card; say so where this host gives us no network for that, and go on."""
    stage.step("A network of the demo's own")
    try:
        async with own_network() as network:
            stage.check(True, "it has nothing but a loopback interface, and is gone when this act ends")
            with log.open("ab") as tee:
                async with kpoll_net(folder, "tap:vm", network=network, tee=tee) as daemon:
                    stage.step("kpoll serves a network card, with a tap as the host's end of the cable")
                    stage.show(_typed(daemon.command[len(network.inside()) :]))
                    await host_interface(network, "vm")
                    await _talk(stage, network, daemon.socket, accel)
                    metrics = await daemon.metrics()
                    rx, tx = (int(metrics.total("kpoll_net_bytes_total", direction=to)) >> 20 for to in ("rx", "tx"))
                    stage.check(min(rx, tx) > 0, f"kpoll has carried {tx} MiB from the guest, and {rx} MiB to it")
                    stage.check(await daemon.stop() == 0, "kpoll, told to end, has ended with exit code 0")
    except NetworkError as refused:
        stage.console.print(f"   [yellow]left out:[/] this host gives this user no such network ({refused}).")
        stage.console.print("   Run the demo as root to see the network card.")


async def _talk(stage: Stage, network: Network, socket: Path, accel: str) -> None:
    server = network.inside(IPERF3, "--server", "--forceflush")
    devices = qemu_card(socket, mac=MAC, accel=accel)
    stage.step("An unmodified QEMU boots with the card as eth0; the guest pings the host")
    stage.show(_typed(["qemu-system-x86_64", "...", *devices]))
    async with running("iperf3", server) as iperf, qemu(devices, accel=accel, programs=(IPERF3,)) as guest:
        await iperf.expect(lambda line: "listening" in line, "its port", seconds=60)
        await guest_interface(guest, GUEST)
        for ping in (f"ping -c 3 -A {ip4(HOST)}", f"ping6 -c 3 -A {ip6(HOST)}"):
            said = await stage.run(guest, ping)
            stage.check(" 0% packet loss" in said, f"every answer came: {said.splitlines()[-1]}")
        stage.step("In the guest: how fast is TCP? (all of it emulated CPU, unless you chose KVM)")
        for direction, option in (("guest to host", ""), ("host to guest", " --reverse")):
            rate = await _rate(stage, guest, f"iperf3 --client {ip4(HOST)} --time {SECONDS} --format m{option}")
            stage.figures[f"TCP, {direction}"] = f"{rate:.0f} Mbit/s"
        await guest.power_off()


def _typed(command: Sequence[str]) -> str:
    return shlex.join(command).replace(" -", " \\\n    -")


def received(said: str) -> float:
    """Return what iperf3 (--format m) says that the receiver got, in Mbit/s; 0 where it says nothing of that."""
    found = re.search(r"([0-9.]+) Mbits/sec +receiver", said)
    return float(found[1]) if found else 0.0


async def _rate(stage: Stage, guest: Guest, command: str) -> float:
    """Run iperf3 in the guest; return what the receiver got, in Mbit/s."""
    stage.show(command)
    rate = received(await guest.run(command))
    stage.check(rate > 0, f"{rate:.0f} Mbit/s arrived")
    return rate
