"""The session as a state machine, without a socket: any sequence of messages, against a model of a few lines."""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import structlog
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from kpoll.vhost.connection import Fds, Received
from kpoll.vhost.device import DeviceError
from kpoll.vhost.features import ProtocolFeature, VirtioFeature
from kpoll.vhost.messages import Header, Request, pack_reply, pack_request
from kpoll.vhost.payloads import (
    U64,
    Empty,
    MemoryRegion,
    MemoryRegions,
    Payload,
    SingleMemoryRegion,
    VringAddr,
    VringFd,
    VringState,
)
from kpoll.vhost.session import Session
from tests.wire.harness import AVAIL, DESC, SIZE, USED, RecordingDevice, resources

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

UVA = 0x7000_0000_0000
REGION = MemoryRegion(0, 4096, UVA, 0)
OTHER = MemoryRegion(0x100000, 4096, UVA + 0x100000, 0)
PROTOCOL = VirtioFeature.VHOST_USER_F_PROTOCOL_FEATURES
LOG: FilteringBoundLogger = structlog.wrap_logger(
    structlog.PrintLogger(), [structlog.testing.LogCapture()], wrapper_class=structlog.make_filtering_bound_logger(0)
)


@pytest.fixture(scope="module", autouse=True)
def no_garbage() -> None:
    """Let go of what earlier tests left in cycles, so that it doesn't go while we count descriptors."""
    gc.collect()


def received(request: Request, payload: Payload, fds: list[int]) -> Received:
    message = pack_request(request, payload, need_reply=True)
    owned = Fds()
    for fd in fds:
        owned.add(fd)
    return Received(Header.unpack(message[:12]), message[12:], owned)


@dataclass
class Ring:
    """What the specification says of a ring, and no more."""

    num: bool = False
    addr: bool = False
    kick: bool = False
    enabled: bool | None = None

    def runs(self, protocol: bool) -> bool:
        """Whether it must run; enabled from the start only where protocol features were not negotiated."""
        return self.num and self.addr and self.kick and (self.enabled if self.enabled is not None else not protocol)


@dataclass
class Model:
    """The rings that must be running after any sequence of messages."""

    protocol: bool = False
    regions: set[MemoryRegion] = field(default_factory=set)
    rings: tuple[Ring, Ring] = field(default_factory=lambda: (Ring(), Ring()))

    def running(self) -> set[int]:
        """Which rings must run."""
        if REGION not in self.regions:
            return set()
        return {index for index, ring in enumerate(self.rings) if ring.runs(self.protocol)}


def memfd() -> int:
    fd = os.memfd_create("guest", os.MFD_CLOEXEC)
    os.ftruncate(fd, 4096)
    return fd


def message(step: str, index: int, model: Model) -> tuple[Request, Payload, list[int]]:  # noqa: C901, PLR0911, PLR0912
    """Give the message of a step, and make the model what it should be afterwards."""
    ring = model.rings[index]
    match step:
        case "num":
            ring.num = True
            return Request.SET_VRING_NUM, VringState(index, SIZE), []
        case "addr":
            ring.addr = True
            return Request.SET_VRING_ADDR, VringAddr(index, 0, UVA + DESC, UVA + USED, UVA + AVAIL, 0), []
        case "kick":
            ring.kick = True
            return Request.SET_VRING_KICK, VringFd(index, has_fd=True), [os.eventfd(0)]
        case "poll":
            ring.kick = True
            return Request.SET_VRING_KICK, VringFd(index, has_fd=False), []
        case "call":
            return Request.SET_VRING_CALL, VringFd(index, has_fd=True), [os.eventfd(0)]
        case "enable" | "disable":
            ring.enabled = step == "enable"
            return Request.SET_VRING_ENABLE, VringState(index, int(ring.enabled)), []
        case "base":
            ring.kick = False
            return Request.GET_VRING_BASE, VringState(index, 0), []
        case "features" | "old features":
            model.protocol = step == "features"
            return Request.SET_FEATURES, U64(PROTOCOL if model.protocol else 0), []
        case "table":
            model.regions = {REGION}
            return Request.SET_MEM_TABLE, MemoryRegions((REGION,)), [memfd()]
        case "add" | "add other":
            added = REGION if step == "add" else OTHER
            model.regions.add(added)
            return Request.ADD_MEM_REG, SingleMemoryRegion(added), [memfd()]
        case "remove" | "remove other":
            removed = REGION if step == "remove" else OTHER
            model.regions.discard(removed)
            return Request.REM_MEM_REG, SingleMemoryRegion(removed), []
        case "reset":
            for each in model.rings:
                each.num = each.addr = each.kick = False
                each.enabled = None
            return Request.RESET_DEVICE, Empty(), []
        case _:
            for each in model.rings:
                each.kick = False
            return Request.SET_STATUS, U64(0), []


STEPS = ["num", "addr", "kick", "poll", "call", "enable", "disable", "base", "features", "old features", "table"]
STEPS += ["add", "add other", "remove", "remove other", "reset", "status 0"]


async def play(steps: list[tuple[str, int]]) -> None:
    device = RecordingDevice()
    model = Model()
    session = Session(device, LOG)
    try:
        acks = U64(ProtocolFeature.REPLY_ACK | ProtocolFeature.CONFIGURE_MEM_SLOTS)
        await session.handle(received(Request.SET_PROTOCOL_FEATURES, acks, []))
        for step, index in steps:
            if not expected_to_work(step, model):
                continue
            request, payload, fds = message(step, index, model)
            answer = await session.handle(received(request, payload, fds))
            if request is not Request.GET_VRING_BASE:
                assert answer == pack_reply(request, U64(0)), step
            assert set(device.running) == device.told[-1] == model.running(), step
    finally:
        await session.close()
    assert not device.running
    assert not device.told[-1]
    assert device.calls[-1] == ("reset",)


def expected_to_work(step: str, model: Model) -> bool:
    """Leave out what a sane front-end does not do, and what fails for reasons that the model does not know."""
    present = {"add": REGION in model.regions, "remove": REGION not in model.regions}
    present |= {"add other": OTHER in model.regions, "remove other": OTHER not in model.regions}
    ring_memory_missing = model.regions == {OTHER}
    could_start_a_ring = step in {"num", "addr", "kick", "poll", "enable"}
    return not present.get(step, False) and not (ring_memory_missing and could_start_a_ring)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 1)), max_size=40))
def test_exactly_the_rings_run_that_should(steps: list[tuple[str, int]]) -> None:
    held = resources()
    trio.run(play, steps)
    assert resources() == held, "descriptors or mappings leaked"


class StubbornDevice(RecordingDevice):
    """Can't be reset."""

    def __init__(self, error: Exception) -> None:
        """Raise this."""
        super().__init__()
        self.error = error

    async def reset(self) -> None:
        """Fail."""
        raise self.error


async def leave(device: RecordingDevice, log: FilteringBoundLogger) -> None:
    """Come with a ring that runs, and leave."""
    model = Model()
    session = Session(device, log)
    for step in ("table", "num", "addr", "call", "kick"):
        await session.handle(received(*message(step, 0, model)))
    assert set(device.running) == {0}
    await session.close()


@pytest.mark.parametrize("error", [OSError(1, "Operation not permitted"), DeviceError("it can't be")])
def test_a_device_that_cannot_be_reset_gives_everything_back_and_is_a_line_in_the_log(error: Exception) -> None:
    held = resources()
    device = StubbornDevice(error)
    lines = structlog.testing.LogCapture()
    log: FilteringBoundLogger = structlog.wrap_logger(
        structlog.PrintLogger(), [lines], wrapper_class=structlog.make_filtering_bound_logger(0)
    )
    trio.run(leave, device, log)
    assert not device.running
    assert resources() == held
    [line] = [line for line in lines.entries if line["log_level"] == "warning"]
    assert (line["event"], line["error"]) == ("reset_failed", str(error))


def test_a_bug_in_a_device_s_reset_still_gives_everything_back() -> None:
    held = resources()
    with pytest.raises(ZeroDivisionError):
        trio.run(leave, StubbornDevice(ZeroDivisionError()), LOG)
    assert resources() == held
