"""What `kpoll doctor` says of polling: whether the kernel does it for us, and whether its administrator lets it."""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING, Final

from .doctor import Finding, set_sysctl
from .poll import POLL_US_DEFAULT, no_module, no_patch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kpoll.kernel.busy_poll import BusyPoll
    from kpoll.kernel.probe import KernelFacts

    from .doctor import type_state

_MODULE_SERIES: Final = "6.1."  # the kernels that it is made for
_DENIED: Final = (errno.EACCES, errno.EPERM)

_finding = partial(Finding, area="polling")


def polling(kernel: KernelFacts, sockets: BusyPoll, release: str) -> Iterator[Finding]:
    """Yield what is found.

    Args:
        kernel: What the kernel can.
        sockets: What came of asking for SO_BUSY_POLL.
        release: The kernel's, as uname(2) has it.

    """
    yield _patch(kernel)
    yield _module(kernel, release)
    yield _eventfd_busy_poll(kernel)
    yield _net_busy_poll(kernel)
    yield _sockets(sockets)


def _patch(kernel: KernelFacts) -> Finding:
    name = "EVENTFD_SET_POLL"
    if kernel.set_poll:
        return _finding(name=name, state="good", found="eventfds take a condition and an arm word")
    if kernel.patch in _DENIED:
        change = "have the container's seccomp profile allow ioctl(2) on eventfds"
    else:
        change = "boot a Linux 6.1 with the patches in kernel/patches (kernel/README.md has the commands)"
    state: type_state = "improvable" if kernel.module == 0 else "missing"
    return _finding(name=name, state=state, found=no_patch(kernel.patch), change=change)


def _module(kernel: KernelFacts, release: str) -> Finding:
    name = "module eventfd_poll"
    if kernel.module == 0:
        return _finding(name=name, state="good", found="loaded, and takes conditions")
    if kernel.set_poll:
        return _finding(name=name, state="good", found="not needed: the kernel has the ioctl itself")
    if kernel.module in _DENIED:
        change = (
            "`chgrp kvm /dev/eventfd_poll && chmod 660 /dev/eventfd_poll`, and this user into the group kvm; "
            "a container takes `--device /dev/eventfd_poll`"
        )
    elif release.startswith(_MODULE_SERIES):
        change = (
            f"`apt install dkms linux-headers-{release} && make -C kernel/module install && modprobe eventfd_poll`; "
            "a container takes `--device /dev/eventfd_poll`"
        )
    else:
        change = (
            f"boot Debian 12's kernel, of Linux 6.1, which it is made for (this is {release}); then "
            "`make -C kernel/module install && modprobe eventfd_poll` (kernel/module/README.md)"
        )
    return _finding(name=name, state="missing", found=no_module(kernel.module), change=change)


def _eventfd_busy_poll(kernel: KernelFacts) -> Finding:
    name = "fs.eventfd_busy_poll"
    us, change = kernel.eventfd_busy_poll_us, set_sysctl(name, POLL_US_DEFAULT)
    if us:
        return _finding(name=name, state="good", found=f"the kernel spins for at most {us} µs")
    if us is None and kernel.set_poll:
        return _finding(name=name, state="unknown", found="can't be read here", change=change)
    if us is None:
        found, change = "no such sysctl", f"it comes with the patches; then {change}"
        return _finding(name=name, state="missing", found=found, change=change)
    if kernel.net_busy_poll_us:
        return _finding(name=name, state="good", found="0, and net.core.busy_poll counts in its place")
    return _finding(name=name, state="improvable", found="0: the kernel sleeps at once", change=change)


def _net_busy_poll(kernel: KernelFacts) -> Finding:
    name = "net.core.busy_poll"
    us, change = kernel.net_busy_poll_us, set_sysctl(name, POLL_US_DEFAULT)
    if us:
        return _finding(name=name, state="good", found=f"the kernel spins for at most {us} µs")
    if us is None:
        found = "can't be read here (another network namespace?)"
        change = f"look on the host itself; there, if it is 0, {change}"
        return _finding(name=name, state="unknown", found=found, change=change)
    if kernel.set_poll:
        return _finding(name=name, state="good", found="0, as it may be: fs.eventfd_busy_poll is for kpoll alone")
    if kernel.module != 0:
        found, change = "0: nobody spins in the kernel", f"once the module is loaded, {change}"
        return _finding(name=name, state="improvable", found=found, change=change)
    return _finding(name=name, state="improvable", found="0: with the module, the kernel sleeps at once", change=change)


def _sockets(sockets: BusyPoll) -> Finding:
    """Say whether cards on sockets can be polled: with --busy-poll-us, or by net.core.busy_read without it."""
    name = "SO_BUSY_POLL"
    if not sockets.refused:
        found = "`kpoll net --busy-poll-us N` may have the kernel poll a network card"
        return _finding(name=name, state="good", found=found)
    found = "; ".join(dict.fromkeys(sockets.refused))
    if sockets.us:
        found = f"sockets are polled for {sockets.us} µs (net.core.busy_read), which can't be changed: {found}"
    sysctl = set_sysctl("net.core.busy_read", 50)
    change = f"give kpoll CAP_NET_ADMIN (see rights), or, for all sockets of the host, {sysctl}"
    return _finding(name=name, state="improvable", found=found, change=change)
