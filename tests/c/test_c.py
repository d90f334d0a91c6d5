"""Every tests/c/test_*.c is a program of its own, built with the data plane's sources under ASan and UBSan, and run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("kernel", "vhost", "nvme", "backend")
SOURCES = [str(path) for folder in FOLDERS for path in sorted((ROOT / folder / "c").glob("*.c"))]
FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-Werror", f"-I{ROOT}"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the data plane as one sanitized archive, compiled once for all the programs."""
    folder = tmp_path_factory.mktemp("sanitized")
    objects = []
    for source in SOURCES:
        target = folder / (source.replace("/", "_") + ".o")
        subprocess.run(["gcc", *FLAGS, *SANITIZE, "-c", source, "-o", str(target)], check=True)
        objects.append(str(target))
    archive = folder / "libdataplane.a"
    subprocess.run(["ar", "rcs", str(archive), *objects], check=True)
    return archive


@pytest.mark.parametrize("program", sorted(Path(__file__).parent.glob("test_*.c")), ids=lambda path: path.stem)
def test_program(program: Path, library: Path, tmp_path: Path) -> None:
    """Build the program, run it, and show what it said; exit code 77 is a skip with its reason."""
    binary = tmp_path / program.stem
    subprocess.run(
        ["gcc", *FLAGS, *SANITIZE, str(program), str(library), "-luring", "-lpthread", "-o", str(binary)], check=True
    )
    env = {**os.environ, "UBSAN_OPTIONS": "print_stacktrace=1", "TMPDIR": str(tmp_path)}
    run = subprocess.run([str(binary)], capture_output=True, text=True, timeout=300, env=env, check=False)
    print(run.stdout, run.stderr)
    if run.returncode == 77:
        pytest.skip(run.stdout.splitlines()[-1])
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"


@pytest.mark.parametrize("name", ["test_wait", "test_worker"])
def test_program_without_data_races(name: str, tmp_path: Path) -> None:
    """Build the programs that have several threads under TSan, and run them.

    The two sides of a ring, a mailbox and a wait set meet in shared memory without locks: TSan knows of acquire and
    release, not of full barriers, so what it accepts is ordered by more than luck.
    """
    binary = tmp_path / name
    sources = [str(Path(__file__).parent / f"{name}.c"), *SOURCES]
    flags = [*FLAGS, "-Wno-tsan", "-fsanitize=thread"]
    subprocess.run(["gcc", *flags, *sources, "-luring", "-lpthread", "-o", str(binary)], check=True)
    # TSan of Debian 12's gcc can't map its shadow under the address randomisation of newer kernels.
    run = subprocess.run(
        ["setarch", "-R", str(binary)], capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path
    )
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
