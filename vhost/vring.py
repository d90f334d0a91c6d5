"""A vring as the session knows it: what the front-end has said of it so far, and whether it may run.

Ring states of the specification: a ring is started by SET_VRING_KICK and stopped by GET_VRING_BASE; it runs once it is
started, enabled, and its size and addresses are known, in whatever order the front-end says so.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kpoll.vhost.descriptors import discard, is_doorbell

if TYPE_CHECKING:
    from typing import Self

    from kpoll.vhost.payloads import VringAddr


def check_doorbell(fd: int) -> None:
    """Accept what may stand for an eventfd: an eventfd, a pipe or a unix socket (user-mode Linux's idea of a pipe).

    Anything with a file system or a driver behind it could make a worker wait in poll(2) or write(2) for as long as
    the other side pleases.

    Raises:
        OSError: EPERM for a descriptor of another kind.

    """
    if not is_doorbell(fd):
        raise OSError(errno.EPERM, "neither eventfd nor pipe")


class DoorbellSlot:
    """A descriptor number that stays the same while the front-end changes what is behind it.

    SET_VRING_CALL may come at any moment: QEMU swaps the eventfd whenever the guest masks or unmasks the interrupt.
    A worker that writes to the slot's number needs to know nothing of it: dup2(2) replaces one open file by the other
    in one step. When the front-end wants no calls, a private eventfd that nobody reads takes them.
    """

    def __init__(self) -> None:
        """Begin with a private eventfd."""
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def point_at(self, fd: int) -> None:
        """Let the number stand for another open file. Closes `fd`, also on failure.

        The file is made non-blocking. It is shared with the front-end, so this is seen there too; but a front-end
        that fills its own eventfd or pipe could otherwise stop a worker for all of its guests.

        Raises:
            OSError: It is no eventfd or pipe.

        """
        try:
            check_doorbell(fd)
            flags = fcntl.fcntl(fd, fcntl.F_GETFL)
            if not flags & os.O_NONBLOCK:
                fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_NONBLOCK)
            old = os.dup(self.fd)  # dup2 would close it on the way
            os.dup2(fd, self.fd, inheritable=False)
            discard(old)
        finally:
            discard(fd)

    def clear(self) -> None:
        """Let the number stand for a private eventfd again."""
        self.point_at(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))

    def signal(self) -> None:
        """Ring the bell. A full one has been rung already, one whose other end is gone has nobody to hear it."""
        with suppress(OSError):
            os.write(self.fd, (1).to_bytes(8, sys.byteorder))

    def close(self) -> None:
        """Give the number back."""
        discard(self.fd)


@dataclass
class Vring:
    """What is known of one vring.

    Attributes:
        index: Its number.
        call: Where the device tells the driver of used buffers.
        err: Where the device tells the front-end that it gave the ring up.
        size: SET_VRING_NUM, 0 until then.
        addr: SET_VRING_ADDR.
        base: SET_VRING_BASE, or where the device stopped last.
        kick: The kick descriptor, owned; None if there is none.
        started: SET_VRING_KICK has come since the last GET_VRING_BASE.
        enabled: SET_VRING_ENABLE; None until it comes.
        running: The device serves it right now.

    """

    index: int
    call: DoorbellSlot = field(default_factory=DoorbellSlot)
    err: DoorbellSlot = field(default_factory=DoorbellSlot)
    size: int = 0
    addr: VringAddr | None = None
    base: int = 0
    kick: int | None = None
    started: bool = False
    enabled: bool | None = None
    running: bool = False

    @classmethod
    def make(cls, count: int) -> tuple[Self, ...]:
        """Make the vrings of a device."""
        return tuple(cls(index) for index in range(count))

    def start(self, kick: int | None) -> None:
        """SET_VRING_KICK: own the new descriptor, if any, in place of the old one."""
        self.drop_kick()
        self.kick = kick
        self.started = True

    def drop_kick(self) -> None:
        """GET_VRING_BASE: the ring is stopped until the next SET_VRING_KICK."""
        if self.kick is not None:
            discard(self.kick)
        self.kick = None
        self.started = False

    def reset(self) -> None:
        """Forget all but the call and err descriptors, which front-ends set once and expect to survive a reset."""
        self.drop_kick()
        self.size = self.base = 0
        self.addr = self.enabled = None

    def close(self) -> None:
        """Give all descriptors back. The device must not use them any more."""
        self.drop_kick()
        self.call.close()
        self.err.close()

    def ready(self, *, enabled_by_default: bool, runs_disabled: bool = False) -> bool:
        """Whether the front-end has said all it takes to run this ring, and wants it to run.

        With `runs_disabled` also one that it has disabled; not yet one of which it will say whether it is enabled.
        """
        enabled = enabled_by_default if self.enabled is None else self.enabled or runs_disabled
        return self.started and enabled and self.size > 0 and self.addr is not None
