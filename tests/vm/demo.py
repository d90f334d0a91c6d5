"""`make demo`: an unmodified QEMU makes, fills, trims and keeps a disk that kpoll serves, before your eyes.

Then it talks to the host over a network card that kpoll serves (demo_net.py). The last act takes place in the test VM,
whose kernel polls for kpoll (tests/kernel/demo_kernel.py), if that kernel has been built. Everything that it starts and
writes is gone at its end, also after Ctrl-C, except kpoll's log. It exits 0 only if every check held.
"""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click
import trio
from rich.console import Console
from rich.table import Table

from tests.kernel import demo_kernel
from tests.vm import demo_net
from tests.vm.daemon import Daemon, Metrics, kpoll_blk, parsed
from tests.vm.guest import Guest, qemu, qemu_command, qemu_disk, timed
from tests.vm.image import cache_dir
from tests.vm.stage import Stage, on_stage

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
IMAGE_MIB = 1024
FILES = 8
FILE_MIB = 8
OPS = ("read", "write", "flush", "discard")


@dataclass(kw_only=True)
class Demo(Stage):
    """One run: where it happens, and what it has measured."""

    folder: Path
    accel: str
    requests: dict[str, int] = field(default_factory=dict)
    seconds_in_requests: dict[str, float] = field(default_factory=dict)

    @property
    def image(self) -> Path:
        """The disk's file."""
        return self.folder / "disk.img"

    def count(self, metrics: Metrics) -> None:
        """Add a daemon's own counters to the summary; each start of the daemon begins at 0."""
        for op in OPS:
            done = metrics.total("kpoll_requests_total", op=op)
            self.requests[op] = self.requests.get(op, 0) + int(done)
            spent = metrics.total("kpoll_request_duration_seconds_sum", op=op)
            self.seconds_in_requests[op] = self.seconds_in_requests.get(op, 0) + spent


def allocated(path: Path) -> int:
    """Return how many bytes of a file are on the disk."""
    return path.stat().st_blocks * 512


async def fill(demo: Demo, guest: Guest) -> None:
    """Make a file system, write files with checksums, and give the space of some back."""
    demo.step("In the guest: a partition and a file system")
    await demo.run(
        guest, "printf 'label: gpt\\n,,\\n' | sfdisk -q /dev/vda\nmkfs.ext4 -q /dev/vda1\nmount /dev/vda1 /mnt"
    )
    await demo.run(guest, "df -h /mnt")

    demo.step(f"In the guest: {FILES} files of {FILE_MIB} MiB of random data, fsync, checksums")
    await demo.run(
        guest,
        f"for n in $(seq {FILES}); do\n"
        f"  dd if=/dev/urandom of=/mnt/file$n bs=1M count={FILE_MIB} conv=fsync status=none\n"
        "done\n"
        "cd /mnt && sha256sum file* > SHA256SUMS && sync",
    )
    total = FILES * FILE_MIB
    demo.check(allocated(demo.image) >= total * MIB, f"the image holds at least these {total} MiB")

    demo.step("In the guest: how fast? (all of it emulated CPU, unless you chose KVM)")
    for name, command in (
        ("write", "dd if=/dev/zero of=/mnt/speed bs=1M count=64 oflag=direct conv=fsync"),
        ("read", "dd if=/mnt/speed of=/dev/null bs=1M iflag=direct"),
    ):
        demo.show(command)
        demo.figures[f"{name}, 1 MiB requests"] = f"{64 / await timed(guest, command):.0f} MiB/s"
        demo.console.print(f"   {demo.figures[f'{name}, 1 MiB requests']}")

    demo.step("In the guest: delete half of the files, and give the space back (discard)")
    before = allocated(demo.image)
    await demo.run(
        guest,
        f"cd /mnt && rm speed {' '.join(f'file{n}' for n in range(FILES // 2 + 1, FILES + 1))}\n"
        f"head -n {FILES // 2} SHA256SUMS > keep && mv keep SHA256SUMS\nsync && fstrim -v /mnt",
    )
    freed = before - allocated(demo.image)
    expected = (FILES // 2 * FILE_MIB + 64) * 9 // 10  # the journal has taken new blocks meanwhile
    demo.check(freed >= expected * MIB, f"the image on the host has shrunk by {freed // MIB} MiB (at least {expected})")
    demo.figures["space given back"] = f"{freed // MIB} MiB"
    await demo.run(guest, "cd / && umount /mnt")


async def verify(demo: Demo, guest: Guest) -> None:
    """Check that the file system and the files are whole."""
    demo.step("In the guest: is it all there?")
    await demo.run(guest, "e2fsck -fn /dev/vda1\nmount -o ro /dev/vda1 /mnt\ncd /mnt && sha256sum -c SHA256SUMS")
    demo.check(True, "the file system is clean and every checksum matches")
    await demo.run(guest, "cd / && umount /mnt")


async def guest_session(demo: Demo, daemon: Daemon) -> None:
    """Boot a guest on the disk; the first one fills it, the second one verifies."""
    first = not demo.requests
    devices = qemu_disk(daemon.socket)
    demo.step(f"An unmodified QEMU boots Debian's kernel{'' if first else ' once more'}, with the disk as /dev/vda")
    demo.show(shlex.join(qemu_command(devices, accel=demo.accel)).replace(" -", " \\\n    -"))
    start = time.monotonic()
    async with qemu(devices, accel=demo.accel) as guest:
        size = int(await guest.run("cat /sys/block/vda/size")) * 512
        demo.check(size == IMAGE_MIB * MIB, f"booted in {time.monotonic() - start:.1f} s; /dev/vda has {IMAGE_MIB} MiB")
        await (fill if first else verify)(demo, guest)
        await guest.run("! dmesg | grep -iE 'I/O error|EXT4-fs (error|warning)'")
        demo.check(True, "the guest's kernel has seen no error")
        metrics = await daemon.metrics()
        demo.check(metrics.total("kpoll_request_errors_total") == 0, "kpoll has counted no error")
        demo.count(metrics)
        await guest.power_off()
        demo.check(True, "the guest has powered off")


async def scenario(demo: Demo, log: Path) -> None:
    """Run the demo from start to end.

    Raises:
        CheckError: when a check did not hold.
        GuestError: when a command in the guest failed.
        ChildError: when QEMU or kpoll ended too early.

    """
    demo.step(f"A sparse disk image of {IMAGE_MIB} MiB")
    demo.show(f"truncate -s {IMAGE_MIB}M {demo.image}")
    with demo.image.open("wb") as file:
        file.truncate(IMAGE_MIB * MIB)
    for again in (False, True):
        demo.step("kpoll is started anew, on the same image" if again else "kpoll serves it on a socket")
        with log.open("ab") as tee:
            async with kpoll_blk(demo.folder, demo.image, tee=tee) as daemon:
                demo.show(shlex.join(daemon.command).replace(" --", " \\\n    --"))
                await guest_session(demo, daemon)
                demo.step("kpoll is told to end (SIGTERM)")
                start = time.monotonic()
                code = await daemon.stop()
                took_ms = (time.monotonic() - start) * 1000
                demo.check(code == 0, f"ended after {took_ms:.0f} ms, exit code 0")
                said = (str(event["event"]) for line in daemon.child.lines if (event := parsed(line)))
                demo.console.print(f"   [dim]it has logged: {', '.join(said)}[/]")


def summary(demo: Demo, log: Path, seconds: float) -> Table:
    """Say what was done, how fast, and where to look next."""
    table = Table(title="What happened", show_header=False, title_justify="left")
    table.add_row("checks", f"[green]{demo.checks} of {demo.checks} held[/]")
    for name, figure in demo.figures.items():
        table.add_row(name, figure)
    for op in OPS:
        if done := demo.requests[op]:
            mean_us = demo.seconds_in_requests[op] / done * 1e6
            table.add_row(f"{op} requests", f"{done}, {mean_us:.0f} µs each in kpoll")
    table.add_row("took", f"{seconds:.0f} s")
    table.add_row("kpoll's log", str(log))
    return table


async def demonstrate(console: Console, accel: str) -> int:
    """Run the demo until its end or a signal; return the exit code."""
    log = cache_dir() / "demo" / "kpoll.log"
    log.parent.mkdir(exist_ok=True)
    log.unlink(missing_ok=True)

    async def play(folder: Path) -> None:
        demo = Demo(console=console, folder=folder, accel=accel)
        start = time.monotonic()
        await scenario(demo, log)
        await demo_net.act(demo, folder, log, accel)
        if demo_kernel.kernel_is_there():
            await demo_kernel.act(demo, folder)
        else:
            console.print("\n[dim]There is one more act, for which a kernel must be built: make demo-kernel[/]")
        console.print()
        console.print(summary(demo, log, time.monotonic() - start))

    return await on_stage(console, play, f"kpoll's log: {log}")


@click.command()
@click.option(
    "--accel", type=click.Choice(["tcg", "kvm"]), default="tcg", help="kvm where it works for ordinary guests"
)
def main(accel: str) -> None:
    """Show kpoll at work."""
    raise SystemExit(trio.run(demonstrate, Console(highlight=False), accel))


if __name__ == "__main__":
    main()
