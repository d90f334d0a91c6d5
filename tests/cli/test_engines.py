"""Which engine is taken where the host doesn't give us every one, as under a container's seccomp policy.

The policy is made here: a small program forbids a system call to itself, then becomes kpoll.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.harness import IN, KPOLL, SECTOR, Daemon, Guest

FORBID = """
import ctypes, os, sys
from kpoll.backend.seccomp import load_libseccomp, _SCMP_ACT_ALLOW, _SCMP_ACT_ERRNO
library = load_libseccomp()
context = library.seccomp_init(_SCMP_ACT_ALLOW)
*calls, program = sys.argv[1:sys.argv.index("--")]
for call in calls:
    name, _, number = call.partition("=")
    library.seccomp_rule_add_array(
        context, _SCMP_ACT_ERRNO | int(number), library.seccomp_syscall_resolve_name(name.encode()), 0, None)
assert library.seccomp_load(context) == 0
os.execv(program, [program, *sys.argv[sys.argv.index("--") + 1:]])
"""


def without(*calls: str) -> dict[str, Any]:
    """Options that start kpoll where system calls fail, each given as `name=errno`."""
    return {"program": [sys.executable, "-c", FORBID, *calls, str(KPOLL), "--"]}


NO_AIO = f"io_setup={errno.EAGAIN}"
NO_URING = f"io_uring_setup={errno.EPERM}"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.touch()
    os.truncate(path, 1 << 20)
    return path


@pytest.mark.parametrize(("calls", "engine"), [([], "aio"), ([NO_AIO], "io_uring"), ([NO_URING], "aio")])
def test_auto_takes_what_there_is(tmp_path: Path, image: Path, calls: list[str], engine: str) -> None:
    sock = tmp_path / "s"
    with Daemon("blk", "--socket-path", sock, "--blk-file", image, "--workers", "2", **without(*calls)) as daemon:
        started = daemon.logged("started")
        assert started["engine"] == engine
        assert ("fs.aio-max-nr" in started["engine_why"]) == (NO_AIO in calls)
        daemon.logged("listening")
        with Guest(sock) as guest:
            assert guest.request(IN, 0, length=SECTOR)[0] == 0
        assert daemon.stop() == 0


@pytest.mark.parametrize(
    ("engine", "calls", "says"),
    [
        ("aio", [NO_AIO], "sysctl fs.aio-max-nr=1048576"),
        ("io_uring", [NO_URING], "use --engine aio"),
        ("auto", [NO_AIO, NO_URING], "no contexts left"),
    ],
)
def test_an_engine_that_the_host_refuses_is_one_clear_line(
    tmp_path: Path, image: Path, engine: str, calls: list[str], says: str
) -> None:
    args = ["blk", "--socket-path", str(tmp_path / "s"), "--blk-file", str(image), "--engine", engine]
    done = subprocess.run([*without(*calls)["program"], *args], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert says in done.stderr
    assert not (tmp_path / "s").exists()


def test_a_file_without_o_direct_is_served_by_io_uring_which_does_not_block(tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    image = memory / f"kpoll-test-{os.getpid()}"
    image.touch()
    try:
        os.truncate(image, 1 << 20)
        sock = tmp_path / "s"
        with Daemon("blk", "--socket-path", sock, "--blk-file", image) as daemon:
            started = daemon.logged("started")
            direct = "no O_DIRECT" not in started["engine_why"]
            assert started["engine"] == ("aio" if direct else "io_uring")
            daemon.logged("listening")
            with Guest(sock) as guest:
                assert guest.request(IN, 0, length=SECTOR)[0] == 0
            assert daemon.stop() == 0
    finally:
        image.unlink()
