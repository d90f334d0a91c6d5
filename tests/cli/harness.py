"""Starts the real `kpoll`, reads its log, and talks to its socket as a guest's disk driver would."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, Self

from prometheus_client.parser import text_string_to_metric_families

from kpoll.vhost.driver import Buffer, Driver
from kpoll.vhost.features import ProtocolFeature, VirtioFeature
from kpoll.vhost.frontend import Frontend

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from kpoll.vhost.messages import BackendRequest

KPOLL = Path(sys.executable).with_name("kpoll")
PATIENCE_S = 60.0  # in the test VM, beside other work, to start a daemon takes half of it
SECTOR = 512

IN, OUT, FLUSH = 0, 1, 4
PROTOCOL = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.CONFIG
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.BACKEND_REQ
)


def run(*args: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `kpoll` to its end."""
    return subprocess.run([KPOLL, *args], capture_output=True, text=True, timeout=PATIENCE_S, check=False, **options)


def refused(*args: str | Path, code: int, prefix: tuple[str, ...] = (), **options: Any) -> str:
    """Run `kpoll` on something it must refuse: with this exit code and one line on stderr, which is returned."""
    command = [*prefix, KPOLL, *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False, **options)
    assert done.returncode == code, done
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    line = str(done.stderr)
    assert line.endswith("\n")
    return line


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(metrics: Path) -> Samples:
    """Read the metrics from their socket."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect(str(metrics))
        sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        head, _, text = b"".join(iter(lambda: sock.recv(65536), b"")).decode().partition("\r\n\r\n")
    assert " 200 " in head.splitlines()[0], head
    families = text_string_to_metric_families(text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(samples: Samples, name: str, **labels: str) -> float:
    """Return the one sample of this name that has these labels, and maybe more."""
    [found] = [number for (sample, has), number in samples.items() if sample == name and labels.items() <= has]
    return found


def scraped(metrics: Path, name: str, **labels: str) -> float:
    """Read the metrics, of which one is asked for."""
    return value(scrape(metrics), name, **labels)


def until(reached: Callable[[], bool]) -> None:
    """Turn until it is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < deadline


class Process(Protocol):
    """A subprocess.Popen, or something like it."""

    @property
    def pid(self) -> int: ...  # noqa: D102
    @property
    def stderr(self) -> IO[bytes] | None: ...  # noqa: D102
    def poll(self) -> int | None: ...  # noqa: D102
    def wait(self, timeout: float | None = None) -> int: ...  # noqa: D102
    def send_signal(self, sig: int, /) -> None: ...  # noqa: D102
    def kill(self) -> None: ...  # noqa: D102


class Daemon:
    """A running `kpoll`; killed at the end of the `with` if it still runs.

    Attributes:
        log: Every line logged so far.
        pid: Its process.

    """

    def __init__(self, *args: str | Path, program: Sequence[str | Path] = (KPOLL,), **options: Any) -> None:
        """Start it, or `program` that becomes it."""
        self._begin(subprocess.Popen([*program, *args], **{"stderr": subprocess.PIPE, **options}))

    def _begin(self, process: Process) -> None:
        self._process = process
        self.pid = process.pid
        self.log: list[dict[str, Any]] = []
        self._rest = b""
        self._read = 0

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave no process behind."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()

    def logged(self, event: str) -> dict[str, Any]:
        """Return the next line of `event` that wasn't returned yet, waiting for it."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            while self._read < len(self.log):
                line = self.log[self._read]
                self._read += 1
                if line["event"] == event:
                    return line
            assert self._fill(deadline), f"no {event} in {self.log}"

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def wait(self) -> int:
        """Wait until it has ended by itself; returns the exit code, with the log complete."""
        deadline = time.monotonic() + PATIENCE_S
        while self._fill(deadline):
            pass
        return self._process.wait(PATIENCE_S)

    def stop(self) -> int:
        """Ask it to end; returns the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def _fill(self, deadline: float) -> bool:
        """Read more of the log. Returns whether there is a chance of yet more."""
        if self._process.stderr is None:
            return False
        fd = self._process.stderr.fileno()
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        piece = os.read(fd, 65536) if ready else b""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            try:
                self.log.append(json.loads(line))
            except json.JSONDecodeError:
                self.log.append({"event": "", "text": line.decode()})
        return bool(piece)


class Guest:
    """A guest with this disk: one virtqueue, one request at a time."""

    AREA = 1 << 20

    def __init__(
        self, where: Path | socket.socket, *, features: int | None = None, index: int = 0, reconnects: bool = False
    ) -> None:
        """Connect, negotiate all that is on offer (or `features`), and set queue `index` up.

        As QEMU does, it reads the configuration before it first starts, but not when it `reconnects`.
        """
        self.frontend = Frontend(where)
        offered = self.frontend.features & ~VirtioFeature.VHOST_USER_F_PROTOCOL_FEATURES
        offered &= ~VirtioFeature.VIRTIO_F_RING_PACKED
        self.frontend.negotiate(offered if features is None else features, PROTOCOL)
        self.frontend.open_backend_channel()
        if not reconnects:
            self.frontend.get_config(0, 60)
        self.driver = Driver(self.frontend, index)
        self.data = self.frontend.add_memory(self.AREA)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the disk."""
        self.close()

    def close(self) -> None:
        """Leave the disk."""
        self.frontend.close()

    @property
    def capacity(self) -> int:
        """The disk's size in sectors, as the configuration space has it."""
        (sectors,) = struct.unpack("<Q", self.frontend.get_config(0, 8))
        assert isinstance(sectors, int)
        return sectors

    def submit(self, kind: int, sector: int, *, out: bytes = b"", length: int = 0) -> None:
        """Send a request; header, data and status lie one after the other in our memory."""
        gpa, header = self.data.gpa, struct.pack("<IIQ", kind, 0, sector)
        end = len(header) + len(out) + length
        self.data.mmap[: end + 1] = header + out + b"\0" * length + b"\xff"
        readable = [Buffer(gpa, 16), *([Buffer(gpa + 16, len(out))] if out else [])]
        writable = [*([Buffer(gpa + 16, length)] if length else []), Buffer(gpa + end, 1)]
        self.driver.add(readable, writable, sector)
        self.driver.publish()

    def request(self, kind: int, sector: int, *, out: bytes = b"", length: int = 0) -> tuple[int, bytes]:
        """Send a request and wait for its answer; returns status and data."""
        self.submit(kind, sector, out=out, length=length)
        self.driver.wait()
        end = 16 + len(out) + length
        return self.data.mmap[end], self.data.mmap[16 : 16 + length]

    def told(self) -> BackendRequest:
        """Wait for the daemon's next word on the back-end channel."""
        return self.frontend.next_backend_request()
