"""A local address is followed away and back, from interface to interface, by what the kernel tells of it."""

from __future__ import annotations

import ipaddress
import socket
import struct
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from kpoll.backend.net_address import AddressEvent, AddressWatch, parse_address_events, watch_address_of
from kpoll.backend.net_link import LinkState
from tests.netns import in_own_network, set_up
from tests.rtnetlink import attribute, message
from tests.veth import ip

if TYPE_CHECKING:
    from collections.abc import Callable

UP, DOWN, GONE = LinkState.UP, LinkState.DOWN, LinkState.GONE

PATIENCE_S = 30.0

RTM_NEWLINK, RTM_NEWADDR, RTM_DELADDR = 16, 20, 21
IFA_ADDRESS, IFA_LOCAL, IFA_LABEL, IFA_FLAGS = 1, 2, 3, 8
OPTIMISTIC, DADFAILED, TENTATIVE, PERMANENT, NOPREFIXROUTE = 0x04, 0x08, 0x40, 0x80, 0x200

IP, PEER = ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("192.0.2.9")
IP6, PEER6 = ipaddress.ip_address("2001:db8::1"), ipaddress.ip_address("2001:db8::9")


def address(kind: int, *attributes: bytes, family: int = socket.AF_INET, bits: int = 24, flags: int = 0) -> bytes:
    return message(kind, struct.pack("=BBBBi", family, bits, flags, 0, 7) + b"".join(attributes))


def address6(flags: int, *attributes: bytes) -> bytes:
    own = attribute(IFA_ADDRESS, IP6.packed)
    return address(RTM_NEWADDR, own, *attributes, family=socket.AF_INET6, bits=64, flags=flags)


LOCAL = attribute(IFA_ADDRESS, IP.packed) + attribute(IFA_LOCAL, IP.packed)
THERE = AddressEvent(7, IP, 24, there=True, usable=True)
THERE6 = AddressEvent(7, IP6, 64, there=True, usable=True)
WAITING6 = AddressEvent(7, IP6, 64, there=True, usable=False)


@pytest.mark.parametrize(
    ("data", "event"),
    [
        (address(RTM_NEWADDR, LOCAL), THERE),
        (address(RTM_NEWADDR, attribute(IFA_LABEL, b"eth0\0"), LOCAL), THERE),
        (address(RTM_DELADDR, LOCAL), AddressEvent(7, IP, 24, there=False, usable=False)),
        (address(RTM_NEWADDR, attribute(IFA_ADDRESS, PEER.packed), attribute(IFA_LOCAL, IP.packed)), THERE),
        (address6(PERMANENT), THERE6),
        (address6(0, attribute(IFA_LOCAL, IP6.packed), attribute(IFA_ADDRESS, PEER6.packed)), THERE6),
        (address6(TENTATIVE), WAITING6),
        (address6(TENTATIVE | OPTIMISTIC), THERE6),
        (address6(TENTATIVE | DADFAILED), WAITING6),
        (address6(0, attribute(IFA_FLAGS, struct.pack("=I", TENTATIVE | NOPREFIXROUTE))), WAITING6),
        (address6(TENTATIVE, attribute(IFA_FLAGS, struct.pack("=I", NOPREFIXROUTE))), THERE6),
    ],
    ids=[
        "added",
        "after other attributes",
        "removed",
        "point to point",
        "IPv6",
        "IPv6 point to point",
        "tentative",
        "optimistic",
        "a duplicate",
        "flags that eight bits don't hold",
        "flags that are said twice",
    ],
)
def test_a_message_says_what_became_of_an_address(data: bytes, event: AddressEvent) -> None:
    assert list(parse_address_events(data)) == [event]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        message(RTM_NEWLINK, bytes(32)),
        message(RTM_NEWADDR, bytes(7)),
        address(RTM_NEWADDR),
        address(RTM_NEWADDR, attribute(IFA_LOCAL, IP6.packed)),
        address(RTM_NEWADDR, attribute(IFA_LOCAL, IP.packed), family=socket.AF_INET6),
        address(RTM_NEWADDR, attribute(IFA_LOCAL, IP.packed), family=socket.AF_BRIDGE),
        address(RTM_NEWADDR, LOCAL)[:30],
    ],
    ids=["nothing", "an interface", "short", "no address", "too long", "too short", "another family", "cut"],
)
def test_anything_else_says_nothing_of_one(data: bytes) -> None:
    assert list(parse_address_events(data)) == []


def watched(watch: AddressWatch | None, *steps: list[Callable[[], object] | LinkState]) -> None:
    """Watch an address: each step does something, and then these changes are told, and none before them."""
    assert watch is not None

    async def run() -> None:
        with closing(watch), trio.fail_after(PATIENCE_S):
            for step in steps:
                for item in step:
                    if isinstance(item, LinkState):
                        assert await watch.changed() is item
                    else:
                        item()

    trio.run(run)


def make_cables(*names: str) -> None:
    """Make interfaces that are up and have a carrier."""
    for name in names:
        ip("link", "add", name, "type", "veth", "peer", "name", f"{name}x")
        set_up(name)
        set_up(f"{name}x")


def add(where: str, name: str, *words: str) -> Callable[[], None]:
    return partial(ip, "address", "add", where, "dev", name, *words)


def remove(where: str, name: str) -> Callable[[], None]:
    return partial(ip, "address", "del", where, "dev", name)


def bound(host: str, *, to: str | None = None) -> AddressWatch | None:
    """Watch the address of a socket bound to `host`, and connected where a peer is given."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)[0][4])
        if to is not None:
            sock.connect((to, 4000))
        return watch_address_of(sock)


def flood() -> None:
    """Have the kernel tell more than a socket holds."""
    for number in range(1000):
        set_up("lo", up=number % 2 == 0)


DELETE, UP_V1, DOWN_V1 = partial(ip, "link", "del", "v1"), partial(set_up, "v1"), partial(set_up, "v1", up=False)
MAKE = partial(make_cables, "v1")
ADD, REMOVE = add(f"{IP}/24", "v1"), remove(f"{IP}/24", "v1")
ADD6, REMOVE6 = add(f"{IP6}/64", "v1", "nodad"), remove(f"{IP6}/64", "v1")


@pytest.mark.parametrize(("where", "give", "take"), [(IP, ADD, REMOVE), (IP6, ADD6, REMOVE6)], ids=["IPv4", "IPv6"])
@in_own_network
def test_an_address_is_followed_away_and_back(
    where: ipaddress.IPv4Address | ipaddress.IPv6Address, give: Callable[[], None], take: Callable[[], None]
) -> None:
    make_cables("v1")
    give()
    watched(AddressWatch(where), [UP], [take, GONE], [give, UP], [take, give, GONE, UP])


@in_own_network
def test_the_link_is_that_of_the_interface() -> None:
    make_cables("v1")
    ADD()
    watched(
        bound(str(IP)),
        [UP],
        [DOWN_V1, DOWN],
        [UP_V1, UP],
        [partial(set_up, "v1x", up=False), DOWN],
        [partial(set_up, "v1x"), UP],
    )


@in_own_network
def test_an_ipv6_address_goes_with_its_link() -> None:
    """As Linux has it, unless keep_addr_on_down says otherwise."""
    make_cables("v1")
    ADD6()
    watched(bound(str(IP6)), [UP], [DOWN_V1, DOWN, GONE], [UP_V1, ADD6, UP])


@in_own_network
def test_a_deleted_interface_takes_the_address_along() -> None:
    make_cables("v1")
    ADD()
    watched(bound(str(IP)), [UP], [DELETE, DOWN, GONE], [MAKE, ADD, UP])


@in_own_network
def test_an_address_may_move_to_another_interface() -> None:
    make_cables("v1", "v2")
    ADD()
    watched(
        bound(str(IP)),
        [UP],
        [add(f"{IP}/32", "v2"), REMOVE, DOWN_V1, partial(set_up, "v2", up=False), DOWN],
        [remove(f"{IP}/32", "v2"), GONE],
        [UP_V1, ADD, UP],
    )


@in_own_network
def test_other_addresses_are_none_of_our_business() -> None:
    make_cables("v1")
    ADD()
    others = add("192.0.2.3/24", "v1"), remove("192.0.2.3/24", "v1"), ADD6, partial(set_up, "lo")
    watched(bound(str(IP)), [UP], [*others, REMOVE, GONE], [*others[:2], ADD, UP])


@in_own_network
def test_an_address_that_duplicate_address_detection_has_not_approved_is_down() -> None:
    make_cables("v1")
    ADD6()
    watched(bound(str(IP6)), [UP], [REMOVE6, GONE], [add(f"{IP6}/64", "v1"), DOWN, UP])


@in_own_network
def test_any_address_of_the_loopback_interface_s_prefix_is_followed_with_it() -> None:
    set_up("lo")
    lo_down = partial(set_up, "lo", up=False)
    watched(bound("127.0.0.2"), [UP], [add("127.0.0.7/32", "lo"), lo_down, DOWN], [remove("127.0.0.1/8", "lo"), GONE])


@in_own_network
def test_the_loopback_interface_s_ipv6_address_is_followed() -> None:
    set_up("lo")
    watched(bound("::1"), [UP], [partial(set_up, "lo", up=False), DOWN, GONE], [partial(set_up, "lo"), UP])


@in_own_network
def test_a_wildcard_is_not_followed() -> None:
    assert bound("0.0.0.0") is None
    assert bound("::") is None


@in_own_network
def test_a_wildcard_becomes_an_address_when_its_socket_is_connected() -> None:
    make_cables("v1")
    ADD()
    watched(bound("0.0.0.0", to="192.0.2.2"), [UP], [REMOVE, GONE])


@in_own_network
def test_a_link_local_address_is_one_interface_s_alone() -> None:
    make_cables("v1", "v2")
    for name in ("v1", "v2"):
        add("fe80::1/64", name, "nodad")()
    watched(bound("fe80::1%v1"), [UP], [remove("fe80::1/64", "v1"), GONE], [add("fe80::1/64", "v1", "nodad"), UP])


@in_own_network
def test_nothing_is_told_of_an_address_that_no_interface_has_had() -> None:
    """It is one by a route of type local, or by ip_nonlocal_bind."""
    make_cables("v1")
    set_up("lo")
    ip("route", "add", "local", f"{IP}/32", "dev", "lo")
    watch = bound(str(IP))
    assert watch is not None
    told: list[LinkState] = []

    async def follow() -> None:
        told.append(await watch.changed())
        told.append(await watch.changed())

    async def run() -> None:
        with closing(watch), trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(follow)
                await wait_all_tasks_blocked()
                assert told == []
                ADD()
                await wait_all_tasks_blocked()
                assert told == [UP]
                REMOVE()
        assert told == [UP, GONE]

    trio.run(run)


@pytest.mark.parametrize("more", [0, 100], ids=["few interfaces", "more than one message has room for"])
@in_own_network
def test_what_was_lost_among_too_many_messages_is_found_out(more: int) -> None:
    make_cables("v1")
    for number in range(more):
        ip("link", "add", f"t{number}", "type", "bridge")
    ADD()
    watched(bound(str(IP)), [UP], [flood, REMOVE, GONE], [flood, ADD, flood, UP], [flood, DOWN_V1, flood, DOWN])
