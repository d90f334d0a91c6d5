"""What guests do with a card: addresses, pings, and bulk data whose checksums tell that every byte came through.

Everybody in a test's network has a number: 192.0.2.N and 2001:db8::N; the host's end is 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.vm.host_end import TCP_PORT, TFTP_PORT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tests.vm.daemon import Daemon
    from tests.vm.guest import Guest
    from tests.vm.network import Network

HOST = 1
# The same on whatever is the host's end: a guest's neighbour entry for it holds for the interface that took its place.
HOST_MAC = "02:00:00:00:00:01"
SEND_PORT = 7001
TFTP_BLOCKS = (1024, 8192, 60000)  # in one Ethernet frame, in a jumbo frame, in a datagram of many frames


def ip4(number: int) -> str:
    """Return an IPv4 address."""
    return f"192.0.2.{number}"


def ip6(number: int) -> str:
    """Return an IPv6 address."""
    return f"2001:db8::{number}"


async def host_interface(network: Network, name: str, *, mtu: int = 1500) -> None:
    """Give an interface of the host the host's addresses, and put the cable in."""
    await network.run(f"""
        ip link set dev {name} address {HOST_MAC}
        ip address add {ip4(HOST)}/24 dev {name}
        ip address add {ip6(HOST)}/64 dev {name} nodad
        ip link set dev {name} mtu {mtu} up""")


async def guest_interface(guest: Guest, number: int, name: str = "eth0") -> None:
    """Give a guest's card its addresses, usable at once, and have the card up."""
    await guest.run(f"""
        echo 0 > /proc/sys/net/ipv6/conf/{name}/accept_dad
        ip link set {name} up
        ip address add {ip4(number)}/24 dev {name}
        ip address add {ip6(number)}/64 dev {name}
        until [ "$(cat /sys/class/net/{name}/carrier)" = 1 ]; do :; done""")


async def reaches(guest: Guest, number: int) -> None:
    """Check that the guest reaches somebody by ARP, IPv4 and IPv6, with packets small and large."""
    for size in (56, 1472, 8000):
        await guest.run(f"ping -A -c 5 -s {size} {ip4(number)}; ping6 -A -c 5 -s {size} {ip6(number)}")
    await guest.run(f"arping -c 1 -w 5 -I eth0 {ip4(number)}")


async def bulk_to_host_and_back(
    guest: Guest, *, mib: int, addresses: Sequence[str] = (ip4(HOST), ip6(HOST)), blocks: Sequence[int] = TFTP_BLOCKS
) -> None:
    """Send random data to the host's end (host_end.py) over TCP and UDP, get it back, and check that it is the same."""
    await guest.run(f"dd if=/dev/urandom of=/tmp/random bs=1M count={mib} status=none")
    for address in addresses:
        await guest.run(f"nc {address} {TCP_PORT} < /tmp/random | cmp - /tmp/random")
        for block in blocks:
            await guest.run(f"""
                tftp -p -b {block} -l /tmp/random -r kept {address} {TFTP_PORT}
                tftp -g -b {block} -l /tmp/back -r kept {address} {TFTP_PORT}
                cmp /tmp/back /tmp/random
                rm /tmp/back""")


async def bulk_between(sender: Guest, receiver: Guest, number: int, *, mib: int) -> None:
    """Send random data over TCP from one guest to another, whose number this is, and compare checksums."""
    for address in (ip4(number), ip6(number)):
        await receiver.begin(f"echo listening; nc -l -p {SEND_PORT} | sha256sum")
        await receiver.says("listening")
        sent = await sender.run(f"""
            dd if=/dev/urandom of=/tmp/random bs=1M count={mib} status=none
            until nc {address} {SEND_PORT} < /tmp/random; do :; done  # refused until the other one listens
            sha256sum < /tmp/random""")
        assert (await receiver.finish()).splitlines()[-1] == sent.splitlines()[-1]


async def talk(first: Guest, second: Guest) -> None:
    """Give two guests their addresses, and check that each gets from the other what it was sent."""
    await guest_interface(first, 1)
    await guest_interface(second, 2)
    await reaches(first, 2)
    await bulk_between(first, second, 2, mib=2)
    await bulk_between(second, first, 1, mib=2)


async def sees_the_cable_out_and_in(
    guest: Guest, cut: Callable[[], Awaitable[object]], mend: Callable[[], Awaitable[object]], *, size: int
) -> None:
    """Check that a guest that pings the host's end with packets of `size` has no carrier from `cut` to `mend`."""
    await guest.begin(f"""
        ping -A -q -s {size} {ip4(HOST)} & pinging=$!
        until [ "$(cat /sys/class/net/eth0/statistics/rx_packets)" -gt 1000 ]; do :; done
        echo busy
        until [ "$(cat /sys/class/net/eth0/carrier)" = 0 ]; do :; done
        echo unplugged
        until [ "$(cat /sys/class/net/eth0/carrier)" = 1 ]; do :; done
        kill $pinging""")
    await guest.says("busy")
    await cut()
    await guest.says("unplugged")
    await mend()
    await guest.finish("the cable's return", seconds=20)


async def no_faults(daemon: Daemon) -> None:
    """Check that no queue was broken, and no frame taken for a lie: drivers of Linux give no cause for either."""
    metrics = await daemon.metrics()
    assert metrics.total("kpoll_queue_faults_total") == 0
    for reason in ("header", "length", "too_long"):
        assert metrics.total("kpoll_net_drops_total", reason=reason) == 0
