"""Which uevents are about our disk."""

from __future__ import annotations

import os

import pytest

from kpoll.backend.resize import is_change_of

LOOP3 = os.makedev(7, 3)


def uevent(**fields: str) -> bytes:
    """Build a message as lib/kobject_uevent.c does."""
    values = {"ACTION": "change", "DEVPATH": "/devices/virtual/block/loop3", "SUBSYSTEM": "block", **fields}
    head = f"{values['ACTION']}@{values['DEVPATH']}"
    return b"\0".join([head.encode(), *(f"{key}={value}".encode() for key, value in values.items())]) + b"\0"


def test_a_capacity_change_of_our_device_is() -> None:
    assert is_change_of(uevent(MAJOR="7", MINOR="3", RESIZE="1"), LOOP3)


def test_a_change_without_resize_is_too_as_device_mapper_says_no_more() -> None:
    assert is_change_of(uevent(MAJOR="7", MINOR="3"), LOOP3)


@pytest.mark.parametrize(
    "fields",
    [
        {"MAJOR": "7", "MINOR": "33"},
        {"MAJOR": "77", "MINOR": "3"},
        {"MAJOR": "7", "MINOR": "3", "ACTION": "remove"},
        {"MAJOR": "7", "MINOR": "3", "SUBSYSTEM": "net"},
        {},
    ],
    ids=str,
)
def test_others_are_not(fields: dict[str, str]) -> None:
    assert not is_change_of(uevent(**fields), LOOP3)


@pytest.mark.parametrize("message", [b"", b"\0", b"libudev\0\xfe\xed\xca\xfe", b"change@/devices/virtual/block/loop3"])
def test_what_is_no_uevent_of_the_kernel_is_not(message: bytes) -> None:
    assert not is_change_of(message, LOOP3)
