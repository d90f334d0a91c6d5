"""`kpoll bench`: the command line of the benchmark."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, get_args

import click
from rich.console import Console

from kpoll.backend.bench.blk import BlkLoad, run_blk, type_rw, type_wait
from kpoll.backend.config import parse_size
from kpoll.backend.errors import KpollError, UsageError

if TYPE_CHECKING:
    from kpoll.backend.bench.report import Report

RUNTIME_DEFAULT = 5.0
WARMUP_DEFAULT = 0.5


def parse_block_size(text: str) -> int:
    """Parse --bs: bytes, or a number with k or M (powers of 1024). Raises UsageError."""
    match = re.fullmatch(r"([0-9]{1,10})([kKmM]?)", text)
    if match is None:
        raise UsageError(f"--bs {text}: give bytes, or a number followed by k or M, such as 4k")
    return int(match[1]) * {"": 1, "K": 1 << 10, "M": 1 << 20}[match[2].upper()]


@click.group()
def bench() -> None:
    """Measure a vhost-user back-end, ours or another's, as its front-end and driver in one."""


class _Failure(click.UsageError):
    """A run-time error that carries its context as usage errors do."""

    exit_code = KpollError.exit_code


class _Named(click.Command):
    """A command of the group, whose errors name it in full: `kpoll bench blk: ...`."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; what goes wrong carries the context, as click's own errors do."""
        try:
            return super().invoke(ctx)
        except UsageError as e:
            raise click.UsageError(str(e), ctx=ctx) from e
        except KpollError as e:
            raise _Failure(str(e), ctx=ctx) from e


@bench.command(cls=_Named)
@click.option("--socket-path", required=True, metavar="S", help="Socket of a vhost-user-blk back-end.")
@click.option("--rw", type=click.Choice(get_args(type_rw)), default="randread", show_default=True, help="The load.")
@click.option("--bs", default="4k", show_default=True, metavar="SIZE", help="Size of a request.")
@click.option("--iodepth", type=int, default=1, show_default=True, metavar="N", help="Requests in flight per queue.")
@click.option("--queues", type=int, default=1, show_default=True, metavar="N", help="Virtqueues.")
@click.option("--runtime", type=float, metavar="SECONDS", help=f"How long to measure.  [default: {RUNTIME_DEFAULT}]")
@click.option(
    "--warmup",
    type=float,
    metavar="SECONDS",
    help=f"The same load before that, not counted.  [default: {WARMUP_DEFAULT}, 0 with --requests]",
)
@click.option("--requests", type=int, metavar="N", help="Measure this many requests instead (or at most).")
@click.option(
    "--wait",
    type=click.Choice(get_args(type_wait)),
    default="poll",
    show_default=True,
    help="Spin on the used rings, or sleep until the back-end interrupts.",
)
@click.option("--packed", is_flag=True, help="Use packed virtqueues.")
@click.option("--event-idx/--no-event-idx", default=True, show_default=True, help="Negotiate EVENT_IDX if offered.")
@click.option("--indirect/--no-indirect", default=True, show_default=True, help="Negotiate INDIRECT_DESC if offered.")
@click.option("--verify", is_flag=True, help="DESTROYS DATA: fill --size, check every read, read all back.")
@click.option(
    "--size",
    metavar="SIZE",
    help="Use only this much of the disk, from its start.  [default: all of it; 1G at most with --verify]",
)
@click.option("--cpu", type=int, metavar="N", help="Pin the thread that makes the load to this CPU.")
@click.option("--seed", type=click.IntRange(0, (1 << 63) - 1), default=1, show_default=True, help="Of random offsets.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def blk(
    *,
    socket_path: str,
    rw: type_rw,
    bs: str,
    iodepth: int,
    queues: int,
    runtime: float | None,
    warmup: float | None,
    requests: int | None,
    wait: type_wait,
    packed: bool,
    event_idx: bool,
    indirect: bool,
    verify: bool,
    size: str | None,
    cpu: int | None,
    seed: int,
    as_json: bool,
) -> None:
    """Measure a block device. Writing loads (and --verify) destroy what is on it."""
    if not socket_path:
        raise UsageError("--socket-path: give the path of a vhost-user-blk back-end's socket")
    load = BlkLoad(
        rw=rw,
        block_size=parse_block_size(bs),
        iodepth=iodepth,
        queues=queues,
        runtime=RUNTIME_DEFAULT if runtime is None and requests is None else runtime,
        warmup=(0.0 if requests else WARMUP_DEFAULT) if warmup is None else warmup,
        requests=requests,
        wait=wait,
        packed=packed,
        event_idx=event_idx,
        indirect=indirect,
        verify=verify,
        size=None if size is None else parse_size(size),
        cpu=cpu,
        seed=seed,
    )
    report = run_blk(socket_path, load, lambda what: click.echo(f"kpoll bench blk: {what}", err=True))
    _show(report, load, as_json=as_json)
    if report.complaint:
        raise KpollError(report.complaint)


def _show(report: Report, load: BlkLoad, *, as_json: bool) -> None:
    if as_json:
        click.echo(
            report.as_json(
                rw=load.rw,
                bs=load.block_size,
                iodepth=load.iodepth,
                queues=load.queues,
                wait=load.wait,
                packed=load.packed,
            )
        )
        return
    ring = "packed" if load.packed else "split"
    queues = "1 queue" if load.queues == 1 else f"{load.queues} queues"
    title = f"{load.rw}, {load.block_size} bytes, {queues} ({ring}), iodepth {load.iodepth}, {load.wait}"
    Console().print(report.as_table(title))
