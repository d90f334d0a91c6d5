"""`kpoll nvme connect|disconnect|discover`: NVMe over Fabrics by hand; options are called as nvme-cli's."""

from __future__ import annotations

import ipaddress
import json
import re
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import click
from rich.box import SIMPLE_HEAD
from rich.table import Table

from kpoll.nvme import sysfs
from kpoll.nvme.fabrics import (
    DISCOVERY_PORT,
    PORT,
    TRANSPORTS,
    Address,
    ConnectError,
    HostName,
    Queues,
    Timeouts,
    check_ready,
    connect,
    default_host,
    disconnect,
    discover,
    host_id,
)
from kpoll.nvme.libnvme import load
from kpoll.nvme.nqn import DISCOVERY_NQN, nqn_problem

from .console import table_console
from .errors import KpollError, UsageError
from .nvme_cli import json_option, nvme
from .subcommand import Subcommand

__all__ = ["nvme"]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kpoll.nvme.fabrics import Offer

    type_command = Callable[..., None]

_SECONDS_MAX: Final = 1 << 30
_UUID: Final = re.compile("[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

_ADDRESS_OPTIONS: Final = (
    click.option(
        "-t",
        "--transport",
        type=click.Choice(TRANSPORTS),
        default="tcp",
        show_default=True,
        help="How the target is reached: by network, or loop, on this host itself.",
    ),
    click.option("-a", "--traddr", metavar="IP", help="The target's address; loop needs none."),
    click.option(
        "-s",
        "--trsvcid",
        type=click.IntRange(1, 65535),
        metavar="PORT",
        help=f"The target's port. [default: {PORT}; to discover over tcp {DISCOVERY_PORT}]",
    ),
    click.option("-w", "--host-traddr", metavar="IP", help="The address to connect from."),
    click.option("-f", "--host-iface", metavar="NAME", help="The interface to connect by (tcp)."),
    click.option(
        "-q",
        "--hostnqn",
        metavar="NQN",
        help="The NQN of this host. [default: /etc/nvme/hostnqn, or a hash of /etc/machine-id]",
    ),
    click.option(
        "-I", "--hostid", metavar="UUID", help="The UUID of this host. [default: /etc/nvme/hostid, or that in its NQN]"
    ),
)


def _address_options(command: type_command) -> type_command:
    for option in reversed(_ADDRESS_OPTIONS):
        command = option(command)
    return command


def _ip(option: str, value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError as error:
        raise UsageError(f"{option} {value}: give an IP address") from error


def _nqn(option: str, value: str) -> str:
    if problem := nqn_problem(value):
        raise UsageError(f"{option} {value}: is no NQN: {problem}")
    return value


def _uuid(option: str, value: str) -> str:
    if _UUID.fullmatch(value) is None:
        raise UsageError(f"{option} {value}: give a UUID, such as 01234567-89ab-cdef-0123-456789abcdef")
    return value


def _address(options: dict[str, Any], port: int) -> Address:
    """Turn the options into an address. Raises UsageError."""
    transport, traddr = options["transport"], options["traddr"]
    if transport == "loop":
        for name in ("trsvcid", "host_traddr", "host_iface"):
            if options[name] is not None:
                raise UsageError(f"--{name.replace('_', '-')} is not for --transport loop")
        return Address(transport="loop", traddr=_nqn("--traddr", traddr) if traddr else "")
    if traddr is None:
        raise UsageError("no target: give --traddr IP")
    if options["host_iface"] is not None and transport != "tcp":
        raise UsageError("--host-iface is for --transport tcp")
    source = options["host_traddr"]
    return Address(
        transport=transport,
        traddr=_ip("--traddr", traddr),
        trsvcid=options["trsvcid"] or port,
        host_traddr=None if source is None else _ip("--host-traddr", source),
        host_iface=options["host_iface"],
    )


def _host(options: dict[str, Any]) -> HostName:
    """Turn the options into the host's name. Raises UsageError."""
    nqn, hostid = options["hostnqn"], options["hostid"]
    if hostid is not None:
        hostid = _uuid("--hostid", hostid)
    if nqn is None:
        default = default_host()
        return HostName(nqn=default.nqn, id=hostid or default.id)
    return HostName(nqn=_nqn("--hostnqn", nqn), id=hostid or host_id(nqn))


@contextmanager
def _clear_errors() -> Iterator[None]:
    try:
        yield
    except ConnectError as error:
        raise KpollError(str(error)) from error


@nvme.command("connect", cls=Subcommand)
@_address_options
@click.option("-n", "--nqn", required=True, metavar="NQN", help="The subsystem.")
@click.option(
    "-i",
    "--nr-io-queues",
    type=click.IntRange(1, 65535),
    metavar="N",
    help="Queues for I/O; the target may give fewer. [default: one per CPU]",
)
@click.option(
    "-P",
    "--nr-poll-queues",
    type=click.IntRange(1, 65535),
    metavar="N",
    help="More of them, to be polled by `kpoll blk --iopoll` (tcp, rdma). [default: none]",
)
@click.option(
    "-c",
    "--reconnect-delay",
    type=click.IntRange(1, _SECONDS_MAX),
    metavar="S",
    help="Seconds between attempts to have a lost connection back. [default: 10]",
)
@click.option(
    "-l",
    "--ctrl-loss-tmo",
    type=click.IntRange(-1, _SECONDS_MAX),
    metavar="S",
    help="Seconds until a lost controller is removed for good; -1: never. [default: 600]",
)
@click.option(
    "--fast-io-fail-tmo",
    type=click.IntRange(0, _SECONDS_MAX),
    metavar="S",
    help="Seconds until requests on a lost connection fail. [default: they wait]",
)
@click.option(
    "-k",
    "--keep-alive-tmo",
    type=click.IntRange(1, _SECONDS_MAX),
    metavar="S",
    help="Seconds between looks whether the target is there. [default: 5]",
)
@json_option
def connect_(*, nqn: str, nr_io_queues: int | None, nr_poll_queues: int | None, as_json: bool, **options: Any) -> None:
    """Connect to a subsystem; its namespaces become block devices."""
    _nqn("--nqn", nqn)
    if nr_poll_queues is not None and options["transport"] == "loop":
        raise UsageError("--nr-poll-queues is not for --transport loop")
    address, host = _address(options, PORT), _host(options)
    timeouts = Timeouts(
        **{name: options[name] for name in ("reconnect_delay", "ctrl_loss_tmo", "fast_io_fail_tmo", "keep_alive_tmo")}
    )
    with _clear_errors():
        fabrics = check_ready(load(), transport=address.transport)
        name = connect(fabrics, address, nqn, host, timeouts, Queues(io=nr_io_queues, poll=nr_poll_queues))
    if as_json:
        click.echo(json.dumps({"controller": name, "nqn": nqn, "hostnqn": host.nqn, "hostid": host.id}, indent=2))
    else:
        click.echo(f"{name}: {nqn} at {address}")


@nvme.command("disconnect", cls=Subcommand)
@click.option("-n", "--nqn", metavar="NQN", help="The subsystem, with all controllers by which this host has it.")
@click.option("-d", "--device", metavar="NAME", help="One controller, such as nvme1.")
@json_option
def disconnect_(*, nqn: str | None, device: str | None, as_json: bool) -> None:
    """Take controllers away, and the namespaces that only they lead to."""
    if (nqn is None) == (device is None):
        raise UsageError("give --nqn NQN, or --device NAME")
    with _clear_errors():
        fabrics = check_ready(load())
        names = _controllers(nqn, device)
        for name in names:
            disconnect(fabrics, name)
    if as_json:
        click.echo(json.dumps({"disconnected": names}, indent=2))
    else:
        click.echo(f"disconnected: {', '.join(names)}")


def _controllers(nqn: str | None, device: str | None) -> list[str]:
    """Name the controllers that are meant. Raises KpollError when there are none, or they aren't fabrics'."""
    wanted = None if device is None else device.removeprefix("/dev/")
    found = [
        (subsystem, controller)
        for subsystem, controller in sysfs.scan("").controllers()
        if controller.name == wanted or subsystem.nqn == nqn
    ]
    if not found:
        what = f"no controller {wanted}" if nqn is None else f"no controller of {nqn}"
        raise KpollError(f"this host has {what} (`kpoll nvme list` names those that it has)")
    for _, controller in found:
        if controller.transport not in TRANSPORTS:
            raise KpollError(f"{controller.name}: is on {controller.transport}: only fabrics can be disconnected")
    return [controller.name for _, controller in found]


@nvme.command("discover", cls=Subcommand)
@_address_options
@json_option
def discover_(*, as_json: bool, **options: Any) -> None:
    """List the subsystems that a target has for this host."""
    port = DISCOVERY_PORT if options["transport"] == "tcp" else PORT
    address, host = _address(options, port), _host(options)
    with _clear_errors():
        offers = discover(check_ready(load(), transport=address.transport), address, host)
    if as_json:
        click.echo(json.dumps({"hostnqn": host.nqn, "offers": [asdict(offer) for offer in offers]}, indent=2))
    elif any(offer.nqn != DISCOVERY_NQN for offer in offers):
        table_console().print(_table(offers))
    else:
        click.echo(f"{address} has no subsystem for the host {host.nqn}.")


def _table(offers: tuple[Offer, ...]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("subsystem", "transport", "address", "port", "kind"):
        table.add_column(column, overflow="fold")
    for offer in offers:
        table.add_row(offer.nqn, offer.transport, offer.traddr, offer.trsvcid, offer.subtype)
    return table
