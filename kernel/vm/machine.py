"""The test VM: QEMU under TCG with the host's root, from power on to the command's exit status."""

from __future__ import annotations

import os
import secrets
import selectors
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from .console import first_splat
from .guest import Session, initramfs

if TYPE_CHECKING:
    from collections.abc import Sequence

KERNELS = ("patched", "norecheck", "debug", "kcsan", "stock")
BUILD = Path(__file__).resolve().with_name("build")

# tsc=reliable: TCG guests otherwise take hpet, whose every reading is a trap. mitigations=off: there is no one to
# mitigate against, and TCG pays for each. panic=-1 with QEMU's -no-reboot: a panic ends QEMU. loglevel=5: warnings and
# worse, which is all that a splat consists of; more would cost a second of emulated serial line. no_timer_check: on a
# busy host the IO-APIC's timer is late for its check, and the kernel panics.
APPEND = "console=ttyS0 loglevel=5 panic=-1 oops=panic tsc=reliable no_timer_check mitigations=off random.trust_cpu=on"


class VmError(Exception):
    """The VM could not do what it was asked; says why, in words for a terminal."""


class VmTimeoutError(VmError):
    """The command took longer than it was given."""


@dataclass(frozen=True)
class Nvme:
    """An emulated NVMe disk, empty, gone after the run: /dev/nvme0n1 is the first.

    Args:
        size: bytes.
        logical_block: bytes; 512 or 4096.
        iops: requests that it carries in a second; 0 for as many as it can.

    """

    size: int
    logical_block: int = 512
    iops: int = 0


@dataclass(frozen=True)
class Machine:
    """What the VM is made of.

    Args:
        kernel: one of KERNELS; built first, if need be.
        image: a bzImage to boot instead, of a kernel configured like `patched`: for whoever works on the patches.
        smp: CPUs.
        memory: as QEMU's -m takes it.
        nvme: NVMe disks.
        append: further words for the kernel's command line.
        modules: files of modules to insert before the command runs.
        sysctls: "key=value" each.
        shares: folders of the host that are writable, at the same path.
        timeout: seconds for the whole run, boot included.
        allow_splat: don't fail when the kernel complained on its console.
        console: where the kernel's console log is kept; otherwise it is printed on failure, and gone.

    """

    kernel: str = "patched"
    image: Path | None = None
    smp: int = 2
    memory: str = "3G"
    nvme: Sequence[Nvme] = ()
    append: str = ""
    modules: Sequence[Path] = ()
    sysctls: Sequence[str] = ()
    shares: Sequence[Path] = ()
    timeout: float = 600
    allow_splat: bool = False
    console: Path | None = None


def built(kernel: str) -> Path:
    """Build a kernel unless it is in the cache, and return its folder.

    Raises:
        VmError: when it can't be built; build has said why on standard error.

    """
    which = "patched" if kernel == "norecheck" else kernel
    run = subprocess.run([BUILD, which], stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603 - our own script
    if run.returncode:
        raise VmError(f"no kernel to boot: {BUILD} {which} failed")
    return Path(run.stdout.strip())


def run(machine: Machine, command: Sequence[str], folder: Path, output: BinaryIO) -> int:
    """Boot a VM, run a command in it, and return its exit status.

    Args:
        machine: the VM.
        command: program and arguments.
        folder: where it runs, a path on the host.
        output: gets what it prints, as it comes.

    Raises:
        VmError: when the kernel does not build or boot, dies, or complains, or the command takes too long.

    """
    image, modules = _image(machine)
    shares = [(f"share{number}", share) for number, share in enumerate(machine.shares)]
    session = Session(
        command=command,
        folder=folder,
        kernel=machine.kernel,
        token=secrets.token_hex(16),
        shares=shares,
        sysctls=machine.sysctls,
        insmod=machine.modules,
        modules=modules,
    )
    with tempfile.TemporaryDirectory(prefix="kpoll-vm-") as scratch:
        work = Path(scratch)
        (work / "initramfs").write_bytes(initramfs(session))
        console = machine.console or work / "console"
        status = _boot(_qemu(machine, image, shares, work, console), session.token, machine.timeout, output, console)
        splat = first_splat(_read(console))
        if splat is not None and not machine.allow_splat:
            raise VmError(f"the command ended with status {status}, but the kernel complained:\n{splat}")
        return status


def _image(machine: Machine) -> tuple[Path, Path | None]:
    """Return what to boot, and its lib/modules if it has modules."""
    if machine.image is not None:
        return machine.image, None
    kernel = built(machine.kernel)
    image = kernel / ("bzImage.norecheck" if machine.kernel == "norecheck" else "bzImage")
    modules = kernel / "lib" / "modules"
    return image, modules if modules.exists() else None


def _qemu(machine: Machine, image: Path, shares: Sequence[tuple[str, Path]], work: Path, console: Path) -> list[str]:
    command = [
        # QEMU must not outlive us, however we end.
        *("setpriv", "--pdeathsig", "KILL"),
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        # svm and npt: KVM works in here, as fast as TCG itself.
        *("-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max,svm=on,npt=on"),
        *("-smp", str(machine.smp), "-m", machine.memory, "-device", "virtio-rng-pci"),
        *("-kernel", str(image), "-initrd", str(work / "initramfs"), "-append", f"{APPEND} {machine.append}".strip()),
        *("-chardev", f"file,id=console,path={_quoted(console)}", "-serial", "chardev:console"),
        *("-chardev", "stdio,id=output,signal=off", "-device", "virtio-serial-pci"),
        *("-device", "virtserialport,chardev=output,nr=1"),
        # multidevs: / is more than one file system, and inode numbers must still be unique.
        *("-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=root,mount_tag=root"),
    ]
    for tag, folder in shares:
        command += ["-fsdev", f"local,id={tag},path={_quoted(folder)},security_model=none,multidevs=remap"]
        command += ["-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
    for number, disk in enumerate(machine.nvme):
        file = work / f"nvme{number}"
        file.touch()
        os.truncate(file, disk.size)
        drive = f"if=none,id=nvme{number},format=raw,cache=unsafe,discard=unmap,throttling.iops-total={disk.iops}"
        command += ["-drive", f"{drive},file={_quoted(file)}"]
        block = f"logical_block_size={disk.logical_block},physical_block_size={disk.logical_block}"
        command += ["-device", f"nvme,serial=kpoll{number},drive=nvme{number},{block}"]
    return command


def _quoted(path: Path) -> str:
    """Return a path as QEMU's options want it: a comma is doubled."""
    return str(path).replace(",", ",,")


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _boot(command: Sequence[str], token: str, seconds: float, output: BinaryIO, console: Path) -> int:
    with (
        tempfile.TemporaryFile() as complaints,
        # Its input stays open: QEMU takes an end of input for a host that hung up, and the port would block.
        subprocess.Popen(  # noqa: S603 - what _qemu() made
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, start_new_session=True
        ) as qemu,
    ):
        try:
            status = _relay(qemu, token, seconds, output)
        except VmError as error:
            qemu.kill()
            qemu.wait()
            complaints.seek(0)
            said = complaints.read().decode(errors="replace") + _read(console)
            raise type(error)(f"{error}; its console, from QEMU's own messages on:\n{said[-20000:]}") from None
        finally:
            qemu.kill()
        return status


def _relay(qemu: subprocess.Popen[bytes], token: str, seconds: float, output: BinaryIO) -> int:
    """Copy the command's output until its end is marked; return the exit status that stands there."""
    assert qemu.stdout is not None
    end = b"\0" + token.encode() + b" "
    deadline = time.monotonic() + seconds
    held = b""
    with selectors.DefaultSelector() as selector:
        selector.register(qemu.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(max(0, deadline - time.monotonic())):
                raise VmTimeoutError(f"the VM was not done after {seconds:g} s")
            chunk = os.read(qemu.stdout.fileno(), 65536)
            if not chunk:
                raise VmError("the VM went off before the command ended")
            held += chunk
            text, mark, rest = held.partition(end)
            if mark and rest.endswith(b"\n"):
                output.write(text)
                output.flush()
                return int(rest)
            if not mark:
                # An end that is half here begins with the last zero byte.
                tail = held[held.rfind(b"\0") :] if b"\0" in held[-len(end) :] else b""
                kept = len(tail) if end.startswith(tail) else 0
                output.write(held[: len(held) - kept])
                output.flush()
                held = held[len(held) - kept :]
