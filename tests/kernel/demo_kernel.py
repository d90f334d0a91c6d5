"""The last act of `make demo`, alone in `make demo-kernel`: the disk once more, and now the kernel polls for kpoll.

It takes place in the test VM, whose kernel has the patches; see story.py, which runs there.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from typing import TYPE_CHECKING

import click
import trio
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kpoll.kernel.vm.machine import BUILD
from tests.kernel.story import vm_command, vm_options
from tests.kernel.vm import RUN, TOP
from tests.vm.child import running
from tests.vm.daemon import parsed
from tests.vm.stage import CheckError, Stage, on_stage

if TYPE_CHECKING:
    from pathlib import Path

# It takes one minute; a busy machine gets its time. More than any command of the story's own may take
# (tests/vm/guest.py), after those before it.
SECONDS = 450


def kernel_is_there() -> bool:
    """Say whether the patched kernel has been built."""
    return subprocess.run([BUILD, "--cached", "patched"], capture_output=True, check=False).returncode == 0


async def act(stage: Stage, folder: Path) -> None:
    """Boot the VM and show what is told in there.

    Args:
        stage: where; its steps, checks and figures go on.
        folder: for the VM's files while it runs.

    Raises:
        CheckError: when a check in the VM did not hold, or its kernel complained.

    """
    stage.step("And now the kernel polls: a VM boots Linux 6.1 with kpoll's patches (all CPUs emulated, so: slowly)")
    console = stage.console
    told = ["--steps", str(stage.steps), "--width", str(console.width), *(["--color"] if console.is_terminal else [])]
    options = [*vm_options("kernel"), "--timeout", str(SECONDS)]
    command = [str(RUN.relative_to(TOP)), *options, "--", *vm_command("kernel")]
    stage.show(shlex.join(command).replace(" --", " \\\n    --"))
    # TMPDIR: what the VM keeps in files while it runs goes away with the demo's, however that ends.
    environment = {**os.environ, "TMPDIR": str(folder)}
    async with running("the VM", [*command, *told], env=environment, cwd=TOP) as vm:
        counted = None
        while (line := await vm.next_line()) is not None:
            if counted := parsed(line):
                continue
            console.print(Text.from_ansi(line), soft_wrap=True)
        if await vm.wait(SECONDS) != 0 or not counted:
            raise CheckError("the VM tells the story to its end")
    stage.checks += counted["checks"]
    stage.steps = counted["steps"]
    for poll, count in counted["counts"].items():
        stage.figures[f"{count['requests']} reads, --poll {poll}"] = (
            f"kicks from the guest: {count['kicks']}; sleeps of the worker: {count['sleeps']}"
        )


async def demonstrate(console: Console) -> int:
    """Show this act alone; return the exit code."""

    async def play(folder: Path) -> None:
        stage = Stage(console=console)
        await act(stage, folder)
        table = Table(title="What happened", show_header=False, title_justify="left")
        table.add_row("checks", f"[green]{stage.checks} of {stage.checks} held[/]")
        for name, figure in stage.figures.items():
            table.add_row(name, figure)
        console.print()
        console.print(table)

    return await on_stage(console, play)


@click.command()
def main() -> None:
    """Show kpoll at work on a kernel that polls for it."""
    raise SystemExit(trio.run(demonstrate, Console(highlight=False)))


if __name__ == "__main__":
    main()
