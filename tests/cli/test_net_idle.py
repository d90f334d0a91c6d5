"""A card with nothing to carry costs nothing: started rings, buffers on offer, and a daemon that sleeps."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.cli.harness import PATIENCE_S, Daemon
from tests.cli.test_net import FRAME, Card
from tests.cli.wires import tap, udp, vxlan
from tests.netns import in_own_network
from tests.threads import assert_idle, come_to_rest, cost

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.wires import Wire, type_wire

WINDOW_S = 2.5


@pytest.mark.parametrize("kind", [tap, udp, vxlan])
@in_own_network
def test_an_idle_card_costs_nothing(tmp_path: Path, kind: type_wire) -> None:
    """Both rings were used, and will be: between the two frames each way nobody sends any."""
    with kind() as wire, Daemon("net", "--backend", wire.backend, "--socket-path", tmp_path / "s") as daemon:
        daemon.logged("listening")
        with Card(tmp_path / "s") as card:
            cross_both_ways(card, wire)
            assert come_to_rest(daemon.pid, None, PATIENCE_S)
            before = cost(daemon.pid)
            time.sleep(WINDOW_S)  # the measurement itself, not a wait for something to happen
            assert_idle(cost(daemon.pid) - before, WINDOW_S)
            cross_both_ways(card, wire)
        assert daemon.stop() == 0


def cross_both_ways(card: Card, wire: Wire) -> None:
    """Have a frame arrive at each end."""
    card.send(FRAME)
    assert wire.receive() == FRAME
    wire.send(FRAME[::-1])
    assert card.receive() == FRAME[::-1]
