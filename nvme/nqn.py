"""NVMe Qualified Names (NVMe base 2.0 §4.5)."""

from __future__ import annotations

from typing import Final

NQN_MAX: Final = 223  # bytes
DISCOVERY_NQN: Final = "nqn.2014-08.org.nvmexpress.discovery"


def nqn_problem(nqn: str) -> str | None:
    """Say in a few words what keeps a text from being an NQN; None when nothing does."""
    if not nqn or len(nqn.encode(errors="replace")) > NQN_MAX:
        return f"give a name of 1 to {NQN_MAX} bytes"
    if "," in nqn or " " in nqn or not nqn.isprintable():
        return "a comma, a space or a control character can't be part of one"
    return None
