"""How the daemon ends when its disk doesn't answer: a front-end's session waits for what is in flight, and so do we."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
import trio
from structlog.testing import LogCapture
from trio.testing import MockClock

from kpoll.backend import daemon

HANGS_S = 30  # for which requests wait in the kernel


class Hung:
    """A service with a front-end whose requests hang, and are finished when the disk is given up."""

    def __init__(self) -> None:
        """Begin to serve."""
        self.failed = trio.Event()
        self.gave_up: float | None = None
        self.device = SimpleNamespace(workers=(), stop_all=trio.lowlevel.checkpoint)
        self.refreshing = trio.Event()

    def abandon(self) -> None:
        """Have them fail. Called in a thread."""
        trio.from_thread.run_sync(self._fail)

    def _fail(self) -> None:
        self.gave_up = trio.current_time()
        self.failed.set()

    async def watch(self) -> None:
        """Have nothing to watch."""

    async def refresh(self) -> None:
        """Ask somebody who doesn't answer."""
        self.refreshing.set()
        await trio.sleep_forever()

    async def front_ends(self, *_: object) -> None:
        """Be that front-end's session: it is closed, which takes all that is in flight to be finished."""
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(HANGS_S):
                await self.failed.wait()


def run(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> tuple[Hung, float]:
    """Send the daemon signals, the next one when SIGHUP was heeded; returns when it ended, after its first second."""

    async def main() -> tuple[Hung, float]:
        service = Hung()
        send, receive = trio.open_memory_channel[int](len(numbers))

        def hear(*_: object) -> trio.MemoryReceiveChannel[int]:
            return receive

        async def signals() -> None:
            await trio.sleep(1)
            for number in numbers:
                send.send_nowait(number)
                if number == signal.SIGHUP:
                    await service.refreshing.wait()

        monkeypatch.setattr(daemon, "_hear_signals", hear)
        monkeypatch.setattr(daemon, "serve_front_ends", service.front_ends)
        opened: Any = SimpleNamespace(service=service, front=None, metrics=[])
        config: Any = None
        log = structlog.wrap_logger(structlog.PrintLogger(), [LogCapture()])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(signals)
            with trio.move_on_after(2 * HANGS_S):
                await daemon._main(config, opened, log)  # noqa: SLF001 - what has no process of its own
        return service, trio.current_time() - 1

    return trio.run(main, clock=MockClock(autojump_threshold=0.5))


def test_five_seconds_after_the_signal_the_disk_is_given_up_also_while_a_front_end_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service, ended = run(monkeypatch, signal.SIGTERM)
    assert service.gave_up == pytest.approx(6)
    assert ended == pytest.approx(5)


def test_it_ends_also_while_sighup_is_being_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    service, ended = run(monkeypatch, signal.SIGHUP, signal.SIGTERM)
    assert service.refreshing.is_set()
    assert ended == pytest.approx(5)
