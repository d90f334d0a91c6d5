"""What the test guests boot: a kernel, and an initramfs whose init carries out what the console tells it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.vm.initramfs import Archive, module_bytes, module_files

if TYPE_CHECKING:
    from collections.abc import Iterator

# One shell command per line, in base64; its output, then a line "@@ STATUS". The end of input turns the guest off.
INIT = """#!/bin/busybox sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
echo 1 > /proc/sys/kernel/printk
while read -r module; do insmod "/modules/$module"; done < /modules/order
export PATH=/sbin:/usr/bin:/bin
stty -echo
echo "@@ ready"
while read -r line; do
    echo "$line" | base64 -d > /tmp/command
    sh -e /tmp/command 2>&1
    printf '\\n@@ %d\\n' $?
done
poweroff -f
"""

PROGRAMS = ("/sbin/mkfs.ext4", "/sbin/e2fsck", "/sbin/sfdisk", "/usr/bin/fallocate")
CONFIG_FOR_MKFS = "/etc/mke2fs.conf"


@dataclass(frozen=True)
class Boot:
    """A bootable pair: the kernel's file and its initramfs."""

    kernel: Path
    initramfs: Path


def cache_dir() -> Path:
    """Return the folder for what is expensive to get: $KPOLL_CACHE, else kpoll in the user's cache folder."""
    chosen = os.environ.get("KPOLL_CACHE")
    folder = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kpoll"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Keep other processes out of one part of the cache for the length of the block."""
    with (cache_dir() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def debian_kernel() -> tuple[Path, Path]:
    """Return Debian's cloud kernel: its file, and its lib/modules/RELEASE folder.

    Raises:
        FileNotFoundError: with the command that fetches it.

    """
    found = sorted((cache_dir() / "kernel").glob("*/boot/vmlinuz-*"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError("no guest kernel in the cache: run `.ci/setup vm` (make demo and make check do)")
    kernel = found[-1]
    release = kernel.name.removeprefix("vmlinuz-")
    return kernel, kernel.parents[1] / "lib" / "modules" / release


def qemu_boot(programs: tuple[str, ...] = ()) -> Boot:
    """Return what QEMU guests boot: Debian's own kernel, as it is.

    Args:
        programs: of the host, beyond those that every guest has; each costs time at boot.

    """
    kernel, modules = debian_kernel()
    name = "-".join([*(Path(program).name for program in programs), "qemu"])
    return Boot(kernel, _initramfs(name, modules, ["virtio_pci", "virtio_blk", "virtio_net", "virtio_rng"], programs))


def uml_boot() -> Boot:
    """Return what user-mode Linux boots.

    Raises:
        FileNotFoundError: when Debian's user-mode-linux is not installed.

    """
    kernel = shutil.which("linux.uml")
    if kernel is None:
        raise FileNotFoundError("linux.uml not found: run `.ci/setup vm`")
    modules = max(Path("/usr/lib/uml/modules").iterdir())
    return Boot(Path(kernel), _initramfs("uml", modules, ["virtio_blk", "virtio_net", "ipv6"]))


def _initramfs(name: str, modules: Path, wanted: list[str], programs: tuple[str, ...] = ()) -> Path:
    archive = Archive()
    archive.file("init", INIT.encode(), 0o755)
    for folder in ("proc", "sys", "tmp", "mnt", "modules"):
        archive.directory(folder)
    archive.file("bin/busybox", Path("/bin/busybox").read_bytes(), 0o755)
    for applet in subprocess.run(["/bin/busybox", "--list"], capture_output=True, text=True, check=True).stdout.split():
        if applet != "busybox":
            archive.symlink(f"bin/{applet}", "busybox")
    for program in (*PROGRAMS, *programs):
        archive.program(Path(program), program.lstrip("/"))
    archive.file(CONFIG_FOR_MKFS.lstrip("/"), Path(CONFIG_FOR_MKFS).read_bytes())
    files = module_files(modules, wanted)
    for module in files:
        archive.file(f"modules/{_plain(module)}", module_bytes(module))
    archive.file("modules/order", "".join(f"{_plain(module)}\n" for module in files).encode())
    content = archive.finish()
    target = cache_dir() / f"initramfs-{name}-{hashlib.sha256(content).hexdigest()[:16]}.cpio"
    with locked("initramfs"):
        if not target.exists():
            for stale in cache_dir().glob(f"initramfs-{name}-*.cpio"):
                stale.unlink()
            partial = target.with_suffix(".partial")
            partial.write_bytes(content)
            partial.rename(target)
    return target


def _plain(module: Path) -> str:
    return module.name.removesuffix(".xz").removesuffix(".gz")
