"""Run inside the test VM: frames to a wire and back, past a card on a UDP path; prints what was seen, as JSON.

`python -m tests.kernel.wire ROUND_TRIPS`. The same process is the guest's driver and the peer at the wire's other end,
and never sleeps: what is measured is how soon the worker sees what either of them did. The worker has a CPU for itself
(quiet.py), until a hog joins it there. The wire is a veth pair with NAPI, so the kernel can poll it as it polls a card.
"""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.cli.harness import KPOLL, Daemon, scraped
from tests.cli.test_net import FRAME, Card
from tests.kernel.quiet import SPIN_US, WORKER, WORKER_CPU, leave_the_worker_alone
from tests.threads import cost
from tests.veth import FAR, NEAR, cable, inside

if TYPE_CHECKING:
    from collections.abc import Iterator

PORT = 4000
ROUNDS = 1
HOG = "echo; while :; do :; done"
HOG_TRIPS = 20
HOG_PAUSE_S = 0.1
SYSCTLS = ("/proc/sys/net/core/busy_poll", "/proc/sys/fs/eventfd_busy_poll")
WAYS = {
    "off": (0, ("--poll", "off")),
    "kernel": (SPIN_US, ("--poll", "kernel", "--poll-max-us", str(SPIN_US), "--busy-poll-us", str(SPIN_US))),
}


class Wire:
    """A card on one end of the wire, and us at both: as the guest, and as the peer.

    Attributes:
        daemon: Who serves the card.
        polled: What it says of the card below.

    """

    def __init__(self, way: str, folder: Path, far: int) -> None:
        """Begin; use it in a `with`."""
        self._sock, self._metrics = folder / way, folder / f"{way}.metrics"
        us, options = WAYS[way]
        for sysctl in SYSCTLS:
            Path(sysctl).write_text(str(us))
        pinned = ("taskset", "-c", str(WORKER_CPU), KPOLL)
        path = ("--backend", f"udp:{NEAR}:{PORT},{FAR}:{PORT}")
        sockets = ("--socket-path", self._sock, "--metrics-socket", self._metrics)
        self.daemon = Daemon("net", *path, *options, *sockets, program=pinned)
        self._far = far

    @contextmanager
    def laid(self) -> Iterator[Wire]:
        """Wait until it is there, and leave nothing behind."""
        with self.daemon:
            self.polled = self.daemon.logged("busy_poll")
            self.daemon.logged("metrics_listening")
            with inside(self._far):
                self.peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            with self.peer, Card(self._sock) as self.card:
                self.peer.bind((FAR, PORT))
                self.peer.connect((NEAR, PORT))
                self.peer.setblocking(False)
                for queue in (self.card.rx, self.card.tx):
                    queue.interrupts_off()
                yield self
            assert self.daemon.stop() == 0

    def round_trip(self) -> int:
        """Send a frame, and one back; returns nanoseconds."""
        self.card.put(FRAME)
        start = time.perf_counter_ns()
        self.card.tx.publish()
        while not self._arrived():
            pass
        self.peer.send(FRAME)
        while not (used := self.card.rx.poll()):
            pass
        took = time.perf_counter_ns() - start
        while not self.card.tx.poll():
            pass
        self.card.give_back(used[0].token)
        return took

    def _arrived(self) -> bool:
        try:
            return self.peer.recv(len(FRAME)) == FRAME
        except BlockingIOError:
            return False

    def counted(self, name: str, **labels: str) -> float:
        """Read one of the daemon's metrics."""
        return scraped(self._metrics, name, **labels)


def measured(wire: Wire, trips: int) -> dict[str, Any]:
    """Go to and fro, and see what that took."""
    wire.round_trip()  # whoever slept is awake
    kicks, slept = wire.card.tx.kicks + wire.card.rx.kicks, cost(wire.daemon.pid, WORKER).sleeps
    found = wire.counted("kpoll_net_busy_poll_packets_total")
    took = [wire.round_trip() for _ in range(trips)]
    return {
        "us": statistics.median(took) / 1000,
        "kicks": wire.card.tx.kicks + wire.card.rx.kicks - kicks,
        "sleeps": cost(wire.daemon.pid, WORKER).sleeps - slept,
        "found": wire.counted("kpoll_net_busy_poll_packets_total") - found,
        "napi": wire.counted("kpoll_net_napi_id"),
        "missing": wire.polled["missing"],
    }


def hogged(wire: Wire) -> float:
    """Return a hog's part of the time that it and the daemon have on the worker's CPU, frames passing at times.

    There is little to do, then, but a spin allowed after it that would last until the next frame.
    """
    hogging = ["taskset", "-c", str(WORKER_CPU), "sh", "-c", HOG]
    with subprocess.Popen(hogging, stdout=subprocess.PIPE) as hog:
        try:
            assert hog.stdout is not None
            hog.stdout.readline()  # it has begun: until then the worker had the CPU for itself
            wire.round_trip()
            before = cost(hog.pid), cost(wire.daemon.pid)
            for _ in range(HOG_TRIPS):
                wire.round_trip()
                time.sleep(HOG_PAUSE_S)  # the load, not a wait for something to happen
            hog_ns, served_ns = (cost(hog.pid) - before[0]).cpu_ns, (cost(wire.daemon.pid) - before[1]).cpu_ns
        finally:
            hog.kill()
    return hog_ns / (hog_ns + served_ns)


def main(trips: int) -> None:
    """Show it all, in interleaved rounds."""
    leave_the_worker_alone()
    seen: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder, cable() as far:
        for _ in range(ROUNDS):
            for way, rounds in seen.items():
                with Wire(way, Path(folder), far).laid() as wire:
                    rounds.append({**measured(wire, trips), "hog": hogged(wire)})
    print(json.dumps(seen))


if __name__ == "__main__":
    main(int(sys.argv[1]))
