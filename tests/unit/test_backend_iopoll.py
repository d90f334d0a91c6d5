"""Which disks' completions are polled for, which engine does that, and what is said about it."""

from __future__ import annotations

from typing import Any

import pytest

from kpoll.backend.config import BlkConfig, SocketConfig
from kpoll.backend.engines import candidates
from kpoll.backend.errors import KpollError, UsageError
from kpoll.backend.iopoll import Iopoll, choose_iopoll
from kpoll.backend.poll import PollConfig

POLLABLE = {"block_device": True, "direct": True, "polls": True, "nowait": True}


def config(*, strategy: Any = "user", poll: Any = None, **options: Any) -> BlkConfig:
    waiting = PollConfig(strategy=strategy, why="", **(poll or {}))
    return BlkConfig(socket=SocketConfig(path="/run/s"), poll=waiting, **{"blk_file": "/dev/nvme0n1", **options})


def chosen(facts: Any, **options: Any) -> Iopoll:
    return choose_iopoll(config(**options), **facts)


@pytest.mark.parametrize("options", [{}, {"engine": "io_uring"}, {"pin_guest_memory": True}])
def test_a_device_with_poll_queues_is_polled(options: dict[str, Any]) -> None:
    assert chosen(POLLABLE, **options) == Iopoll(use=True, why="its driver has poll queues")


@pytest.mark.parametrize(
    ("lacks", "says"),
    [
        ("polls", "its driver has no poll queues"),
        ("nowait", "a layer above its driver can't be polled"),
        ("direct", "O_DIRECT"),
        ("block_device", "is no block device"),
    ],
)
def test_what_a_disk_lacks_is_why_auto_does_not_poll_it_and_an_error_where_it_was_asked_for(
    lacks: str, says: str
) -> None:
    facts = {**POLLABLE, lacks: False}
    seen = chosen(facts)
    assert (seen.use, says in seen.why) == (False, True)
    with pytest.raises(KpollError, match="use --iopoll auto") as error:
        chosen(facts, iopoll="on")
    assert error.value.exit_code == 1
    assert str(error.value).startswith("/dev/nvme0n1: --iopoll on: ")
    assert says in str(error.value)


def test_the_error_without_poll_queues_names_the_boot_parameter() -> None:
    with pytest.raises(KpollError, match=r"nvme\.poll_queues="):
        chosen({**POLLABLE, "polls": False}, iopoll="on")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"iopoll": "off"}, "--iopoll off"),
        ({"engine": "null", "blk_file": None, "size": 512}, "--engine null"),
        ({"strategy": "off"}, "--poll off"),
        ({"poll": {"max_us": 0}}, "--poll-max-us 0"),
    ],
)
def test_auto_does_not_poll_where_something_else_was_asked_for(options: dict[str, Any], why: str) -> None:
    assert chosen(POLLABLE, **options) == Iopoll(use=False, why=why)


def test_on_polls_for_completions_even_where_nobody_polls_for_requests() -> None:
    assert chosen(POLLABLE, iopoll="on", strategy="off") == Iopoll(use=True, why="asked for")


def test_on_with_an_engine_that_cannot_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="--engine null has nothing to poll"):
        config(iopoll="on", engine="null", blk_file=None, size=512)


@pytest.mark.parametrize("strategy", ["module", "user", "off"])
def test_aio_polls_only_where_the_kernel_waits_for_it(strategy: str) -> None:
    seen = chosen(POLLABLE, engine="aio", strategy=strategy)
    assert seen == Iopoll(use=False, why=f"--engine aio polls under --poll kernel, and this is {strategy}")
    with pytest.raises(KpollError, match="use --poll kernel"):
        chosen(POLLABLE, engine="aio", strategy=strategy, iopoll="on")
    assert chosen(POLLABLE, engine="aio", strategy="kernel").use


def test_aio_polls_only_where_the_kernel_may_spin() -> None:
    off: dict[str, Any] = {"poll": {"warning": "polling is off on this host"}, "strategy": "kernel", "engine": "aio"}
    assert not chosen(POLLABLE, **off).use
    with pytest.raises(KpollError, match=r"`sysctl fs.eventfd_busy_poll=100`"):
        chosen(POLLABLE, iopoll="on", **off)
    assert chosen(POLLABLE, **{**off, "engine": "io_uring"}).use


@pytest.mark.parametrize(
    ("asked", "iopoll", "polls", "tried"),
    [
        ("auto", "auto", True, [("io_uring", True), ("aio", False), ("io_uring", False)]),
        ("auto", "auto", False, [("aio", False), ("io_uring", False)]),
        ("auto", "on", True, [("io_uring", True)]),
        ("io_uring", "on", True, [("io_uring", True)]),
        ("io_uring", "auto", True, [("io_uring", True), ("io_uring", False)]),
        ("io_uring", "off", False, [("io_uring", False)]),
        ("aio", "auto", False, [("aio", False)]),
    ],
)
def test_the_engine_that_polls_is_tried_first_and_alone_where_it_has_to(
    asked: str, iopoll: str, polls: bool, tried: list[tuple[str, bool]]
) -> None:
    found = candidates(asked, iopoll, direct=True, polls=polls, kernel_waits=False)
    assert [(each.name, each.iopoll) for each in found] == tried


@pytest.mark.parametrize(
    ("asked", "iopoll", "tried"),
    [
        ("auto", "auto", [("io_uring", True), ("aio", True), ("aio", False), ("io_uring", False)]),
        ("auto", "on", [("io_uring", True), ("aio", True)]),
        ("aio", "on", [("aio", True)]),
        ("aio", "auto", [("aio", True), ("aio", False)]),
        ("io_uring", "on", [("io_uring", True)]),
    ],
)
def test_where_the_kernel_waits_aio_may_poll_too(asked: str, iopoll: str, tried: list[tuple[str, bool]]) -> None:
    found = candidates(asked, iopoll, direct=True, polls=True, kernel_waits=True)
    assert [(each.name, each.iopoll) for each in found] == tried


def test_pinned_memory_makes_auto_take_io_uring_and_nothing_else() -> None:
    plain = candidates("auto", "auto", direct=True, polls=False, pins=True)
    assert [(each.name, each.why) for each in plain] == [("io_uring", "--pin-guest-memory")]
    polled = candidates("auto", "auto", direct=True, polls=True, pins=True)
    assert [(each.name, each.iopoll) for each in polled] == [("io_uring", True), ("io_uring", False)]


@pytest.mark.parametrize("engine", ["aio", "null"])
def test_pinned_memory_with_an_engine_that_has_no_use_for_it_is_a_usage_error(engine: str) -> None:
    disk = {"blk_file": None, "size": 512} if engine == "null" else {}
    with pytest.raises(UsageError, match=f"--engine {engine} has no use for it"):
        config(pin_guest_memory=True, engine=engine, **disk)
