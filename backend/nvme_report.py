"""NVMe devices as tables for people; scripts get JSON (nvme_cli.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.box import SIMPLE_HEAD
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kpoll.nvme.device import Device
    from kpoll.nvme.pages import IdentifyController, IdentifyNamespace, LbaFormat, SmartLog
    from kpoll.nvme.topology import Controller, Namespace, Subsystem, Topology

type_rows = list[tuple[str, str]]

_UNITS: Final = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")
_DATA_UNIT: Final = 512_000  # bytes, NVMe base 2.0 figure 207
_ZERO_CELSIUS: Final = 273
_PAGE: Final = 4096  # the smallest memory page of nearly every controller, which only its registers tell


def size(number: int) -> str:
    """Write a number of bytes in the largest unit that leaves 1 or more before the point."""
    unit = min((max(number, 1).bit_length() - 1) // 10, len(_UNITS) - 1)
    return f"{number} bytes" if unit == 0 else f"{number / (1 << 10 * unit):.4g} {_UNITS[unit]}"


def topology_table(topology: Topology) -> Table:
    """Lay out all namespaces; controllers that have none come with a dash."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("namespace", "size", "block", "model", "serial", "by way of"):
        table.add_column(column, justify="right" if column in ("size", "block") else "left", overflow="fold")
    for subsystem in topology.subsystems():
        used = set()
        for namespace in subsystem.namespaces:
            used |= {path.controller for path in namespace.paths}
            row = (f"/dev/{namespace.name}", size(namespace.size_bytes), str(namespace.block_bytes))
            table.add_row(*row, *_maker(subsystem), "\n".join(_ways(subsystem, namespace)))
        for controller in subsystem.controllers:
            if controller.name not in used:
                table.add_row("-", "-", "-", *_maker(subsystem), _way(controller))
    return table


def _maker(subsystem: Subsystem) -> tuple[str, str]:
    """Return model and serial number, which are the same for all controllers of a subsystem."""
    return (subsystem.controllers[0].model, subsystem.controllers[0].serial) if subsystem.controllers else ("-", "-")


def _way(controller: Controller, ana_state: str | None = None) -> str:
    states = ", ".join(filter(None, (controller.state, ana_state)))
    return f"{controller.name}: {controller.transport} {controller.address}, {states}"


def _ways(subsystem: Subsystem, namespace: Namespace) -> list[str]:
    controllers = {controller.name: controller for controller in subsystem.controllers}
    return [
        _way(controllers[path.controller], path.ana_state) for path in namespace.paths if path.controller in controllers
    ]


def device_tables(device: Device) -> Iterator[Table]:
    """Yield a table for each thing that there is to say of a device."""
    answers = device.answers
    if device.namespace is not None:
        rows = _namespace(device.subsystem, device.namespace)
        page = answers.identify_namespace
        rows += _identify_namespace(page) if page else _not_known(answers.unknown["identify_namespace"])
        yield _table(f"namespace {device.namespace.name}", rows)
    for controller in device.controllers:
        yield _table(f"controller {controller.name}", _controller(device.subsystem, controller))
    of = f"{device.subsystem.name} " if len(device.controllers) > 1 else ""
    identify, smart = answers.identify_controller, answers.smart
    rows = _identify_controller(identify) if identify else _not_known(answers.unknown["identify_controller"])
    yield _table(f"{of}what the controller can do", rows)
    yield _table(f"{of}health", _smart(smart) if smart else _not_known(answers.unknown["smart"]))


def _table(title: str, rows: type_rows) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _not_known(why: str) -> type_rows:
    return [("the rest", f"unknown: {why}")]


def _namespace(subsystem: Subsystem, namespace: Namespace) -> type_rows:
    metadata = "" if not namespace.metadata_bytes else f" and {namespace.metadata_bytes} of metadata"
    return [
        ("subsystem", f"{subsystem.name}, {subsystem.nqn}"),
        ("NSID", str(namespace.nsid)),
        ("size", size(namespace.size_bytes)),
        ("block", f"{namespace.block_bytes} bytes{metadata}"),
        *((name, value) for name in ("nguid", "eui64", "uuid") if (value := getattr(namespace, name))),
        *(("by way of", way) for way in _ways(subsystem, namespace)),
    ]


def _identify_namespace(page: IdentifyNamespace) -> type_rows:
    rows = [
        ("in use", f"{page.nuse:,} of {page.nsze:,} blocks"),
        ("LBA formats", ", ".join(_format(each, in_use=each is page.lbaf) for each in page.lbafs)),
        ("write protected", "yes" if page.write_protected else "no"),
        ("best I/O boundary", f"{page.noiob} blocks (NOIOB)" if page.noiob else "not told (NOIOB 0)"),
    ]
    if page.has_optimal_sizes:
        rows += [
            ("best writes", f"{page.npwg + 1} blocks (NPWG), aligned to {page.npwa + 1} (NPWA)"),
            ("best discards", f"{page.npdg + 1} blocks (NPDG), aligned to {page.npda + 1} (NPDA)"),
        ]
    if page.nabsn:
        rows.append(("atomic boundary", f"every {page.nabsn + 1} blocks (NABSN) from block {page.nabo} on (NABO)"))
    return rows


def _format(lbaf: LbaFormat, *, in_use: bool) -> str:
    block = "none" if lbaf.block_bytes is None else str(lbaf.block_bytes)
    return f"{block}{f'+{lbaf.ms}' if lbaf.ms else ''}{' (in use)' if in_use else ''}"


def _controller(subsystem: Subsystem, controller: Controller) -> type_rows:
    return [
        ("subsystem", f"{subsystem.name}, {subsystem.nqn}"),
        ("model", controller.model),
        ("serial", controller.serial),
        ("firmware", controller.firmware),
        ("reached by", f"{controller.transport} {controller.address}"),
        ("state", controller.state),
        ("queues", "unknown" if controller.queues is None else str(controller.queues)),
    ]


def _identify_controller(page: IdentifyController) -> type_rows:
    largest = f"{size(_PAGE << page.mdts)} with pages of 4 KiB (MDTS {page.mdts})" if page.mdts else "no limit (MDTS 0)"
    return [
        ("NVMe version", page.version),
        ("largest transfer", largest),
        ("commands (ONCS)", ", ".join(page.optional_commands) or "none of the optional ones"),
        ("write cache (VWC)", "volatile: flushes matter" if page.volatile_write_cache else "none"),
        ("atomic writes", f"{page.awun + 1} blocks (AWUN), {page.awupf + 1} at power loss (AWUPF)"),
        ("namespaces", f"up to {page.nn} (NN)"),
    ]


def _smart(page: SmartLog) -> type_rows:
    return [
        ("warnings", ", ".join(page.warnings) or "none"),
        ("temperature", f"{page.temperature - _ZERO_CELSIUS} °C" if page.temperature else "not told"),
        ("spare capacity", f"{page.avail_spare} %, which warns below {page.spare_thresh} %"),
        ("worn", f"{page.percent_used} % of its estimated life"),
        ("read", size(page.data_units_read * _DATA_UNIT)),
        ("written", size(page.data_units_written * _DATA_UNIT)),
        ("power-on hours", f"{page.power_on_hours:,}"),
        ("unsafe shutdowns", f"{page.unsafe_shutdowns:,} of {page.power_cycles:,} power cycles"),
        ("media errors", f"{page.media_errors:,}"),
    ]
