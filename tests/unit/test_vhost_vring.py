"""A vring's state, and the doorbells whose insides change while their numbers stay."""

from __future__ import annotations

import os
import select
import socket
import tempfile
from typing import TYPE_CHECKING

import pytest

from kpoll.vhost.descriptors import wait_discarded
from kpoll.vhost.payloads import VringAddr
from kpoll.vhost.vring import DoorbellSlot, Vring, check_doorbell

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def slot() -> Iterator[DoorbellSlot]:
    slot = DoorbellSlot()
    yield slot
    slot.close()


def test_a_slot_keeps_its_number_whatever_it_points_at(slot: DoorbellSlot) -> None:
    number = slot.fd
    first, second = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    slot.point_at(os.dup(first))
    slot.signal()
    slot.point_at(os.dup(second))
    slot.signal()
    slot.signal()
    assert slot.fd == number
    assert (os.eventfd_read(first), os.eventfd_read(second)) == (1, 2)
    slot.clear()
    slot.signal()
    assert not select.select([first, second], [], [], 0)[0]
    os.close(first)
    os.close(second)


def test_a_slot_does_not_survive_exec(slot: DoorbellSlot) -> None:
    assert not os.get_inheritable(slot.fd)
    slot.point_at(os.eventfd(0))
    assert not os.get_inheritable(slot.fd)


def test_pointing_closes_the_other_number_even_on_failure(slot: DoorbellSlot) -> None:
    fd = os.open("/dev/null", os.O_WRONLY)
    with pytest.raises(OSError, match="neither eventfd nor pipe"):
        slot.point_at(fd)
    assert wait_discarded(10)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_full_or_deserted_bell_blocks_nobody(slot: DoorbellSlot) -> None:
    bell = os.eventfd(0)  # a blocking one
    os.eventfd_write(bell, 2**64 - 2)
    slot.point_at(bell)
    slot.signal()
    reader, writer = os.pipe()
    slot.point_at(writer)
    os.close(reader)
    slot.signal()


def test_eventfds_pipes_and_unix_sockets_are_doorbells() -> None:
    ours, theirs = socket.socketpair()
    reader, writer = os.pipe()
    bell = os.eventfd(0)
    for fd in (ours.fileno(), reader, writer, bell):
        check_doorbell(fd)
    for fd in (ours.detach(), theirs.detach(), reader, writer, bell):
        os.close(fd)


def test_files_and_devices_are_none() -> None:
    with tempfile.TemporaryFile() as file, pytest.raises(OSError, match="neither"):
        check_doorbell(file.fileno())
    folder = os.open("/", os.O_RDONLY)
    with pytest.raises(OSError, match="neither"):
        check_doorbell(folder)
    os.close(folder)


def test_other_anonymous_inodes_and_sockets_are_none() -> None:
    with select.epoll() as epoll, socket.socket(socket.AF_INET) as tcp:
        watch = os.pidfd_open(os.getpid())
        for fd in (epoll.fileno(), tcp.fileno(), watch):
            with pytest.raises(OSError, match="neither"):
                check_doorbell(fd)
        os.close(watch)


def test_a_memfd_is_none() -> None:
    fd = os.memfd_create("guest")
    with pytest.raises(OSError, match="neither"):
        check_doorbell(fd)
    os.close(fd)


@pytest.fixture
def vring() -> Iterator[Vring]:
    vring = Vring(0)
    yield vring
    vring.close()


def make_ready(vring: Vring) -> None:
    vring.size = 8
    vring.addr = VringAddr(0, 0, 0, 0, 0, 0)
    vring.start(None)


def test_a_vring_is_enabled_by_default_only_without_protocol_features(vring: Vring) -> None:
    make_ready(vring)
    assert vring.ready(enabled_by_default=True)
    assert not vring.ready(enabled_by_default=False)
    vring.enabled = True
    assert vring.ready(enabled_by_default=False)
    vring.enabled = False
    assert not vring.ready(enabled_by_default=True)


def test_a_disabled_vring_is_ready_only_where_it_runs_all_the_same(vring: Vring) -> None:
    make_ready(vring)
    assert not vring.ready(enabled_by_default=False, runs_disabled=True), "whether it is enabled is yet to be said"
    vring.enabled = False
    assert vring.ready(enabled_by_default=False, runs_disabled=True)
    vring.drop_kick()
    assert not vring.ready(enabled_by_default=False, runs_disabled=True)


def test_a_new_kick_closes_the_old_one(vring: Vring) -> None:
    old = os.eventfd(0)
    vring.start(old)
    vring.start(None)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(old)


def test_a_reset_forgets_all_but_the_call_and_err_descriptors(vring: Vring) -> None:
    make_ready(vring)
    vring.enabled = True
    call, err = vring.call.fd, vring.err.fd
    vring.reset()
    assert not vring.ready(enabled_by_default=True)
    assert vring == Vring(0, vring.call, vring.err)
    assert (vring.call.fd, vring.err.fd) == (call, err)
