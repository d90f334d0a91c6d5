"""A virtqueue for devices written in Python: the C virtqueue, one chain at a time, under trio.

For devices where a request is rare or slow anyway (entropy, input, a console). It keeps all the promises of the C
beneath - a chain is copied once and checked, hostile rings break this queue alone - but each request enters Python, so
a disk or a NIC belongs into a worker.
"""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING, Any

import trio

from kpoll.vhost._core import ffi, lib

if TYPE_CHECKING:
    from kpoll.vhost.device import VringConfig

SEGMENTS_MAX = 128
POLL_INTERVAL_S = 0.001
"""Between two looks at a ring whose front-end gave no kick descriptor and asks to be polled instead."""


def virtq_config(vring: VringConfig) -> Any:
    """Give the `struct virtq_config *` of a vring, for `virtq_init` and for devices that serve it in C."""
    return ffi.new(
        "struct virtq_config *",
        {
            "size": vring.size,
            "features": vring.features,
            "desc_uva": vring.desc_uva,
            "avail_uva": vring.avail_uva,
            "used_uva": vring.used_uva,
            "base": vring.base,
            "call_fd": vring.call_fd,
            "err_fd": -1 if vring.err_fd is None else vring.err_fd,
        },
    )


class VirtqueueFaultError(Exception):
    """The driver broke the ring's rules; the queue stays broken until the vring is started anew.

    Attributes:
        kind: Which rule, in the snake_case words of `virtq_fault_name`.

    """

    def __init__(self, kind: str) -> None:
        """Name the rule."""
        super().__init__(f"virtqueue fault: {kind}")
        self.kind = kind


class Chain:
    """A popped chain of buffers, to be given back with `Virtqueue.push`.

    Attributes:
        readable: What the driver wrote for the device. The guest can still change it: copy before you check.
        writable: What the device may fill.

    The buffers are guest memory itself. They are gone when the vring has been stopped.

    """

    def __init__(self, handle: object, readable: tuple[memoryview, ...], writable: tuple[memoryview, ...]) -> None:
        """Made by `Virtqueue.pop`."""
        self.handle = handle
        self.readable = readable
        self.writable = writable

    def read(self) -> bytes:
        """Copy all that the driver wrote."""
        return b"".join(bytes(part) for part in self.readable)

    @property
    def room(self) -> int:
        """Bytes that the device may write."""
        return sum(len(part) for part in self.writable)

    def write(self, data: bytes) -> int:
        """Fill the writable buffers from their start.

        Args:
            data: What to write; what there is no room for is left out.

        Returns:
            Bytes written, for `Virtqueue.push`.

        """
        done = 0
        for part in self.writable:
            piece = data[done : done + len(part)]
            part[: len(piece)] = piece
            done += len(piece)
        return done


class Virtqueue:
    """The device side of one vring, split or packed, from `Device.start_vring` to `Device.stop_vring`."""

    def __init__(self, vring: VringConfig) -> None:
        """Bind to the rings.

        Raises:
            OSError: EFAULT when a ring lies outside guest memory, EINVAL for a bad size or misaligned ring.

        """
        self.index = vring.index
        self._memory = vring.memory
        self._virtq = ffi.new("struct virtq *")
        self._iov = ffi.new("struct iovec[]", SEGMENTS_MAX)
        self._word = ffi.new("struct eventfd_poll_info *")
        rc = lib.virtq_init(self._virtq, virtq_config(vring), vring.memory.handle)
        if rc < 0:
            raise OSError(-rc, f"vring {vring.index} can't be used: {os.strerror(-rc)}")
        lib.virtq_watch(self._virtq, self._word)
        self._kicks: select.epoll | None = None
        if vring.kick_fd is not None:
            self._kicks = select.epoll()
            # Edge-triggered and never read: a read could block in a descriptor that the front-end drained first.
            self._kicks.register(vring.kick_fd, select.EPOLLIN | select.EPOLLET)

    def close(self) -> None:
        """Give the wait descriptor back. Nothing may wait any more."""
        if self._kicks is not None:
            self._kicks.close()

    @property
    def base(self) -> int:
        """Where to go on later: what `Device.stop_vring` returns, once every popped chain has been pushed."""
        return int(lib.virtq_base(self._virtq))

    def pop(self) -> Chain | None:
        """Take the next chain.

        Returns:
            The chain, or None when the driver has made nothing available.

        Raises:
            VirtqueueFaultError: The driver broke the rules (now or earlier). The front-end's err fd was signalled.

        """
        chain = ffi.new("struct virtq_chain *")
        rc = lib.virtq_pop(self._virtq, chain, self._iov, SEGMENTS_MAX)
        if rc < 0:
            raise VirtqueueFaultError(ffi.string(lib.virtq_fault_name(self._virtq.fault)).decode())
        if rc == 0:
            return None
        views = tuple(
            memoryview(ffi.buffer(self._iov[i].iov_base, self._iov[i].iov_len))
            for i in range(chain.out_count + chain.in_count)
        )
        return Chain(chain, views[: chain.out_count], views[chain.out_count :])

    def push(self, chain: Chain, written: int) -> None:
        """Give a chain back; the driver sees it after `publish`.

        Args:
            chain: From `pop`; its buffers are the driver's again.
            written: Bytes written to it.

        """
        lib.virtq_push(self._virtq, chain.handle, written)

    def publish(self) -> None:
        """Show the driver all that was pushed, and call it if it wants to be called."""
        lib.virtq_publish(self._virtq)

    async def wait(self) -> None:
        """Wait until the driver has made something available, or perhaps has: `pop` may still find nothing.

        Kicks are asked for, then the ring is looked at once more, then we sleep: a driver that published in between
        is either seen or kicks.
        """
        if self._kicks is None:
            await trio.sleep(POLL_INTERVAL_S)
            return
        self._kicks.poll(0)  # consume an old edge before looking, never after
        lib.wait_word_arm(self._word)
        lib.mb_full()  # pairs with the driver's, between its avail index and its look at our notification word
        if lib.virtq_more(self._virtq):
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.wait_readable(self._kicks.fileno())
