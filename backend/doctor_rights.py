"""What `kpoll doctor` says of what this process may do, and of how well it can give that up (the sandbox)."""

from __future__ import annotations

import errno
import os
import resource
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kpoll.kernel.rights import CAP_BPF, CAP_IPC_LOCK, CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN

from .doctor import Finding
from .landlock import landlock_abi
from .seccomp import load_libseccomp, seccomp_missing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kpoll.kernel.rights import Rights

_LSM: Final = Path("/sys/kernel/security/lsm")
_KVM: Final = "/dev/kvm"
_QUEUES_MAX: Final = 256
_DESCRIPTORS: Final = 64 + 4 * _QUEUES_MAX  # kick, call, error, and the kernel's to watch; and all others

_CAPABILITIES: Final = {
    "CAP_SYS_ADMIN": (CAP_SYS_ADMIN, "asking NVMe devices (kpoll nvme show, SMART metrics), connecting to others"),
    "CAP_NET_ADMIN": (CAP_NET_ADMIN, "taps that aren't this user's, --busy-poll-us, xdp:"),
    "CAP_NET_RAW": (CAP_NET_RAW, "xdp:"),
    "CAP_BPF": (CAP_BPF, "xdp:"),
    "CAP_IPC_LOCK": (CAP_IPC_LOCK, "locking more memory than RLIMIT_MEMLOCK: xdp:, --pin-guest-memory"),
}


@dataclass(frozen=True, kw_only=True)
class LimitFacts:
    """What bounds this process, and what can bound it further.

    Attributes:
        memlock: RLIMIT_MEMLOCK, bytes; None: no limit.
        nofile: The hard RLIMIT_NOFILE; likewise.
        kvm: 0 if /dev/kvm can be opened; else the errno.
        landlock: 0 if the kernel has Landlock; else the errno.
        lsm: The kernel's security modules, in order; empty: not known.
        seccomp: 0 if the kernel takes seccomp filters; else the errno.
        libseccomp: Whether it can be loaded.

    """

    memlock: int | None = None
    nofile: int | None = None
    kvm: int = errno.ENOENT
    landlock: int = errno.ENOSYS
    lsm: str = ""
    seccomp: int = errno.EINVAL
    libseccomp: bool = False


def probe_limits() -> LimitFacts:
    """Ask the kernel; nothing is limited by it."""

    def limit(of: int, which: int) -> int | None:
        value = resource.getrlimit(of)[which]
        return None if value == resource.RLIM_INFINITY else value

    try:
        lsm = _LSM.read_text().strip()
    except OSError:  # securityfs isn't mounted
        lsm = ""
    return LimitFacts(
        memlock=limit(resource.RLIMIT_MEMLOCK, 0),
        nofile=limit(resource.RLIMIT_NOFILE, 1),
        kvm=_kvm(),
        landlock=_landlock(),
        lsm=lsm,
        seccomp=seccomp_missing(),
        libseccomp=_libseccomp(),
    )


def _kvm() -> int:
    try:
        os.close(os.open(_KVM, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _landlock() -> int:
    try:
        landlock_abi()
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _libseccomp() -> bool:
    try:
        load_libseccomp()
    except OSError:
        return False
    return True


def sandbox(limits: LimitFacts) -> Iterator[Finding]:
    """Yield what is found of the sandbox's layers."""
    finding = partial(Finding, area="sandbox")
    if limits.landlock == 0:
        yield finding(name="Landlock", state="good", found="files can be put out of reach")
    elif limits.landlock == errno.EOPNOTSUPP:
        change = (
            f"boot with `lsm=landlock,{limits.lsm}`" if limits.lsm else "put landlock first in the boot option lsm="
        )
        yield finding(name="Landlock", state="missing", found="in this kernel, but not turned on", change=change)
    else:
        found, change = (
            "not in this kernel, or not allowed",
            "take a kernel with CONFIG_SECURITY_LANDLOCK, of Linux 5.13 or newer",
        )
        yield finding(name="Landlock", state="missing", found=found, change=change)
    if limits.seccomp == 0:
        yield finding(name="seccomp", state="good", found="system calls can be put out of reach")
    else:
        change = "take a kernel with CONFIG_SECCOMP_FILTER"
        yield finding(name="seccomp", state="missing", found=os.strerror(limits.seccomp), change=change)
    if limits.libseccomp:
        yield finding(name="libseccomp", state="good", found="libseccomp.so.2 can be loaded")
    else:
        found, change = "libseccomp.so.2 isn't installed", "`apt install libseccomp2`"
        yield finding(name="libseccomp", state="missing", found=found, change=change)


def rights(has: Rights, limits: LimitFacts) -> Iterator[Finding]:
    """Yield what this process may do, and what more would be of use."""
    finding = partial(Finding, area="rights")
    for name, (number, use) in _CAPABILITIES.items():
        if has.has(number):
            yield finding(name=name, state="good", found=f"there, for: {use}")
            continue
        if number in has.capabilities:
            found, change = "of a user namespace, where it doesn't count for the host", "start kpoll outside of that"
        else:
            short = name.removeprefix("CAP_")
            found = "not there"
            change = (
                f"run as root, `AmbientCapabilities={name}` in a systemd unit, or `--cap-add {short}` for a container"
            )
        yield finding(name=name, state="improvable", found=f"{found}; needed only for: {use}", change=change)
    yield _memlock(has, limits)
    yield _nofile(limits)
    yield _kvm_finding(limits)


def _memlock(has: Rights, limits: LimitFacts) -> Finding:
    finding = partial(Finding, area="rights", name="RLIMIT_MEMLOCK")
    if limits.memlock is None:
        return finding(state="good", found="any memory may be locked")
    found = f"{limits.memlock >> 10} KiB may be locked"
    if has.has(CAP_IPC_LOCK):
        return finding(state="good", found=f"{found}, but CAP_IPC_LOCK knows no limit")
    return finding(
        state="improvable",
        found=f"{found}; xdp: takes 16 MiB for each pair, --pin-guest-memory the guest's",
        change="`LimitMEMLOCK=infinity` in a systemd unit, `--ulimit memlock=-1` for a container, or CAP_IPC_LOCK",
    )


def _nofile(limits: LimitFacts) -> Finding:
    finding = partial(Finding, area="rights", name="RLIMIT_NOFILE")
    if limits.nofile is None or limits.nofile >= _DESCRIPTORS:
        most = "any number of" if limits.nofile is None else str(limits.nofile)
        return finding(state="good", found=f"{most} descriptors: enough for {_QUEUES_MAX} queues")
    return finding(
        state="improvable",
        found=f"{limits.nofile} descriptors (the hard limit); {_QUEUES_MAX} queues may take {_DESCRIPTORS}",
        change=f"`LimitNOFILE={_DESCRIPTORS}` in a systemd unit, or `--ulimit nofile={_DESCRIPTORS}` for a container",
    )


def _kvm_finding(limits: LimitFacts) -> Finding:
    finding = partial(Finding, area="rights", name="KVM")
    if limits.kvm == 0:
        return finding(state="good", found=f"{_KVM} can be opened; QEMU needs it to be fast, kpoll doesn't")
    if limits.kvm in (errno.EACCES, errno.EPERM):
        found, change = f"this user may not open {_KVM}", "QEMU's user into its group: `usermod -aG kvm USER`"
    else:
        found, change = (
            f"no {_KVM}",
            "turn virtualization on in the firmware, then `modprobe kvm_intel` or `modprobe kvm_amd`",
        )
    return finding(state="missing", found=f"{found}; QEMU needs it to be fast, kpoll doesn't", change=change)
