"""The module's interface: what it wraps, what conditions it takes, when they hold."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import socket

import pytest

from tests.kernel.watched import (
    AND,
    ARM,
    ARM_PTR,
    EQUAL,
    INDIRECT,
    NAND,
    NONE,
    NOT_EQUAL,
    NOT_EQUAL_PTR,
    PAGE,
    POLLERR,
    POLLIN,
    SET_POLL,
    Memory,
    Watched,
    checked,
    libc,
    now,
    refused,
    wrap,
)


def test_only_eventfds_are_wrapped(device: int, watched: Watched) -> None:
    reader, writer = os.pipe()
    assert refused(lambda: wrap(device, reader)) == "EINVAL"
    assert refused(lambda: wrap(device, device)) == "EINVAL"
    assert refused(lambda: wrap(device, watched.fd)) == "EINVAL"
    os.close(reader)
    os.close(writer)
    assert refused(lambda: wrap(device, reader)) == "EBADF"
    assert refused(lambda: wrap(device, -1)) == "EBADF"


def test_other_ioctls_are_unknown_to_device_and_wrapper(device: int, watched: Watched) -> None:
    assert refused(lambda: fcntl.ioctl(device, SET_POLL, bytes(56))) == "ENOTTY"
    assert refused(lambda: fcntl.ioctl(watched.fd, 0xED01, watched.eventfd)) == "ENOTTY"
    assert refused(lambda: fcntl.ioctl(watched.fd, 0x8927, bytes(64))) == "ENOTTY"  # SIOCGIFHWADDR


def test_a_wrapper_closes_on_exec_and_is_a_socket_in_name_only(watched: Watched) -> None:
    assert fcntl.fcntl(watched.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    assert refused(lambda: mmap.mmap(watched.fd, PAGE)) == "ENODEV"
    for call in (
        lambda: os.read(watched.fd, 8),
        lambda: os.write(watched.fd, bytes(8)),
        lambda: checked(libc.bind(watched.fd, None, 0)),
        lambda: checked(libc.connect(watched.fd, None, 0)),
        lambda: checked(libc.listen(watched.fd, 1)),
        lambda: checked(libc.accept(watched.fd, None, None)),
        lambda: checked(libc.shutdown(watched.fd, socket.SHUT_RDWR)),
        lambda: checked(libc.setsockopt(watched.fd, socket.SOL_TCP, socket.TCP_NODELAY, b"\1\0\0\0", 4)),
    ):
        assert refused(call) == "ENOTSUP"


def test_a_device_serves_256_wrappers_and_the_next_is_refused(device: int) -> None:
    with contextlib.ExitStack() as stack:
        eventfd = os.eventfd(0, os.EFD_CLOEXEC)
        stack.callback(os.close, eventfd)
        for _ in range(255):
            stack.callback(os.close, wrap(device, eventfd))
        last = wrap(device, eventfd)
        assert refused(lambda: wrap(device, eventfd)) == "ENOSPC"
        os.close(last)
        os.close(wrap(device, eventfd))


def test_a_wrapper_outlives_the_device_and_the_eventfds_descriptor(
    device: int, watched: Watched, memory: Memory
) -> None:
    other = os.dup(watched.eventfd)
    os.close(watched.eventfd)
    os.close(device)
    watched.set(memory.addr)
    assert now(watched.fd) == 0
    memory.store(1)
    assert now(watched.fd) == POLLIN
    memory.store(0)
    os.eventfd_write(other, 1)
    assert now(watched.fd) == POLLIN
    os.close(other)


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"size": 3},
        {"size": 16},
        {"size": 0xFFFFFFFF},
        {"op": 6},
        {"op": 0xFFFFFFFF},
        {"flags": 8},
        {"flags": 0x80000000},
        {"flags": ARM},
        {"flags": ARM | ARM_PTR},
        {"flags": ARM_PTR},
        {"misaligned": 1, "size": 2},
        {"misaligned": 2, "size": 4},
        {"misaligned": 4, "size": 8},
        {"misaligned": 4, "size": 1, "flags": INDIRECT},
        {"mask": 0x100, "size": 1},
        {"mask": 1 << 16, "size": 2},
        {"mask": 1 << 63, "size": 4},
        {"op": NOT_EQUAL_PTR, "val": 0x1004, "size": 8},
    ],
    ids=str,
)
def test_what_is_malformed_or_beyond_a_module_is_refused_and_leaves_the_condition_that_was_there(
    watched: Watched, memory: Memory, wrong: dict[str, int]
) -> None:
    memory.store(1)
    watched.set(memory.addr)
    arguments = dict(wrong)
    addr = memory.addr + arguments.pop("misaligned", 0)
    assert refused(lambda: watched.set(addr, **arguments)) == "EINVAL"  # type: ignore[arg-type]
    assert now(watched.fd) == POLLIN


def test_memory_that_cannot_be_read_is_refused(watched: Watched, memory: Memory) -> None:
    gone = Memory()
    gone.unmap()
    memory.store(gone.addr, offset=16)
    memory.store(memory.addr + 1, offset=32)
    assert refused(lambda: watched.set(gone.addr)) == "EFAULT"
    assert refused(lambda: watched.set(0)) == "EFAULT"
    assert refused(lambda: watched.set(1 << 63)) == "EFAULT"
    assert refused(lambda: watched.set(memory.addr, NOT_EQUAL_PTR, gone.addr)) == "EFAULT"
    assert refused(lambda: watched.set(gone.addr, flags=INDIRECT)) == "EFAULT"
    assert refused(lambda: watched.set(memory.addr + 16, flags=INDIRECT)) == "EFAULT"
    assert refused(lambda: watched.set(memory.addr + 32, flags=INDIRECT)) == "EFAULT"
    assert libc.ioctl(watched.fd, SET_POLL, gone.addr) == -1
    assert now(watched.fd) == 0


def test_op_none_clears_whatever_the_rest_says(watched: Watched, memory: Memory) -> None:
    memory.store(1)
    watched.set(memory.addr)
    assert now(watched.fd) == POLLIN
    watched.set(1, NONE, size=7)
    assert now(watched.fd) == 0


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize(
    ("op", "word", "val", "mask", "holds"),
    [
        (EQUAL, 0x85, 0x85, 0, True),
        (EQUAL, 0x85, 0x84, 0, False),
        (EQUAL, 0x85, 0x81, 0xF0, True),
        (EQUAL, 0x85, 0x15, 0xF0, False),
        (NOT_EQUAL, 0x85, 0x84, 0, True),
        (NOT_EQUAL, 0x85, 0x85, 0, False),
        (NOT_EQUAL, 0x85, 0x84, 0xF0, False),
        (NOT_EQUAL, 0x85, 0x15, 0x80, True),
        (AND, 0x85, 0x84, 0, True),
        (AND, 0x85, 0x08, 0, False),
        (AND, 0x85, 0x84, 0x08, False),
        (NAND, 0x85, 0x08, 0, True),
        (NAND, 0x85, 0x84, 0, False),
        (NAND, 0x85, 0x84, 0x7B, True),
    ],
)
def test_each_op_looks_at_the_bits_that_count(
    watched: Watched, memory: Memory, size: int, op: int, word: int, val: int, mask: int, holds: bool
) -> None:
    memory.store(word, offset=size, size=size)
    watched.set(memory.addr + size, op, val, size=size, mask=mask)
    assert now(watched.fd) == (POLLIN if holds else 0)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_word_is_as_wide_as_its_size(watched: Watched, memory: Memory, size: int) -> None:
    memory.store((1 << 64) - 1)
    memory.store(0, size=size)
    watched.set(memory.addr, NOT_EQUAL, 0, size=size)
    assert now(watched.fd) == 0
    memory.store(1 << (8 * size - 1), size=size)
    assert now(watched.fd) == POLLIN


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_val_of_minus_1_is_the_words_minus_1(watched: Watched, memory: Memory, size: int) -> None:
    minus_1 = (1 << 64) - 1
    memory.store((1 << 8 * size) - 1, size=size)
    watched.set(memory.addr, EQUAL, minus_1, size=size)
    assert now(watched.fd) == POLLIN
    watched.set(memory.addr, NOT_EQUAL, minus_1, size=size)
    assert now(watched.fd) == 0
    memory.store(1, size=size)
    assert now(watched.fd) == POLLIN


def test_not_equal_ptr_compares_two_words_that_both_change(watched: Watched, memory: Memory) -> None:
    watched.set(memory.addr, NOT_EQUAL_PTR, memory.addr + 64, size=2)
    assert now(watched.fd) == 0
    memory.store(1, size=2)
    assert now(watched.fd) == POLLIN
    memory.store(1, offset=64, size=2)
    assert now(watched.fd) == 0


def test_an_indirect_word_moves_without_a_system_call(watched: Watched, memory: Memory) -> None:
    pair = Memory()
    pair.store(memory.addr)
    pair.store(0x80, offset=8)
    watched.set(pair.addr, EQUAL, size=2, mask=0x8080, flags=INDIRECT)
    assert now(watched.fd) == 0
    memory.store(0x87, size=2)
    assert now(watched.fd) == POLLIN
    pair.store(memory.addr + 16)
    assert now(watched.fd) == 0
    pair.store(0x8000, offset=8)
    memory.store(0x8001, offset=16, size=2)
    assert now(watched.fd) == POLLIN


@pytest.mark.parametrize("wrong", [1, 3, 1 << 63, 8])
def test_an_indirect_word_that_moves_where_no_word_can_be_is_an_error(
    watched: Watched, memory: Memory, wrong: int
) -> None:
    memory.store(memory.addr + 64)
    watched.set(memory.addr, size=2, flags=INDIRECT)
    memory.store(wrong)
    assert now(watched.fd) == POLLERR


def test_the_condition_adds_to_the_counter_and_leaves_it_alone(watched: Watched, memory: Memory) -> None:
    watched.set(memory.addr)
    watched.signal()
    assert now(watched.fd) == POLLIN
    watched.drain()
    assert now(watched.fd) == 0
    memory.store(1)
    assert now(watched.fd) == POLLIN
    assert now(watched.eventfd) == 0
    assert refused(lambda: os.eventfd_read(watched.eventfd)) == "EAGAIN"
