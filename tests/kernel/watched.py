"""Watched eventfds and those who wait on them, for checks that run inside the VM."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import struct
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEVICE = "/dev/eventfd_poll"
SET_POLL = 0x4038ED00
WRAP = 0xED01
NONE, EQUAL, NOT_EQUAL, AND, NAND, NOT_EQUAL_PTR = range(6)
ARM, ARM_PTR, INDIRECT = 1, 2, 4

POLLIN, POLLPRI, POLLERR = 1, 2, 8
PAGE = mmap.PAGESIZE
# The CPU that the VM keeps for those who wait (isolcpus=1): spins end when anybody else is there.
QUIET_CPU = 1
# µs: a spin that only ends for a reason. The kernel's own work on that CPU is one, a kworker's each second; and RCU,
# whose grace periods begin as threads end, has a CPU without preemption, as in epoll's spin, pause after 100 ms.
LONG = 20_000_000
ATTEMPTS = 20  # and so one spin says nothing
SPINNING = 0.02  # seconds of CPU time: more than it takes to fall asleep, much less than RCU's patience
PATIENCE = 60.0
# Seconds: how late anything may be on a busy host under emulation; KASAN and lockdep make it slower still.
LATE = 2.0 if os.environ.get("KPOLL_VM") in ("debug", "kcsan") else 0.5

_WORDS = {1: ctypes.c_uint8, 2: ctypes.c_uint16, 4: ctypes.c_uint32, 8: ctypes.c_uint64}
# poll, select, epoll_wait, pselect6, ppoll, epoll_pwait on x86-64
_WAITING = {"7", "23", "232", "270", "271", "281"}

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def checked(result: int) -> int:
    """Return what a libc function returned, or raise its error."""
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


class Memory:
    """One page, zeroed, present, and at a known address.

    Args:
        fd: a file to map shared; -1 for private anonymous memory.

    """

    def __init__(self, fd: int = -1) -> None:
        """Map the page."""
        flags = mmap.MAP_SHARED if fd >= 0 else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.addr = checked(libc.mmap(None, PAGE, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, 0))
        self.store(0)

    def store(self, value: int, offset: int = 0, size: int = 8) -> None:
        """Store a word of so many bytes."""
        _WORDS[size].from_address(self.addr + offset).value = value

    def load(self, offset: int = 0, size: int = 8) -> int:
        """Load a word of so many bytes."""
        value: int = _WORDS[size].from_address(self.addr + offset).value
        return value

    def unmap(self) -> None:
        """Give it back to the system; nothing may be loaded or stored any more."""
        checked(libc.munmap(self.addr, PAGE))


class Watched:
    """An eventfd with its wrapper.

    Args:
        device: a descriptor of /dev/eventfd_poll; may be closed afterwards.

    """

    def __init__(self, device: int) -> None:
        """Make both."""
        self.eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.fd = wrap(device, self.eventfd)

    def set(
        self,
        addr: int = 0,
        op: int = NOT_EQUAL,
        val: int = 0,
        *,
        size: int = 8,
        mask: int = 0,
        flags: int = 0,
        max_us: int = 0,
        arm: tuple[int, int] = (0, 0),
    ) -> None:
        """EVENTFD_SET_POLL on the wrapper."""
        fcntl.ioctl(self.fd, SET_POLL, struct.pack("=QIIQQIIQQ", addr, size, op, val, mask, flags, max_us, *arm))

    def signal(self) -> None:
        """Add 1 to the eventfd's counter."""
        os.eventfd_write(self.eventfd, 1)

    def drain(self) -> None:
        """Set the eventfd's counter to 0."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.eventfd)

    def close(self) -> None:
        """Close both descriptors that are still open."""
        for fd in (self.fd, self.eventfd):
            with contextlib.suppress(OSError):
                os.close(fd)


def wrap(device: int, fd: int) -> int:
    """EVENTFD_POLL_WRAP: return the wrapper of an eventfd."""
    return fcntl.ioctl(device, WRAP, fd)


def busy_poll(microseconds: int) -> None:
    """Let this kernel's polls spin for so long."""
    Path("/proc/sys/net/core/busy_poll").write_text(str(microseconds))


class Waiter(Protocol):
    """Something that waits for a descriptor to be readable."""

    def wait(self, milliseconds: int) -> int:
        """Return the events, 0 after a timeout; raise InterruptedError after a signal. -1 waits for ever."""

    def close(self) -> None:
        """Free what it needed."""


class _PollFd(ctypes.Structure):
    _fields_ = (("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short))


class Poll:
    """poll(2)."""

    def __init__(self, fd: int) -> None:
        """Ask for POLLIN."""
        self._entry = _PollFd(fd, POLLIN, 0)

    def wait(self, milliseconds: int) -> int:
        """Wait once."""
        checked(libc.poll(ctypes.byref(self._entry), 1, milliseconds))
        return int(self._entry.revents)

    def close(self) -> None:
        """Nothing to free."""


class Select:
    """select(2), which has no word for errors: they are readable."""

    def __init__(self, fd: int) -> None:
        """Wait for one."""
        self._fd = fd

    def wait(self, milliseconds: int) -> int:
        """Wait once."""
        asked = (ctypes.c_uint64 * 16)()
        asked[self._fd // 64] = 1 << self._fd % 64
        timeout = (ctypes.c_long * 2)(milliseconds // 1000, milliseconds % 1000 * 1000)
        limit = ctypes.byref(timeout) if milliseconds >= 0 else None
        return POLLIN if checked(libc.select(self._fd + 1, ctypes.byref(asked), None, None, limit)) else 0

    def close(self) -> None:
        """Nothing to free."""


class Epoll:
    """epoll_wait(2), level-triggered."""

    def __init__(self, fd: int, events: int = POLLIN) -> None:
        """Make an epoll with one descriptor."""
        self.fd = checked(libc.epoll_create1(os.O_CLOEXEC))
        self.add(fd, events)

    def add(self, fd: int, events: int = POLLIN) -> None:
        """EPOLL_CTL_ADD."""
        checked(libc.epoll_ctl(self.fd, 1, fd, struct.pack("=IQ", events, fd)))

    def wait(self, milliseconds: int) -> int:
        """Wait once, for one event."""
        event = ctypes.create_string_buffer(12)
        if not checked(libc.epoll_wait(self.fd, event, 1, milliseconds)):
            return 0
        events: int = struct.unpack("=IQ", event.raw)[0]
        return events

    def close(self) -> None:
        """Close the epoll."""
        os.close(self.fd)


WAITERS: dict[str, Callable[[int], Waiter]] = {"poll": Poll, "select": Select, "epoll": Epoll}


class Waiting:
    """A thread, alone on its CPU, that waits once.

    Args:
        waiter: what waits.
        milliseconds: its timeout.

    """

    def __init__(self, waiter: Waiter, milliseconds: int = -1) -> None:
        """Start to wait."""
        self._waiter, self._milliseconds = waiter, milliseconds
        self._outcome: int | OSError = 0
        self._started = threading.Event()
        self.seconds = 0.0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._started.wait()

    def _run(self) -> None:
        elsewhere = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {QUIET_CPU})
        self.tid = threading.get_native_id()
        self._before = self._cpu_ns()
        self._started.set()
        start = time.monotonic()
        try:
            self._outcome = self._waiter.wait(self._milliseconds)
        except OSError as error:
            self._outcome = error
        self.seconds = time.monotonic() - start
        # Where a thread ends a kworker frees its stack, some 40 ms later: that would end the next one's spin.
        os.sched_setaffinity(0, elsewhere)

    def _proc(self, name: str) -> str:
        try:
            return Path(f"/proc/self/task/{self.tid}/{name}").read_text()
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ESRCH}:
                raise
            return ""

    def _cpu_ns(self) -> int:
        return int((self._proc("schedstat") or "0").split()[0])

    def cpu_seconds(self) -> float:
        """Return what CPU time the wait has taken; 0 once it is over."""
        return max(0, self._cpu_ns() - self._before) / 1e9

    def over(self) -> bool:
        """Return whether the wait has ended."""
        return not self._thread.is_alive()

    def asleep(self) -> bool:
        """Return whether it sleeps in the kernel, in one of the calls that wait."""
        return (self._proc("syscall").split() or [""])[0] in _WAITING

    def spinning(self) -> bool:
        """Return whether it has taken more CPU than it takes to fall asleep."""
        return self.cpu_seconds() > SPINNING and not self.asleep()

    def until(self, *events: str) -> str:
        """Wait until one of over, asleep, spinning is the case; return which."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for event in events:
                if getattr(self, event)():
                    return event
            os.sched_yield()
        raise AssertionError(f"not {events} after {PATIENCE} s, but: {self._proc('stat')} {self._proc('syscall')}")

    def events(self) -> int:
        """Return what the wait returned, or raise what it raised."""
        self._thread.join(PATIENCE)
        assert self.over(), "still waiting"
        if isinstance(self._outcome, OSError):
            raise self._outcome
        return self._outcome


@contextlib.contextmanager
def child() -> Iterator[int]:
    """Fork: the body runs in both, the child's exit status is 0 if its body raised nothing, and is checked.

    Yields:
        0 in the child, its process id in the parent.

    """
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            yield 0
            status = 0
        finally:
            os._exit(status)
    yield pid
    assert os.waitpid(pid, 0)[1] == 0


def now(fd: int) -> int:
    """Return the events of a descriptor, asked with poll(2) that does not wait."""
    return Poll(fd).wait(0)


def refused(call: Callable[[], object]) -> str | None:
    """Return the name of the error that a call raises."""
    try:
        call()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0)
    return None


def sees_the_counter_alone(fd: int, eventfd: int) -> None:
    """Check, in another process than the one that set a condition that holds, that it isn't seen."""
    assert now(fd) == 0
    assert "eventfd-poll" not in Path(f"/proc/self/fdinfo/{fd}").read_text()
    os.eventfd_write(eventfd, 1)
    assert now(fd) == POLLIN
    os.eventfd_read(eventfd)
