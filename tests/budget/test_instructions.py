"""The gate against quiet regressions: instructions per request, counted by callgrind, against budget.toml."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SOURCES = [
    str(path) for folder in ("kernel", "vhost", "nvme", "backend") for path in sorted((ROOT / folder / "c").glob("*.c"))
]
FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-O2", "-g", "-Wall", "-Wextra", "-Werror", f"-I{ROOT}"]
BUDGET: dict[str, float] = tomllib.loads((HERE / "budget.toml").read_text())["instructions"]
REQUESTS = 6400


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give per_request.c, built with the extension's optimization."""
    binary = tmp_path_factory.mktemp("budget") / "per_request"
    source = HERE / "per_request.c"
    subprocess.run(["gcc", *FLAGS, str(source), *SOURCES, "-luring", "-lpthread", "-o", str(binary)], check=True)
    return binary


def instructions(program: Path, folder: Path, ring: str, depth: int, requests: int) -> int:
    """Count the instructions inside blk_lane_poll() for so many requests."""
    out = folder / f"callgrind.{requests}"
    words = ["valgrind", "--tool=callgrind", "--toggle-collect=blk_lane_poll", f"--callgrind-out-file={out}"]
    run = subprocess.run(
        [*words, str(program), ring, str(depth), str(requests)], check=True, capture_output=True, text=True
    )
    assert run.stdout.split() == [str(requests)], "the device served another number of requests"
    collected = re.search(r"^(?:summary|totals): (\d+)", out.read_text(), re.MULTILINE)
    assert collected is not None
    return int(collected[1])


@pytest.mark.parametrize("case", sorted(BUDGET))
def test_a_request_costs_no_more_instructions_than_its_budget(program: Path, tmp_path: Path, case: str) -> None:
    """Two runs that differ only in how many requests they serve: their difference holds nothing but requests."""
    ring, depth = case.split("-qd")
    few = instructions(program, tmp_path, ring, int(depth), REQUESTS)
    many = instructions(program, tmp_path, ring, int(depth), 2 * REQUESTS)
    cost = (many - few) / REQUESTS
    print(f"{case}: {cost:.1f} instructions per request, budget {BUDGET[case]}")
    assert cost > 20, "callgrind saw no device"
    assert cost <= BUDGET[case]
