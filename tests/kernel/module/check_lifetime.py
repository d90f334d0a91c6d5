"""The module, memory that goes, other address spaces, and the end of everything."""

from __future__ import annotations

import array
import fcntl
import mmap
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.kernel.watched import (
    AND,
    ATTEMPTS,
    DEVICE,
    LATE,
    LONG,
    NONE,
    PAGE,
    POLLERR,
    POLLIN,
    Epoll,
    Memory,
    Waiter,
    Waiting,
    Watched,
    busy_poll,
    checked,
    child,
    libc,
    now,
    refused,
    sees_the_counter_alone,
)


def test_memory_that_is_unmapped_is_an_error(watched: Watched) -> None:
    page = Memory()
    watched.set(page.addr)
    page.unmap()
    assert now(watched.fd) == POLLERR
    watched.set(op=NONE)
    assert now(watched.fd) == 0


def test_memory_that_is_unmapped_under_who_spins_is_an_error(watched: Watched, waiter: Waiter) -> None:
    for _ in range(ATTEMPTS):
        page = Memory()
        watched.set(page.addr)
        waiting = Waiting(waiter)
        spun = waiting.until("spinning", "asleep") == "spinning"
        page.unmap()
        if spun and waiting.until("over", "asleep") == "over":
            assert waiting.events() & (POLLERR | POLLIN)
            return
        watched.signal()
        waiting.events()
        watched.drain()
    raise AssertionError(f"all {ATTEMPTS} spins ended early")


def test_memory_that_may_not_be_read_and_a_file_that_was_truncated_are_errors(watched: Watched) -> None:
    page = Memory()
    watched.set(page.addr)
    checked(libc.mprotect(page.addr, PAGE, 0))
    assert now(watched.fd) == POLLERR
    page.unmap()

    file = os.memfd_create("guest")
    os.ftruncate(file, PAGE)
    page = Memory(file)
    watched.set(page.addr)
    assert now(watched.fd) == 0
    os.ftruncate(file, 0)
    assert now(watched.fd) == POLLERR
    os.close(file)
    page.unmap()


def test_a_page_that_is_not_there_is_for_the_caller_to_look_at_not_for_the_kernel_to_bring_in(
    watched: Watched, memory: Memory
) -> None:
    watched.set(memory.addr)
    checked(libc.madvise(memory.addr, PAGE, mmap.MADV_DONTNEED))
    assert now(watched.fd) == POLLIN
    assert memory.load() == 0
    assert now(watched.fd) == 0


def test_a_forked_child_sees_the_counter_alone_and_its_condition_is_not_the_parents(
    watched: Watched, memory: Memory
) -> None:
    memory.store(1)
    watched.set(memory.addr)
    with child() as pid:
        if pid == 0:
            sees_the_counter_alone(watched.fd, watched.eventfd)
    assert now(watched.fd) == POLLIN
    with child() as pid:
        if pid == 0:
            watched.set(memory.addr)
            assert now(watched.fd) == POLLIN
    assert now(watched.fd) == 0


def test_a_forked_child_that_waits_on_the_parents_epoll_does_not_spin(watched: Watched, memory: Memory) -> None:
    busy_poll(LONG)
    watched.set(memory.addr)
    epoll = Epoll(watched.fd)
    with child() as pid:
        if pid == 0:
            start = time.monotonic()
            assert epoll.wait(100) == 0
            assert time.monotonic() - start < 0.1 + LATE
    epoll.close()


def test_after_exec_the_counter_alone_is_seen(watched: Watched, memory: Memory) -> None:
    memory.store(1)
    watched.set(memory.addr)
    checks = f"from tests.kernel.watched import *; sees_the_counter_alone({watched.fd}, {watched.eventfd})"
    subprocess.run([sys.executable, "-c", checks], pass_fds=[watched.fd, watched.eventfd], check=True)


def test_who_receives_a_wrapper_sees_the_counter_alone(device: int, memory: Memory) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, child() as pid:
        if pid == 0:
            _, fds, _, _ = socket.recv_fds(theirs, 1, 2)
            sees_the_counter_alone(*fds)
        else:
            watched = Watched(device)
            memory.store(1)
            watched.set(memory.addr)
            rights = array.array("i", [watched.fd, watched.eventfd])
            ours.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            watched.close()


def test_fdinfo_shows_the_condition_to_its_setter(watched: Watched, memory: Memory) -> None:
    info = Path(f"/proc/self/fdinfo/{watched.fd}")
    assert "eventfd-poll" not in info.read_text()
    watched.set(memory.addr, AND, 0x80, size=2, max_us=7)
    assert f"eventfd-poll: op: 3 addr: {memory.addr:x} size: 2 val: 80 " in info.read_text()


def test_kvm_takes_the_eventfd_and_not_its_wrapper(watched: Watched) -> None:
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    vm = fcntl.ioctl(kvm, 0xAE01, 0)  # KVM_CREATE_VM
    fcntl.ioctl(vm, 0xAE60, 0)  # KVM_CREATE_IRQCHIP
    irqfd = 0x4020AE76  # KVM_IRQFD
    assert refused(lambda: fcntl.ioctl(vm, irqfd, struct.pack("=IIII16x", watched.fd, 5, 0, 0))) == "EINVAL"
    fcntl.ioctl(vm, irqfd, struct.pack("=IIII16x", watched.eventfd, 5, 0, 0))
    os.close(vm)
    os.close(kvm)


def test_wrappers_come_and_go_while_their_epoll_spins(memory: Memory) -> None:
    busy_poll(1000)
    stop = threading.Event()
    epoll = Epoll(os.eventfd(0, os.EFD_CLOEXEC))

    def churn() -> None:
        while not stop.is_set():
            fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
            first, second = Watched(fd), Watched(fd)
            epoll.add(first.fd)
            epoll.add(second.fd)
            first.set(memory.addr)
            second.set(memory.addr + 8)
            os.close(fd)
            second.close()
            memory.store(1)
            memory.store(0)
            first.close()

    threads = [threading.Thread(target=churn) for _ in range(3)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 3
    while time.monotonic() < end:
        epoll.wait(1)
    stop.set()
    for thread in threads:
        thread.join()
    epoll.close()


def loaded() -> bool:
    """Return whether the module is in the kernel."""
    return Path("/sys/module/eventfd_poll").exists()


def test_unloading_is_refused_while_anything_is_open_and_works_after_the_last_close(memory: Memory) -> None:
    rmmod = ["rmmod", "eventfd_poll"]
    device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    assert subprocess.run(rmmod, stderr=subprocess.PIPE, check=False).returncode != 0
    watched = Watched(device)
    os.close(device)
    os.close(watched.eventfd)
    refusal = subprocess.run(rmmod, stderr=subprocess.PIPE, text=True, check=False)
    assert refusal.returncode != 0
    assert "in use" in refusal.stderr
    watched.set(memory.addr)
    memory.store(1)
    assert now(watched.fd) == POLLIN
    watched.close()
    subprocess.run(rmmod, check=True)
    assert not loaded()
    assert not Path(DEVICE).exists()
    subprocess.run(["insmod", os.environ["KPOLL_MODULE"]], check=True)
    assert loaded()


def test_an_epoll_that_spins_keeps_nothing_of_an_unloaded_module(memory: Memory) -> None:
    busy_poll(LONG)
    device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    watched = Watched(device)
    watched.set(memory.addr)
    epoll = Epoll(watched.fd)
    other = os.eventfd(0, os.EFD_CLOEXEC)
    epoll.add(other)
    waiting = Waiting(epoll)
    waiting.until("spinning", "asleep")
    watched.close()
    os.close(device)
    subprocess.run(["rmmod", "eventfd_poll"], check=True)
    os.eventfd_write(other, 1)
    assert waiting.events() == POLLIN
    epoll.close()
    subprocess.run(["insmod", os.environ["KPOLL_MODULE"]], check=True)
