"""`kpoll doctor`: the command line that tells what this host offers, and how to have what is missing."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import click
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from kpoll.kernel.busy_poll import set_busy_poll
from kpoll.kernel.probe import probe_kernel
from kpoll.kernel.rights import probe_rights
from kpoll.nvme.device import scan
from kpoll.nvme.fabrics_probe import probe_fabrics
from kpoll.nvme.libnvme import load
from kpoll.nvme.poll_queues import pcie_poll_queues, poll_queues
from kpoll.nvme.uring_probe import probe_uring

from .console import table_console
from .doctor import Finding, Report, report
from .doctor_cards import cards, probe_cards
from .doctor_engines import engines, probe_aio
from .doctor_nvme import nvme
from .doctor_polling import polling
from .doctor_rights import probe_limits, rights, sandbox
from .errors import KpollError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kpoll.kernel.busy_poll import BusyPoll

_STATES: Final = {
    "good": ("good", "green"),
    "improvable": ("could be better", "yellow"),
    "missing": ("missing", "red"),
    "unknown": ("unknown", "magenta"),
}
_AREAS: Final = {
    "polling": "Who polls",
    "engines": "How I/O is done",
    "nvme": "NVMe devices",
    "cards": "Network cards",
    "sandbox": "The sandbox",
    "rights": "What this user may do here",
}


def _socket_polling() -> BusyPoll:
    """Ask for what `--busy-poll-us 50` asks for, on a socket of no use."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return set_busy_poll(sock, 50, 32)


def examine() -> Report:
    """Look at this host as this user; changes nothing."""
    has, limits, library = probe_rights(), probe_limits(), load()
    aio, uring = probe_aio(), probe_uring()

    def findings() -> Iterator[Finding]:
        yield from polling(probe_kernel(), _socket_polling(), os.uname().release)
        yield from engines(aio, uring, has, len(os.sched_getaffinity(0)))
        yield from nvme(
            poll_queues(scan(library)),
            pcie_poll_queues(),
            libnvme=library is not None,
            fabrics=probe_fabrics(),
            rights=has,
        )
        yield from cards(probe_cards())
        yield from sandbox(limits)
        yield from rights(has, limits)

    return report(findings(), can_serve_disks=0 in (aio.setup, uring.setup))


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    short_help="Tell what this host offers, and how to have what is missing.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead (names: docs/doctor.md).")
def doctor(*, as_json: bool) -> None:
    """Tell what this host offers kpoll, and how to have what is missing. It looks, and changes nothing.

    What is found holds for whoever asks: run it as the user, in the container, or under the unit that kpoll will have.
    The exit code is 1 only if no disk could be served.
    """
    found = examine()
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
    else:
        console = table_console()
        for area, title in _AREAS.items():
            console.print(_table(title, [each for each in found.findings if each.area == area]))
    if not found.can_serve_disks:
        raise KpollError("neither Linux AIO nor io_uring works here, so that no disk can be served: allow one of them")


def _table(title: str, findings: list[Finding]) -> Table:
    """Lay out the findings of one area; below each that can be changed, how."""
    table = Table(
        title=title, title_justify="left", title_style="bold", show_header=False, box=SIMPLE_HEAD, padding=(0, 2, 0, 0)
    )
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for each in findings:
        word, style = _STATES[each.state]
        table.add_row(each.name, Text(word, style=style), each.found)
        if each.change is not None:
            table.add_row("", "", Text(f"to change it: {each.change}", style="italic"))
    return table
