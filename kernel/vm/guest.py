"""The initramfs of the test VM: busybox, the two init scripts, and what this one run is to do."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.vm.initramfs import Archive, module_bytes, module_files

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HERE = Path(__file__).resolve().parent
BUSYBOX = Path("/bin/busybox")

# What Debian's kernel has as modules and the initramfs needs before it sees the root.
MODULES_FOR_ROOT = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay")
# What it has as modules and tests expect to be there.
MODULES_TO_LOAD = ("kvm_amd", "nvme", "loop", "virtio_rng", "configfs")

# Folders that are empty in the VM (./init).
EMPTY = (Path("/tmp"), Path("/var/tmp"), Path("/run"), Path("/dev/shm"))  # noqa: S108 - not used, but compared with

ENVIRONMENT = ("CI", "HOME", "LANG", "LC_ALL", "TERM", "VIRTUAL_ENV", "XDG_CACHE_HOME")
ENVIRONMENT_PREFIXES = ("KPOLL_", "PYTEST_", "HYPOTHESIS_")
SBIN = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"


@dataclass(frozen=True)
class Session:
    """What happens in the VM, once.

    Args:
        command: program and arguments; run as root, without standard input.
        folder: where it runs; absolute.
        kernel: how the kernel is called; the command finds it in KPOLL_VM.
        token: what marks the end of the output; nothing that the command prints may contain it.
        shares: 9P tag and folder of each that is mounted writable.
        sysctls: "net.core.busy_poll=50", in this order, before the modules.
        insmod: files of modules that are inserted, in this order.
        modules: the kernel's lib/modules folder, if it has any.

    """

    command: Sequence[str]
    folder: Path
    kernel: str
    token: str
    shares: Sequence[tuple[str, Path]] = ()
    sysctls: Sequence[str] = ()
    insmod: Sequence[Path] = ()
    modules: Path | None = None


def environment(outside: Mapping[str, str]) -> dict[str, str]:
    """Return what of the caller's environment the command gets."""
    kept = {
        name: value for name, value in outside.items() if name in ENVIRONMENT or name.startswith(ENVIRONMENT_PREFIXES)
    }
    path = outside.get("PATH", "")
    return {"HOME": "/root", **kept, "PATH": f"{path}:{SBIN}" if path else SBIN, "PYTHONDONTWRITEBYTECODE": "1"}


def initramfs(session: Session) -> bytes:
    """Return the initramfs that carries out a session.

    Raises:
        FileNotFoundError: without busybox, or without a module that the root needs.

    """
    if not BUSYBOX.exists():
        raise FileNotFoundError(f"{BUSYBOX} is missing: run `.ci/setup kernel`")
    archive = Archive()
    for folder in ("proc", "sys", "dev", "vm"):
        archive.directory(folder)
    archive.file("bin/busybox", BUSYBOX.read_bytes(), 0o755)
    archive.file("init", (HERE / "init").read_bytes(), 0o755)
    archive.file("vm/session", (HERE / "session").read_bytes(), 0o755)
    archive.file("vm/settings", _settings(session).encode())
    archive.file("vm/command", _command(session).encode())
    order = []
    for file in _root_modules(session.modules):
        name = file.name.partition(".ko")[0] + ".ko"
        archive.file(f"modules/{name}", module_bytes(file))
        order.append(name + "\n")
    archive.file("modules/order", "".join(order).encode())
    return archive.finish()


def _root_modules(modules: Path | None) -> list[Path]:
    if modules is None:
        return []
    (tree,) = modules.iterdir()
    return module_files(tree, list(MODULES_FOR_ROOT))


def _hidden(folder: Path) -> bool:
    return any(folder.is_relative_to(empty) for empty in EMPTY) and folder not in EMPTY


def _settings(session: Session) -> str:
    """Return assignments for the shell; its lists are of words without spaces, which the caller has made sure of."""
    shared = [folder for _, folder in session.shares]
    binds = [session.folder, *(module.parent for module in session.insmod)]
    binds = [each for each in binds if _hidden(each) and not any(each.is_relative_to(share) for share in shared)]
    values = {
        "token": session.token,
        "modules": str(session.modules or ""),
        "load": " ".join(MODULES_TO_LOAD),
        "binds": " ".join(dict.fromkeys(map(str, binds))),
        "shares": " ".join(f"{tag}:{folder}" for tag, folder in session.shares),
        "sysctls": " ".join(session.sysctls),
        "insmod": " ".join(map(str, session.insmod)),
    }
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())


def _command(session: Session) -> str:
    """Return the shell script that becomes the command."""
    variables = {**environment(os.environ), "KPOLL_VM": session.kernel}
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
    folder = shlex.quote(str(session.folder))
    # By its path, for busybox's shell prefers its own applets to the programs that PATH has.
    go = f'umask 022\nmkdir -p "$HOME"\ncd {folder} || exit 125\n'
    return f"{exports}{go}exec /usr/bin/env -- {shlex.join(session.command)}\n"
