"""An interface is followed up and down, away and back, by what the kernel tells of it."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from kpoll.backend.net_link import LinkEvent, LinkState, LinkWatch, parse_link_events
from tests.netns import in_own_network, set_up
from tests.rtnetlink import attribute, message
from tests.taps import attach, delete, make

if TYPE_CHECKING:
    from collections.abc import Callable

UP, DOWN, GONE = LinkState.UP, LinkState.DOWN, LinkState.GONE

PATIENCE_S = 30.0

NLMSG_ERROR, RTM_NEWLINK, RTM_DELLINK, RTM_NEWADDR = 2, 16, 17, 20
IFF_UP, IFF_RUNNING, IFF_LOWER_UP = 0x1, 0x40, 0x10000
IFLA_ADDRESS, IFLA_IFNAME = 1, 3


def link(kind: int, index: int, flags: int, *attributes: bytes, family: int = 0) -> bytes:
    return message(kind, struct.pack("=BxHiII", family, 1, index, flags, 0) + b"".join(attributes))


VM1 = attribute(IFLA_IFNAME, b"vm1\0")
RUNNING = IFF_UP | IFF_RUNNING | IFF_LOWER_UP


@pytest.mark.parametrize(
    ("data", "event"),
    [
        (link(RTM_NEWLINK, 7, RUNNING, VM1), LinkEvent(7, "vm1", UP)),
        (link(RTM_NEWLINK, 7, 0, VM1), LinkEvent(7, "vm1", DOWN)),
        (link(RTM_NEWLINK, 7, IFF_UP, VM1), LinkEvent(7, "vm1", DOWN)),
        (link(RTM_NEWLINK, 7, IFF_UP, attribute(IFLA_ADDRESS, b"\2\0\0\0\0\1"), VM1), LinkEvent(7, "vm1", DOWN)),
        (link(RTM_DELLINK, 7, RUNNING, VM1), LinkEvent(7, "vm1", GONE)),
        (message(NLMSG_ERROR, struct.pack("=i", -19)), LinkEvent(0, "", GONE)),
    ],
    ids=["running", "down", "up without a carrier", "the name after other attributes", "deleted", "no such interface"],
)
def test_a_message_says_what_an_interface_is_like(data: bytes, event: LinkEvent) -> None:
    assert list(parse_link_events(data)) == [event]


def test_a_datagram_may_have_several_messages() -> None:
    data = link(RTM_DELLINK, 7, 0, VM1) + link(RTM_NEWLINK, 8, RUNNING, VM1)
    assert list(parse_link_events(data)) == [LinkEvent(7, "vm1", GONE), LinkEvent(8, "vm1", UP)]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        message(RTM_NEWADDR, bytes(24)),
        link(RTM_DELLINK, 7, RUNNING, VM1, family=socket.AF_BRIDGE),
        message(NLMSG_ERROR, struct.pack("=i", 0)),
        message(RTM_NEWLINK, bytes(8)),
        message(NLMSG_ERROR, b""),
        struct.pack("=IHHII", 0, RTM_NEWLINK, 0, 0, 0),
        link(RTM_NEWLINK, 7, 0)[:15],
    ],
    ids=["nothing", "an address", "leaves a bridge", "an acknowledgement", "short", "short error", "length 0", "cut"],
)
def test_anything_else_says_nothing_of_one(data: bytes) -> None:
    assert list(parse_link_events(data)) == []


def test_a_name_that_is_cut_short_ends_what_is_read() -> None:
    data = link(RTM_NEWLINK, 7, RUNNING, attribute(IFLA_ADDRESS, bytes(6)), VM1)
    for end in range(32, len(data)):
        (event,) = parse_link_events(data[:end])
        assert (event.index, event.state) == (7, UP)
        assert "vm1".startswith(event.name)


def watched(name: str, *steps: list[Callable[[], object] | LinkState]) -> None:
    """Watch an interface: each step does something, and then these changes are told, and none before them."""

    async def run() -> None:
        with closing(LinkWatch(name, socket.if_nametoindex(name))) as watch, trio.fail_after(PATIENCE_S):
            for step in steps:
                for item in step:
                    if isinstance(item, LinkState):
                        assert await watch.changed() is item
                    else:
                        item()

    trio.run(run)


def flood() -> None:
    """Have the kernel tell more than a socket holds."""
    for number in range(1000):
        set_up("lo", up=number % 2 == 0)


UP_VM1, DOWN_VM1 = partial(set_up, "vm1"), partial(set_up, "vm1", up=False)
MAKE_VM1, DELETE_VM1 = partial(make, "vm1"), partial(delete, "vm1")


@in_own_network
def test_the_first_change_is_what_the_interface_is_like() -> None:
    fd = attach("vm1")
    watched("vm1", [DOWN])
    set_up("vm1")
    watched("vm1", [UP])
    os.close(fd)


@in_own_network
def test_a_tap_goes_up_and_down_as_its_administrator_says() -> None:
    fd = attach("vm1")
    watched("vm1", [DOWN], [UP_VM1, UP], [DOWN_VM1, DOWN], [UP_VM1, UP])
    os.close(fd)


@in_own_network
def test_a_tap_that_nobody_has_open_is_not_running() -> None:
    make("vm1")
    fd = attach("vm1")
    watched("vm1", [DOWN], [UP_VM1, UP], [partial(os.close, fd), DOWN])


@in_own_network
def test_other_interfaces_are_none_of_our_business() -> None:
    fd = attach("vm1")
    make("vm2")
    watched("vm1", [DOWN], [partial(set_up, "lo"), UP_VM1, UP], [partial(delete, "vm2"), DOWN_VM1, DOWN])
    os.close(fd)


@in_own_network
def test_an_interface_that_is_deleted_is_gone_until_one_of_its_name_is_back() -> None:
    make("vm1")
    watched(
        "vm1",
        [DOWN],
        [DELETE_VM1, GONE],
        [partial(make, "vm2"), MAKE_VM1, DOWN],
        [DELETE_VM1, GONE],
        [MAKE_VM1, DOWN],
    )


@in_own_network
def test_an_interface_that_is_back_at_once_was_gone_all_the_same() -> None:
    make("vm1")
    watched("vm1", [DOWN], [DELETE_VM1, MAKE_VM1, GONE, DOWN])


@in_own_network
def test_an_interface_that_was_gone_before_anybody_watched_is_gone() -> None:
    make("vm1")

    async def run() -> None:
        index = socket.if_nametoindex("vm1")
        delete("vm1")
        with closing(LinkWatch("vm1", index)) as watch, trio.fail_after(PATIENCE_S):
            assert await watch.changed() is GONE
            make("vm1")
            assert await watch.changed() is DOWN

    trio.run(run)


@in_own_network
def test_what_was_lost_among_too_many_messages_is_found_out() -> None:
    fd = attach("vm1")
    watched("vm1", [DOWN], [flood, UP_VM1, UP], [flood, DOWN_VM1, flood, DOWN])
    os.close(fd)


@in_own_network
def test_an_interface_that_went_and_came_back_among_too_many_messages_was_gone() -> None:
    make("vm1")
    watched("vm1", [DOWN], [flood, DELETE_VM1, MAKE_VM1, GONE, DOWN], [flood, DELETE_VM1, GONE], [MAKE_VM1, DOWN])
