"""Inside the test VM: a disk is served and loaded with checks while something happens to the way to it."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, TypeVar

from kpoll.backend.bench.blk import BlkLoad, run_blk
from kpoll.nvme import sysfs
from tests.cli.harness import Daemon, Samples, scrape, until
from tests.kernel.forked import ForkedDaemon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kpoll.nvme.topology import Controller

type_seen = TypeVar("type_seen")

SPAN, BLOCK = 1 << 20, 4096
LOOK_S = 0.3
ERRORS = "kpoll_request_errors_total"
FILLED = SPAN // BLOCK + 100  # requests, when the load is well at it
BEGAN = time.monotonic()


def say(what: str) -> None:
    """Tell how far it is."""
    print(f"{time.monotonic() - BEGAN:6.1f} s  {what}", file=sys.stderr, flush=True)


def metrics(sock: Path) -> Path:
    """Say where the metrics of who serves a socket are."""
    return sock.with_name("m")


def count(samples: Samples, name: str, **labels: str) -> int:
    """Return the sum of what is counted under a name, with these labels and any others."""
    return int(sum(value for (each, has), value in samples.items() if each == name and labels.items() <= has))


def answered(sock: Path) -> int:
    """Return how many requests were."""
    return count(scrape(metrics(sock)), "kpoll_requests_total")


def failed(sock: Path, **labels: str) -> int:
    """Return how many of them with an error; `kind` may say with which."""
    return count(scrape(metrics(sock)), ERRORS, **labels)


def succeeded(sock: Path) -> int:
    """Return how many of them without one."""
    samples = scrape(metrics(sock))
    return count(samples, "kpoll_requests_total") - count(samples, ERRORS)


def trouble(sock: Path) -> int:
    """Return how many failures there were, whether the guest was told of them or not."""
    samples = scrape(metrics(sock))
    return count(samples, ERRORS) + count(samples, "kpoll_request_retries_total")


def seen(reached: Callable[[], bool]) -> None:
    """Look until it is so, at leisure: the load is to have the CPUs."""

    def looked() -> bool:
        time.sleep(LOOK_S)
        return reached()

    until(looked)


def over_tcp() -> list[Controller]:
    """Return the controllers that are reached over fabrics."""
    return [each for _, each in sysfs.scan("").controllers() if each.transport == "tcp"]


def connected() -> list[str]:
    """Name them."""
    return [each.name for each in over_tcp()]


@contextmanager
def serving(*options: str, poll: str = "off") -> Iterator[tuple[Daemon, Path]]:
    """Serve a disk, while no other thread runs; yields the daemon, which listens, and its socket."""
    with tempfile.TemporaryDirectory() as folder:
        sock = Path(folder) / "s"
        words = ["--socket-path", str(sock), "--metrics-socket", str(metrics(sock)), "--num-queues", "2"]
        with ForkedDaemon("blk", *words, "--poll", poll, *options) as daemon:
            daemon.logged("listening")
            say(f"serving {options}")
            yield daemon, sock


def verified(sock: Path, **options: Any) -> dict[str, Any]:
    """Write and read with checks; return what the load saw."""
    report = run_blk(sock, BlkLoad(rw="randrw", verify=True, size=SPAN, iodepth=8, stall=150, wait="sleep", **options))
    return {
        name: value for name, value in asdict(report).items() if name in ("errors", "checked", "mismatches", "writes")
    }


class Load:
    """A load under way, seen from another thread."""

    def __init__(self, sock: Path) -> None:
        """Of whom serves `sock`."""
        self.sock = sock
        self._over = Event()

    def run(self, runtime: float, think_us: int) -> dict[str, Any]:
        """Be the load, which spins as it thinks: at a low priority, for those who look on. Returns what it saw."""
        os.setpriority(os.PRIO_PROCESS, 0, 10)  # of this thread, and of that which it starts for the load
        try:
            return verified(self.sock, runtime=runtime, think_us=think_us, queues=2)
        finally:
            os.setpriority(os.PRIO_PROCESS, 0, 0)
            self._over.set()
            say("load over")

    def goes_on(self, requests: int = 200) -> None:
        """Wait until so many more were answered, and without an error; or until the load is over, if we're so slow."""
        enough = succeeded(self.sock) + requests
        seen(lambda: succeeded(self.sock) > enough or self._over.is_set())


def loaded_while(
    sock: Path, happens: Callable[[Load], type_seen], runtime: float, think_us: int
) -> tuple[dict[str, Any], type_seen]:
    """Load both queues, and see what happens once the load is well at it. Returns what the load saw, and that.

    Args:
        sock: Of whom is loaded.
        happens: What does, in a thread of its own, which waits for what it says it has seen.
        runtime: Seconds; long enough for it to happen within.
        think_us: What the load leaves the disk between requests.

    """
    load = Load(sock)

    def then() -> type_seen:
        seen(lambda: answered(sock) > FILLED)
        return happens(load)

    with ThreadPoolExecutor() as pool:
        seeing = pool.submit(then)
        saw = load.run(runtime, think_us)  # in this thread, which hears signals
        return saw, seeing.result()
