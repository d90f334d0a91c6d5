"""What `kpoll doctor` says of the I/O engines: Linux AIO and io_uring."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kpoll.vhost._core import ffi, lib

from .doctor import Finding, set_sysctl
from .engines import LANE_DEPTH

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kpoll.kernel.rights import Rights
    from kpoll.nvme.uring_probe import UringFacts

AIO_NR: Final = Path("/proc/sys/fs/aio-nr")
AIO_MAX_NR: Final = Path("/proc/sys/fs/aio-max-nr")
_AIO_PLENTY: Final = 1048576  # of 1024 workers

_REFUSED: Final = (errno.EPERM, errno.EACCES, errno.ENOSYS)  # of system calls: by a policy, or since there are none
_PROFILE: Final = (
    "run the container with a seccomp profile that allows io_uring_setup, io_uring_enter and io_uring_register "
    "(`--security-opt seccomp=FILE`)"
)

_finding = partial(Finding, area="engines")


@dataclass(frozen=True, kw_only=True)
class AioFacts:
    """What there is of Linux AIO.

    Attributes:
        setup: 0 if a worker's share can be had; else the errno.
        polls: Whether it can poll devices, which kpoll's kernel patches bring.
        used: The sysctl fs.aio-nr: requests that all processes together have reserved; None: not known.
        most: The sysctl fs.aio-max-nr, how many they may; None: not known.

    """

    setup: int = errno.ENOSYS
    polls: bool = False
    used: int | None = None
    most: int | None = None


def probe_aio() -> AioFacts:
    """Take what one worker takes, and give it back."""
    used, most = _number(AIO_NR), _number(AIO_MAX_NR)
    return AioFacts(setup=_setup(b"aio"), polls=_setup(b"aio_iopoll") == 0, used=used, most=most)


def _setup(name: bytes) -> int:
    target, engine = ffi.new("struct io_target *"), ffi.new("struct io_engine **")
    lib.io_target_null(target, 0)
    error: int = -lib.io_engine_create(engine, name, target, LANE_DEPTH)
    if not error:
        lib.io_engine_destroy(engine[0])
    return error


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def engines(aio: AioFacts, uring: UringFacts, rights: Rights, cpus: int) -> Iterator[Finding]:
    """Yield what is found.

    Args:
        aio: Of Linux AIO.
        uring: Of io_uring.
        rights: Of this process.
        cpus: How many CPUs it may use.

    """
    yield _aio(aio)
    if aio.setup == 0:
        yield _aio_polls(aio)
    yield _aio_max_nr(aio, cpus)
    yield _uring(uring, rights)
    yield _iopoll(uring)


def _aio(aio: AioFacts) -> Finding:
    name = "Linux AIO"
    if aio.setup == 0:
        return _finding(name=name, state="good", found="works")
    if aio.setup == errno.EAGAIN:
        change = set_sysctl("fs.aio-max-nr", _AIO_PLENTY)
        return _finding(name=name, state="missing", found="fs.aio-max-nr is used up", change=change)
    if aio.setup in _REFUSED:
        change = (
            "in a container, allow io_setup, io_submit, io_getevents and io_destroy in its seccomp profile; else take "
            "a kernel with CONFIG_AIO"
        )
        return _finding(name=name, state="missing", found="isn't allowed, or not in this kernel", change=change)
    return _finding(name=name, state="missing", found=f"can't start: {os.strerror(aio.setup)}")


def _aio_polls(aio: AioFacts) -> Finding:
    finding = partial(_finding, name="Linux AIO: polling")
    if aio.polls:
        return finding(state="good", found="it can poll devices, for --iopoll with --poll kernel")
    found = "it can't poll devices; only --iopoll with --engine aio takes it"
    return finding(state="improvable", found=found, change="boot a kernel with kpoll's patches (kernel/README.md)")


def _aio_max_nr(aio: AioFacts, cpus: int) -> Finding:
    name, change = "fs.aio-max-nr", set_sysctl("fs.aio-max-nr", _AIO_PLENTY)
    if aio.used is None or aio.most is None:
        change = f"look on the host itself; {change}"
        return _finding(name=name, state="unknown", found="can't be read here", change=change)
    workers = max(aio.most - aio.used, 0) // LANE_DEPTH
    found = f"{aio.most}, of which {aio.used} are taken: room for {workers} more workers of {LANE_DEPTH}"
    if workers >= cpus:
        return _finding(name=name, state="good", found=found)
    return _finding(name=name, state="improvable" if workers else "missing", found=found, change=change)


def _uring(uring: UringFacts, rights: Rights) -> Finding:
    name = "io_uring"
    if uring.setup == 0:
        return _finding(name=name, state="good", found="works")
    allow = set_sysctl("kernel.io_uring_disabled", 0)
    change: str | None
    match uring.setup, uring.disabled:
        case errno.EPERM, 2:
            found, change = "kernel.io_uring_disabled is 2: nobody may use it", allow
        case errno.EPERM, 1:
            found = "kernel.io_uring_disabled is 1: only root and a group may use it"
            change = f"this user into the group of the sysctl kernel.io_uring_group; or {allow}"
        case error, _ if error in _REFUSED and rights.filtered:
            found, change = "a seccomp filter refuses it, as containers' default profiles do", _PROFILE
        case errno.ENOSYS, _:
            found, change = "not in this kernel", "take a kernel with CONFIG_IO_URING, of Linux 5.6 or newer"
        case errno.ENOMEM, _:
            found, change = "no memory may be locked for it", "raise RLIMIT_MEMLOCK (see rights)"
        case error, _:
            found, change = f"can't start: {os.strerror(error)}", None
    return _finding(name=name, state="missing", found=found, change=change)


def _iopoll(uring: UringFacts) -> Finding:
    finding = partial(_finding, name="io_uring: IOPOLL")
    if uring.iopoll is None:
        return finding(state="unknown", found="can't be asked without io_uring; only --iopoll takes it")
    if uring.iopoll:
        return finding(state="good", found="a ring can poll devices, for --iopoll")
    found = "a ring can't poll devices; only --iopoll takes it"
    return finding(state="improvable", found=found, change="take Linux 5.1 or newer")
