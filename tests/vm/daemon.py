"""The daemon under test as a user starts it: its log, its metrics, and what it costs while it waits."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import trio
from prometheus_client.parser import text_string_to_metric_families

from tests.threads import cost
from tests.vm.child import Child, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tests.threads import Cost
    from tests.vm.network import Network

START_SECONDS = 120  # a second on a quiet machine; an emulated one with busy CPUs needs its time
STOP_SECONDS = 30


@dataclass(frozen=True)
class Metrics:
    """One scrape."""

    samples: tuple[tuple[str, dict[str, str], float], ...]

    def total(self, name: str, **labels: str) -> float:
        """Sum the samples of a name whose labels include these."""
        wanted = labels.items()
        return sum(value for sample, has, value in self.samples if sample == name and wanted <= has.items())


@dataclass
class Daemon:
    """A running `kpoll` and the sockets it serves."""

    child: Child
    command: Sequence[str]
    socket: Path
    metrics_socket: Path

    async def logged(self, event: str, seconds: float = START_SECONDS) -> dict[str, Any]:
        """Return the next log line of an event, waiting for it."""
        line = await self.child.expect(lambda line: parsed(line).get("event") == event, f"the event {event}", seconds)
        return parsed(line)

    async def metrics(self) -> Metrics:
        """Scrape the metrics as Prometheus would."""
        stream = await trio.open_unix_socket(str(self.metrics_socket))
        async with stream:
            await stream.send_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")
            answer = b"".join([chunk async for chunk in stream]).decode()
        head, _, body = answer.partition("\r\n\r\n")
        assert " 200 " in head.splitlines()[0], head
        families = text_string_to_metric_families(body)
        return Metrics(tuple((s.name, s.labels, s.value) for family in families for s in family.samples))

    async def stop(self, seconds: float = STOP_SECONDS) -> int:
        """Ask it to end (SIGTERM) and return its exit code."""
        self.child.signal(signal.SIGTERM)
        return await self.child.wait(seconds)

    def cost(self, thread: str | None = None) -> Cost:
        """Return what the process has used so far: all of its threads, or those of one name."""
        return cost(self.child.pid, thread)


@asynccontextmanager
async def kpoll_blk(
    folder: Path, image: Path, *options: str, tee: IO[bytes] | None = None, ready: bool = True
) -> AsyncIterator[Daemon]:
    """Serve an image for the length of the block; the daemon listens when the block begins.

    Args:
        folder: where its sockets go.
        image: the file or device.
        options: further options of `kpoll blk`.
        tee: also receives the log.
        ready: False where it is not expected to come up.

    """
    socket, metrics_socket = folder / "disk.sock", folder / "metrics.sock"
    command = [
        *(kpoll_program(), "blk", "--socket-path", str(socket), "--blk-file", str(image)),
        *("--metrics-socket", str(metrics_socket), "--log-format", "json", *options),
    ]
    async with serving("kpoll blk", command, socket, metrics_socket, tee=tee, ready=ready) as daemon:
        yield daemon


@asynccontextmanager
async def kpoll_net(
    folder: Path,
    backend: str,
    *options: str,
    network: Network | None = None,
    name: str = "card",
    tee: IO[bytes] | None = None,
) -> AsyncIterator[Daemon]:
    """Serve a network card for the length of the block; the daemon listens when the block begins.

    Args:
        folder: where its sockets go.
        backend: where its frames go.
        options: further options of `kpoll net`.
        network: the network namespace that it runs in, else ours.
        name: what its sockets are called; each card in a folder has another one.
        tee: also receives the log.

    """
    socket, metrics_socket = folder / f"{name}.sock", folder / f"{name}-metrics.sock"
    command = [
        *(kpoll_program(), "net", "--socket-path", str(socket), "--backend", backend),
        *("--metrics-socket", str(metrics_socket), "--log-format", "json", *options),
    ]
    within = command if network is None else network.inside(*command)
    async with serving("kpoll net", within, socket, metrics_socket, tee=tee) as daemon:
        yield daemon


@asynccontextmanager
async def serving(
    name: str,
    command: Sequence[str],
    socket: Path,
    metrics_socket: Path,
    *,
    tee: IO[bytes] | None = None,
    ready: bool = True,
) -> AsyncIterator[Daemon]:
    """Run a vhost-user back-end that logs `listening` once it does."""
    async with running(name, command, tee=tee) as child:
        daemon = Daemon(child, command, socket, metrics_socket)
        if ready:
            await daemon.logged("listening")
        yield daemon


def kpoll_program() -> str:
    """Return the `kpoll` beside this Python, else the one in PATH."""
    beside = Path(sys.executable).with_name("kpoll")
    return str(beside) if beside.exists() else shutil.which("kpoll") or "kpoll"


def parsed(line: str) -> dict[str, Any]:
    """Return the fields of a JSON log line; none for any other line."""
    try:
        fields = json.loads(line)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}
