"""A socket is busy-polled as far as this process may ask for it, and what it may not is said in words."""

from __future__ import annotations

import os
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from kpoll.backend.config import SocketConfig
from kpoll.backend.net_busy_poll import poll_card
from kpoll.backend.net_options import NetConfig, parse_backend
from kpoll.backend.poll import PollConfig, type_poll
from kpoll.kernel.busy_poll import parse_netstat, set_busy_poll
from kpoll.kernel.probe import KernelFacts
from tests.netns import give_up_capabilities

NETSTAT = "TcpExt: SyncookiesSent BusyPollRxPackets\nTcpExt: 3 42\nIpExt: InNoRoutes BusyPollRxPackets\nIpExt: 1 2\n"
ALLOWED = KernelFacts(net_busy_poll_us=50)


def missing(backend: str, us: int | None, strategy: type_poll, kernel: KernelFacts, local: str | None) -> list[str]:
    """Return what is missing of busy polling, in words, for a card whose socket is bound to a local address, if any."""
    poll = PollConfig(strategy=strategy, why="")
    config = NetConfig(
        socket=SocketConfig(path="s"), poll=poll, backend=parse_backend(backend), mac=bytes(6), busy_poll_us=us
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        if local is not None:
            sock.bind((local, 0))
        told = poll_card(config, None if local is None else sock, kernel)
    assert told is not None
    return list(told.missing)


@pytest.mark.skipif(os.geteuid() != 0, reason="raising SO_BUSY_POLL takes root")
def test_the_administrator_gets_what_was_asked_for() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        state = set_busy_poll(sock, 70, 32)
    assert (state.us, state.prefer, state.budget, state.refused) == (70, True, 32, ())


def test_who_may_not_raise_it_is_told_which_capability_that_takes() -> None:
    def ask() -> tuple[str, ...]:
        give_up_capabilities()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            return set_busy_poll(sock, 70, 32).refused

    with ThreadPoolExecutor(1) as executor:
        refused = executor.submit(ask).result()
    assert any(line.startswith("SO_PREFER_BUSY_POLL: ") and "CAP_NET_ADMIN" in line for line in refused)


def test_asked_for_nothing_a_socket_stays_as_it_was_and_0_turns_it_off() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        before = set_busy_poll(sock, None, 32)
        assert (before.prefer, before.budget, before.refused) == (False, None, ())
        assert set_busy_poll(sock, 0, 32).us == 0


@pytest.mark.parametrize(("table", "name", "value"), [("TcpExt", "BusyPollRxPackets", 42), ("TcpExt", "Nothing", None)])
def test_a_counter_is_found_below_its_name(table: str, name: str, value: int | None) -> None:
    assert parse_netstat(NETSTAT, table, name) == value


@pytest.mark.parametrize(
    ("backend", "strategy", "kernel", "local", "words"),
    [
        ("tap:vm1", "user", ALLOWED, None, "a tap is no socket"),
        ("echo", "user", ALLOWED, None, "echo is no socket"),
        ("udp:127.0.0.1:9,127.0.0.1:10", "user", ALLOWED, "127.0.0.1", "loopback"),
        ("udp:127.0.0.1:9,127.0.0.1:10", "off", ALLOWED, "0.0.0.0", "--poll off"),
        (
            "udp:127.0.0.1:9,127.0.0.1:10",
            "kernel",
            KernelFacts(net_busy_poll_us=0),
            "0.0.0.0",
            "net.core.busy_poll=100",
        ),
        ("udp:127.0.0.1:9,127.0.0.1:10", "module", KernelFacts(), "0.0.0.0", "net.core.busy_poll can't be read"),
    ],
)
@pytest.mark.skipif(os.geteuid() != 0, reason="raising SO_BUSY_POLL takes root")
def test_what_keeps_the_kernel_from_polling_is_said(
    backend: str, strategy: type_poll, kernel: KernelFacts, local: str | None, words: str
) -> None:
    [line] = missing(backend, 50, strategy, kernel, local)
    assert words in line


@pytest.mark.skipif(os.geteuid() != 0, reason="raising SO_BUSY_POLL takes root")
@pytest.mark.parametrize("strategy", ["user", "kernel"])
def test_nothing_is_missing_where_the_card_is_polled(strategy: type_poll) -> None:
    assert missing("udp:127.0.0.1:9,127.0.0.1:10", 50, strategy, ALLOWED, "0.0.0.0") == []
