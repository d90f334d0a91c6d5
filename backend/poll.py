"""Who polls before a worker sleeps: the strategy that --poll asks for, or the best that this host has and allows.

What the kernel can do is found out elsewhere (kernel/probe.py). Here is what follows from it, in words for the log.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from .errors import KpollError

if TYPE_CHECKING:
    from kpoll.kernel.probe import KernelFacts

POLL_US_DEFAULT: Final = 100
POLL_US_MAX: Final = 1_000_000

type_poll = Literal["kernel", "module", "user", "off"]

_NOT_ALLOWED: Final = (errno.EACCES, errno.EPERM)


@dataclass(frozen=True, kw_only=True)
class PollConfig:
    """How workers wait: the strategy, why it was taken (and not a better one), and the longest spin in microseconds.

    `warning` says what keeps the strategy from doing its work on this host, if something does.
    """

    strategy: type_poll
    why: str
    max_us: int = POLL_US_DEFAULT
    warning: str | None = None

    @property
    def spins(self) -> bool:
        """Whether anybody polls at all, as far as this host's administrator allows it."""
        return self.max_us > 0 and self.warning is None


def _never_spins(sysctl: str) -> str:
    return (
        "polling is off on this host, so the kernel sleeps at once; "
        f"its administrator turns it on with `sysctl {sysctl}={POLL_US_DEFAULT}`"
    )


def choose_poll(asked: str, max_us: int, kernel: KernelFacts) -> PollConfig:
    """Turn --poll and --poll-max-us (microseconds) into the strategy that will be used on a kernel like this.

    Raises KpollError when `kernel` or `module` is asked for and isn't there.
    """
    match asked:
        case "kernel":
            _need_patch(kernel)
        case "module":
            _need_module(kernel)
    if max_us == 0 and asked in ("auto", "kernel", "module"):
        return PollConfig(strategy="off", why="--poll-max-us 0 leaves no time to poll", max_us=0)
    match asked:
        case "kernel":
            warning = None if kernel.spin_us != 0 else _never_spins("fs.eventfd_busy_poll")
            return PollConfig(strategy="kernel", why="asked for", max_us=max_us, warning=warning)
        case "module":
            warning = None if kernel.net_busy_poll_us != 0 else _never_spins("net.core.busy_poll")
            return PollConfig(strategy="module", why="asked for", max_us=max_us, warning=warning)
        case "off":
            return PollConfig(strategy="off", why="asked for", max_us=0)
        case "user":
            return PollConfig(strategy="user", why="asked for", max_us=max_us)
        case _:
            return _best_poll(max_us, kernel)


def no_patch(error: int) -> str:
    """Say why there is no EVENTFD_SET_POLL, from its errno."""
    if error == errno.ENOTTY:
        return "the running kernel has no EVENTFD_SET_POLL ioctl"
    if error in _NOT_ALLOWED:
        return "this process may not use the EVENTFD_SET_POLL ioctl, if there is one (a container's policy?)"
    return f"the EVENTFD_SET_POLL ioctl fails here ({os.strerror(error)})"


def no_module(error: int) -> str:
    """Say why there is no module, from the errno."""
    if error in _NOT_ALLOWED:
        return "this process may not open the module's /dev/eventfd_poll"
    if error in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return "the eventfd_poll module isn't loaded"
    return f"the module's /dev/eventfd_poll doesn't work here ({os.strerror(error)})"


def _no_spin(sysctl: str, us: int | None, whose: str) -> str:
    """Say why polling isn't known to be on: a sysctl that is 0, or that can't be read."""
    if us is None:
        return f"{sysctl} can't be read here (another network namespace?), so {whose} polling may be off"
    return f"{sysctl} is 0: the administrator has {whose} polling off"


def _need_patch(kernel: KernelFacts) -> None:
    if kernel.set_poll:
        return
    remedy = "boot one that has kpoll's patch" if kernel.patch == errno.ENOTTY else "allow it"
    raise KpollError(
        f"--poll kernel: {no_patch(kernel.patch)}: {remedy}, or load the module and use --poll module "
        "(kernel/README.md tells how), or use --poll user"
    )


def _need_module(kernel: KernelFacts) -> None:
    if kernel.module == 0:
        return
    if kernel.module in _NOT_ALLOWED:
        raise KpollError(
            "--poll module: this process may not open /dev/eventfd_poll: give its user or group access "
            "(kernel/README.md), or use --poll user"
        )
    raise KpollError(
        f"--poll module: /dev/eventfd_poll can't be used ({os.strerror(kernel.module)}): load the module with "
        "`modprobe eventfd_poll` (kernel/README.md tells how to build it), or use --poll user"
    )


def _best_poll(max_us: int, kernel: KernelFacts) -> PollConfig:
    """Take the kernel's polling where there is any and its administrator is known to want it; else say why not."""
    if kernel.set_poll and kernel.spin_us:
        return PollConfig(strategy="kernel", why="the kernel has EVENTFD_SET_POLL", max_us=max_us)
    if kernel.set_poll:
        # Both sysctls turn it on. Where the kernel's own is 0 and the other can't be read, that one decides.
        own = kernel.eventfd_busy_poll_us
        name = "fs.eventfd_busy_poll" if own is None or kernel.spin_us == 0 else "net.core.busy_poll"
        why = _no_spin(name, kernel.spin_us, "the kernel's")
    else:
        why = no_patch(kernel.patch)
    if kernel.module == 0 and kernel.net_busy_poll_us:
        return PollConfig(strategy="module", why=f"the eventfd_poll module is there; {why}", max_us=max_us)
    if kernel.module == 0:
        module = _no_spin("net.core.busy_poll", kernel.net_busy_poll_us, "the module's")
    else:
        module = no_module(kernel.module)
    return PollConfig(strategy="user", why=f"{why}; {module}", max_us=max_us)
