"""The gate against quiet regressions: instructions per request, counted by callgrind, against budget.toml."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from kpoll.nvme.uring_probe import probe_uring
from tests.data_plane import library, program

HERE = Path(__file__).parent
BUDGET: dict[str, dict[str, float]] = tomllib.loads((HERE / "budget.toml").read_text())
UNITS = 6400


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with per_request, per_frame and per_io, built with the extension's optimization."""
    folder = tmp_path_factory.mktemp("budget")
    data_plane = library(folder, "-O2")
    for name in ("per_request", "per_frame", "per_io"):
        program(HERE / f"{name}.c", data_plane, folder, "-O2")
    return folder


def instructions(program: Path, function: str, folder: Path, *arguments: str) -> int:
    """Count the instructions inside a function for so many requests or frames: the last argument."""
    out = folder / f"callgrind.{arguments[-1]}"
    words = ["valgrind", "--tool=callgrind", f"--toggle-collect={function}", f"--callgrind-out-file={out}"]
    run = subprocess.run([*words, str(program), *arguments], check=True, capture_output=True, text=True)
    assert run.stdout.split() == [arguments[-1]], "the device served another number"
    collected = re.search(r"^(?:summary|totals): (\d+)", out.read_text(), re.MULTILINE)
    assert collected is not None
    return int(collected[1])


def cost(program: Path, function: str, folder: Path, *arguments: str) -> float:
    """Two runs that differ only in how much they serve: their difference holds nothing else."""
    few = instructions(program, function, folder, *arguments, str(UNITS))
    many = instructions(program, function, folder, *arguments, str(2 * UNITS))
    assert many - few > 20 * UNITS, "callgrind saw no device"
    return (many - few) / UNITS


@pytest.mark.parametrize("case", sorted(BUDGET["instructions"]))
def test_a_request_costs_no_more_instructions_than_its_budget(programs: Path, tmp_path: Path, case: str) -> None:
    """A 4 KiB read on the null engine, at some queue depth."""
    ring, depth = case.split("-qd")
    measured = cost(programs / "per_request", "blk_lane_poll", tmp_path, ring, depth)
    print(f"{case}: {measured:.1f} instructions per request, budget {BUDGET['instructions'][case]}")
    assert measured <= BUDGET["instructions"][case]


@pytest.mark.parametrize("case", sorted(BUDGET["io_uring"]))
@pytest.mark.ci_may_skip("containers may have no io_uring")
def test_a_read_costs_io_uring_no_more_instructions_than_its_budget(programs: Path, tmp_path: Path, case: str) -> None:
    """From a file, in memory that is registered with the kernel or isn't: staged, handed over and collected."""
    if why := probe_uring().setup:
        pytest.skip(f"no io_uring: {os.strerror(why)}")
    memory, depth = case.split("-qd")
    disk = tmp_path / "disk"
    disk.write_bytes(os.urandom(16 << 20))
    measured = cost(programs / "per_io", "engine_*", tmp_path, str(disk), "io_uring", memory, depth)
    print(f"{case}: {measured:.1f} instructions per read, budget {BUDGET['io_uring'][case]}")
    assert measured <= BUDGET["io_uring"][case]


@pytest.mark.parametrize("case", sorted(BUDGET["frames"]))
def test_a_frame_costs_no_more_instructions_than_its_budget(programs: Path, tmp_path: Path, case: str) -> None:
    """64 bytes to null, from null, or there and back over echo."""
    way, ring = case.split("-")
    measured = cost(programs / "per_frame", "lane_poll", tmp_path, way, ring)
    print(f"{case}: {measured:.1f} instructions per frame, budget {BUDGET['frames'][case]}")
    assert measured <= BUDGET["frames"][case]
