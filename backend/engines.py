"""Which I/O engine serves a disk: what was asked for, or the best that this host gives us."""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from kpoll.vhost._core import ffi, lib

from .errors import KpollError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Requests that one worker may have in flight at the engine. fs.aio-max-nr (65536 by default) is shared by the host.
LANE_DEPTH: Final = 1024


@dataclass(frozen=True)
class Engine:
    """An engine by name (aio, io_uring, null), why it is the one to take, and whether it polls for completions."""

    name: str
    why: str
    iopoll: bool = False


def candidates(
    asked: str, iopoll: str, *, direct: bool, polls: bool, kernel_waits: bool = False, pins: bool = False
) -> tuple[Engine, ...]:
    """Return the engines to try, best first.

    Args:
        asked: What --engine says.
        iopoll: What --iopoll says.
        direct: Whether the disk takes O_DIRECT. Without it, Linux AIO isn't asynchronous.
        polls: Whether its completions are to be polled for, if its engine can (iopoll.py).
        kernel_waits: Whether it is the kernel's EVENTFD_SET_POLL that workers wait by, as aio's polling wants.
        pins: Whether guest memory is to be registered with the engine, which only io_uring does.

    """
    if polls:
        polling = tuple(
            Engine(name, "it polls the device's queues" if asked == "auto" else "asked for", iopoll=True)
            for name, possible in (("io_uring", True), ("aio", kernel_waits and not pins))
            if possible and asked in ("auto", name)
        )
        if iopoll == "on":
            return polling
        return (*polling, *candidates(asked, iopoll, direct=direct, polls=False, pins=pins))
    if asked != "auto":
        return (Engine(asked, "asked for"),)
    if pins:
        return (Engine("io_uring", "--pin-guest-memory"),)
    if direct:
        return (
            Engine("aio", "O_DIRECT works here, and Linux AIO's ring is the cheapest to reap"),
            Engine("io_uring", "O_DIRECT works here"),
        )
    return (Engine("io_uring", "no O_DIRECT here, and Linux AIO would block"), Engine("aio", "no O_DIRECT here"))


def _failure(engine: str, error: int) -> str:
    """Say why an engine can't be had, and what to do."""
    match engine, error:
        case "aio", errno.EAGAIN:
            return "Linux AIO has no contexts left on this host: allow more with `sysctl fs.aio-max-nr=1048576`"
        case "aio", errno.EPERM | errno.ENOSYS:
            return "Linux AIO isn't allowed here (kernel or container policy): use --engine io_uring"
        case "aio", errno.EOPNOTSUPP:
            return "this kernel's Linux AIO can't poll devices: take one with kpoll's patches, or use --engine io_uring"
        case "io_uring", errno.EPERM | errno.ENOSYS:
            return "io_uring isn't allowed here (kernel, sysctl or container policy): use --engine aio"
        case _:
            return f"the engine {engine} can't start: {os.strerror(error)}"


def _make_lane(dev: Any, engine: Engine, stack: contextlib.ExitStack) -> Any:
    out = ffi.new("struct blk_lane **")
    name = f"{engine.name}_iopoll" if engine.iopoll else engine.name
    error = -lib.blk_lane_create(out, dev, name.encode(), LANE_DEPTH)
    if error:
        raise KpollError(_failure(engine.name, error))
    stack.callback(lib.blk_lane_destroy, out[0])
    return out[0]


@contextlib.contextmanager
def open_lanes(dev: Any, engines: Sequence[Engine], count: int) -> Iterator[tuple[Engine, list[Any]]]:
    """Make each worker's share of a disk, all with the first engine that this host gives us enough of.

    Args:
        dev: The `struct blk_dev *`.
        engines: What to try, in this order.
        count: How many shares.

    Yields the engine taken and the `struct blk_lane *`s; frees these on leaving. Raises KpollError when none works.

    """
    with contextlib.ExitStack() as stack:
        failures: list[str] = []
        for engine in engines:
            with contextlib.ExitStack() as attempt:
                try:
                    lanes = [_make_lane(dev, engine, attempt) for _ in range(count)]
                except KpollError as error:
                    failures.append(str(error))
                    continue
                stack.push(attempt.pop_all())
            break
        else:
            raise KpollError("; ".join(failures))
        if failures:
            engine = replace(engine, why=f"{engine.why}; {'; '.join(failures)}")
        yield engine, lanes
