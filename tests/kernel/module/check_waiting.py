"""Waiting with the module: who spins, for how long, what ends it, and what wakes sleepers."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.kernel.watched import (
    ATTEMPTS,
    DEVICE,
    LATE,
    LONG,
    NONE,
    POLLIN,
    POLLPRI,
    QUIET_CPU,
    Epoll,
    Memory,
    Waiter,
    Waiting,
    Watched,
    busy_poll,
    checked,
    libc,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def seen_without_a_signal(watched: Watched, waiter: Waiter, store: Callable[[int], None]) -> int:
    """Return the events of a wait during which somebody stores and does not signal."""
    for _ in range(ATTEMPTS):
        store(0)
        watched.drain()
        waiting = Waiting(waiter)
        if waiting.until("spinning", "asleep") == "spinning":
            store(1)
            if waiting.until("over", "asleep") == "over":
                return waiting.events()
        store(0)
        watched.signal()
        assert waiting.events() == POLLIN
    raise AssertionError(f"all {ATTEMPTS} spins ended early")


def test_a_store_without_a_signal_is_seen_by_who_spins(watched: Watched, waiter: Waiter, memory: Memory) -> None:
    watched.set(memory.addr)
    assert seen_without_a_signal(watched, waiter, memory.store) == POLLIN
    memory.store(0)
    assert waiter.wait(0) == 0


def test_a_signal_ends_a_spin_too(watched: Watched, waiter: Waiter, memory: Memory) -> None:
    watched.set(memory.addr)
    waiting = Waiting(waiter)
    waiting.until("spinning", "asleep")
    watched.signal()
    assert waiting.events() == POLLIN


def test_with_busy_poll_at_0_nobody_spins_and_a_store_waits_for_its_signal(
    watched: Watched, waiter: Waiter, memory: Memory
) -> None:
    busy_poll(0)
    watched.set(memory.addr)
    waiting = Waiting(waiter)
    waiting.until("asleep")
    memory.store(1)
    assert waiting.asleep()
    assert waiting.cpu_seconds() < LATE
    watched.signal()
    assert waiting.events() == POLLIN


def test_without_a_condition_nobody_spins(watched: Watched, waiter: Waiter) -> None:
    waiting = Waiting(waiter)
    waiting.until("asleep")
    assert waiting.cpu_seconds() < LATE
    watched.signal()
    assert waiting.events() == POLLIN


def test_a_spin_is_over_after_busy_poll(watched: Watched, waiter: Waiter, memory: Memory) -> None:
    busy_poll(200_000)
    watched.set(memory.addr)
    waiting = Waiting(waiter)
    waiting.until("asleep")
    assert waiting.cpu_seconds() < 0.2 + LATE
    watched.signal()
    assert waiting.events() == POLLIN


def test_max_us_ends_a_spin_before_busy_poll_does(watched: Watched, waiter: Waiter, memory: Memory) -> None:
    watched.set(memory.addr, max_us=50_000)
    waiting = Waiting(waiter)
    waiting.until("asleep")
    assert waiting.cpu_seconds() < 0.05 + LATE
    watched.signal()
    assert waiting.events() == POLLIN


def test_a_word_that_holds_for_nobody_here_keeps_no_spin_going(device: int, watched: Watched, memory: Memory) -> None:
    busy_poll(LONG)
    foreign = Watched(device)
    memory.store(1, offset=8)
    foreign.set(memory.addr + 8, max_us=50_000)
    watched.set(memory.addr, max_us=50_000)
    epoll = Epoll(watched.fd)
    waiting = Waiting(epoll)
    waiting.until("asleep")
    assert waiting.cpu_seconds() < 0.05 + LATE
    watched.signal()
    assert waiting.events() == POLLIN
    epoll.close()
    foreign.close()


def test_a_timeout_is_at_most_busy_poll_late_and_never_early(watched: Watched, waiter: Waiter, memory: Memory) -> None:
    watched.set(memory.addr)
    for spin in (0, 0.3):
        busy_poll(int(spin * 1e6))
        waiting = Waiting(waiter, 100)
        assert waiting.events() == 0
        assert 0.1 <= waiting.seconds < 0.1 + spin + LATE


def test_a_timeout_of_0_returns_at_once_whatever_busy_poll_is(watched: Watched, waiter: Waiter, memory: Memory) -> None:
    watched.set(memory.addr)
    waiting = Waiting(waiter, 0)
    assert waiting.events() == 0
    assert waiting.seconds < LATE


def test_a_spin_ends_when_somebody_else_wants_the_cpu(watched: Watched, waiter: Waiter, memory: Memory) -> None:
    watched.set(memory.addr)
    waiting = Waiting(waiter)
    waiting.until("spinning", "asleep")
    hog = subprocess.Popen(
        ["taskset", "-c", str(QUIET_CPU), sys.executable, "-S", "-c", "print(flush=True)\nwhile True: pass"],
        stdout=subprocess.PIPE,
    )
    with hog:
        assert hog.stdout is not None
        hog.stdout.readline()
        waiting.until("asleep")
        watched.signal()
        assert waiting.events() == POLLIN
        hog.kill()


def test_a_signal_handler_runs_while_somebody_spins(watched: Watched, waiter: Waiter, memory: Memory) -> None:
    # libc's own call and not Python's, which would wait again (PEP 475)
    previous = signal.signal(signal.SIGUSR1, lambda _number, _frame: None)
    watched.set(memory.addr)
    waiting = Waiting(waiter)
    waiting.until("spinning", "asleep")
    start = time.monotonic()
    checked(libc.tgkill(os.getpid(), waiting.tid, signal.SIGUSR1))
    with pytest.raises(InterruptedError):
        waiting.events()
    assert time.monotonic() - start < LATE
    signal.signal(signal.SIGUSR1, previous)


def test_each_of_two_epolls_with_a_device_of_its_own_spins(memory: Memory) -> None:
    busy_poll(LONG)
    devices = [os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC) for _ in range(2)]
    both = [Watched(each) for each in devices]
    for each in both:
        each.set(memory.addr)
    epolls = [Epoll(each.fd) for each in both]
    for each, epoll in zip(both, epolls, strict=True):
        assert seen_without_a_signal(each, epoll, memory.store) == POLLIN
        memory.store(0)
    for each, epoll, device in zip(both, epolls, devices, strict=True):
        epoll.close()
        each.close()
        os.close(device)


def test_an_epoll_whose_spin_brought_nothing_is_reminded_while_it_sleeps_and_spins_again(
    watched: Watched, memory: Memory
) -> None:
    busy_poll(1000)
    watched.set(memory.addr)
    epoll = Epoll(watched.fd)
    for _ in range(5):
        memory.store(0)
        assert epoll.wait(0) == 0  # an item that was ready is asked first, without a spin: now none is
        assert epoll.wait(100) == 0  # spins for 1 ms, forgets, is reminded in 8 ms
        memory.store(1)
        assert epoll.wait(100) == POLLIN  # what a word is before the wait, a stock epoll sees only if it spins
    epoll.close()


def test_a_word_that_holds_for_an_epoll_that_does_not_ask_for_epollin_keeps_no_spin_going(
    watched: Watched, memory: Memory
) -> None:
    busy_poll(1000)
    memory.store(1)
    watched.set(memory.addr)
    spun = 0
    for _ in range(ATTEMPTS):
        epoll = Epoll(watched.fd, POLLPRI)
        waiting = Waiting(epoll, 100)
        spun += waiting.until("spinning", "asleep", "over") == "spinning"
        assert waiting.events() == 0
        epoll.close()
    assert spun < ATTEMPTS // 4  # not 0: on a busy host a moment can take long


@pytest.mark.parametrize("first", ["who asks", "who does not"])
def test_of_two_epolls_on_one_wrapper_the_one_that_asks_for_epollin_sees_the_word(
    watched: Watched, memory: Memory, first: str
) -> None:
    busy_poll(1000)
    watched.set(memory.addr)
    asks, other = Epoll(watched.fd), Epoll(watched.fd, POLLPRI)
    memory.store(1)
    if first == "who asks":
        assert asks.wait(100) == POLLIN
    assert other.wait(20) == 0
    assert asks.wait(100) == POLLIN
    asks.close()
    other.close()


def test_epoll_sees_each_of_many_words(device: int, memory: Memory) -> None:
    busy_poll(LONG)
    many = [Watched(device) for _ in range(16)]
    for index, each in enumerate(many):
        each.set(memory.addr + 8 * index)
    epoll = Epoll(many[0].fd)
    for each in many[1:]:
        epoll.add(each.fd)
    for index, each in enumerate(many):
        assert seen_without_a_signal(each, epoll, functools.partial(memory.store, offset=8 * index)) == POLLIN
        memory.store(0, 8 * index)
    epoll.close()
    for each in many:
        each.close()


def test_a_new_condition_wakes_who_sleeps(watched: Watched, waiter: Waiter, memory: Memory) -> None:
    busy_poll(0)
    watched.set(memory.addr)
    waiting = Waiting(waiter)
    waiting.until("asleep")
    memory.store(1, offset=8)
    watched.set(memory.addr + 8)
    assert waiting.events() == POLLIN


def test_a_new_condition_is_looked_at_by_who_spins(watched: Watched, waiter: Waiter, memory: Memory) -> None:
    watched.set(memory.addr)
    waiting = Waiting(waiter)
    waiting.until("spinning", "asleep")
    memory.store(1, offset=8)
    watched.set(memory.addr + 8)
    assert waiting.events() == POLLIN


def test_a_condition_that_is_cleared_lets_who_spins_sleep(watched: Watched, waiter: Waiter, memory: Memory) -> None:
    watched.set(memory.addr)
    waiting = Waiting(waiter)
    waiting.until("spinning", "asleep")
    watched.set(op=NONE)
    waiting.until("asleep")
    watched.signal()
    assert waiting.events() == POLLIN
