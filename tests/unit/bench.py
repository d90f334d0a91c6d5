"""Runs `kpoll bench` as a user does; and what its subcommands have in common: JSON, and one line for each mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

KPOLL = [sys.executable, "-c", "from kpoll.backend.cli import main; main()"]


def kpoll_bench(name: str, *options: str, before: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a subcommand of `kpoll bench` to its end; `before` is called in the new process before it becomes `kpoll`."""
    words = [*KPOLL, "bench", name, *options]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=120, preexec_fn=before)


def printed(run: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the JSON of a run that had to succeed."""
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def one_line(run: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """Check that a run ended with this code and one line, which begins with the command and has these words."""
    name = run.args[len(KPOLL) + 1]
    assert run.returncode == code, run.stderr
    assert run.stderr.startswith(f"kpoll bench {name}: ")
    assert len(run.stderr.splitlines()) == 1, run.stderr
    for word in words:
        assert word in run.stderr
