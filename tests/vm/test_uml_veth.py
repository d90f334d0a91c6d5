"""Guests on hosts that a cable joins, by VXLAN and by AF_XDP: a host is a network namespace, a veth pair the cable."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from trio.testing import trio_test

from tests.vm.daemon import kpoll_net
from tests.vm.guest import uml
from tests.vm.host_end import host_end
from tests.vm.network import Network, own_network
from tests.vm.traffic import (
    HOST,
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

    from tests.vm.daemon import Daemon
    from tests.vm.guest import Guest

VNI = 4711
MTU = 1430  # 1500 without the outer headers of VXLAN over IPv6, the longer ones
ADDRESSES = [("198.51.100.1", "198.51.100.2"), ("2001:db8:1::1", "2001:db8:1::2")]


@asynccontextmanager
async def two_hosts() -> AsyncIterator[tuple[Network, Network]]:
    """Make two networks with a cable between them, and both kinds of addresses on it."""
    async with own_network() as here, own_network() as there:
        await here.run(f"ip link add wire type veth peer name wire netns {there.pid}")
        for number, host in enumerate((here, there)):
            for pair, prefix in zip(ADDRESSES, (24, 64), strict=True):
                nodad = " nodad" if ":" in pair[number] else ""
                await host.run(f"ip address add {pair[number]}/{prefix} dev wire{nodad}")
            # A veth leaves checksums and segments to whoever reads them; what is on a real cable is finished.
            await host.run("ethtool -K wire tx off")
            await host.run("ip link set wire up")
        yield here, there


@asynccontextmanager
async def beside_linuxs_vxlan(folder: Path, ours: str, theirs: str) -> AsyncIterator[tuple[Network, Guest, Daemon]]:
    """Boot a guest of ours, whose segment a host that has nothing but Linux is in; gives the network that we are in."""
    backend = f"vxlan:vni={VNI},local={ours},remote={theirs}"
    async with two_hosts() as (here, there), kpoll_net(folder, backend, "--mtu", str(MTU), network=here) as daemon:
        await there.run(f"ip link add vx type vxlan id {VNI} local {theirs} remote {ours} dstport 4789 dev wire")
        await host_interface(there, "vx", mtu=MTU)
        async with host_end(there), uml(card=daemon.socket) as guest:
            await guest_interface(guest, 2)
            yield here, guest, daemon


@trio_test
async def test_linuxs_own_vxlan_device_is_a_peer(tmp_path: Path) -> None:
    """A guest of ours, and a host that has nothing but Linux, exchange whole data over their segment."""
    async with beside_linuxs_vxlan(tmp_path, *ADDRESSES[1]) as (_, guest, daemon):
        assert await guest.run("cat /sys/class/net/eth0/mtu") == str(MTU)
        await reaches(guest, HOST)
        await bulk_to_host_and_back(guest, mib=2)
        await no_faults(daemon)


@trio_test
async def test_the_guest_sees_its_cable_come_out_with_the_local_address_and_go_in_with_it(tmp_path: Path) -> None:
    """Under load; the same socket carries whole data again once an interface has the address."""
    ours, theirs = ADDRESSES[0]
    async with beside_linuxs_vxlan(tmp_path, ours, theirs) as (here, guest, daemon):
        cut, mend = (partial(here.run, f"ip address {verb} {ours}/24 dev wire") for verb in ("del", "add"))
        await sees_the_cable_out_and_in(guest, cut, mend, size=1300)
        await reaches(guest, HOST)
        await bulk_to_host_and_back(guest, mib=1)
        await no_faults(daemon)


@trio_test
async def test_two_guests_talk_with_a_daemon_at_each_end(tmp_path: Path) -> None:
    """Each on its own host."""
    ours, theirs = ADDRESSES[0]
    mtu = ("--mtu", str(MTU))
    async with (
        two_hosts() as (here, there),
        kpoll_net(tmp_path, f"vxlan:vni={VNI},local={ours},remote={theirs}", *mtu, network=here, name="a") as left,
        kpoll_net(tmp_path, f"vxlan:vni={VNI},local={theirs},remote={ours}", *mtu, network=there, name="b") as right,
        uml(card=left.socket) as first,
        uml(card=right.socket) as second,
    ):
        await talk(first, second)
        await no_faults(left)
        await no_faults(right)


@trio_test
async def test_a_guest_has_an_interface_to_itself_by_af_xdp(tmp_path: Path) -> None:
    """What the interface receives is the guest's: it and the host at the cable's other end exchange whole data."""
    async with two_hosts() as (here, there), kpoll_net(tmp_path, "xdp:wire", network=here) as daemon:
        await host_interface(there, "wire")
        async with host_end(there), uml(card=daemon.socket) as guest:
            await guest_interface(guest, 2)
            await reaches(guest, HOST)
            await bulk_to_host_and_back(guest, mib=2)
            await no_faults(daemon)
