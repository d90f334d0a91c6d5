"""The command line of the test VM (`run`)."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .machine import KERNELS, Machine, Nvme, VmError, VmTimeoutError, run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

TIMED_OUT = 124  # as timeout(1)
FAILED = 125
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def _word(text: str) -> str:
    """Return an argument that the VM's shell can take apart at spaces."""
    if not text or any(each.isspace() for each in text):
        raise argparse.ArgumentTypeError(f"{text!r} must be one word")
    return text


def _folder(text: str) -> Path:
    path = Path(_word(text)).resolve()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is no folder")
    return path


def _file(text: str) -> Path:
    path = Path(_word(text)).resolve()
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text} is no file")
    return path


def _sysctl(text: str) -> str:
    if "=" not in _word(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return text


def _nvme(text: str) -> Nvme:
    size, block, iops, *_ = [*text.split(",", 2), "", ""]
    digits, unit = (size[:-1], size[-1]) if size[-1:] in UNITS else (size, "")
    if not digits.isdecimal():
        raise argparse.ArgumentTypeError(f"{size!r} is no size: bytes, or a number with K, M or G")
    if block not in {"", "512", "4096"}:
        raise argparse.ArgumentTypeError(f"a logical block is 512 or 4096 bytes, not {block}")
    if iops and not iops.isdecimal():
        raise argparse.ArgumentTypeError(f"{iops!r} is no number of requests per second")
    return Nvme(int(digits) * UNITS.get(unit, 1), int(block or 512), int(iops or 0))


def parser() -> argparse.ArgumentParser:
    """Return the parser of `run`."""
    parsed = argparse.ArgumentParser(prog="kernel/vm/run", description="Run a command under a test kernel.")
    add = parsed.add_argument
    add("--kernel", choices=KERNELS, default="patched", help="default: patched; built first, if it is not in the cache")
    add("--image", type=_file, metavar="BZIMAGE", help="boot this instead, configured like patched (to try a patch)")
    add("--smp", type=int, default=2, metavar="N", help="CPUs (default 2)")
    add("--mem", default="3G", metavar="SIZE", help="memory (default 3G)")
    add(
        "--nvme",
        type=_nvme,
        action="append",
        default=[],
        metavar="SIZE[,512|4096[,IOPS]]",
        help="add an empty NVMe disk",
    )
    add("--append", default="", metavar="WORDS", help="further words for the kernel's command line")
    add("--module", type=_file, action="append", default=[], metavar="FILE.ko", help="insert a module first")
    add("--sysctl", type=_sysctl, action="append", default=[], metavar="KEY=VALUE", help="set before the modules")
    add("--share", type=_folder, action="append", default=[], metavar="FOLDER", help="writable, at the same path")
    add("--timeout", type=float, default=600, metavar="S", help="seconds for all of it, boot included (default 600)")
    add("--allow-splat", action="store_true", help="don't fail when the kernel complained on its console")
    add("--console", type=Path, metavar="FILE", help="keep the kernel's console log")
    add("command", nargs="+", metavar="COMMAND", help="after --; run as root in the current folder")
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for and return the exit status."""
    asked = parser().parse_args(arguments)
    machine = Machine(
        kernel=asked.kernel,
        image=asked.image,
        smp=asked.smp,
        memory=asked.mem,
        nvme=asked.nvme,
        append=asked.append,
        modules=asked.module,
        sysctls=asked.sysctl,
        shares=asked.share,
        timeout=asked.timeout,
        allow_splat=asked.allow_splat,
        console=asked.console and asked.console.resolve(),
    )
    try:
        return run(machine, asked.command, Path.cwd(), sys.stdout.buffer)
    except (VmError, FileNotFoundError) as error:
        sys.stderr.write(f"kernel/vm/run: {error}\n")
        return TIMED_OUT if isinstance(error, VmTimeoutError) else FAILED
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _terminated(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminated)
    # A shell starts background jobs with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
