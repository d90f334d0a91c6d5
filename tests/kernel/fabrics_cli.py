"""Runs in the VM: what `kpoll nvme connect|discover|disconnect` and --nvme-tcp say and do, as JSON.

nvme0 is QEMU's, and behind the target.
"""

from __future__ import annotations

import io
import json
import os
import socket
import sys
import time
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from kpoll.backend import blk_fabrics, cli
from kpoll.backend.errors import KpollError
from kpoll.backend.nvme_tcp import parse_nvme_tcp
from kpoll.nvme import fabrics, sysfs
from kpoll.nvme.libnvme import load
from tests.kernel.nvmet import ADDRESS, Target, loopback_up
from tests.kernel.slow_target import slow_target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DISK = Target("nqn.2024-01.kpoll:disk", 4420)
TWO = Target("nqn.2024-01.kpoll:two", 4422)
HOST = "nqn.2014-08.org.nvmexpress:uuid:01234567-89ab-cdef-0123-456789abcdef"


def said(*words: str) -> dict[str, Any]:
    """Return how a command ended, and what it said. In this process: to start Python takes an emulated CPU seconds."""
    print(*words, file=sys.stderr)
    out, err = io.StringIO(), io.StringIO()
    began = time.monotonic()
    with redirect_stdout(out), redirect_stderr(err), patch.object(sys, "argv", ["kpoll", *words]):
        code = cli._run(cli.kpoll, "kpoll")  # noqa: SLF001 - the program, but for its exit
    seconds = time.monotonic() - began
    return {
        "code": code,
        "out": out.getvalue(),
        "err": err.getvalue(),
        "seconds": seconds,
        "left": controllers(),
    }


def controllers() -> list[str]:
    """Name the controllers that are reached over fabrics."""
    return [each.name for _, each in sysfs.scan("").controllers() if each.transport != "pcie"]


def answered(*words: str) -> Any:
    """Return what a command says as JSON."""
    done = said(*words, "--json")
    assert done["code"] == 0, done
    return json.loads(done["out"])


@contextmanager
def deaf() -> Iterator[int]:
    """Listen, accept, and say nothing. Yields the port."""
    with socket.create_server((ADDRESS, 0)) as server:
        yield server.getsockname()[1]


@contextmanager
def nobody() -> Iterator[None]:
    """Have no capability, and the rights of no user."""
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def error(call: Callable[[], object]) -> str:
    """Return what a call that has to fail says."""
    try:
        call()
    except (fabrics.ConnectError, KpollError) as refused:
        return str(refused)
    return "no error"


def blk(option: str) -> dict[str, Any]:
    """Start `kpoll blk` on something that it has to refuse."""
    return said("blk", "--socket-path", "/tmp/s", "--nvme-tcp", option)


def no_permission() -> dict[str, Any]:
    """Try without the rights."""
    with nobody():
        return {
            "connect": said("nvme", "connect", "--traddr", ADDRESS, "--nqn", DISK.nqn),
            "blk": blk(DISK.option),
        }


def full() -> dict[str, Any]:
    """Connect to a target that has room for two controllers, from a third host."""
    at = ("--traddr", ADDRESS, "--trsvcid", str(DISK.port), "--nqn", DISK.nqn)
    DISK.allow_controllers(2)
    for host in (HOST, HOST[:-1] + "0"):
        answered("nvme", "connect", *at, "--hostnqn", host)
    refused = said("nvme", "connect", *at)
    answered("nvme", "disconnect", "--nqn", DISK.nqn)
    DISK.allow_controllers(100)
    return {**refused, "left": controllers()}


def silence() -> dict[str, Any]:
    """Connect to somebody who accepts and says nothing; in less time than usual, to spare the test's."""
    setattr(fabrics, "_ANSWER_S", 2.0)  # noqa: B010 - which mypy would not let us set
    library = fabrics.check_ready(load())
    with deaf() as port:
        address = fabrics.Address(transport="tcp", traddr=ADDRESS, trsvcid=port)
        began = time.monotonic()
        says = error(lambda: fabrics.connect(library, address, DISK.nqn, fabrics.default_host(), fabrics.Timeouts()))
        seconds = time.monotonic() - began
        os.wait()  # for its process, for which nobody else waits
        return {"says": says, "seconds": seconds, "left": controllers()}


def late() -> dict[str, Any]:
    """Connect to somebody whose last answer comes when nobody waits for it any more."""
    library = fabrics.check_ready(load())
    seen: dict[str, Any] = {}
    # The first connection only knocks, the second is the admin queue's; no signal gets anybody out of the third's.
    with slow_target(ADDRESS, DISK.port, 2) as (port, answer):
        address = fabrics.Address(transport="tcp", traddr=ADDRESS, trsvcid=port)
        began = time.monotonic()
        never = fabrics.Timeouts(ctrl_loss_tmo=-1)
        host, one = fabrics.default_host(), fabrics.Queues(io=1)
        seen["says"] = error(lambda: fabrics.connect(library, address, DISK.nqn, host, never, one))
        seen["seconds"] = time.monotonic() - began
        seen["meanwhile"] = controllers()
        answer()
        os.wait()  # likewise
        seen["left"] = controllers()
    return seen


def vanished() -> str:
    """Have the namespace go between the look at it and its opening."""
    found = fabrics.wait_for_namespace

    def find_and_lose(controller: str, nsid: int, seconds: float) -> str | None:
        name = found(controller, nsid, seconds)
        DISK.enable(1, False)
        while name and Path("/sys/block", name).exists():
            time.sleep(0.01)  # a bound is the VM's own
        return name

    def open_it() -> None:
        with blk_fabrics.reach(parse_nvme_tcp(DISK.option), "report") as reached:
            try:
                os.close(os.open(reached.node, os.O_RDWR))
            except OSError as failed:
                raise KpollError(f"{reached.node}: {failed.strerror}") from failed

    setattr(blk_fabrics, "wait_for_namespace", find_and_lose)  # noqa: B010 - which mypy would not let us set
    try:
        return error(open_it)
    finally:
        setattr(blk_fabrics, "wait_for_namespace", found)  # noqa: B010 - likewise
        DISK.enable(1, True)


def shared() -> dict[str, Any]:
    """Have who connected a controller leave before who found it, then each alone."""
    wanted = parse_nvme_tcp(DISK.option)
    seen: dict[str, Any] = {}
    with ExitStack() as second:
        with blk_fabrics.reach(wanted, "report") as first:
            found = second.enter_context(blk_fabrics.reach(wanted, "report"))
            first.abandon()
            seen["ours"] = (first.ours, found.ours)
        seen["in_use"] = controllers()
        with open(found.node, "rb") as disk:  # noqa: PTH123 - a device
            seen["read"] = len(disk.read(4096))
    seen["left"] = controllers()
    answered("nvme", "disconnect", "--nqn", DISK.nqn)
    with blk_fabrics.reach(wanted, "report"):
        pass
    seen["alone"] = controllers()
    return seen


def asked_for_poll_queues() -> str:
    """Ask for poll queues with --nvme-tcp; return what the kernel says of them."""
    with blk_fabrics.reach(parse_nvme_tcp(f"{DISK.option},poll-queues=1"), "report") as reached:
        return Path("/sys/block", Path(reached.node).name, "queue", "io_poll").read_text()


def looped() -> dict[str, Any]:
    """Discover and connect inside the machine, without a network."""
    DISK.loop()
    at = ("--transport", "loop")
    seen: dict[str, Any] = {"offers": answered("nvme", "discover", *at)}
    name = answered("nvme", "connect", *at, "--nqn", DISK.nqn)["controller"]
    with Path("/dev", str(fabrics.wait_for_namespace(name, 1, 30))).open("rb") as disk:
        seen["read"] = len(disk.read(4096))
    seen["transports"] = [each.transport for _, each in sysfs.scan("").controllers() if each.name == name]
    seen["disconnect"] = answered("nvme", "disconnect", "--device", name) == {"disconnected": [name]}
    seen["left"] = controllers()
    return seen


def main() -> None:
    """Do it all and print."""
    loopback_up()
    DISK.make("/dev/nvme0n1")
    TWO.make("/dev/nvme0n1")
    TWO.add(2, "/dev/nvme0n1")
    tcp = ("--traddr", ADDRESS, "--trsvcid", str(DISK.port))
    facts: dict[str, Any] = {"offers": answered("nvme", "discover", *tcp), "discover": said("nvme", "discover", *tcp)}
    polled = ("--nr-poll-queues", "1")
    facts["connect"] = answered("nvme", "connect", *tcp, "--nqn", DISK.nqn, "--hostnqn", HOST, *polled)
    disk = str(fabrics.wait_for_namespace(facts["connect"]["controller"], 1, 30))
    facts["io_poll"] = Path("/sys/block", disk, "queue", "io_poll").read_text()
    facts["again"] = said("nvme", "connect", *tcp, "--nqn", DISK.nqn, "--hostnqn", HOST)
    facts["listed"] = answered("nvme", "list")
    facts["disconnect"] = answered("nvme", "disconnect", "--nqn", DISK.nqn)
    facts["left"] = controllers()
    facts["none"] = said("nvme", "disconnect", "--nqn", DISK.nqn)
    facts["pcie"] = said("nvme", "disconnect", "--device", "nvme0")
    facts["unknown"] = said("nvme", "connect", *tcp, "--nqn", "nqn.2024-01.kpoll:nothing")
    facts["nobody_listens"] = said("nvme", "connect", "--traddr", ADDRESS, "--trsvcid", "4", "--nqn", DISK.nqn)
    facts["nobody_tells"] = said("nvme", "discover", "--traddr", ADDRESS)
    facts["unreachable"] = said("nvme", "connect", "--traddr", "192.0.2.1", "--nqn", DISK.nqn)
    DISK.allow_any_host(False)
    facts["not_allowed"] = said("nvme", "connect", *tcp, "--nqn", DISK.nqn)
    DISK.allow_any_host(True)
    facts["which"] = blk(TWO.option)
    facts["no_such_nsid"] = blk(f"{TWO.option},nsid=7")
    facts["no_disk"] = blk(f"{DISK.option}x")
    facts["no_permission"] = no_permission()
    facts["full"] = full()
    facts["vanished"] = {"says": vanished(), "left": controllers()}
    facts["shared"] = shared()
    facts["polled"] = asked_for_poll_queues()
    facts["looped"] = looped()
    facts["silence"] = silence()
    facts["late"] = late()
    json.dump(facts, sys.stdout)


if __name__ == "__main__":
    main()
