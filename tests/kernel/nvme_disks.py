"""Runs in the VM: serves disks with every engine, on a file and on NVMe namespaces, and prints what came of it as JSON.

nvme0 (blocks of 512 bytes) and nvme1 (4096) are QEMU's, with poll queues; on nvme2 is an ext4 with the file; nvme3 is
the kernel's NVMe target's, to which we are connected by TCP over the loopback interface, with a poll queue as well.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import struct
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from kpoll.backend.bench.blk import BlkLoad, run_blk
from kpoll.backend.blk_health import open_health
from kpoll.backend.doctor_cli import examine
from kpoll.backend.sandbox import drop_capabilities
from kpoll.nvme import sysfs
from kpoll.nvme.poll_queues import poll_queues
from tests.cli.harness import OUT, SECTOR, Guest, scrape
from tests.kernel.forked import ForkedDaemon

if TYPE_CHECKING:
    from collections.abc import Iterator

NVMET = Path("/sys/kernel/config/nvmet")
TRACE = Path("/sys/kernel/tracing")
NQN = "nqn.2024-01.kpoll:tcp"
FILE, REMOTE = "/mnt/disk", "remote"
# Kinds of disks: what is served, and which namespace is below it in the end, if any.
DISKS = {
    "file": (FILE, None),
    "512": ("/dev/nvme0n1", "nvme0n1"),
    "4096": ("/dev/nvme1n1", "nvme1n1"),
    "tcp": (REMOTE, "nvme3n1"),
}
# Each kind with each engine, with interrupts and, where there are queues for that, polled; and what else there is.
WAYS = [
    *((kind, engine, "--iopoll", "off") for kind in DISKS for engine in ("aio", "io_uring")),
    *((kind, engine, "--iopoll", "on") for kind in DISKS if kind != "file" for engine in ("aio", "io_uring")),
    *((kind, "io_uring", "--iopoll", "auto", "--pin-guest-memory") for kind in ("file", "4096")),
]
GET_LIFETIME, DISCARD, WRITE_ZEROES = 10, 11, 13
EXTENT = 256 << 10  # bytes to discard, and to write zeroes to, from EXTENT_AT and from the byte after that on
EXTENT_AT = 1 << 20
PATH = re.compile(r"c\d+n")  # in nvme4c4n1, a path to nvme4n1
SIZE = 64 << 20


def make_file() -> None:
    """Put an ext4 on nvme2, and a file on that."""
    subprocess.run(["mkfs.ext4", "-q", "/dev/nvme2n1"], check=True)
    subprocess.run(["mount", "/dev/nvme2n1", "/mnt"], check=True)
    with Path(FILE).open("wb") as file:
        file.truncate(SIZE)


def connect() -> str:
    """Have the kernel's target offer nvme3n1 by TCP, and connect to it; returns the namespace's name."""
    subsystem, port = NVMET / "subsystems" / NQN, NVMET / "ports" / "1"
    namespace = subsystem / "namespaces" / "1"
    namespace.mkdir(parents=True)
    (subsystem / "attr_allow_any_host").write_text("1")
    (namespace / "device_path").write_text("/dev/nvme3n1")
    (namespace / "enable").write_text("1")
    port.mkdir()
    for name, value in {"trtype": "tcp", "adrfam": "ipv4", "traddr": "127.0.0.1", "trsvcid": "4420"}.items():
        (port / f"addr_{name}").write_text(value)
    (port / "subsystems" / NQN).symlink_to(subsystem)
    before = sysfs.namespace_names()
    where = ("-t", "tcp", "-a", "127.0.0.1", "-s", "4420", "-n", NQN)
    subprocess.run(["nvme", "connect", *where, "--nr-poll-queues=1"], check=True)
    while not (new := sysfs.namespace_names() - before):  # the kernel scans on its own time
        os.sched_yield()
    [name] = new
    return name


@contextmanager
def serving(sock: Path, disk: str, engine: str, *more: str, rights: bool = True) -> Iterator[dict[str, Any]]:
    """Run a daemon; yields its log's lines by event.

    Args:
        sock: Where.
        disk: Of what.
        engine: And how.
        more: Further options.
        rights: Whether it has any capability when it starts; without, its log says what it misses.

    """
    words: tuple[str | Path, ...] = ("--socket-path", sock, "--blk-file", disk, "--engine", engine, *more)
    with ForkedDaemon("blk", *words, first=None if rights else drop_capabilities) as daemon:
        for event in ("listening",) if rights else ("listening", "smart_unreadable"):
            daemon.logged(event)
        yield {line["event"]: line for line in daemon.log}
        assert daemon.stop() == 0


def read_direct(path: str, offset: int, length: int) -> bytes:
    """Read past all caches."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, length) as memory:
            assert os.preadv(fd, [memory], offset) == length
            return memory[:]
    finally:
        os.close(fd)


@contextmanager
def traced() -> Iterator[list[str]]:
    """Yield the lines of the kernel's trace of NVMe commands: filled in on leaving."""
    event = TRACE / "events/nvme/nvme_setup_cmd/enable"
    lines: list[str] = []
    (TRACE / "trace").write_text("")
    event.write_text("1")
    yield lines
    event.write_text("0")
    lines += [line for line in (TRACE / "trace").read_text().splitlines() if "nvme_setup_cmd" in line]


def commands(lines: list[str]) -> dict[str, dict[str, int]]:
    """Count the commands that were sent to each namespace, by name."""
    found: dict[str, dict[str, int]] = {}
    for line in lines:
        disk = PATH.sub("n", line.partition("disk=")[2].partition(",")[0])
        name = line.partition("cmd=(")[2].split()[0]
        counts = found.setdefault(disk, {})
        counts[name] = counts.get(name, 0) + 1
    return found


def discarded(namespace: str) -> int:
    """Return how many sectors of a namespace have been discarded."""
    return int(Path(f"/sys/block/{namespace}/stat").read_text().split()[13])


def trim(sock: Path, disk: str) -> Any:
    """Fill two extents through the disk, discard one and write zeroes to the other; returns what is left of them."""
    pattern = bytes(range(1, 256)) * (EXTENT // 255 + 1)
    first = EXTENT_AT // SECTOR
    with Guest(sock) as guest:
        for extent in range(2):
            data = pattern[:EXTENT]
            assert guest.request(OUT, first + extent * EXTENT // SECTOR, out=data)[0] == 0
        before = read_direct(disk, EXTENT_AT, 2 * EXTENT)
        assert before == pattern[:EXTENT] * 2
        statuses = []
        with traced() as lines:
            for extent, kind in enumerate((DISCARD, WRITE_ZEROES)):
                segment = struct.pack("<QII", first + extent * EXTENT // SECTOR, EXTENT // SECTOR, 0)
                statuses.append(guest.request(kind, 0, out=segment)[0])
    after = read_direct(disk, EXTENT_AT, 2 * EXTENT)
    return {"statuses": statuses, "zeroes": [not any(after[:EXTENT]), not any(after[EXTENT:])], "sent": commands(lines)}


def verified(sock: Path, **load: Any) -> Any:
    """Fill a range, read and write it at random, and read all back."""
    report = run_blk(str(sock), BlkLoad(rw="randrw", verify=True, runtime=None, warmup=0, **load), lambda _: None)
    return {"complaint": report.complaint, "checked": report.checked, "writes": report.writes, "errors": report.errors}


def health(folder: Path) -> Any:
    """Serve nvme0n1 once more; returns its health as metrics, as the guest has it, and as nvme-cli says."""
    sock, where = folder / "health", folder / "metrics"
    with serving(sock, "/dev/nvme0n1", "aio", "--metrics-socket", str(where)):
        metrics = {
            name: {"value": value, "labels": sorted(key for key, _ in labels)}
            for (name, labels), value in scrape(where).items()
            if name.startswith("kpoll_nvme_")
        }
        [helper] = helpers()
        alone = Path(f"/proc/{helper}/status").read_text()
        with Guest(sock) as guest:
            status, answer = guest.request(GET_LIFETIME, 0, length=8)
            negotiated = guest.frontend.acked_features
    with serving(sock, "/dev/nvme0n1", "aio", "--metrics-socket", str(where), rights=False) as log:
        without = [name for name, _ in scrape(where) if name.startswith("kpoll_nvme_")]
        why = log["smart_unreadable"]["error"]
    cli = subprocess.run(["nvme", "smart-log", "/dev/nvme0", "-o", "json"], stdout=subprocess.PIPE, check=True)
    return {
        "metrics": metrics,
        "smart": json.loads(cli.stdout),
        "lifetime": [status, *answer],
        "features": negotiated,
        "helper": dict(line.split(":\t", 1) for line in alone.splitlines() if ":\t" in line),
        "without_rights": {"metrics": without, "why": why},
        "asked_again": asked_again(),
    }


def helpers() -> list[int]:
    """Return the processes that ask devices."""
    texts = {int(each.parent.name): each.read_text() for each in Path("/proc").glob("[0-9]*/status")}
    orphan = "\nPPid:\t1\n"  # of a daemon that has ended: about to end, too
    return [pid for pid, text in texts.items() if text.startswith("Name:\tkpoll-smart\n") and orphan not in text]


def asked_again() -> Any:
    """Have the helper ask nvme1 after 32 MiB more were read from it, and when it has gone; returns what was known."""
    fd = os.open("/dev/nvme1n1", os.O_RDONLY)
    with open_health(fd, watched=True) as found:
        known = [(found.log and found.log.data_units_read, found.why_not)]
        for _ in range(32):
            read_direct("/dev/nvme1n1", 0, 1 << 20)
        trio.run(found.refresh)
        known.append((found.log and found.log.data_units_read, found.why_not))
        Path("/sys/class/nvme/nvme1/device/remove").resolve().write_text("1")
        trio.run(found.refresh)
        known.append((found.log and found.log.data_units_read, found.why_not))
    os.close(fd)
    return known


def main() -> None:
    """Find out and print."""
    make_file()
    remote = connect()
    facts: dict[str, Any] = {
        "doctor": asdict(examine()),
        "poll_queues": {each.namespace: each.there for each in poll_queues(sysfs.scan(""))},
        "remote": remote,
        "runs": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        for number, (kind, engine, *options) in enumerate(WAYS):
            disk, below = DISKS[kind]
            sock = Path(folder, str(number))
            with serving(sock, f"/dev/{remote}" if disk == REMOTE else disk, engine, *options) as log:
                small = verified(sock, block_size=4096, size=1 << 20, iodepth=16, queues=2, requests=200)
                large = verified(sock, block_size=128 << 10, size=2 << 20, iodepth=4, requests=40)
                sectors = discarded(below) if below else 0
                trimmed = trim(sock, f"/dev/{remote}" if disk == REMOTE else disk)
                if below:
                    trimmed["sectors"] = discarded(below) - sectors
            facts["runs"][" ".join((kind, engine, *options))] = {
                "started": log["started"],
                "small": small,
                "large": large,
                "trim": trimmed,
            }
        facts["health"] = health(Path(folder))
    subprocess.run(["nvme", "disconnect", "-n", NQN], stdout=subprocess.PIPE, check=True)
    json.dump(facts, sys.stdout)


if __name__ == "__main__":
    main()
