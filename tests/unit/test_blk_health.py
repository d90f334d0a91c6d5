"""The NVMe device under a disk is asked how it is by a process that can do nothing else; metrics tell what it says."""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from kpoll.backend import blk_health
from kpoll.backend.blk_health import Health, open_health, start_helper
from kpoll.backend.blk_smart import WARNINGS, smart_metrics
from kpoll.backend.seccomp import filter_program
from kpoll.nvme.pages import SmartLog
from kpoll.vhost._core import lib
from tests.unit.test_nvme_pages import page

if TYPE_CHECKING:
    from collections.abc import Iterator

SMART = SmartLog.parse(page("smart-log", lib.SMART_BYTES))
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="the helper is to keep a capability")


def samples(log: SmartLog) -> dict[str, float]:
    class Smart(Collector):
        def collect(self) -> Iterator[Any]:
            yield from smart_metrics("d", log)

    registry = CollectorRegistry()
    registry.register(Smart())
    found = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            assert sample.labels.pop("device") == "d"
            found["/".join([sample.name.removeprefix("kpoll_nvme_"), *sample.labels.values()])] = sample.value
    return found


def changed(**fields: int) -> SmartLog:
    return SmartLog(**{**vars(SMART), **fields})


def test_figures_are_in_base_units() -> None:
    found = samples(
        changed(temperature=300, avail_spare=97, spare_thresh=10, percent_used=101, data_units_read=3, power_on_hours=2)
    )
    assert found["temperature_celsius"] == 26.85
    assert (found["available_spare_ratio"], found["available_spare_threshold_ratio"]) == (0.97, 0.1)
    assert found["percentage_used_ratio"] == 1.01
    assert (found["read_bytes_total"], found["power_on_seconds_total"]) == (1_536_000, 7200)
    for name in ("power_cycles", "unsafe_shutdowns", "media_errors"):
        assert found[f"{name}_total"] == getattr(SMART, name)


def test_each_warning_has_a_name() -> None:
    for bit, kind in enumerate(WARNINGS):
        found = samples(changed(critical_warning=1 << bit))
        assert [name for name, value in found.items() if name.startswith("critical") and value] == [
            f"critical_warning/{kind}"
        ]


def test_a_temperature_that_is_not_told_is_none() -> None:
    assert "temperature_celsius" not in samples(changed(temperature=0))


def test_a_disk_that_is_no_namespace_is_not_asked(tmp_path: Path) -> None:
    with (tmp_path / "disk").open("wb") as file, open_health(file.fileno(), watched=True) as health:
        assert (health.log, health.why_not) == (None, None)
    with open_health(-1, watched=True) as health:
        assert (health.log, health.why_not) == (None, None)


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


@needs_root
def test_the_helper_has_one_capability_and_no_descriptor_but_the_device_and_its_socket(tmp_path: Path) -> None:
    with Path(os.devnull).open("rb") as device, (tmp_path / "secret").open("wb"):
        sock, pid = start_helper(device.fileno())
        with sock:
            sock.setblocking(True)
            sock.send(b"?")
            answer = sock.recv(4096)
            assert len(answer) == 4 + lib.SMART_BYTES
            assert struct.unpack_from("=i", answer)[0] == -errno.ENOTTY  # /dev/null is not of NVMe
            facts = status(pid)
            assert {int(facts[f"Cap{kind}"], 16) for kind in ("Eff", "Prm")} == {1 << 21}
            assert {int(facts[f"Cap{kind}"], 16) for kind in ("Inh", "Bnd", "Amb")} == {0}
            assert (facts["Seccomp"], facts["NoNewPrivs"]) == ("2", "1")
            links = {fd.name: str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()}
            assert {links.pop(fd) for fd in "01235"} == {os.devnull}
            assert links.pop("4").startswith("socket:")
            assert links == {}
            os.kill(pid, signal.SIGTERM)  # as a terminal's Ctrl-C goes to all: it serves on
            sock.send(b"?")
            assert len(sock.recv(4096)) == 4 + lib.SMART_BYTES
        assert os.waitpid(pid, 0) == (pid, 0), "it ends when nobody can ask any more"


@needs_root
def test_the_helper_asks_the_device_that_came_last(tmp_path: Path) -> None:
    ours, news = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with Path(os.devnull).open("rb") as device:
        sock, pid = start_helper(device.fileno(), news)
    news.close()

    def asked() -> str:
        sock.send(b"?")
        assert len(sock.recv(4096)) == 4 + lib.SMART_BYTES
        return str(Path(f"/proc/{pid}/fd/3").readlink())

    with sock, ours:
        sock.setblocking(True)
        assert asked() == os.devnull
        for name in ("a", "b", "c"):
            with (tmp_path / name).open("wb") as file:
                socket.send_fds(ours, [b"+"], [file.fileno(), sock.fileno()])
        assert asked() == asked() == str(tmp_path / "c")
        assert {fd.name for fd in Path(f"/proc/{pid}/fd").iterdir()} == set("012345"), "and keeps nothing else"
        ours.close()
        assert asked() == str(tmp_path / "c"), "also when nobody brings it any more"
    assert os.waitpid(pid, 0) == (pid, 0)


def test_the_filter_kills_at_anything_else() -> None:
    """Also at ioctl(2) on another descriptor, or with another request."""
    program = """
import os, sys, fcntl
from kpoll.backend.sandbox import set_no_new_privs
from kpoll.backend.seccomp import filter_program
from kpoll.vhost._core import ffi, lib
import ctypes
class Program(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))
allowed = filter_program({"ioctl": (0, 0x5401), "write": (1,), "exit_group": ()})
set_no_new_privs()
libc = ctypes.CDLL(None)
write = sys.argv[1]
assert libc.prctl(22, 2, ctypes.byref(Program(len(allowed) // 8, allowed)), 0, 0) == 0
if write == "ioctl": libc.ioctl(0, 0x5401, None)
if write == "other request": libc.ioctl(0, 0x5402, None)
if write == "other descriptor": libc.ioctl(1, 0x5401, None)
if write == "getpid": libc.getpid()
libc._exit(7)
"""

    def ends(how: str) -> int:
        return subprocess.run([sys.executable, "-c", program, how], check=False, stdin=subprocess.DEVNULL).returncode

    assert ends("ioctl") == 7
    assert [ends(how) for how in ("other request", "other descriptor", "getpid")] == [-signal.SIGSYS] * 3


class Log:
    """Keeps what is logged."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.lines: list[dict[str, Any]] = []

    def warning(self, event: str, **fields: Any) -> None:
        """Keep a line."""
        self.lines.append({"event": event, **fields})


def refreshed(health: Health, *answers: bytes) -> None:
    """Have a device answer so."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        health.keep_reading(ours)
        for answer in answers:
            theirs.send(answer)
            trio.run(health.refresh)
            assert theirs.recv(2) == b"?"


def test_a_refusal_takes_the_figures_away_until_the_device_answers_again() -> None:
    health = Health(SMART)
    refreshed(health, struct.pack("=i512s", 0x2002, b""))
    assert health.log is None
    assert "refuses to say (NVMe status 0x2002)" in str(health.why_not)
    refreshed(health, struct.pack("=i512s", 0, page("smart-log", lib.SMART_BYTES)))
    assert health.log == SMART
    assert health.why_not is None
    refreshed(health, struct.pack("=i512s", -errno.ENODEV, b""))
    assert (health.log, health.why_not) == (None, "No such device")
    refreshed(health, b"?")
    assert "has ended" in str(health.why_not)


def test_of_a_device_that_has_gone_nobody_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The helper would keep it open."""
    monkeypatch.setattr(blk_health, "REFRESH_S", 0)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    log: Any = Log()
    learned: list[SmartLog] = []
    health = Health(SMART)
    with ours, theirs:
        health.keep_reading(ours)
        theirs.send(struct.pack("=i512s", 0, page("smart-log", lib.SMART_BYTES)))
        theirs.send(struct.pack("=i512s", -errno.EIO, b""))
        theirs.send(struct.pack("=i512s", -errno.EIO, b""))
        theirs.send(struct.pack("=i512s", -errno.ENODEV, b""))
        trio.run(health.run, log, learned.append)
        assert theirs.recv(8) == theirs.recv(8) == theirs.recv(8) == theirs.recv(8) == b"?"
        assert theirs.recv(8) == b"", "hung up"
    assert learned == [SMART]
    assert [line["error"] for line in log.lines] == ["Input/output error", "No such device"]


def test_a_device_that_may_return_is_asked_for_ever_and_at_once_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blk_health, "REFRESH_S", 3600)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    learned: list[SmartLog] = []
    health = Health(SMART)

    async def main() -> None:
        log: Any = Log()
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + 60
            nursery.start_soon(health.run, log, learned.append)
            for answer in (struct.pack("=i512s", -errno.ENODEV, b""), struct.pack("=i512s", 0, whole)):
                health.returned()
                await trio.lowlevel.wait_readable(theirs)
                assert theirs.recv(8) == b"?"
                theirs.send(answer)
            while not learned:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

    whole = page("smart-log", lib.SMART_BYTES)
    with ours, theirs:
        health.keep_reading(ours, may_return=True)
        trio.run(main)
    assert learned == [SMART]


def test_a_device_that_hangs_at_the_start_keeps_nobody_from_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(device: int, to: Any) -> int:
        del device, to
        while True:
            signal.pause()

    monkeypatch.setattr(blk_health, "START_S", 0.1)
    monkeypatch.setattr(blk_health, "is_nvme", lambda _: True)
    monkeypatch.setattr(
        blk_health, "lib", SimpleNamespace(smart_read=hangs, SMART_BYTES=lib.SMART_BYTES), raising=False
    )
    log: Any = Log()
    began = time.monotonic()
    with Path(os.devnull).open("rb") as device, open_health(device.fileno(), watched=False) as health:
        assert time.monotonic() - began < 30
        assert (health.log, health.late) == (None, True)
        trio.run(health.run, log, lambda _: None)
    assert log.lines == [{"event": "smart_unreadable", "error": "the device doesn't answer within 0.1 s"}]


def test_a_device_that_was_late_at_the_start_is_asked_later(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    monkeypatch.setattr(blk_health, "is_nvme", lambda _: True)
    monkeypatch.setattr(blk_health, "_ask_once", lambda _: Health(why_not="late", late=True))
    monkeypatch.setattr(blk_health, "start_helper", lambda *_: (ours, os.fork() or os._exit(0)))
    with theirs, Path(os.devnull).open("rb") as device, open_health(device.fileno(), watched=True) as health:
        theirs.send(struct.pack("=i512s", 0, page("smart-log", lib.SMART_BYTES)))
        trio.run(health.refresh)
        assert (health.log, health.why_not) == (SMART, None)


def test_figures_that_grow_old_are_shown_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    health = Health(SMART)
    now = time.monotonic()
    monkeypatch.setattr(blk_health, "time", SimpleNamespace(monotonic=lambda: now + 179))
    assert health.log == SMART
    monkeypatch.setattr(blk_health, "time", SimpleNamespace(monotonic=lambda: now + 181))
    assert health.log is None


def test_why_there_are_none_is_logged_once() -> None:
    log: Any = Log()
    trio.run(Health(why_not="it is so").run, log, lambda _: None)
    assert log.lines == [{"event": "smart_unreadable", "error": "it is so"}]
    trio.run(Health().run, log, lambda _: None)  # no NVMe device
    assert len(log.lines) == 1


def test_a_filter_for_a_system_call_that_is_not_there_fails() -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        filter_program({"no_such_call": ()})


def test_without_metrics_a_device_is_asked_again_if_a_guest_may_look(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    monkeypatch.setattr(blk_health, "is_nvme", lambda _: True)
    monkeypatch.setattr(blk_health, "_ask_once", lambda _: Health(SMART))
    monkeypatch.setattr(blk_health, "start_helper", lambda *_: (ours, os.fork() or os._exit(0)))
    with theirs, Path(os.devnull).open("rb") as device, open_health(device.fileno(), watched=False) as health:
        theirs.send(struct.pack("=i512s", -errno.EIO, b""))
        trio.run(health.refresh)
        assert health.why_not == "Input/output error"


def test_a_device_is_asked_while_somebody_looks_and_when_somebody_begins_to(monkeypatch: pytest.MonkeyPatch) -> None:
    now, in_use = [1000.0], [False]
    monkeypatch.setattr(blk_health, "time", SimpleNamespace(monotonic=lambda: now[0]))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    learned: list[SmartLog] = []
    log: Any = Log()
    health = Health(SMART)

    async def answered() -> None:
        await trio.lowlevel.wait_readable(theirs)
        assert theirs.recv(8) == b"?"
        before = len(learned)
        theirs.send(struct.pack("=i512s", 0, page("smart-log", lib.SMART_BYTES)))
        await trio.testing.wait_all_tasks_blocked()
        assert len(learned) == before + 1

    async def unasked(seconds: float) -> None:
        await trio.sleep(seconds)
        with pytest.raises(BlockingIOError):
            theirs.recv(8)

    async def main() -> None:
        with trio.fail_after(7200):
            await looked_at()

    async def looked_at() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(health.run, log, learned.append, lambda: in_use[0])
            await unasked(600)
            now[0] += 59
            health.used()
            await unasked(59)
            now[0] += 1
            health.used()
            await answered()
            health.used()
            await unasked(59)
            in_use[0] = True
            began = trio.current_time()
            await answered()
            await answered()
            assert trio.current_time() - began <= 121
            in_use[0] = False
            await unasked(600)
            nursery.cancel_scope.cancel()

    with ours, theirs:
        health.keep_reading(ours)
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert log.lines == []
