"""The virtio_net driver of Linux, in user-mode Linux, uses a card that `kpoll net` serves: a real driver in 2 s."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import pytest
from trio.testing import trio_test

from tests.vm.daemon import Daemon, kpoll_net
from tests.vm.guest import Guest, uml
from tests.vm.host_end import host_end
from tests.vm.network import Network, own_network
from tests.vm.traffic import (
    bulk_to_host_and_back,
    guest_interface,
    host_interface,
    no_faults,
    reaches,
    sees_the_cable_out_and_in,
    talk,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

MAC = "52:54:00:12:34:56"
ME = 2


@dataclass(frozen=True)
class OnTap:
    """A guest whose card is the tap `vm` of a network."""

    network: Network
    daemon: Daemon
    guest: Guest


@asynccontextmanager
async def guest_on_tap(folder: Path, *options: str, mtu: int = 1500) -> AsyncIterator[OnTap]:
    """Boot a guest on a tap, with the host's end served."""
    async with own_network() as network, kpoll_net(folder, "tap:vm", *options, network=network) as daemon:
        await host_interface(network, "vm", mtu=mtu)
        async with host_end(network), uml(card=daemon.socket) as guest:
            await guest_interface(guest, ME)
            yield OnTap(network, daemon, guest)


@pytest.mark.parametrize("mtu", [1500, 9000])
@trio_test
async def test_what_goes_over_a_tap_comes_back_whole(tmp_path: Path, mtu: int) -> None:
    """ARP, pings, TCP and UDP in both directions, with frames and datagrams of every size."""
    async with guest_on_tap(tmp_path, "--mac", MAC, "--mtu", str(mtu), mtu=mtu) as on:
        assert await on.guest.run("cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu") == f"{MAC}\n{mtu}"
        await reaches(on.guest, 1)
        await bulk_to_host_and_back(on.guest, mib=4)
        metrics = await on.daemon.metrics()
        for direction in ("rx", "tx"):
            assert metrics.total("kpoll_net_bytes_total", direction=direction) > 8 * 4 << 20
        await no_faults(on.daemon)
        await on.guest.power_off()


@trio_test
async def test_the_guest_sees_the_cable_come_out_and_go_in(tmp_path: Path) -> None:
    """The tap's link, down and up again, is the guest's carrier, and frames flow again after that."""
    async with guest_on_tap(tmp_path) as on:
        for up in (0, 1):
            await on.guest.begin(f'until [ "$(cat /sys/class/net/eth0/carrier)" = {up} ]; do :; done')
            await on.network.run(f"ip link set vm {'up' if up else 'down'}")
            await on.guest.finish("the carrier's change", seconds=20)
        await on.network.run("ip address replace 2001:db8::1/64 dev vm nodad")  # lost with the link, as IPv6 has it
        await reaches(on.guest, 1)
        await bulk_to_host_and_back(on.guest, mib=1)


@trio_test
async def test_a_tap_deleted_under_load_is_served_again_when_it_is_back(tmp_path: Path) -> None:
    """The guest's cable is out while the tap is gone; the daemon and the card stay."""
    async with guest_on_tap(tmp_path) as on:

        async def back() -> None:
            await on.network.run("ip tuntap add dev vm mode tap vnet_hdr")
            await host_interface(on.network, "vm")

        await sees_the_cable_out_and_in(on.guest, partial(on.network.run, "ip link delete vm"), back, size=1400)
        await reaches(on.guest, 1)
        await bulk_to_host_and_back(on.guest, mib=1)
        await no_faults(on.daemon)


@trio_test
async def test_two_guests_talk_over_a_udp_path(tmp_path: Path) -> None:
    """A daemon at each end; every byte arrives, with the checksums that a UDP path leaves to the guests."""
    async with own_network() as network:
        a, b = "127.0.0.1:4001", "127.0.0.1:4002"
        async with (
            kpoll_net(tmp_path, f"udp:{a},{b}", network=network, name="a") as left,
            kpoll_net(tmp_path, f"udp:{b},{a}", network=network, name="b") as right,
            uml(card=left.socket) as first,
            uml(card=right.socket) as second,
        ):
            await talk(first, second)
            await no_faults(left)
            await no_faults(right)
