"""Where tables for people go."""

from __future__ import annotations

from rich.console import Console


def table_console() -> Console:
    """Return standard output for tables. What a device calls itself is no markup; a file or pipe takes any width."""
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = 1000
    return console
