"""A card with nothing to carry costs nothing: started rings, buffers on offer, and a daemon that sleeps."""

from __future__ import annotations

import socket
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import taps
from tests.cli.harness import PATIENCE_S, Daemon
from tests.cli.test_net import FRAME, ROOM, Card
from tests.cli.test_net_unplug import AT_HOST
from tests.netns import in_own_network, set_up
from tests.threads import assert_idle, come_to_rest, cost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

WINDOW_S = 2.5
TAP = "vm1"
HERE, THERE = ("127.0.0.1", 4000), ("127.0.0.1", 4001)


@contextmanager
def tap() -> Iterator[tuple[str, socket.socket]]:
    """Make a tap on which the host says nothing by itself; give its --backend, and its host's end."""
    taps.make(TAP)
    Path(f"/proc/sys/net/ipv6/conf/{TAP}/disable_ipv6").write_text("1")
    set_up(TAP)
    with socket.socket(*AT_HOST) as end:
        end.bind((TAP, 0x88B5))
        yield f"tap:{TAP}", end


@contextmanager
def udp() -> Iterator[tuple[str, socket.socket]]:
    """Give the --backend of a UDP path, and its other end."""
    set_up("lo")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        end.bind(THERE)
        end.connect(HERE)
        yield f"udp:{HERE[0]}:{HERE[1]},{THERE[0]}:{THERE[1]}", end


@pytest.mark.parametrize("path", [tap, udp])
@in_own_network
def test_an_idle_card_costs_nothing(
    tmp_path: Path, path: Callable[[], AbstractContextManager[tuple[str, socket.socket]]]
) -> None:
    """Both rings were used, and will be: between the two frames each way nobody sends any."""
    with (
        path() as (backend, peer),
        Daemon("net", "--backend", backend, "--socket-path", tmp_path / "s") as daemon,
    ):
        daemon.logged("listening")
        peer.settimeout(PATIENCE_S)
        with Card(tmp_path / "s") as card:
            cross_both_ways(card, peer)
            assert come_to_rest(daemon.pid, None, PATIENCE_S)
            before = cost(daemon.pid)
            time.sleep(WINDOW_S)  # the measurement itself, not a wait for something to happen
            assert_idle(cost(daemon.pid) - before, WINDOW_S)
            cross_both_ways(card, peer)
        assert daemon.stop() == 0


def cross_both_ways(card: Card, peer: socket.socket) -> None:
    """Have a frame arrive at each end."""
    card.send(FRAME)
    assert peer.recv(ROOM) == FRAME
    peer.send(FRAME[::-1])
    assert card.receive() == FRAME[::-1]
