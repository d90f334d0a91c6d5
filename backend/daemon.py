"""The daemon's life: open everything, give up what isn't needed, serve, and leave nothing behind.

The order is what makes the errors honest: whatever can fail because of the user or the host has failed before the first
line is logged and before anybody can connect; and the sandbox closes before the first thread starts, because it binds
only those that come after it.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

import trio
from prometheus_client import CollectorRegistry

from kpoll.vhost._core import lib

from .errors import KpollError
from .frontends import serve_front_ends
from .limits import raise_descriptor_limit
from .listener import FrontSocket, open_front_socket, remove_own
from .logs import device_log, setup_logging
from .metrics_server import open_metrics_sockets, serve_metrics
from .sandbox import Kept, Sandbox, enter_sandbox
from .signals import SIGNALS, SignalThread

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractContextManager

    from structlog.typing import FilteringBoundLogger

    from .service import DeviceConfig, Service

    type_open = Callable[[FilteringBoundLogger], AbstractContextManager[Service]]

_FORCED: Final = 1  # exit code
_PATIENCE_S: Final = 5.0  # half of what an orderly end has
_ABANDON_S: Final = 3.0


@dataclass(frozen=True)
class _Opened:
    """Everything that was opened before the daemon runs."""

    service: Service
    front: FrontSocket
    metrics: list[socket.socket]


def _check_cpus(config: DeviceConfig) -> None:
    """Pinning a thread fails where nobody can see it; so say it now. Raises KpollError."""
    allowed = os.sched_getaffinity(0)
    if refused := sorted(set(config.cpus) - allowed):
        have = ",".join(map(str, sorted(allowed)))
        raise KpollError(f"--cpus: CPU {refused[0]} isn't there for this process, it may run on {have}")


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Block signals in this thread and those it starts: from when there is a path to remove, for `SignalThread`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _open(config: DeviceConfig, open_service: type_open, log: FilteringBoundLogger) -> Iterator[_Opened]:
    """Open all that `config` needs, the front-ends' socket last. Raises KpollError."""
    _check_cpus(config)
    if error := -lib.mem_sigbus_install():
        raise KpollError(f"no handler for SIGBUS: {os.strerror(error)}")
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(open_service(log))
        metrics = stack.enter_context(open_metrics_sockets(config.metrics))
        stack.enter_context(_signals_held())
        front = stack.enter_context(open_front_socket(config.socket))
        service.ready()
        yield _Opened(service, front, metrics)


def _made_paths(config: DeviceConfig) -> list[str]:
    """Name the sockets that we make and remove."""
    return [path for path in (config.socket.path, config.metrics.path) if path is not None]


def _enter_sandbox(config: DeviceConfig, kept: Kept) -> Sandbox | None:
    """Close the sandbox unless it is off. Raises KpollError when it was asked for and the host has nothing of it."""
    if config.sandbox is False:
        return None
    removable = {os.path.dirname(os.path.abspath(path)) for path in _made_paths(config)}  # noqa: PTH100, PTH120
    sandbox = enter_sandbox(removable=removable, kept=kept)
    if config.sandbox and not {"seccomp", "landlock"} & set(sandbox.active):
        reasons = ", ".join(f"{layer}: {reason}" for layer, reason in sandbox.missing.items())
        raise KpollError(f"--sandbox on: this host has neither seccomp nor Landlock ({reasons}); use --sandbox off")
    return sandbox


def run(config: DeviceConfig, open_service: type_open) -> None:
    """Serve one device until SIGTERM or SIGINT, or until the front-end of a connected --fd leaves.

    Args:
        config: What every kind of device is configured with.
        open_service: Opens the device, raising KpollError; closes it when no worker runs any more.

    Raises KpollError when something on this host prevents that.

    """
    setup_logging(config.log)
    log = device_log(config.device)
    raise_descriptor_limit()
    with _open(config, open_service, log) as opened:
        sandbox = _enter_sandbox(config, opened.service.kept)
        log.info(
            "started",
            version=version("kpoll"),
            pid=os.getpid(),
            poll=config.poll.strategy,
            poll_why=config.poll.why,
            **opened.service.facts,
        )
        if config.poll.warning is not None:
            log.warning("poll_never_spins", error=config.poll.warning)
        if sandbox is None:
            log.info("sandbox", active=[], missing={"all": "--sandbox off"})
        else:
            log.info("sandbox", active=list(sandbox.active), missing=sandbox.missing)
        try:
            trio.run(_main, config, opened, log)
        except* KpollError as group:
            raise _first(group) from None
        log.info("stopped")


def _first(group: BaseExceptionGroup[KpollError]) -> KpollError:
    """Return the first of the errors in a group of groups."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, KpollError)
    return error


async def _main(config: DeviceConfig, opened: _Opened, log: FilteringBoundLogger) -> None:
    """Run the workers around everything that uses them, and stop them last."""
    device = opened.service.device
    ending = trio.Event()
    patience = trio.CancelScope(shield=True)

    async def lose_patience() -> None:
        """If queues don't come to rest, have what they wait for fail. A front-end's session waits for them first."""
        with patience:
            await ending.wait()
            await trio.sleep(_PATIENCE_S)
            await trio.to_thread.run_sync(opened.service.abandon, abandon_on_cancel=True)

    async with trio.open_nursery() as nursery:
        for worker in device.workers:
            await nursery.start(worker.run)
        nursery.start_soon(lose_patience)
        try:
            await _serve(config, opened, ending, log)
        finally:
            ending.set()
            try:
                with trio.CancelScope(shield=True):
                    await device.stop_all()
            finally:
                patience.cancel()
            for worker in device.workers:
                worker.stop()


async def _serve(config: DeviceConfig, opened: _Opened, ending: trio.Event, log: FilteringBoundLogger) -> None:
    """Serve front-ends, scrapes and signals, until told to stop (`ending` is set then) or nobody can come any more."""
    async with trio.open_nursery() as nursery:
        signals = _hear_signals(config, opened.service, log)
        nursery.start_soon(_heed_signals, signals, opened.service, ending, nursery.cancel_scope, log)
        nursery.start_soon(opened.service.watch)
        if opened.metrics:
            registry = CollectorRegistry(auto_describe=False)
            registry.register(opened.service.collector)
            nursery.start_soon(serve_metrics, opened.metrics, registry, log)
        await serve_front_ends(opened.front, opened.service.device, log)
        nursery.cancel_scope.cancel()
        await trio.lowlevel.checkpoint_if_cancelled()


def _hear_signals(config: DeviceConfig, service: Service, log: FilteringBoundLogger) -> trio.MemoryReceiveChannel[int]:
    """Start the thread that hears signals; returns where they arrive."""
    ours = {path: os.lstat(path) for path in _made_paths(config) if os.path.lexists(path)}
    token = trio.lowlevel.current_trio_token()
    send, receive = trio.open_memory_channel[int](math.inf)

    def hear(number: int) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(send.send_nowait, number, idempotent=True)

    def force(why: str) -> None:
        try:
            for path, made in ours.items():
                remove_own(path, made)
            log.error("exit_forced", why=why)
            abandon = threading.Thread(target=service.abandon, daemon=True)
            abandon.start()
            abandon.join(_ABANDON_S)
        finally:
            os._exit(_FORCED)

    SignalThread(hear, force)
    return receive


async def _heed_signals(
    signals: AsyncIterator[int],
    service: Service,
    ending: trio.Event,
    serving: trio.CancelScope,
    log: FilteringBoundLogger,
) -> None:
    async with trio.open_nursery() as nursery:
        async for number in signals:
            log.info("signal", signal=signal.Signals(number).name)
            if number == signal.SIGHUP:
                nursery.start_soon(service.refresh)  # which may take its time: SIGTERM isn't to wait for it
            else:
                ending.set()
                serving.cancel()
