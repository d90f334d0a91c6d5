"""Which MTU a guest should have, and what is said of a larger `--mtu`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests import taps
from tests.cli.harness import Daemon
from tests.netns import in_own_network
from tests.veth import ip

if TYPE_CHECKING:
    from pathlib import Path

UDP = "udp:127.0.0.1:4000,127.0.0.2:4000"
VXLAN = "vxlan:vni=42,local=127.0.0.1,remote=127.0.0.2"
ON_UDP, ON_VXLAN = 1500 - 42, 1500 - 50


def make_network() -> None:
    ip("link", "set", "lo", "mtu", "1500", "up")
    taps.make("vm1")


@in_own_network
def test_a_card_on_udp_is_told_the_mtu_that_its_path_takes(tmp_path: Path) -> None:
    make_network()
    with Daemon("net", "--backend", UDP, "--socket-path", tmp_path / "s") as daemon:
        assert daemon.logged("started")["mtu"] == ON_UDP
        assert daemon.stop() == 0


@pytest.mark.parametrize(
    ("backend", "mtu", "takes", "words"),
    [
        ("tap:vm1", 1501, 1500, ["`ip link set dev vm1 mtu 1501`", "--mtu 1500"]),
        (UDP, ON_UDP + 1, ON_UDP, ["fragments", f"--mtu {ON_UDP}"]),
        (VXLAN, ON_VXLAN + 1, ON_VXLAN, ["fragments", f"--mtu {ON_VXLAN}"]),
    ],
)
@in_own_network
def test_a_larger_mtu_than_the_paths_is_warned_of(
    tmp_path: Path, backend: str, mtu: int, takes: int, words: list[str]
) -> None:
    make_network()
    with Daemon("net", "--backend", backend, "--mtu", str(mtu), "--socket-path", tmp_path / "s") as daemon:
        told = daemon.logged("mtu_too_large")
        assert (told["level"], told["mtu"], told["path_mtu"]) == ("warning", mtu, takes)
        assert all(word in told["error"] for word in words)
        assert daemon.stop() == 0


@pytest.mark.parametrize(("backend", "mtu"), [("tap:vm1", 1500), (UDP, ON_UDP), (VXLAN, ON_VXLAN), ("echo", 65535)])
@in_own_network
def test_an_mtu_that_the_path_takes_is_no_matter(tmp_path: Path, backend: str, mtu: int) -> None:
    make_network()
    with Daemon("net", "--backend", backend, "--mtu", str(mtu), "--socket-path", tmp_path / "s") as daemon:
        assert daemon.logged("started")["mtu"] == mtu
        daemon.logged("listening")
        assert daemon.stop() == 0
    assert not [line for line in daemon.log if line["event"] == "mtu_too_large"]
