"""`kpoll nvme`: the command line that tells what NVMe devices this host has."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from kpoll.nvme.device import NvmeError, look, scan
from kpoll.nvme.libnvme import load

from .console import table_console
from .errors import KpollError, UsageError
from .nvme_report import device_tables, topology_table
from .subcommand import Subcommand

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object instead (names: docs/nvme.md)."
)


@click.group()
def nvme() -> None:
    """List, show, discover, connect and disconnect NVMe devices."""


@nvme.command("list", cls=Subcommand)
@json_option
def list_devices(*, as_json: bool) -> None:
    """List the namespaces, and the controllers that lead to them."""
    topology = scan(load())
    if as_json:
        click.echo(json.dumps(asdict(topology), indent=2))
        return
    console = table_console()
    if topology.hosts:
        console.print(topology_table(topology))
    else:
        console.print("This host has no NVMe devices.")
    if topology.why_not_libnvme:
        click.echo(f"kpoll nvme list: as sysfs has it; {topology.why_not_libnvme}", err=True)


@nvme.command(cls=Subcommand)
@click.argument("device")
@json_option
def show(*, device: str, as_json: bool) -> None:
    """Show what DEVICE (/dev/nvme0n1, or nvme0n1 for short) says of itself: a namespace or a controller."""
    if not device:
        raise UsageError("give the name of an NVMe device, such as /dev/nvme0n1")
    try:
        found = look(device if "/" in device else f"/dev/{device}", load())
    except NvmeError as error:
        raise KpollError(f"{error} (`kpoll nvme list` names those of this host)") from error
    if as_json:
        whole = asdict(found)
        whole["subsystem"] = {"name": found.subsystem.name, "nqn": found.subsystem.nqn}
        answers = whole.pop("answers")
        click.echo(json.dumps({**whole, **answers}, indent=2))
        return
    console = table_console()
    for table in device_tables(found):
        console.print(table)
