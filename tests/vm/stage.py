"""What a demo says: numbered steps, the commands as one could type them, and checks that hold or end it."""

from __future__ import annotations

import signal
import tempfile
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from rich.markup import escape

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from rich.console import Console

    from tests.vm.guest import Guest

INTERRUPTED = 130  # 128 + SIGINT, as a shell would report it


class CheckError(Exception):
    """A check did not hold."""


@dataclass(kw_only=True)
class Stage:
    """Where a demo is shown, how far it has come, and what it has measured."""

    console: Console
    steps: int = 0
    checks: int = 0
    figures: dict[str, str] = field(default_factory=dict)

    def step(self, title: str) -> None:
        """Announce the next step."""
        self.steps += 1
        self.console.print(f"\n[bold cyan]{self.steps}. {title}[/]")

    def show(self, command: str) -> None:
        """Show what is run, as it could be typed."""
        self.console.print(
            f"[yellow]{escape(textwrap.indent(command, '     ').replace('    ', '   $', 1))}[/]",
            highlight=False,
            soft_wrap=True,
        )

    def quote(self, said: str) -> None:
        """Show what somebody else said."""
        for line in said.splitlines():
            self.console.print(f"   [dim]{escape(line)}[/]", highlight=False, soft_wrap=True)

    def check(self, holds: bool, what: str) -> None:
        """Tell that something held, or end the demo.

        Raises:
            CheckError: when it did not.

        """
        if not holds:
            raise CheckError(what)
        self.checks += 1
        self.console.print(f"   [green]✔[/] {what}", soft_wrap=True)

    async def run(self, guest: Guest, command: str) -> str:
        """Show a command and run it in the guest."""
        self.show(command)
        output = await guest.run(command)
        self.quote(output)
        return output


async def on_stage(console: Console, play: Callable[[Path], Awaitable[None]], hint: str = "") -> int:
    """Play a demo until its end, its failure or a signal.

    Args:
        console: where failures are told.
        play: the demo; gets a folder of its own, which is removed at its end.
        hint: told beside a failure.

    Returns:
        The exit code.

    """
    code = INTERRUPTED
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_on, signals, nursery.cancel_scope)
            with tempfile.TemporaryDirectory(prefix="kpoll-demo-") as folder:
                try:
                    await play(Path(folder))
                    code = 0
                except (CheckError, AssertionError, OSError) as failure:
                    console.print(f"\n[bold red]✘ {type(failure).__name__}[/]")
                    console.print(str(failure), hint, markup=False, sep="\n")
                    code = 1
            nursery.cancel_scope.cancel()
    if code == INTERRUPTED:
        console.print("\nInterrupted; everything that was started has been ended and removed.")
    return code


async def _cancel_on(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()
