"""The back-ends that are compared: how each is started, pinned to a CPU, and stopped."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kpoll.backend.errors import KpollError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NULL_SIZE: Final = 64 << 30
QUEUES: Final = 2
_START_S: Final = 10.0
_STOP_S: Final = 5.0
_RETRY_S: Final = 0.02

_PROGRAM: Final = f"{shlex.quote(sys.executable)} -c 'from kpoll.backend.cli import main; main()'"
_KPOLL: Final = f"{_PROGRAM} blk --poll user"
_QSD: Final = "qemu-storage-daemon"
_QSD_EXPORT: Final = (
    f"--export type=vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path={{socket}},writable=on,num-queues={QUEUES}"
)

_TESTPMD: Final = "dpdk-testpmd"
_HINTS: Final = {_QSD: "qemu-system-common", _TESTPMD: "dpdk-dev"}


@dataclass(frozen=True)
class Peer:
    """A back-end.

    Attributes:
        name: As the table calls it.
        disk: Shell words that serve the block device {disk} on {socket}; None: it is not measured on a disk.
        null: Shell words that serve a disk that does nothing; None: it isn't measured on that.

    """

    name: str
    disk: str | None = None
    null: str | None = None

    def command(self, target: str, sock: Path, disk: Path | None) -> list[str] | None:
        """Give the command for a target (`disk` or `null`); None if the peer doesn't take part there."""
        template = self.disk if target == "disk" else self.null
        if template is None:
            return None
        return [word.replace("{socket}", str(sock)).replace("{disk}", str(disk)) for word in shlex.split(template)]


KPOLL: Final = Peer(
    "kpoll",
    disk=f"{_KPOLL} --engine aio --blk-file {{disk}} --socket-path {{socket}}",
    null=f"{_KPOLL} --engine null --size {NULL_SIZE} --socket-path {{socket}}",
)
QEMU: Final = Peer(
    "qemu-storage-daemon",
    disk=f"{_QSD} --blockdev driver=host_device,node-name=n,filename={{disk}},aio=native,cache.direct=on {_QSD_EXPORT}",
    null=f"{_QSD} --blockdev driver=null-co,node-name=n,size={NULL_SIZE},read-zeroes=off {_QSD_EXPORT}",
)


def kpoll_net(backend: str, sock: Path, *options: str) -> list[str]:
    """Give the command of a card of ours; it polls as `options` say, else by itself."""
    polling = [] if "--poll" in options else ["--poll", "user"]
    return [*shlex.split(_PROGRAM), "net", "--backend", backend, "--socket-path", str(sock), *polling, *options]


def testpmd(mode: str, sock: Path, cpu: int, *options: str) -> list[str]:
    """Give the command of DPDK's testpmd with its vhost PMD: both of its threads on one CPU, no huge pages, no NIC.

    Args:
        mode: What it does with frames: rxonly, txonly, io (back out of the port they came in by).
        sock: Where it will listen.
        cpu: The CPU; the thread that forwards has it, the other one sleeps.
        options: More of testpmd's own.

    """
    eal = ["--lcores", f"0@{cpu},1@{cpu}", "--no-huge", "--no-shconf", "-m", "256", "--no-pci", "--no-telemetry"]
    device = ["--vdev", f"net_vhost0,iface={sock},queues=1"]
    forward = [f"--forward-mode={mode}", "--auto-start", "--no-flush-rx", "--total-num-mbufs=4096"]
    return [_TESTPMD, *eal, *device, "--", *forward, "--stats-period=3600", *options]  # else it ends with its stdin


def parse_peers(disk: tuple[str, ...], null: tuple[str, ...]) -> list[Peer]:
    """Parse --peer and --null-peer, NAME=COMMAND each; the same name in both is one peer. Raises UsageError."""
    peers: dict[str, Peer] = {}
    for option, values in (("--peer", disk), ("--null-peer", null)):
        for value in values:
            name, _, command = value.partition("=")
            if not name or "{socket}" not in command:
                raise UsageError(f"{option} {value}: give NAME=COMMAND with {{socket}} in it")
            old = peers.get(name, Peer(name))
            peers[name] = Peer(name, command, old.null) if option == "--peer" else Peer(name, old.disk, command)
    return list(peers.values())


@contextmanager
def running(command: list[str], sock: Path, cpu: int, log: Path) -> Iterator[None]:
    """Run a back-end on one CPU until the block ends.

    Args:
        command: Its words.
        sock: Where it will listen.
        cpu: The CPU for all its threads.
        log: Where its output goes.

    Raises:
        KpollError: It isn't installed, or doesn't listen within 10 seconds.

    """
    for program in (command[0], "taskset"):
        if shutil.which(program) is None:
            hint = f" (Debian: apt install {_HINTS[program]})" if program in _HINTS else ""
            raise KpollError(f"{program} is not installed{hint}")
    sock.unlink(missing_ok=True)
    with log.open("ab") as output:
        words = ["taskset", "-c", str(cpu), *command]
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output)  # noqa: S603 - the user's own peers
    try:
        _wait_listening(process, sock, log)
        yield
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        sock.unlink(missing_ok=True)


def _wait_listening(process: subprocess.Popen[bytes], sock: Path, log: Path) -> None:
    """Wait until somebody listens, without connecting: that would be a session to some back-ends."""
    deadline = time.monotonic() + _START_S
    while not _listening(sock):
        if process.poll() is not None:
            raise KpollError(f"{process.args!r} ended at once: see {log}")
        if time.monotonic() > deadline:
            raise KpollError(f"{process.args!r} does not listen on {sock}: see {log}")
        time.sleep(_RETRY_S)


def _listening(sock: Path) -> bool:
    """Tell from the kernel's table of unix sockets whether one listens at a path."""
    with open("/proc/net/unix") as table:  # noqa: PTH123 - a line per socket, no need to hold them all
        for line in table:
            fields = line.split(maxsplit=7)
            if len(fields) == 8 and fields[7].strip() == str(sock):  # noqa: SIM102 - one question per line
                if int(fields[3], 16) & _SO_ACCEPTCON:
                    return True
    return False


_SO_ACCEPTCON: Final = 1 << 16  # include/uapi/linux/net.h: "performed a listen"
