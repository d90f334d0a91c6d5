"""Every tests/c/test_*.c is a program of its own, built with the data plane's sources under ASan and UBSan, and run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.data_plane import library, program

HERE = Path(__file__).parent
SANITIZE = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
# TSan knows of no full barriers, and gcc warns of each.
RACES = ["-O1", "-fsanitize=thread", "-Wno-tsan"]


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the data plane under ASan and UBSan, compiled once for all the programs."""
    return library(tmp_path_factory.mktemp("sanitized"), *SANITIZE)


@pytest.mark.parametrize("source", sorted(HERE.glob("test_*.c")), ids=lambda path: path.stem)
def test_program(source: Path, sanitized: Path, tmp_path: Path) -> None:
    """Build the program, run it, and show what it said; exit code 77 is a skip with its reason."""
    binary = program(source, sanitized, tmp_path, *SANITIZE)
    env = {**os.environ, "UBSAN_OPTIONS": "print_stacktrace=1", "TMPDIR": str(tmp_path)}
    run = subprocess.run([binary], capture_output=True, text=True, timeout=300, env=env, check=False)
    print(run.stdout, run.stderr)
    if run.returncode == 77:
        pytest.skip(run.stdout.splitlines()[-1])
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"


@pytest.fixture(scope="module")
def raced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the data plane under TSan."""
    return library(tmp_path_factory.mktemp("raced"), *RACES)


@pytest.mark.parametrize("name", ["test_wait", "test_worker", "test_net_udp"])
def test_program_without_data_races(name: str, raced: Path, tmp_path: Path) -> None:
    """Build the programs that have several threads under TSan, and run them.

    The two sides of a ring, a mailbox and a wait set meet in shared memory without locks: TSan knows of acquire and
    release, not of full barriers, so what it accepts is ordered by more than luck.
    """
    binary = program(HERE / f"{name}.c", raced, tmp_path, *RACES)
    # TSan of Debian 12's gcc can't map its shadow under the address randomisation of newer kernels.
    run = subprocess.run(
        ["setarch", "-R", binary], capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path
    )
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
