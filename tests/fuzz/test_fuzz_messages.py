"""The message fuzzer (Python, atheris) runs from its committed corpus, a minute in CI and a few seconds elsewhere.

KPOLL_FUZZ_SECONDS sets another time; KPOLL_FUZZ_KEEP=1 adds what was found to the corpus.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SECONDS = int(os.environ.get("KPOLL_FUZZ_SECONDS", "60" if os.environ.get("CI") else "5"))


def test_no_sequence_of_messages_breaks_a_promise(tmp_path: Path) -> None:
    """The harness asserts the promises; the recording device behind it those of the session towards devices."""
    pytest.importorskip("atheris", reason="needs the extra: pip install -e '.[fuzz]'")
    corpus, found = HERE / "corpus" / "messages", tmp_path / "found"
    found.mkdir()
    command = [sys.executable, str(HERE / "fuzz_messages.py"), "-max_len=8192", "-timeout=10", "-print_final_stats=1"]
    run = subprocess.run(
        [*command, f"-max_total_time={SECONDS}", f"-artifact_prefix={tmp_path}/", str(found), str(corpus)],
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
        shutil.copytree(found, corpus, dirs_exist_ok=True)
