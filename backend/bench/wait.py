"""One run of `kpoll bench wait`: every strategy that this host has, in traffic, in silence, and beside a hog.

The measurement itself is C (backend/c/bench_wait.c): a thread that waits in a real wait set, and one that plays the
virtio driver, on a CPU each. Rounds are interleaved, every strategy once per round, as the machine is never quiet.
"""

from __future__ import annotations

import errno
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, get_args

import trio

from kpoll.backend.bench.blk import THINK_US_MAX
from kpoll.backend.bench.wait_report import Measured, Row, WaitReport
from kpoll.backend.errors import KpollError, UsageError
from kpoll.backend.poll import POLL_US_DEFAULT, POLL_US_MAX, choose_poll
from kpoll.backend.worker import STRATEGIES
from kpoll.kernel.probe import KernelFacts, probe_kernel
from kpoll.vhost._core import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable

type_strategy = Literal["off", "user", "module", "kernel", "blind"]
type_situation = Literal["traffic", "idle", "hog"]

_STRATEGIES: Final = {**STRATEGIES, "blind": lib.BENCH_WAIT_BLIND}
_NS: Final = 1_000_000_000
_HOG_US: Final = 1000  # least budget of a spin beside a hog: more than a scheduler's slice would hide a greedy one
_WARMUP: Final = 0.05  # seconds, and what the adaptation needs to learn that traffic has begun or ended
_STALL: Final = 10.0  # seconds
_RUNTIME_MAX: Final = 3600.0


@dataclass(frozen=True, kw_only=True)
class WaitLoad:
    """What to measure.

    Attributes:
        strategies: Which ones, `blind` being a spin that never gives way; empty: all that this host has.
        rounds: How often each; medians are reported.
        runtime: Seconds per strategy, situation and round.
        think_us: Mean time from an answer to the next request, microseconds.
        poll_max_us: Longest spin, microseconds; beside a hog 1000 at least, requests then come twice as often.
        cpu: The waiter's CPU, and the hog's; None: the first of this process.
        driver_cpu: The driver's; None: the next one.
        seed: Of the think times.

    """

    strategies: tuple[type_strategy, ...] = ()
    rounds: int = 3
    runtime: float = 0.5
    think_us: int = 20
    poll_max_us: int = POLL_US_DEFAULT
    cpu: int | None = None
    driver_cpu: int | None = None
    seed: int = 1

    def __post_init__(self) -> None:
        """Check the numbers. Raises UsageError."""
        unknown = [name for name in self.strategies if name not in _STRATEGIES]
        wrong = {
            f"--strategy {', '.join(unknown)}: give some of {', '.join(get_args(type_strategy))}": bool(unknown),
            f"--rounds {self.rounds}: give at least 1": self.rounds < 1,
            f"--runtime {self.runtime}: give seconds, above 0 and at most {_RUNTIME_MAX:.0f}": (
                not 0 < self.runtime <= _RUNTIME_MAX
            ),
            f"--think-us {self.think_us}: give 0 to {THINK_US_MAX}": not 0 <= self.think_us <= THINK_US_MAX,
            f"--poll-max-us {self.poll_max_us}: give 1 to {POLL_US_MAX}": not 1 <= self.poll_max_us <= POLL_US_MAX,
        }
        for message, holds in wrong.items():
            if holds:
                raise UsageError(message)

    @property
    def hog_poll_max_us(self) -> int:
        """Longest spin beside a hog, microseconds."""
        return max(self.poll_max_us, _HOG_US)

    @property
    def hog_think_us(self) -> int:
        """Mean time between requests beside a hog: within every spin's budget, so that a greedy one never sleeps."""
        return self.hog_poll_max_us // 2


def choose_cpus(load: WaitLoad) -> tuple[int, int]:
    """Pick the waiter's CPU and the driver's. Raises KpollError where there is only one, UsageError for others'."""
    mine = sorted(os.sched_getaffinity(0))
    if len(mine) < 2:
        raise KpollError(
            "needs two CPUs, one to wait and one to wake: this process may run on "
            f"CPU {mine[0]} only; give it another with taskset, or the machine"
        )
    waiter = next(cpu for cpu in mine if cpu != load.driver_cpu) if load.cpu is None else load.cpu
    driver = next(cpu for cpu in mine if cpu != waiter) if load.driver_cpu is None else load.driver_cpu
    if waiter == driver or waiter not in mine or driver not in mine:
        raise UsageError(f"--cpu {waiter}, --driver-cpu {driver}: give two different ones of {mine}")
    return waiter, driver


def missing(name: type_strategy, load: WaitLoad, kernel: KernelFacts) -> str | None:
    """Say why this host doesn't have a strategy; None if it does."""
    if name == "blind":
        return None
    try:
        choose_poll(name, load.poll_max_us, kernel)
    except KpollError as error:
        return str(error).removeprefix(f"--poll {name}: ").removesuffix(", or use --poll user")
    return None


def note(name: type_strategy, load: WaitLoad, kernel: KernelFacts) -> str | None:
    """Say what of the spin that was asked for the host's administrator doesn't allow; None if all of it is."""
    sysctl, allowed = {
        "kernel": ("fs.eventfd_busy_poll", kernel.spin_us),
        "module": ("net.core.busy_poll", kernel.net_busy_poll_us),
    }.get(name, ("", load.hog_poll_max_us))
    if allowed is None or allowed >= load.hog_poll_max_us:
        return None
    return f"spins {allowed} µs at most here, {load.hog_poll_max_us} are asked for: `sysctl {sysctl}` says so"


def _complaint(name: str, situation: str, error: int) -> KpollError:
    match error:
        case errno.ETIMEDOUT:
            return KpollError(f"{name}, {situation}: a wake-up was lost: a request wasn't seen for {_STALL:.0f} s")
        case errno.ENODATA:
            return KpollError("this kernel doesn't tell CPU times: /proc/self/task/TID/schedstat is missing")
    return KpollError(f"{name}, {situation}: {os.strerror(error)}")


def _config(name: type_strategy, situation: type_situation, load: WaitLoad, cpus: tuple[int, int]) -> ffi.CData:
    """Fill in a `struct bench_wait_config`."""
    config = ffi.new("struct bench_wait_config *")
    hog = situation == "hog"
    config.strategy = _STRATEGIES[name]
    config.max_us = load.hog_poll_max_us if hog else load.poll_max_us
    config.waiter_cpu, config.driver_cpu = cpus
    config.idle = situation == "idle"
    config.hog = hog
    config.warmup_ns = int(_WARMUP * _NS) + 2000 * config.max_us
    config.runtime_ns = int(load.runtime * _NS)
    config.think_ns = 1000 * (load.hog_think_us if hog else load.think_us)
    config.seed = load.seed
    config.stall_ns = int(_STALL * _NS)
    return config


class _Run:
    """All measurements, in a thread that can be stopped from another."""

    def __init__(self, load: WaitLoad, cpus: tuple[int, int], strategies: list[type_strategy]) -> None:
        self.load = load
        self.cpus = cpus
        self.rows = {name: Row() for name in strategies}
        self._stopped = False
        self._config: ffi.CData | None = None

    def all(self, progress: Callable[[str], None]) -> None:
        """Measure everything, or until `stop`. Raises KpollError."""
        for number in range(self.load.rounds):
            for name in self.rows if number % 2 == 0 else reversed(self.rows):
                progress(f"round {number + 1} of {self.load.rounds}: {name}")
                for situation in get_args(type_situation):
                    self._measure(name, situation)
                    if self._stopped:
                        return

    def _measure(self, name: type_strategy, situation: type_situation) -> None:
        result = ffi.new("struct bench_wait_result *")
        self._config = _config(name, situation, self.load, self.cpus)
        if self._stopped:
            return
        rc = lib.bench_wait_run(self._config, result)
        if rc < 0 and not self._stopped:
            raise _complaint(name, situation, -rc)
        if rc == 0:
            self.rows[name].add(situation, Measured.of(result))

    def stop(self) -> None:
        """Make `all` return soon. From any thread."""
        self._stopped = True
        if self._config is not None:
            lib.bench_wait_stop(self._config)


async def _watched(run: _Run, progress: Callable[[str], None]) -> None:
    """Run in a thread, and stop it on Ctrl-C: trio's own KeyboardInterrupt would wait for the thread's end."""
    interrupted = False
    failed: list[KpollError] = []

    async def watch_signal(*, task_status: trio.TaskStatus[None]) -> None:
        nonlocal interrupted
        with trio.open_signal_receiver(signal.SIGINT) as signals:
            task_status.started()
            async for _ in signals:
                interrupted = True
                run.stop()

    def work() -> None:
        try:
            run.all(progress)
        except KpollError as error:
            failed.append(error)

    async with trio.open_nursery() as nursery:
        await nursery.start(watch_signal)
        await trio.to_thread.run_sync(work)
        nursery.cancel_scope.cancel()
    if interrupted:
        raise KeyboardInterrupt
    if failed:
        raise failed[0]


def run_wait(load: WaitLoad, progress: Callable[[str], None]) -> WaitReport:
    """Measure what this host has.

    Args:
        load: What to measure.
        progress: Told in one line what begins.

    Raises:
        KpollError: A strategy that was asked for by name isn't there; there is one CPU only; a wake-up was lost.
        UsageError: The CPUs are not this process's.
        KeyboardInterrupt: Ctrl-C.

    """
    cpus = choose_cpus(load)
    kernel = probe_kernel()
    reasons = {name: missing(name, load, kernel) for name in load.strategies or get_args(type_strategy)}
    for name in load.strategies:
        if reasons[name] is not None:
            raise KpollError(f"--strategy {name}: {reasons[name]}")
    run = _Run(load, cpus, [name for name, reason in reasons.items() if reason is None])
    trio.run(_watched, run, progress)
    return WaitReport(
        rows=run.rows,
        missing={name: reason for name, reason in reasons.items() if reason is not None},
        notes={name: text for name in run.rows if (text := note(name, load, kernel)) is not None},
    )
