"""`kpoll bench`: the command line of the benchmark."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from rich.console import Console

from kpoll.backend.bench.blk import BlkLoad, run_blk, type_rw, type_wait
from kpoll.backend.bench.net import NetLoad, run_net, type_mode
from kpoll.backend.bench.wait import WaitLoad, run_wait, type_strategy
from kpoll.backend.config import parse_size
from kpoll.backend.errors import KpollError, UsageError, os_reason
from kpoll.backend.subcommand import Subcommand

if TYPE_CHECKING:
    from kpoll.backend.bench.report import Report

WAIT_RUNTIME_QUICK = 0.2


def parse_block_size(text: str) -> int:
    """Parse --bs: bytes, or a number with k or M (powers of 1024). Raises UsageError."""
    match = re.fullmatch(r"([0-9]{1,10})([kKmM]?)", text)
    if match is None:
        raise UsageError(f"--bs {text}: give bytes, or a number followed by k or M, such as 4k")
    return int(match[1]) * {"": 1, "K": 1 << 10, "M": 1 << 20}[match[2].upper()]


@click.group()
def bench() -> None:
    """Measure a vhost-user back-end, ours or another's, or how well this host can wait."""


@bench.command(cls=Subcommand)
@click.option("--socket-path", required=True, metavar="S", help="Socket of a vhost-user-blk back-end.")
@click.option("--rw", type=click.Choice(get_args(type_rw)), default="randread", show_default=True, help="The load.")
@click.option("--bs", default="4k", show_default=True, metavar="SIZE", help="Size of a request.")
@click.option("--iodepth", type=int, default=1, show_default=True, metavar="N", help="Requests in flight per queue.")
@click.option("--queues", type=int, default=1, show_default=True, metavar="N", help="Virtqueues.")
@click.option("--runtime", type=float, metavar="SECONDS", help=f"How long to measure.  [default: {BlkLoad.runtime}]")
@click.option(
    "--warmup",
    type=float,
    metavar="SECONDS",
    help=f"The same load before that, not counted.  [default: {BlkLoad.warmup}, 0 with --requests]",
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
@click.option(
    "--think-us",
    type=int,
    default=BlkLoad.think_us,
    show_default=True,
    metavar="N",
    help="Pause between an answer and the next request (a mean).",
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
    think_us: int,
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
        runtime=BlkLoad.runtime if runtime is None and requests is None else runtime,
        warmup=(0.0 if requests else BlkLoad.warmup) if warmup is None else warmup,
        requests=requests,
        wait=wait,
        packed=packed,
        event_idx=event_idx,
        indirect=indirect,
        verify=verify,
        size=None if size is None else parse_size(size),
        think_us=think_us,
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
                think_us=load.think_us,
                packed=load.packed,
            )
        )
        return
    ring = "packed" if load.packed else "split"
    queues = "1 queue" if load.queues == 1 else f"{load.queues} queues"
    title = f"{load.rw}, {load.block_size} bytes, {queues} ({ring}), iodepth {load.iodepth}, {load.wait}"
    Console().print(report.as_table(title))


@bench.command(cls=Subcommand)
@click.option("--socket-path", required=True, metavar="S", help="Socket of a vhost-user-net back-end.")
@click.option(
    "--mode",
    type=click.Choice(get_args(type_mode)),
    default="echo",
    show_default=True,
    help="Send; receive; or send and wait for the same frames to come back.",
)
@click.option("--size", type=int, default=NetLoad.size, show_default=True, metavar="BYTES", help="Size of a frame.")
@click.option(
    "--depth", type=int, default=NetLoad.depth, show_default=True, metavar="N", help="echo: frames under way per pair."
)
@click.option(
    "--batch", type=int, default=NetLoad.batch, show_default=True, metavar="N", help="Most frames published at once."
)
@click.option("--pairs", type=int, default=NetLoad.pairs, show_default=True, metavar="N", help="Queue pairs.")
@click.option(
    "--queue-size", type=int, default=NetLoad.queue_size, show_default=True, metavar="N", help="Entries of a queue."
)
@click.option(
    "--runtime",
    "--duration",
    "runtime",
    type=float,
    metavar="SECONDS",
    help=f"How long to measure.  [default: {NetLoad.runtime}]",
)
@click.option(
    "--warmup",
    type=float,
    metavar="SECONDS",
    help=f"The same load before that, not counted.  [default: {NetLoad.warmup}, 0 with --frames]",
)
@click.option("--frames", type=int, metavar="N", help="Measure this many frames instead (or at most).")
@click.option(
    "--idle",
    type=float,
    default=NetLoad.idle,
    show_default=True,
    metavar="SECONDS",
    help="Then see for so long what CPU the back-end takes when there is nothing to do.",
)
@click.option("--packed", is_flag=True, help="Use packed virtqueues.")
@click.option("--event-idx/--no-event-idx", default=True, show_default=True, help="Negotiate EVENT_IDX if offered.")
@click.option("--mrg-rxbuf/--no-mrg-rxbuf", default=True, show_default=True, help="Negotiate MRG_RXBUF if offered.")
@click.option("--verify", is_flag=True, help="Give each frame bytes of its own, and compare all that come back.")
@click.option("--cpu", type=int, metavar="N", help="Pin the thread that makes the load to this CPU.")
@click.option("--seed", type=click.IntRange(0, (1 << 63) - 1), default=1, show_default=True, help="Of these bytes.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def net(
    *, socket_path: str, runtime: float | None, warmup: float | None, frames: int | None, as_json: bool, **more: Any
) -> None:
    """Measure a network card: packets per second, bits per second, loss, round trips, the back-end's CPU."""
    if not socket_path:
        raise UsageError("--socket-path: give the path of a vhost-user-net back-end's socket")
    load = NetLoad(
        runtime=NetLoad.runtime if runtime is None and frames is None else runtime,
        warmup=(0.0 if frames else NetLoad.warmup) if warmup is None else warmup,
        frames=frames,
        **more,
    )
    report = run_net(socket_path, load)
    if as_json:
        asked = ("mode", "size", "depth", "batch", "pairs", "queue_size", "packed", "mrg_rxbuf")
        click.echo(report.as_json(**{name: getattr(load, name) for name in asked}))
    else:
        ring = "packed" if load.packed else "split"
        depth = f", {load.depth} under way" if load.mode == "echo" else ""
        pairs = "1 queue pair" if load.pairs == 1 else f"{load.pairs} queue pairs"
        Console().print(
            report.as_table(f"{load.mode}, {load.size} bytes{depth}, {pairs} ({ring} of {load.queue_size})")
        )
    if report.complaint:
        raise KpollError(report.complaint)


@bench.command(cls=Subcommand)
@click.option(
    "--strategy",
    "strategies",
    multiple=True,
    type=click.Choice(get_args(type_strategy)),
    help="Only this one (repeatable); blind is a spin that never gives way.  [default: all that this host has]",
)
@click.option("--rounds", type=int, metavar="N", help=f"Measure each so often.  [default: {WaitLoad.rounds}]")
@click.option(
    "--runtime",
    type=float,
    metavar="SECONDS",
    help=f"How long to measure each, in each of three situations.  [default: {WaitLoad.runtime}]",
)
@click.option("--quick", is_flag=True, help="A second or so for each, to see that it works: one short round.")
@click.option(
    "--think-us",
    type=int,
    default=WaitLoad.think_us,
    show_default=True,
    metavar="N",
    help="Time between two requests, about.",
)
@click.option(
    "--poll-max-us",
    type=int,
    default=WaitLoad.poll_max_us,
    show_default=True,
    metavar="N",
    help="Longest spin, in microseconds; 1000 at least beside a hog.",
)
@click.option("--cpu", type=int, metavar="N", help="CPU to wait on, and the hog's.  [default: the first]")
@click.option("--driver-cpu", type=int, metavar="N", help="CPU of who sends requests.  [default: the second]")
@click.option("--seed", type=click.IntRange(0, (1 << 63) - 1), default=1, show_default=True, help="Of think times.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Draw it: .svg or .png.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def wait(
    *,
    strategies: tuple[type_strategy, ...],
    rounds: int | None,
    runtime: float | None,
    quick: bool,
    think_us: int,
    poll_max_us: int,
    cpu: int | None,
    driver_cpu: int | None,
    seed: int,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Measure the ways to wait: wake-up latency, CPU when idle, what a hog on the same CPU gets, kicks per request."""
    load = WaitLoad(
        strategies=strategies,
        rounds=(1 if quick else WaitLoad.rounds) if rounds is None else rounds,
        runtime=(WAIT_RUNTIME_QUICK if quick else WaitLoad.runtime) if runtime is None else runtime,
        think_us=think_us,
        poll_max_us=poll_max_us,
        cpu=cpu,
        driver_cpu=driver_cpu,
        seed=seed,
    )
    if plot is not None and plot.suffix not in (".svg", ".png"):
        raise UsageError(f"--plot {plot}: give a name that ends in .svg or .png")
    if plot is not None:
        from kpoll.backend.bench import wait_plot  # noqa: PLC0415 - a missing matplotlib is told before measuring
    report = run_wait(load, lambda what: click.echo(f"kpoll bench wait: {what}", err=True))
    if plot is not None:
        try:
            wait_plot.draw(report, plot)
        except OSError as e:
            raise KpollError(f"--plot {plot}: {os_reason(e)}") from e
    if as_json:
        click.echo(report.as_json(think_us=think_us, poll_max_us=poll_max_us, rounds=load.rounds, runtime=load.runtime))
        return
    console = Console()
    console.print(report.as_table(f"a request every {think_us} µs, spins of {poll_max_us} µs at most"))
    for remark in report.remarks():
        console.print(remark, markup=False, highlight=False)
