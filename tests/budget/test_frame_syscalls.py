"""The same gate for system calls per frame: the real daemon on a real tap and a real UDP path, counted by strace.

A burst of frames at a time, and the next one once the last is through: what a worker can do in one turn it does in one.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kpoll.vhost.driver import Buffer, Driver
from kpoll.vhost.features import ProtocolFeature, VirtioFeature
from kpoll.vhost.frontend import Frontend
from tests.cli.harness import Daemon
from tests.cli.wires import tap, udp
from tests.netns import in_own_network
from tests.strace import calls, counted

if TYPE_CHECKING:
    from tests.cli.wires import Wire

HERE = Path(__file__).parent
BUDGET: dict[str, float] = tomllib.loads((HERE / "budget.toml").read_text())["frame-syscalls"]
WIRES = {"tap": tap, "udp": udp}
HEADER = bytes(12)  # struct virtio_net_hdr_v1
FRAME = bytes.fromhex("52540000000252540000000188b5").ljust(60, b".")
ROOM = 2048
BURSTS = 100


class Card:
    """A guest that sends, or makes room to receive, a burst of frames at a time."""

    def __init__(self, frontend: Frontend, burst: int) -> None:
        """Set both queues up, with frames that are ready to be sent."""
        self.rx, self.tx = Driver(frontend, 0), Driver(frontend, 1)
        self.memory = frontend.add_memory(2 * burst * ROOM)
        self.burst = burst
        for i in range(burst):
            at = i * ROOM
            self.memory.mmap[at : at + len(HEADER + FRAME)] = HEADER + FRAME

    def send(self, wire: Wire) -> None:
        """Send a burst, and see it at the other end."""
        for i in range(self.burst):
            self.tx.add([Buffer(self.memory.gpa + i * ROOM, len(HEADER + FRAME))], [], i)
        self.tx.publish()
        self.tx.wait(self.burst)
        for _ in range(self.burst):
            assert wire.receive() == FRAME

    def receive(self, wire: Wire) -> None:
        """Receive a burst that is there already when there is room for it."""
        for _ in range(self.burst):
            wire.send(FRAME)
        for i in range(self.burst, 2 * self.burst):
            self.rx.add([], [Buffer(self.memory.gpa + i * ROOM, ROOM)], i)
        self.rx.publish()
        assert {used.len for used in self.rx.wait(self.burst)} == {len(HEADER + FRAME)}


@pytest.mark.parametrize("case", sorted(BUDGET))
@in_own_network
def test_a_frame_costs_no_more_system_calls_than_its_budget(tmp_path: Path, case: str) -> None:
    """Count per name, so that a failure says which call it was."""
    kind, way, burst = case.split("-")
    sock, out = tmp_path / "s", tmp_path / "strace"
    with WIRES[kind]() as wire, Daemon("net", "--backend", wire.backend, "--poll", "user", "--socket-path", sock) as d:
        d.logged("listening")
        with Frontend(sock) as frontend:
            wanted = VirtioFeature.VIRTIO_F_VERSION_1 | VirtioFeature.VIRTIO_F_EVENT_IDX
            frontend.negotiate(wanted, ProtocolFeature.REPLY_ACK)
            card = Card(frontend, int(burst))
            turn = card.send if way == "tx" else card.receive
            turn(wire)  # what is done once only
            with counted(d.pid, out):
                for _ in range(BURSTS):
                    turn(wire)
    made = calls(out)
    print(f"{case}: {made}")
    assert {"writev", "readv", "sendmmsg", "sendmsg", "recvmmsg"} & made.keys(), "strace saw no frames"
    cost = sum(made.values()) / (BURSTS * card.burst)
    print(f"{case}: {cost:.3f} system calls per frame, budget {BUDGET[case]}")
    assert cost <= BUDGET[case], made
