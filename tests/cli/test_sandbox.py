"""What a hijacked daemon could still do: next to nothing, and the log says exactly what protects against the rest."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kpoll.backend import daemon as daemon_module
from kpoll.backend.config import BlkConfig, SocketConfig
from kpoll.backend.errors import KpollError
from kpoll.backend.poll import choose_poll
from kpoll.backend.sandbox import NOTHING_KEPT, Kept, Sandbox
from kpoll.kernel.probe import KernelFacts
from tests.cli.harness import IN, SECTOR, Daemon, Guest

if TYPE_CHECKING:
    from collections.abc import Iterable

LAYERS = ["no_new_privs", "capabilities", "landlock", "seccomp"]


def status_of_threads(pid: int) -> list[dict[str, str]]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [
        dict(line.split(":\t", 1) for line in (t / "status").read_text().splitlines() if ":\t" in line) for t in tasks
    ]


def test_every_thread_is_confined_and_the_disk_works(tmp_path: Path) -> None:
    sock = tmp_path / "s"
    with Daemon("blk", "--socket-path", sock, "--engine", "null", "--size", "1G", "--sandbox", "on") as daemon:
        sandbox = daemon.logged("sandbox")
        daemon.logged("listening")
        with Guest(sock) as guest:
            assert guest.request(IN, 0, length=SECTOR)[0] == 0
            threads = status_of_threads(daemon.pid)
        assert daemon.stop() == 0
    assert len(threads) >= 2
    for thread in threads:
        if "no_new_privs" in sandbox["active"]:
            assert thread["NoNewPrivs"] == "1"
        if "capabilities" in sandbox["active"]:
            assert {int(thread[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Amb")} == {0}
        if "seccomp" in sandbox["active"]:
            assert thread["Seccomp"] == "2"
    assert set(sandbox["active"]) | set(sandbox["missing"]) == set(LAYERS)
    assert not sock.exists(), "the sandbox lets the daemon remove its own socket"


def test_off_is_off_and_says_so(tmp_path: Path) -> None:
    sock = tmp_path / "s"
    with Daemon("blk", "--socket-path", sock, "--engine", "null", "--size", "1G", "--sandbox", "off") as daemon:
        assert daemon.logged("sandbox")["active"] == []
        daemon.logged("listening")
        assert {thread["Seccomp"] for thread in status_of_threads(daemon.pid)} == {"0"}
        assert daemon.stop() == 0


def confined(body: str, *, removable: str = "/nonexistent") -> str:
    """Run Python in a process that has closed the sandbox around itself; returns what it printed."""
    program = f"""
        import ctypes, errno, os, socket, subprocess, sys, threading
        from kpoll.backend.sandbox import NOTHING_KEPT, enter_sandbox

        def denied(action):
            try:
                action()
            except OSError as error:
                return errno.errorcode[error.errno]
            return "allowed"

        active = enter_sandbox(removable=[{removable!r}], kept=NOTHING_KEPT).active
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program) + textwrap.dedent(body)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


HAS_ALL = tuple(confined("print(*active)").split()) == tuple(LAYERS)
needs_all = pytest.mark.skipif(not HAS_ALL, reason="this kernel lacks seccomp or Landlock")


@needs_all
@pytest.mark.parametrize(
    ("action", "answer"),
    [
        ("os.execv('/bin/true', ['true'])", "EPERM"),
        ("os.fork()", "EPERM"),
        ("subprocess.run(['/bin/true'])", "EPERM"),
        ("socket.socket()", "EPERM"),
        ("os.setuid(0)", "EPERM"),
        ("ctypes.CDLL(None, use_errno=True)", "allowed"),
        ("open('/etc/passwd').read()", "EACCES"),
        ("open('/etc/shadow').read()", "EACCES"),
        ("os.listdir('/root')", "EACCES"),
        ("open('/tmp/kpoll-new-file', 'w')", "EACCES"),
        ("os.mkdir('/tmp/kpoll-new-directory')", "EACCES"),
        ("os.unlink(__import__('json').__file__)", "EACCES"),
        ("open(__import__('json').__file__, 'a')", "EACCES"),
        ("open('/proc/self/stat').read()", "allowed"),
    ],
)
def test_what_a_hijacked_daemon_may_and_may_not(action: str, answer: str) -> None:
    assert confined(f"print(denied(lambda: {action}))") == answer


@needs_all
@pytest.mark.parametrize(
    "call",
    ["ptrace(0, 0, 0, 0)", "unshare(0x10000000)", "mount(b'', b'/tmp', b'tmpfs', 0, 0)", "syscall(321, 0, 0, 0)"],
)
def test_system_calls_without_a_python_name_are_denied_too(call: str) -> None:
    body = f"""
        libc = ctypes.CDLL(None, use_errno=True)
        result = libc.{call}
        print(result, errno.errorcode[ctypes.get_errno()])
    """
    assert confined(body) == "-1 EPERM"


@needs_all
def test_threads_still_start_and_modules_still_load() -> None:
    body = """
        thread = threading.Thread(target=lambda: print("ran"))
        thread.start()
        thread.join()
        import sqlite3, xml.dom.minidom, encodings.idna
        print("loaded")
    """
    assert confined(body) == "ran\nloaded"


@needs_all
def test_only_where_our_sockets_are_may_files_be_removed(tmp_path: Path) -> None:
    (tmp_path / "ours").touch()
    body = f"""
        print(denied(lambda: os.unlink({str(tmp_path / "ours")!r})))
        print(denied(lambda: open({str(tmp_path / "new")!r}, "w")))
    """
    assert confined(body, removable=str(tmp_path)) == "allowed\nEACCES"


def test_on_is_an_error_where_the_host_has_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*, removable: Iterable[str], kept: Kept) -> Sandbox:
        del removable, kept
        return Sandbox((), dict.fromkeys(LAYERS, "Function not implemented"))

    monkeypatch.setattr(daemon_module, "enter_sandbox", nothing)
    socket_config = SocketConfig(path="/run/s")
    asked, unasked = (
        BlkConfig(
            socket=socket_config,
            poll=choose_poll("off", 0, KernelFacts()),
            blk_file="/dev/null",
            sandbox=sandbox,
        )
        for sandbox in (True, None)
    )
    with pytest.raises(KpollError, match="use --sandbox off"):
        daemon_module._enter_sandbox(asked, NOTHING_KEPT)  # noqa: SLF001 - the decision, without a host that lacks it
    nothing_active = Sandbox((), dict.fromkeys(LAYERS, "Function not implemented"))
    assert daemon_module._enter_sandbox(unasked, NOTHING_KEPT) == nothing_active  # noqa: SLF001
