"""Runs in the VM: disks on NVMe whose target dies, whose controller is removed, and that come back; as JSON.

nvme0 is behind the target, nvme1 a disk of its own. What is seen is in test_fabrics_faults.py.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kpoll.backend.bench.blk import BlkLoad, run_blk
from kpoll.nvme import fabrics, sysfs
from kpoll.nvme.libnvme import load
from tests.cli import harness
from tests.cli.harness import IN, OUT, SECTOR, Daemon, Guest, scrape, until
from tests.kernel.nvmet import ADDRESS, Target, loopback_up

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kpoll.nvme.topology import Controller

TARGET = Target("nqn.2024-01.kpoll:disk", 4420)
LENGTH = 4096
SPAN = 8 << 20
FILLED = SPAN // LENGTH + 100  # requests, when the load is well at it
OK = 0
PCI_RESCAN = Path("/sys/bus/pci/rescan")
BEGAN = time.monotonic()


def say(what: str) -> None:
    """Tell how far it is."""
    print(f"{time.monotonic() - BEGAN:6.1f} s  {what}", file=sys.stderr, flush=True)


def metrics(sock: Path) -> Path:
    """Say where the metrics of who serves a socket are."""
    return sock.with_name("m")


def answered(sock: Path) -> int:
    """Return how many requests were."""
    samples = scrape(metrics(sock))
    return int(sum(count for (name, _), count in samples.items() if name == "kpoll_requests_total"))


def over_tcp() -> list[Controller]:
    """Return the controllers that are reached over fabrics."""
    return [each for _, each in sysfs.scan("").controllers() if each.transport == "tcp"]


def connected() -> list[str]:
    """Name them."""
    return [each.name for each in over_tcp()]


@contextmanager
def serving(*options: str) -> Iterator[tuple[Daemon, Path]]:
    """Serve a disk; yields the daemon, which listens, and its socket."""
    with tempfile.TemporaryDirectory() as folder:
        sock = Path(folder) / "s"
        words = ["--socket-path", str(sock), "--metrics-socket", str(metrics(sock)), "--num-queues", "2"]
        with Daemon("blk", *words, "--poll", "off", *options) as daemon:
            daemon.logged("listening")
            say(f"serving {options}")
            yield daemon, sock


def verified(sock: Path, **options: Any) -> dict[str, Any]:
    """Write and read with checks; return what the load saw."""
    report = run_blk(sock, BlkLoad(rw="randrw", verify=True, size=SPAN, iodepth=8, stall=150, wait="sleep", **options))
    return {
        name: value for name, value in asdict(report).items() if name in ("errors", "checked", "mismatches", "writes")
    }


def target_killed(policy: str) -> dict[str, Any]:
    """Kill the target under load and start it again."""
    with serving("--nvme-tcp", TARGET.option, "--on-error", policy) as (daemon, sock), ThreadPoolExecutor() as pool:
        during = connected()
        ours = daemon.logged("nvme_connected")["ours"]

        def outage() -> tuple[dict[str, Any], dict[str, Any]]:
            until(lambda: answered(sock) > FILLED)
            TARGET.kill()
            say("killed")
            errors = daemon.logged("disk_errors")
            say("errors")
            TARGET.start()
            over = daemon.logged("disk_errors_over")
            say("over")
            return errors, over

        seeing = pool.submit(outage)
        # In this thread, which hears signals; long enough for the outage to lie within it, however slow we are.
        seen = verified(sock, runtime=60.0, think_us=10000, queues=2)
        say("load over")
        errors, over = seeing.result()
        code = daemon.stop()
        lines = [line["event"] for line in daemon.log]
    return {
        "during": during,
        "ours": ours,
        "errors": errors,
        "over": over,
        "load": seen,
        "code": code,
        "after": connected(),
        "times_begun": lines.count("disk_errors"),
        "times_over": lines.count("disk_errors_over"),
    }


def ended_without_a_target() -> dict[str, Any]:
    """Ask a daemon to end while the kernel waits for a target that is dead."""
    with serving("--nvme-tcp", TARGET.option) as (daemon, sock), Guest(sock) as guest:
        guest.request(IN, 0, length=LENGTH)
        TARGET.kill()
        guest.submit(IN, 8, length=LENGTH)
        began = time.monotonic()
        code = daemon.stop()
        seconds = time.monotonic() - began
        forced = "exit_forced" in [line["event"] for line in daemon.log]
    TARGET.start()
    return {"code": code, "seconds": seconds, "forced": forced, "after": connected()}


def stopped_and_resumed() -> dict[str, Any]:
    """Kill the target under a disk that stops, start it again, and tell the daemon some time later."""
    pattern = b"\x5a" * LENGTH
    with serving("--nvme-tcp", TARGET.option, "--on-error", "stop") as (daemon, sock), Guest(sock) as guest:

        def kept() -> float:
            return sum(count for (name, _), count in scrape(metrics(sock)).items() if name == "kpoll_requests_kept")

        before = guest.request(OUT, 64, out=pattern)[0]
        TARGET.kill()
        guest.submit(IN, 64, length=LENGTH)
        errors = daemon.logged("disk_errors")
        TARGET.start()
        until(lambda: [each.state for each in over_tcp()] == ["live"])
        say("connected again")
        guest.submit(IN, 64, length=LENGTH)  # it would succeed now, and lies where the other one does
        until(lambda: kept() == 2)
        meanwhile = guest.driver.poll()
        daemon.signal(signal.SIGHUP)
        resumed = daemon.logged("disk_resumed")
        answers = guest.driver.wait(2)
        status, data = guest.data.mmap[16 + LENGTH], guest.data.mmap[16 : 16 + LENGTH]
        over = daemon.logged("disk_errors_over")
        say("resumed")
        return {
            "before": before,
            "errors": errors,
            "meanwhile": len(meanwhile),
            "resumed": resumed,
            "answers": len(answers),
            "status": status,
            "kept_its_data": data == pattern,
            "over": over,
            "code": daemon.stop(),
        }


def smart_asks(daemon: Daemon) -> str | None:
    """Name the device that a daemon's helper asks how it is."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            if (process / "comm").read_text() == "kpoll-smart\n" and parent == str(daemon.pid):
                return (process / "fd/3").readlink().name
    return None


def removed(daemon: Daemon, sock: Path, remove: Any, bring_back: Any) -> dict[str, Any]:
    """Remove the disk under a guest, and bring it back."""
    pattern = b"\xa5" * LENGTH
    with Guest(sock) as guest:
        before = guest.request(OUT, 64, out=pattern)[0]
        remove()
        say("removed")
        daemon.logged("disk_gone")
        while_gone = [guest.request(IN, 64, length=LENGTH)[0], guest.request(OUT, 128, out=pattern)[0]]
        bring_back()
        returned = daemon.logged("disk_returned")
        say("returned")
        until(lambda: smart_asks(daemon) == returned["namespace"])
        # What is asked as it comes back may still find the old one.
        after = guest.request(IN, 64, length=LENGTH)
    return {
        "before": before,
        "while_gone": while_gone,
        "returned": returned["namespace"],
        "after": after[0],
        "kept_its_data": after[1] == pattern,
        "load": verified(sock, requests=500),
        "code": daemon.stop(),
    }


def controller_deleted() -> dict[str, Any]:
    """Delete the controller of a connection that isn't the daemon's, and connect again."""
    library = fabrics.check_ready(load())
    address = fabrics.Address(transport="tcp", traddr=ADDRESS, trsvcid=TARGET.port)

    def connect() -> None:
        fabrics.connect(library, address, TARGET.nqn, fabrics.default_host(), fabrics.Timeouts())

    def delete() -> None:
        [name] = connected()
        Path(f"/sys/class/nvme/{name}/delete_controller").write_text("1")

    connect()
    with serving("--nvme-tcp", TARGET.option) as (daemon, sock):
        ours = daemon.logged("nvme_connected")["ours"]
        found = daemon.logged("nvme_connection_found")
        seen = removed(daemon, sock, delete, connect)
    left = connected()
    delete()
    return {**seen, "ours": ours, "found": found, "left": left}


def card_pulled(name: str, engine: str) -> dict[str, Any]:
    """Remove a PCI device, and rescan the bus: it comes back under another name, as the old one is still in use."""

    def remove() -> None:
        Path("/sys/block", name, "device/device/remove").resolve().write_text("1")
        until(lambda: not Path("/sys/block", name).exists())

    with serving("--blk-file", f"/dev/{name}", "--engine", engine) as (daemon, sock):
        return removed(daemon, sock, remove, lambda: PCI_RESCAN.write_text("1"))


def main() -> None:
    """Do it all and print."""
    setattr(harness, "PATIENCE_S", 300.0)  # noqa: B010 - final for everybody but an emulated CPU beside other work
    loopback_up()
    TARGET.make("/dev/nvme0n1")
    assert LENGTH % SECTOR == 0
    facts: dict[str, Any] = {}
    facts["retry"] = target_killed("retry")
    facts["ended"] = ended_without_a_target()
    facts["stop"] = stopped_and_resumed()
    facts["deleted"] = controller_deleted()
    facts["pulled_aio"] = card_pulled("nvme1n1", "aio")
    facts["pulled_io_uring"] = card_pulled(facts["pulled_aio"]["returned"], "io_uring")
    json.dump(facts, sys.stdout)


if __name__ == "__main__":
    main()
