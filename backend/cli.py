"""The command line: `kpoll` and its subcommands, and `kpoll-blk`, `kpoll-net` for those who look them up by that name.

Whatever goes wrong ends as one line on stderr: exit code 2 when the command line is wrong, 1 when the host is.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import click

from kpoll.kernel.probe import probe_kernel

from .config import (
    BlkConfig,
    LogConfig,
    MetricsConfig,
    SocketConfig,
    default_num_queues,
    parse_cpus,
    parse_host_port,
    parse_mode,
    parse_serial,
    parse_size,
)
from .errors import KpollError, UsageError
from .net_config import MTU_MAX, MTU_MIN
from .net_options import NetConfig, parse_backend, parse_mac, random_mac
from .nvme_tcp import parse_nvme_tcp
from .poll import POLL_US_DEFAULT, POLL_US_MAX, choose_poll
from .streams import open_standard_streams

if TYPE_CHECKING:
    from collections.abc import Callable

    type_command = Callable[..., None]

INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it

# QEMU's "Backend program conventions" (docs/interop/vhost-user.rst) and vhost-user.json, by command.
CAPABILITIES: Final = {"blk": {"type": "block", "features": ["read-only", "blk-file"]}, "net": {"type": "net"}}


def _print_capabilities(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        click.echo(json.dumps(CAPABILITIES[str(context.command.name)]))
        context.exit(0)


class _BackendCommand(click.Command):
    """A command under QEMU's conventions: with --print-capabilities, nothing else on the line counts.

    An option that says what something is may be given once: of two, click takes the last one without a word.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--print-capabilities" in args:
            return super().parse_args(ctx, ["--print-capabilities"])
        extra = super().parse_args(ctx, list(args))
        _, _, given = self.make_parser(ctx).parse_args(args=args)
        for option, times in Counter(given).items():
            if isinstance(option, click.Option) and not option.is_flag and times > 1:
                raise click.UsageError(f"{option.opts[0]} was given twice; give it once", ctx)
        return extra

    def invoke(self, ctx: click.Context) -> Any:
        """Run it, from now on with SIGHUP blocked: it ends no daemon, also not one that doesn't listen for it yet."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        return super().invoke(ctx)


class _Kpoll(click.Group):
    """The subcommands, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return ["bench", "blk", "doctor", "net", "nvme"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name == "blk":
            return blk
        if cmd_name == "net":
            return net
        if cmd_name == "bench":
            from .bench.cli import bench  # noqa: PLC0415 - the daemon needs none of it

            return bench
        if cmd_name == "nvme":
            from .nvme_fabrics_cli import nvme  # noqa: PLC0415 - as above

            return nvme
        if cmd_name == "doctor":
            from .doctor_cli import doctor  # noqa: PLC0415 - as above

            return doctor
        return None


@click.group(cls=_Kpoll, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("kpoll"), prog_name="kpoll")
def kpoll() -> None:
    """Serve virtual machines disks and network cards: a vhost-user back-end that polls when it pays, else sleeps."""


_SOCKET_OPTIONS: Final = (
    click.option("--socket-path", metavar="PATH", help="Listen for front-ends on a unix socket made here."),
    click.option("--fd", type=int, metavar="N", help="Use this open socket instead, listening or connected."),
)

_COMMON_OPTIONS: Final = (
    click.option(
        "--poll",
        type=click.Choice(["auto", "kernel", "module", "user", "off"]),
        default="auto",
        show_default=True,
        help="Who polls before a worker sleeps: auto takes the best that this host has and allows, and logs why.",
    ),
    click.option(
        "--poll-max-us",
        type=click.IntRange(0, POLL_US_MAX),
        default=POLL_US_DEFAULT,
        show_default=True,
        metavar="N",
        help="Never spin longer than this without a request, in microseconds; 0 is --poll off.",
    ),
    click.option(
        "--log-format",
        type=click.Choice(["auto", "json", "console"]),
        default="auto",
        show_default=True,
        help="How log lines on stderr look: auto is console on a terminal, else json.",
    ),
    click.option(
        "--log-level",
        type=click.Choice(["info", "warning", "error"]),
        default="info",
        show_default=True,
        help="The least that is logged.",
    ),
    click.option("--metrics", metavar="HOST:PORT", help="Serve Prometheus metrics over HTTP here."),
    click.option("--metrics-socket", metavar="PATH", help="Serve them on a unix socket made here instead."),
    click.option("--socket-mode", metavar="MODE", help="Permission bits of --socket-path, octal."),
    click.option("--socket-group", metavar="GROUP", help="Group that owns --socket-path, by name or number."),
    click.option(
        "--sandbox",
        type=click.Choice(["on", "off"]),
        help="Give up what a server of devices doesn't need, once all is open. [default: as much as this host can do]",
    ),
    click.option(
        "--print-capabilities",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_print_capabilities,
        help="Print what this back-end can do, as JSON, and exit.",
    ),
)


def _socket_options(command: type_command) -> type_command:
    for option in reversed(_SOCKET_OPTIONS):
        command = option(command)
    return command


def _common_options(command: type_command) -> type_command:
    for option in reversed(_COMMON_OPTIONS):
        command = option(command)
    return command


@click.command(
    cls=_BackendCommand,
    context_settings={"help_option_names": ["-h", "--help"]},
    short_help="Serve a disk as a vhost-user-blk device.",
)
@_socket_options
@click.option("--blk-file", metavar="PATH", help="The disk: a raw image file or a block device.")
@click.option(
    "--nvme-tcp",
    metavar="addr=IP[:PORT],nqn=NQN[,nsid=N][,poll-queues=N]",
    help="The disk instead: an NVMe namespace over TCP; connected for as long as kpoll runs, or used if it is already.",
)
@click.option("--read-only", is_flag=True, help="Refuse all writes.")
@click.option(
    "--engine",
    type=click.Choice(["auto", "aio", "io_uring", "null"]),
    default="auto",
    show_default=True,
    help="How I/O is done: auto takes io_uring where it polls the device's queues, else aio where O_DIRECT works, else "
    "io_uring. null does none.",
)
@click.option(
    "--iopoll",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="Poll the device's queues instead of taking interrupts: auto does where there are any; aio can under --poll "
    "kernel alone.",
)
@click.option(
    "--pin-guest-memory",
    is_flag=True,
    help="Register the guest's memory with io_uring: less work for each request. Not for a guest with a balloon, "
    "virtio-mem or free page reporting: what it gives back stays pinned, and I/O would go astray.",
)
@click.option("--size", metavar="SIZE", help="Size of a null disk: bytes, or a number with K, M, G or T.")
@click.option(
    "--num-queues", type=int, metavar="N", help="Virtqueues on offer. [default: host CPUs, at least 16, at most 256]"
)
@click.option(
    "--serial",
    metavar="S",
    help="What the guest reads as the disk's serial: up to 20 ASCII characters. [default: an NVMe namespace's own]",
)
@click.option(
    "--workers", type=int, metavar="N", help="Threads that share the queues. [default: one, or one per --cpus]"
)
@click.option("--cpus", metavar="LIST", help="Pin the workers to these CPUs, one each, such as 2,4-5.")
@click.option(
    "--on-error",
    type=click.Choice(["report", "retry", "stop"]),
    default="report",
    show_default=True,
    help="What becomes of requests that the disk fails. report: the guest is told; retry: tried again until they "
    "succeed; stop: they and all after them wait for SIGHUP. After kill -9 a guest that reconnects may lose what waits "
    "(see README).",
)
@_common_options
def blk(**options: Any) -> None:
    """Serve one disk to one virtual machine at a time, as a vhost-user-blk device."""
    config = blk_config(**options)
    # A wrong command line is told without loading the C side.
    from .blk_service import open_blk  # noqa: PLC0415
    from .daemon import run  # noqa: PLC0415

    run(config, partial(open_blk, config))


def _common_config(options: dict[str, Any]) -> dict[str, Any]:
    """Turn the options that every device has into what was meant. Raises UsageError."""
    mode, metrics, sandbox = (options[name] for name in ("socket_mode", "metrics", "sandbox"))
    return {
        "socket": SocketConfig(
            path=options["socket_path"],
            fd=options["fd"],
            mode=None if mode is None else parse_mode(mode),
            group=options["socket_group"],
        ),
        "metrics": MetricsConfig(
            tcp=None if metrics is None else parse_host_port(metrics), path=options["metrics_socket"]
        ),
        "log": LogConfig(style=options["log_format"], level=options["log_level"]),
        "sandbox": None if sandbox is None else sandbox == "on",
    }


def blk_config(**options: Any) -> BlkConfig:
    """Turn the options of `kpoll blk` into what was meant.

    Raises UsageError for what can't be meant, KpollError for what this release doesn't have.
    """
    cpus = parse_cpus(options["cpus"]) if options["cpus"] is not None else ()
    num_queues = default_num_queues() if options["num_queues"] is None else options["num_queues"]
    workers = options["workers"]
    serial, size, nvme_tcp = options["serial"], options["size"], options["nvme_tcp"]
    config = {
        **_common_config(options),
        "blk_file": options["blk_file"],
        "nvme_tcp": None if nvme_tcp is None else parse_nvme_tcp(nvme_tcp),
        "read_only": options["read_only"],
        "engine": options["engine"],
        "iopoll": options["iopoll"],
        "pin_guest_memory": options["pin_guest_memory"],
        "size": None if size is None else parse_size(size),
        "num_queues": num_queues,
        "serial": b"" if serial is None else parse_serial(serial),
        "workers": workers if workers is not None else len(cpus) or 1,
        "cpus": cpus,
        "on_error": options["on_error"],
    }
    return BlkConfig(poll=choose_poll(options["poll"], options["poll_max_us"], probe_kernel()), **config)


@click.command(
    cls=_BackendCommand,
    context_settings={"help_option_names": ["-h", "--help"]},
    short_help="Serve a network card as a vhost-user-net device.",
)
@_socket_options
@click.option(
    "--backend",
    metavar="BACKEND",
    help="tap:NAME, tap-fd:N, udp:LOCAL,REMOTE, vxlan:vni=N,local=IP,remote=IP[,port=N], xdp:IFACE[,queue=N], "
    "null[:SIZE] or echo.",
)
@click.option(
    "--mac",
    metavar="MAC",
    help="The guest's address, for a front-end that asks: QEMU doesn't, and has mac=. "
    "[default: a random, locally administered one]",
)
@click.option(
    "--mtu",
    type=int,
    metavar="N",
    help=f"What the guest is told that frames may hold, {MTU_MIN} to {MTU_MAX} bytes, for a front-end that asks: QEMU "
    "doesn't, and has host_mtu=, which this limits. [default: of udp, vxlan and xdp what they take, else nothing]",
)
@click.option(
    "--num-queue-pairs", type=int, default=1, show_default=True, metavar="N", help="Virtqueue pairs, a worker each."
)
@click.option(
    "--busy-poll-us",
    type=click.IntRange(0, POLL_US_MAX),
    metavar="N",
    help="Have the kernel poll the network card below udp, vxlan or xdp for so long. [default: net.core.busy_read]",
)
@_common_options
def net(**options: Any) -> None:
    """Serve one network card to one virtual machine at a time, as a vhost-user-net device."""
    config = net_config(**options)
    # As above.
    from .daemon import run  # noqa: PLC0415
    from .net_service import open_net  # noqa: PLC0415

    run(config, partial(open_net, config))


def net_config(**options: Any) -> NetConfig:
    """Turn the options of `kpoll net` into what was meant.

    Raises UsageError for what can't be meant, KpollError for what this release doesn't have.
    """
    if options["backend"] is None:
        raise UsageError("no network: give --backend, such as tap:NAME")
    config = {
        **_common_config(options),
        "backend": parse_backend(options["backend"]),
        "mac": random_mac() if options["mac"] is None else parse_mac(options["mac"]),
        "mtu": options["mtu"],
        "num_queue_pairs": options["num_queue_pairs"],
        "busy_poll_us": options["busy_poll_us"],
    }
    return NetConfig(poll=choose_poll(options["poll"], options["poll_max_us"], probe_kernel()), **config)


def _run(command: click.Command, name: str) -> int:
    """Run a command, and turn what it raises into one line and an exit code."""
    try:
        open_standard_streams()
        result = command.main(prog_name=name, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return error.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        return _fail(context.command_path if context else _ran(command, name), error.format_message(), error.exit_code)
    except KpollError as error:
        return _fail(_ran(command, name), str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:  # `kpoll --help | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return result if isinstance(result, int) else 0


def _ran(command: click.Command, name: str) -> str:
    """Name what ran, with its subcommand, where no click context says it."""
    return " ".join([name, *sys.argv[1:2]]) if isinstance(command, click.Group) else name


def _fail(where: str, message: str, code: int) -> int:
    line = message.encode(errors="backslashreplace").decode()  # file names need not be text
    click.echo(f"{where}: {' '.join(line.split())}", err=True)
    return code


def main() -> None:
    """Run `kpoll`."""
    sys.exit(_run(kpoll, "kpoll"))


def net_main() -> None:
    """Run `kpoll-net`, which is `kpoll net` under the name that QEMU and libvirt look for."""
    sys.exit(_run(net, "kpoll-net"))


def blk_main() -> None:
    """Run `kpoll-blk`, which is `kpoll blk` under the name that QEMU and libvirt look for."""
    sys.exit(_run(blk, "kpoll-blk"))
