"""In CI a skipped test is a failed one (tests/conftest.py); elsewhere it is a skip with its reason."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"


def outcome(folder: Path, source: str, ci: str) -> str:
    """Run a file of tests under our conftest.py and return pytest's last line."""
    shutil.copy(CONFTEST, folder)
    (folder / "test_it.py").write_text(f"import pytest\n{source}\n")
    (folder / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "CI": ci}, check=False, cwd=folder)
    return run.stdout.splitlines()[-1]


SKIPS = "def test_a(): pytest.skip('no such device')"


def test_a_skip_is_a_skip_on_a_users_machine(tmp_path: Path) -> None:
    """Not everybody can run everything."""
    assert outcome(tmp_path, SKIPS, ci="").startswith("1 skipped")


def test_a_skip_fails_in_ci(tmp_path: Path) -> None:
    """Whether the test decides in the middle of its run."""
    assert outcome(tmp_path, SKIPS, ci="true").startswith("1 failed")


def test_a_skip_by_mark_fails_in_ci(tmp_path: Path) -> None:
    """Or is marked beforehand."""
    assert "1 error" in outcome(tmp_path, "@pytest.mark.skipif(True, reason='x')\ndef test_a(): pass", ci="true")


def test_a_skipped_file_fails_in_ci(tmp_path: Path) -> None:
    """Or its file as a whole needs what is not there."""
    assert "1 error" in outcome(tmp_path, "pytest.importorskip('no_such_module')", ci="true")


def test_what_ci_cannot_have_may_skip_there(tmp_path: Path) -> None:
    """The mark is the list of exceptions."""
    marked = f"@pytest.mark.ci_may_skip('no KVM')\n{SKIPS}"
    assert outcome(tmp_path, marked, ci="true").startswith("1 skipped")


def test_expected_failures_and_passes_are_left_alone(tmp_path: Path) -> None:
    """Only skips change."""
    both = "@pytest.mark.xfail\ndef test_a(): assert False\ndef test_b(): pass"
    assert outcome(tmp_path, both, ci="true").startswith("1 passed, 1 xfailed")
