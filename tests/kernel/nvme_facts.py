"""Runs in the VM: prints, as JSON, what we and what nvme-cli find out about its NVMe devices (test_nvme.py compares).

nvme0 (blocks of 512 bytes) and nvme1 (4096) are QEMU's; nvme2n1 is nvme0n1 once more, by two paths of the loop
transport.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kpoll.backend.blk_disk import open_disk
from kpoll.backend.config import BlkConfig, SocketConfig
from kpoll.backend.poll import PollConfig
from kpoll.nvme import sysfs
from kpoll.nvme.device import NvmeError, ask, look, opened, scan
from kpoll.nvme.libnvme import Libnvme, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NVMET = Path("/sys/kernel/config/nvmet")
NQN = "nqn.2024-01.kpoll:shared"
NODES = ("/dev/nvme0n1", "/dev/nvme1n1", "/dev/nvme2n1")
NOBODY = 65534
DISK = 6  # the group


def nvme(*words: str) -> Any:
    """Return what nvme-cli says, read from its JSON."""
    return json.loads(subprocess.run(["nvme", *words, "-o", "json"], stdout=subprocess.PIPE, check=True).stdout)


def share(backing: str) -> None:
    """Have the kernel's NVMe target offer a disk at two ports, and connect to both."""
    subsystem = NVMET / "subsystems" / NQN
    namespace = subsystem / "namespaces" / "7"
    namespace.mkdir(parents=True)
    (subsystem / "attr_allow_any_host").write_text("1")
    (namespace / "device_path").write_text(backing)
    (namespace / "device_nguid").write_text("01234567-89ab-cdef-0011-223344556677")
    (namespace / "enable").write_text("1")
    for number in (1, 2):
        port = NVMET / "ports" / str(number)
        port.mkdir(parents=True)
        (port / "addr_trtype").write_text("loop")
        (port / "addr_traddr").write_text(str(number))
        (port / "subsystems" / NQN).symlink_to(subsystem)
        subprocess.run(["nvme", "connect", "-t", "loop", "-a", str(number), "-n", NQN], check=True)


def error(call: Callable[[], object]) -> str:
    """Return what a call that has to fail says."""
    try:
        call()
    except NvmeError as refused:
        return str(refused)
    return "no error"


@contextmanager
def nobody() -> Iterator[None]:
    """Have no capability, and the rights of no user."""
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def answers(node: str, library: Libnvme) -> Any:
    """Ask a device in both ways."""
    theirs = {"identify_namespace": "id-ns", "identify_controller": "id-ctrl", "smart": "smart-log"}
    return {
        "ours": asdict(look(node, library).answers),
        "theirs": {name: nvme(command, node) for name, command in theirs.items()},
    }


def data_units_read(library: Libnvme) -> int:
    """Return how much nvme1 says that it has read."""
    smart = look("/dev/nvme1", library).answers.smart
    assert smart is not None
    return smart.data_units_read


def disk(node: str) -> Any:
    """Return what a guest would learn of a disk on a namespace."""
    config = BlkConfig(socket=SocketConfig(path="socket"), poll=PollConfig(strategy="off", why=""), blk_file=node)
    with open_disk(config) as opened_disk:
        kernel = int(Path(f"/sys/block/{Path(node).name}/queue/discard_granularity").read_text())
        return {**asdict(opened_disk.limits), "serial": opened_disk.serial.decode(), "by_kernel": kernel}


def counting(library: Libnvme) -> int:
    """Return by how much that grows as all of its 64 MiB are read."""
    before = data_units_read(library)
    Path("/dev/nvme1n1").read_bytes()
    return data_units_read(library) - before


def denials(library: Libnvme) -> Iterator[str]:
    """Ask without the right to open a device, and then with it."""
    with nobody():
        yield error(lambda: look("/dev/nvme1", library))
    os.chown("/dev/nvme1", 0, DISK)
    Path("/dev/nvme1").chmod(0o666)
    with nobody():
        yield error(lambda: look("/dev/nvme1", library))


def departures(library: Libnvme) -> Iterator[str]:
    """Ask a device that goes away after it was opened, and then one that has gone."""
    with opened("/dev/nvme1n1") as fd:
        Path("/sys/class/nvme/nvme1/device/remove").resolve().write_text("1")
        yield error(lambda: ask("/dev/nvme1n1", fd, "namespace", library))
    yield error(lambda: look("/dev/nvme1n1", library))


def main() -> None:
    """Find out and print."""
    library = load()
    assert library is not None, "no libnvme.so.1: run `.ci/setup kernel`"
    facts: dict[str, Any] = {"disks": {node: disk(node) for node in NODES[:1]}}
    share("/dev/nvme0n1")
    facts["disks"] |= {node: disk(node) for node in NODES[1:]}
    facts |= {
        "by_libnvme": asdict(scan(library)),
        "by_sysfs": asdict(sysfs.scan("as asked")),
        "answers": {node: answers(node, library) for node in NODES},
        "without_library": asdict(look("/dev/nvme2n1", None)),
        "data_units_read": counting(library),
        "of_generic": asdict(look("/dev/ng1n1", library)),
        "no_nvme": [error(partial(look, node, library)) for node in ("/dev/nvme-fabrics", "/dev/loop0")],
        "denials": list(denials(library)),
    }
    with nobody():
        facts["by_nobody"] = asdict(scan(library))
    subprocess.run(["nvme", "disconnect", "-n", NQN], stdout=subprocess.PIPE, check=True)
    facts["departures"] = list(departures(library))
    json.dump(facts, sys.stdout)


if __name__ == "__main__":
    main()
