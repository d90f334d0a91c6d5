"""Running commands in the test VM, for tests: kernel/vm/run with its outcome."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
RUN = TOP / "kernel" / "vm" / "run"

# `make check-kernel-debug` runs the tests of the patched kernel under the debug kernel, and its selftests under kcsan.
TEST_KERNEL = os.environ.get("KPOLL_TEST_KERNEL", "patched")
DEBUGGING = TEST_KERNEL != "patched"
SLOWER = 4 if DEBUGGING else 1  # KASAN and lockdep, or KCSAN


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Args:
        status: the command's exit status; 124 after a timeout, 125 when the VM failed or its kernel complained.
        output: what the command printed, on either stream.
        complaint: what the VM's script said of its own: empty when all went well.

    """

    status: int
    output: str
    complaint: str


def vm(*command: str, kernel: str = TEST_KERNEL, options: tuple[str, ...] = (), seconds: float = 240) -> Outcome:
    """Run a command in the VM, from the top of the work tree; `python` is the one that runs the tests.

    Args:
        command: program and arguments.
        kernel: patched, norecheck, debug, kcsan or stock; see kernel/vm/build.
        options: further options of kernel/vm/run.
        seconds: until it is given up, boot included; more under a debug kernel.

    """
    words = [sys.executable if command[0] == "python" else command[0], *command[1:]]
    arguments = ["--kernel", kernel, "--timeout", str(seconds * SLOWER), *options, "--", *words]
    run = subprocess.run([RUN, *arguments], cwd=TOP, capture_output=True, text=True, errors="replace", check=False)
    return Outcome(run.returncode, run.stdout, run.stderr)


def vm_ok(*command: str, kernel: str = TEST_KERNEL, options: tuple[str, ...] = (), seconds: float = 240) -> str:
    """Do as vm() does, and return the output of a command that has to succeed, without the last line's end."""
    outcome = vm(*command, kernel=kernel, options=options, seconds=seconds)
    assert outcome.status == 0, f"{shlex.join(command)}: {outcome.status}\n{outcome.output}\n{outcome.complaint}"
    return outcome.output.rstrip("\n")
