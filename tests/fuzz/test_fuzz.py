"""Each libFuzzer harness runs from its committed corpus, a minute in CI and a few seconds elsewhere.

KPOLL_FUZZ_SECONDS sets another time; `make fuzz` uses that, and KPOLL_FUZZ_KEEP=1 to merge what was found into the
corpus.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.data_plane import library, program

HERE = Path(__file__).parent
SANITIZE = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
SECONDS = int(os.environ.get("KPOLL_FUZZ_SECONDS", "60" if os.environ.get("CI") else "5"))


@pytest.fixture(scope="module")
def data_plane(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the data plane with sanitizers and the fuzzer's counters, compiled once for all harnesses."""
    return library(tmp_path_factory.mktemp("fuzzed"), *SANITIZE, "-fsanitize=fuzzer-no-link", compiler="clang")


@pytest.mark.parametrize("name", ["chains", "blk", "net"])
def test_harness_finds_nothing(name: str, data_plane: Path, tmp_path: Path) -> None:
    """The harness itself aborts on a broken promise; the sanitizers on a broken memory rule."""
    source = HERE / f"fuzz_{name}.c"
    binary = program(source, data_plane, tmp_path, *SANITIZE, "-fsanitize=fuzzer", compiler="clang")
    corpus, found = HERE / "corpus" / name, tmp_path / "found"
    found.mkdir()
    command = [str(binary), f"-max_total_time={SECONDS}", "-max_len=24000", "-timeout=10", "-print_final_stats=1"]
    run = subprocess.run(
        [*command, f"-artifact_prefix={tmp_path}/", str(found), str(corpus)],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=SECONDS + 120,
        check=False,
    )
    print(run.stderr[-2000:])
    assert run.returncode == 0, run.stderr[-6000:]
    assert "stat::number_of_executed_units" in run.stderr, "the harness ran nothing"
    if os.environ.get("KPOLL_FUZZ_KEEP"):
        subprocess.run([str(binary), "-merge=1", "-max_len=24000", str(corpus), str(found)], check=True)
