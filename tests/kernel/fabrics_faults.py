"""Runs in the VM: disks on NVMe whose target dies, whose controller is removed, and that come back; as JSON.

nvme0 is behind the target, nvme1 a disk of its own. What is seen is in test_fabrics_faults.py.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kpoll.nvme import fabrics
from kpoll.nvme.libnvme import load
from tests.cli import harness
from tests.cli.harness import IN, OUT, SECTOR, Daemon, Guest, scrape, until
from tests.kernel.fabrics_load import (
    Load,
    connected,
    failed,
    loaded_while,
    metrics,
    over_tcp,
    say,
    seen,
    serving,
    verified,
)
from tests.kernel.fabrics_multipath import multipath
from tests.kernel.nvmet import ADDRESS, Target, loopback_up

if TYPE_CHECKING:
    from collections.abc import Callable

TARGET = Target("nqn.2024-01.kpoll:disk", 4420)
LENGTH = 4096
PCI_RESCAN = Path("/sys/bus/pci/rescan")
WAYS = tuple((engine, iopoll) for engine in ("aio", "io_uring") for iopoll in ("off", "on"))


def target_killed(policy: str) -> dict[str, Any]:
    """Kill the target under load and start it again."""
    with serving("--nvme-tcp", TARGET.option, "--on-error", policy) as (daemon, sock):
        during = connected()
        ours = daemon.logged("nvme_connected")["ours"]

        def outage(_: Load) -> tuple[dict[str, Any], dict[str, Any]]:
            TARGET.kill()
            say("killed")
            errors = daemon.logged("disk_errors")
            say("errors")
            TARGET.start()
            over = daemon.logged("disk_errors_over")
            say("over")
            return errors, over

        saw, (errors, over) = loaded_while(sock, outage, runtime=30.0, think_us=10000)
        code = daemon.stop()
        lines = [line["event"] for line in daemon.log]
    return {
        "during": during,
        "ours": ours,
        "errors": errors,
        "over": over,
        "load": saw,
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


def removed(daemon: Daemon, sock: Path, remove: Callable[[], None], bring_back: Callable[[], None]) -> dict[str, Any]:
    """Remove the disk under a load, which fails then, and bring it back, with which it succeeds again."""

    def outage(load: Load) -> dict[str, Any]:
        remove()
        say("removed")
        daemon.logged("disk_gone")
        say("gone")
        seen(lambda: failed(sock) > 0)
        bring_back()
        returned = daemon.logged("disk_returned")
        say("returned")
        load.goes_on()
        say("goes on")
        seen(lambda: smart_asks(daemon) == returned["namespace"])
        return {"returned": returned["namespace"]}

    saw, facts = loaded_while(sock, outage, runtime=25.0, think_us=2000)
    facts |= {"load": saw, "failed": failed(sock), "failed_io": failed(sock, kind="io")}
    return {**facts, "afterwards": verified(sock, requests=500), "code": daemon.stop()}


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
        facts = removed(daemon, sock, delete, connect)
    left = connected()
    delete()
    return {**facts, "ours": ours, "found": found, "left": left}


def card_pulled(name: str, engine: str, iopoll: str) -> dict[str, Any]:
    """Remove a PCI device, and rescan the bus: it comes back under another name, as the old one is still in use."""

    def remove() -> None:
        Path("/sys/block", name, "device/device/remove").resolve().write_text("1")
        until(lambda: not Path("/sys/block", name).exists())

    def rescan() -> None:
        PCI_RESCAN.write_text("1")

    polled = "kernel" if iopoll == "on" else "off"
    options = ("--blk-file", f"/dev/{name}", "--engine", engine, "--iopoll", iopoll)
    with serving(*options, poll=polled) as (daemon, sock):
        facts = removed(daemon, sock, remove, rescan)
        [started] = [line for line in daemon.log if line["event"] == "started"]
        return {**facts, "engine": started["engine"], "iopoll": started["iopoll"]}


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
    name = "nvme1n1"
    for engine, iopoll in WAYS:
        facts[f"pulled {engine} {iopoll}"] = card_pulled(name, engine, iopoll)
        name = facts[f"pulled {engine} {iopoll}"]["returned"]
    facts["multipath"] = multipath(TARGET, TARGET.port + 1)
    json.dump(facts, sys.stdout)


if __name__ == "__main__":
    main()
