"""An unmodified QEMU and Debian's own kernel use a card that `kpoll net` serves; and QEMU's own card is its peer."""

from __future__ import annotations

from contextlib import asynccontextmanager
from socket import AF_INET, SOCK_STREAM
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import trio_test

from tests.vm.daemon import Daemon, kpoll_net
from tests.vm.guest import qemu, qemu_card, uml
from tests.vm.host_end import TCP_PORT, host_end
from tests.vm.network import Network, own_network
from tests.vm.traffic import (
    HOST,
    SEND_PORT,
    bulk_to_host_and_back,
    guest_interface,
    host_interface,
    ip4,
    no_faults,
    reaches,
    talk,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

MAC = "52:54:00:12:34:56"
ME = 2
ETHTOOL = "/sbin/ethtool"
FLOWS = 16  # that one hash deals all of them to one queue pair of two is not to be feared
VIRTIO_NET_F_CSUM = 0
VIRTIO_NET_F_MRG_RXBUF = 15
VIRTIO_RING_F_INDIRECT_DESC = 28
VIRTIO_RING_F_EVENT_IDX = 29
VIRTIO_F_RING_PACKED = 34
FEATURES = "cat /sys/class/net/eth0/device/features"
BARE = ",".join(
    f"{feature}=off"
    for feature in (
        *("csum", "gso", "host_tso4", "host_tso6", "host_ecn", "host_ufo"),
        *("guest_csum", "guest_tso4", "guest_tso6", "guest_ecn", "guest_ufo"),
        *("mrg_rxbuf", "event_idx", "indirect_desc"),
    )
)


@asynccontextmanager
async def card_on_tap(folder: Path, *options: str, mtu: int = 1500) -> AsyncIterator[tuple[Network, Daemon]]:
    """Serve a card on a tap, with the host's end of it up and served."""
    async with own_network() as network, kpoll_net(folder, "tap:vm", *options, network=network) as daemon:
        await host_interface(network, "vm", mtu=mtu)
        async with host_end(network):
            yield network, daemon


@pytest.mark.parametrize(("packed", "mtu"), [("off", 1500), ("on", 9000)], ids=["split", "packed-jumbo"])
@trio_test
async def test_what_goes_over_a_tap_comes_back_whole(tmp_path: Path, packed: str, mtu: int) -> None:
    """Both ring formats carry TCP and UDP both ways; so do jumbo frames, agreed on with QEMU (NET_SET_MTU)."""
    options = f"packed={packed},host_mtu={mtu}"
    async with (
        card_on_tap(tmp_path, "--mtu", str(mtu), mtu=mtu) as (_, daemon),
        qemu(qemu_card(daemon.socket, mac=MAC, options=options)) as guest,
    ):
        await guest_interface(guest, ME)
        assert (await guest.run(FEATURES))[VIRTIO_F_RING_PACKED] == str(int(packed == "on"))
        assert await guest.run("cat /sys/class/net/eth0/mtu") == str(mtu)
        assert await guest.run("cat /sys/class/net/eth0/address") == MAC
        await reaches(guest, HOST)
        await bulk_to_host_and_back(guest, mib=4, addresses=(ip4(HOST),), blocks=(8192,))
        await no_faults(daemon)
        await guest.power_off()


async def answer(network: Network, said: bytes) -> bytes:
    """Say something to the guest over a connection that the host begins; return what it gives back."""
    with trio.fail_after(30), trio.socket.from_stdlib_socket(network.socket(AF_INET, SOCK_STREAM)) as sock:
        await sock.connect((ip4(ME), SEND_PORT))
        await sock.send(said)
        return await sock.recv(len(said))


@pytest.mark.parametrize("packed", ["off", "on"], ids=["split", "packed"])
@trio_test
async def test_every_cpu_has_a_queue_pair_that_carries_both_ways(tmp_path: Path, packed: str) -> None:
    """Two pairs, two CPUs: what each sends comes back whole, and no queue was idle.

    With one pair then, chosen by the driver, all that the host begins arrives as well.
    """
    async with (
        card_on_tap(tmp_path, "--num-queue-pairs", "2") as (network, daemon),
        qemu(
            qemu_card(daemon.socket, mac=MAC, queue_pairs=2, options=f"packed={packed}"), cpus=2, programs=(ETHTOOL,)
        ) as guest,
    ):
        await guest_interface(guest, ME)
        assert (await guest.run(FEATURES))[VIRTIO_F_RING_PACKED] == str(int(packed == "on"))
        await reaches(guest, HOST)
        await guest.run(f"""
            dd if=/dev/urandom of=/tmp/random bs=1M count=4 status=none
            for cpu in 1 2; do
                taskset $cpu nc {ip4(HOST)} {TCP_PORT} < /tmp/random > /tmp/back$cpu &
                pids="$pids $!"
            done
            for pid in $pids; do wait $pid; done
            cmp /tmp/back1 /tmp/random
            cmp /tmp/back2 /tmp/random""")
        metrics = await daemon.metrics()
        for queue in range(4):
            assert metrics.total("kpoll_net_packets_total", queue=str(queue)) > 0
        await guest.run("ethtool -L eth0 combined 1")
        await guest.run(f"""
            nc -ll -p {SEND_PORT} -e cat < /dev/null > /dev/null 2>&1 &
            until netstat -lt | grep -q :{SEND_PORT}; do :; done""")
        for number in range(FLOWS):
            assert await answer(network, f"{number}".encode()) == f"{number}".encode()
        await no_faults(daemon)


@trio_test
async def test_a_guests_card_goes_on_with_the_next_daemon(tmp_path: Path) -> None:
    """QEMU reconnects to a daemon started anew (reconnect=1), and the guest's driver notices nothing."""
    async with own_network() as network:
        await network.run("ip tuntap add dev vm mode tap")
        await host_interface(network, "vm")
        async with (
            kpoll_net(tmp_path, "tap:vm", network=network) as first,
            qemu(qemu_card(first.socket, mac=MAC, reconnects=True)) as guest,
        ):
            await guest_interface(guest, ME)
            await reaches(guest, HOST)
            assert await first.stop() == 0
            async with kpoll_net(tmp_path, "tap:vm", network=network) as second:
                await second.logged("vring_started")
                await second.logged("vring_started")
                await reaches(guest, HOST)
                await no_faults(second)
                await guest.power_off()


@trio_test
async def test_a_driver_without_any_offload_gets_whole_frames(tmp_path: Path) -> None:
    """No checksum or segment is left to it, its buffers are one frame each, and its notifications the old ones."""
    async with card_on_tap(tmp_path) as (_, daemon), qemu(qemu_card(daemon.socket, mac=MAC, options=BARE)) as guest:
        features = await guest.run(FEATURES)
        for bit in (VIRTIO_NET_F_CSUM, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_RING_F_INDIRECT_DESC, VIRTIO_RING_F_EVENT_IDX):
            assert features[bit] == "0"
        await guest_interface(guest, ME)
        await reaches(guest, HOST)
        await bulk_to_host_and_back(guest, mib=4, addresses=(ip4(HOST),), blocks=(8192,))
        await no_faults(daemon)


@trio_test
async def test_qemus_dgram_netdev_is_a_peer(tmp_path: Path) -> None:
    """A guest on QEMU's own card and one on ours, at the ends of one UDP path."""
    ours, theirs = "127.0.0.1:4001", "127.0.0.1:4002"
    ends = [
        f"{end}.type=inet,{end}.host=127.0.0.1,{end}.port={port}" for end, port in (("local", 4002), ("remote", 4001))
    ]
    devices = ["-netdev", f"dgram,id=n,{','.join(ends)}", "-device", f"virtio-net-pci,netdev=n,mac={MAC}"]
    async with (
        own_network() as network,
        kpoll_net(tmp_path, f"udp:{ours},{theirs}", network=network) as daemon,
        uml(card=daemon.socket) as first,
        qemu(devices, network=network) as second,
    ):
        await talk(first, second)
        await no_faults(daemon)
