"""What a demo says: numbered steps, the commands as one could type them, and checks that hold or end it."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.markup import escape

if TYPE_CHECKING:
    from rich.console import Console

    from tests.vm.guest import Guest

CHECKED = "✔"


class CheckError(Exception):
    """A check did not hold."""


@dataclass(kw_only=True)
class Stage:
    """Where a demo is shown, and how far it has come."""

    console: Console
    steps: int = 0
    checks: int = 0

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
        self.console.print(f"   [green]{CHECKED}[/] {what}", soft_wrap=True)

    async def run(self, guest: Guest, command: str) -> str:
        """Show a command and run it in the guest."""
        self.show(command)
        output = await guest.run(command)
        self.quote(output)
        return output
