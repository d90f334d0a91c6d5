"""Run inside the test VM: the whole story, told as it goes. `python -m tests.kernel.story --poll kernel`.

An unmodified QEMU with KVM has two disks, each an NVMe disk of the VM behind a `kpoll blk` of its own: for one nobody
polls, for the other the VM's kernel does. The guest writes files to the second, syncs, and reads them back; then it
reads from both, one request at a time, which shows the difference; then it does nothing, which should cost nothing; and
then one read has to wake a sleeper. Exits 0 only if every check held; the last line is what was counted, as JSON.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import trio
from rich.console import Console

from tests.kernel.quiet import OPTIONS, OTHER_CPU, SPIN_US, WORKER, WORKER_CPU, leave_the_worker_alone, spin_for
from tests.threads import Cost, come_to_rest, states
from tests.vm.daemon import Daemon, kpoll_blk, parsed
from tests.vm.guest import Guest, qemu, qemu_command, qemu_disk, timed
from tests.vm.stage import CheckError, Stage, on_stage

FILES, FILE_MIB = 4, 2
READS = 2000
# Without polling it is one kick and two sleeps for each read. Even an isolated CPU has other things to do now and then,
# and then a spin ends: 2 to 260 sleeps were seen, the most on a busy host. How few there can be is steady.py's to show.
FEW = READS // 3
IDLE_S = 2.0
REST_S = 60.0


def vm_options(poll: str) -> list[str]:
    """Return what kernel/vm/run needs to know to make this story's VM: two disks, and a CPU for the worker alone."""
    return ["--nvme", "64M", "--nvme", "64M", *OPTIONS, *spin_for(poll, SPIN_US)]


def vm_command(poll: str) -> list[str]:
    """Return the command that tells the story, in the VM, with this Python."""
    return [sys.executable, "-m", "tests.kernel.story", "--poll", poll]


@dataclass(frozen=True)
class Count:
    """What a daemon did for some requests.

    Args:
        requests: how many they were.
        kicks: how often the driver rang the doorbell.
        sleeps: how often the worker went to sleep, by the scheduler's account.
        us: the guest's time for each, microseconds.

    """

    requests: int
    kicks: int
    sleeps: int
    us: float


async def read_one_by_one(guest: Guest, daemon: Daemon, disk: str, reads: int) -> Count:
    """Read 4 KiB after 4 KiB, past the guest's page cache."""
    before, slept = await daemon.metrics(), daemon.cost(WORKER).sleeps
    seconds = await timed(guest, f"dd if=/dev/{disk} of=/dev/null bs=4k count={reads} iflag=direct")
    after = await daemon.metrics()

    def grown(name: str) -> int:
        return int(after.total(name) - before.total(name))

    return Count(
        requests=grown("kpoll_requests_total"),
        kicks=grown("kpoll_kicks_total"),
        sleeps=daemon.cost(WORKER).sleeps - slept,
        us=seconds / reads * 1e6,
    )


async def write_and_verify(stage: Stage, guest: Guest) -> str:
    """Fill a file system and read it back from the disk; return the checksums."""
    stage.step(f"In the guest: a file system, {FILES} files of {FILE_MIB} MiB, sync; then read back from the disk")
    await stage.run(guest, "mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 /dev/vdb\nmount /dev/vdb /mnt")
    await stage.run(
        guest,
        f"for n in $(seq {FILES}); do\n"
        f"  dd if=/dev/urandom of=/mnt/file$n bs=1M count={FILE_MIB} status=none\n"
        "done\n"
        "cd /mnt && sha256sum file* > SHA256SUMS && sync",
    )
    await stage.run(guest, "echo 3 > /proc/sys/vm/drop_caches\ncd /mnt && sha256sum -c SHA256SUMS")
    sums = await guest.run("cat /mnt/SHA256SUMS && cd / && umount /mnt")
    await guest.run("! dmesg | grep -iE 'I/O error|EXT4-fs (error|warning)'")
    stage.check(len(sums.splitlines()) == FILES, "every file came back as it was written, and no error was seen")
    return sums


async def compare(stage: Stage, guest: Guest, off: Daemon, polled: Daemon, poll: str) -> dict[str, Count]:
    """Read from both disks, one request at a time."""
    stage.step(f"In the guest: {READS} reads, one at a time, from either disk")
    counts = {}
    for disk, name, daemon in (("vda", "off", off), ("vdb", poll, polled)):
        stage.show(f"dd if=/dev/{disk} of=/dev/null bs=4k count={READS} iflag=direct")
        counts[name] = seen = await read_one_by_one(guest, daemon, disk, READS)
        stage.quote(
            f"--poll {name}: the guest rang {seen.kicks} times, the worker slept {seen.sleeps} times, "
            f"{seen.us:.0f} µs each"
        )
    few, plain = counts[poll], counts["off"]
    stage.check(few.requests >= READS, f"--poll {poll} has answered {few.requests} requests")
    stage.check(
        few.sleeps <= FEW and few.sleeps < plain.sleeps,
        f"and slept only {few.sleeps} times: it was awake when they came",
    )
    if poll == "kernel":
        stage.check(
            few.kicks <= FEW and few.kicks < plain.kicks,
            f"and got {few.kicks} kicks: the doorbell is off while the kernel looks at the ring",
        )
    return counts


async def idle(stage: Stage, guest: Guest, daemon: Daemon) -> None:
    """Leave the disk alone, and then ask for one block."""
    stage.step(f"In the guest: nothing, for {IDLE_S:g} s; then one read")
    if not await trio.to_thread.run_sync(come_to_rest, daemon.child.pid, WORKER, REST_S):
        raise CheckError(f"the worker comes to rest within {REST_S:g} s")
    before = daemon.cost(WORKER)
    await trio.sleep(IDLE_S)  # the measurement itself, not a wait for something to happen
    used = daemon.cost(WORKER) - before
    stage.check(
        used == Cost(0, 0) and states(daemon.child.pid, WORKER) == {"S"},
        f"the worker is asleep and has had {used.cpu_ns / 1e6:.0f} ms of CPU: nobody polls for nothing",
    )
    woken = await read_one_by_one(guest, daemon, "vdb", 1)
    stage.check((woken.requests, woken.kicks) == (1, 1), "one read, one kick: it woke up and answered")


async def serve(stage: Stage, stack: AsyncExitStack, folder: Path, device: str, poll: str) -> Daemon:
    """Start a daemon on a device, and see that it does what it was told."""
    options = ["--engine", "aio", "--poll", poll, "--cpus", str(WORKER_CPU)]
    if poll != "off":
        options += ["--poll-max-us", str(SPIN_US)]
    folder.mkdir()
    daemon = await stack.enter_async_context(kpoll_blk(folder, Path(device), *options))
    stage.show(shlex.join(daemon.command).replace(" --", " \\\n    --"))
    started = next(event for line in daemon.child.lines if (event := parsed(line)).get("event") == "started")
    stage.check(
        (started["poll"], started["engine"]) == (poll, "aio"),
        f"it logs: engine {started['engine']}, poll {started['poll']}",
    )
    return daemon


def verify_below(stage: Stage, device: str, sums: str) -> None:
    """Look at the NVMe disk itself, without kpoll and the guest."""
    stage.step("In the VM: the guest is off; what is on the NVMe disk?")
    with tempfile.TemporaryDirectory() as mount:
        stage.show(f"mount -o ro {device} /mnt && cd /mnt && sha256sum -c SHA256SUMS")
        subprocess.run(["mount", "-o", "ro", device, mount], check=True)
        try:
            check = subprocess.run(
                ["sha256sum", "-c"], cwd=mount, input=sums, stdout=subprocess.PIPE, text=True, check=False
            )
        finally:
            subprocess.run(["umount", mount], check=True)
    stage.quote(check.stdout)
    stage.check(check.returncode == 0, "every file is there, as the guest wrote it")


async def tell(stage: Stage, poll: str, folder: Path) -> dict[str, object]:
    """Tell the story; return what was counted with each strategy.

    Args:
        stage: where.
        poll: what the VM's kernel has: kernel or module.
        folder: for the daemons' sockets.

    Raises:
        CheckError: when a check did not hold.
        GuestError: when a command in the guest failed.
        ChildError: when QEMU or a daemon ended too early.

    """
    leave_the_worker_alone()
    async with AsyncExitStack() as stack:
        stage.step(f"In the VM: two NVMe disks, two kpoll; --poll off, and --poll {poll}")
        off = await serve(stage, stack, folder / "off", "/dev/nvme0n1", "off")
        polled = await serve(stage, stack, folder / poll, "/dev/nvme1n1", poll)

        stage.step(
            "In the VM: an unmodified QEMU with KVM boots Debian's kernel, with the disks as /dev/vda and /dev/vdb"
        )
        devices = [*qemu_disk(off.socket, name="off"), *qemu_disk(polled.socket, name=poll)]
        stage.show(shlex.join(qemu_command(devices, accel="kvm")).replace(" -", " \\\n    -"))
        os.sched_setaffinity(0, {OTHER_CPU})
        start = time.monotonic()
        async with qemu(devices, accel="kvm") as guest:
            release = await guest.run("uname -r")
            stage.check(bool(release), f"booted {release} in {time.monotonic() - start:.0f} s")
            sums = await write_and_verify(stage, guest)
            counts = await compare(stage, guest, off, polled, poll)
            await idle(stage, guest, polled)
            await guest.power_off()
        errors = (await polled.metrics()).total("kpoll_request_errors_total")
        codes = [await daemon.stop() for daemon in (off, polled)]
        stage.check((errors, codes) == (0, [0, 0]), "kpoll has counted no error, and both have ended in order")
    verify_below(stage, "/dev/nvme1n1", sums)
    return {name: asdict(seen) for name, seen in counts.items()}


@click.command()
@click.option("--poll", type=click.Choice(["kernel", "module"]), default="kernel", help="What the VM's kernel has.")
@click.option("--steps", default=0, help="How many steps were told before this story.")
@click.option("--width", type=int, help="Columns of the terminal that this will be shown on.")
@click.option("--color", is_flag=True, help="It has colours.")
def main(poll: str, steps: int, width: int | None, color: bool) -> None:
    """Tell the story of a disk for which the kernel polls."""
    console = Console(highlight=False, width=width, force_terminal=color or None)

    async def play(folder: Path) -> None:
        stage = Stage(console=console, steps=steps)
        counts = await tell(stage, poll, folder)
        print(json.dumps({"counts": counts, "checks": stage.checks, "steps": stage.steps}))

    raise SystemExit(trio.run(on_stage, console, play))


if __name__ == "__main__":
    main()
