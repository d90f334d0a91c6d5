"""What can be asked of `kpoll blk`, and which requests make no sense whatever the host is like."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from kpoll.backend.cli import blk_config
from kpoll.backend.config import (
    BlkConfig,
    parse_cpus,
    parse_host_port,
    parse_mode,
    parse_serial,
    parse_size,
)
from kpoll.backend.errors import KpollError, UsageError
from kpoll.kernel import probe
from kpoll.kernel.probe import KernelFacts

DEFAULTS: dict[str, Any] = {
    "socket_path": "/run/s",
    "fd": None,
    "blk_file": "/dev/vg0/vm1",
    "read_only": False,
    "engine": "auto",
    "iopoll": "auto",
    "pin_guest_memory": False,
    "size": None,
    "num_queues": None,
    "serial": None,
    "workers": None,
    "cpus": None,
    "on_error": "report",
    "nvme_tcp": None,
    "poll": "auto",
    "poll_max_us": 100,
    "log_format": "auto",
    "log_level": "info",
    "metrics": None,
    "metrics_socket": None,
    "socket_mode": None,
    "socket_group": None,
    "sandbox": None,
}


def config(**options: Any) -> BlkConfig:
    return blk_config(**{**DEFAULTS, **options})


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512),
        ("4K", 4096),
        ("1m", 1 << 20),
        ("64G", 64 << 30),
        ("2T", 2 << 40),
        ("9223372036854775296", (1 << 63) - 512),
    ],
)
def test_a_size_is_bytes_or_a_number_with_a_unit(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "1.5G", "10GB", "0x200", "511", "513", "1P", "8388608T", "9" * 40, "٤K"]
)
def test_anything_else_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="--size"):
        parse_size(text)


@pytest.mark.parametrize(("text", "cpus"), [("0", (0,)), ("2,4-6", (2, 4, 5, 6)), ("7, 1", (7, 1)), ("3-3", (3,))])
def test_a_cpu_list_is_numbers_and_ranges(text: str, cpus: tuple[int, ...]) -> None:
    assert parse_cpus(text) == cpus


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "3-1", "1,,2", "1,1", "0-2,2", "0-99999", "1;2"])
def test_anything_else_is_no_cpu_list(text: str) -> None:
    with pytest.raises(UsageError, match="--cpus"):
        parse_cpus(text)


@pytest.mark.parametrize(("text", "mode"), [("660", 0o660), ("0660", 0o660), ("0o777", 0o777)])
def test_a_mode_is_octal(text: str, mode: int) -> None:
    assert parse_mode(text) == mode


@pytest.mark.parametrize("text", ["", "rw", "6", "888", "4755", "1777"])
def test_anything_else_is_no_mode(text: str) -> None:
    with pytest.raises(UsageError, match="--socket-mode"):
        parse_mode(text)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("127.0.0.1:9100", ("127.0.0.1", 9100)),
        ("[::1]:0", ("::1", 0)),
        ("[fe80::1%eth0]:1", ("fe80::1%eth0", 1)),
        (":9100", ("", 9100)),
        ("localhost:65535", ("localhost", 65535)),
    ],
)
def test_metrics_are_at_a_host_and_port(text: str, where: tuple[str, int]) -> None:
    assert parse_host_port(text) == where


@pytest.mark.parametrize("text", ["", "9100", "host", "host:", "host:65536", "::1:9100", "[::1]", "host:-1", "[::1:1"])
def test_anything_else_is_no_host_and_port(text: str) -> None:
    with pytest.raises(UsageError, match="--metrics"):
        parse_host_port(text)


@pytest.mark.parametrize("text", ["", "x" * 21, "tab\there", "ä"])
def test_a_serial_is_what_fits_into_20_bytes_of_ascii(text: str) -> None:
    with pytest.raises(UsageError, match="--serial"):
        parse_serial(text)
    assert parse_serial("x" * 20) == b"x" * 20


@pytest.mark.parametrize(
    "options",
    [
        {"socket_path": None},
        {"fd": 3},
        {"socket_path": ""},
        {"socket_path": None, "fd": -1},
        {"socket_path": None, "fd": 3, "socket_mode": "660"},
        {"socket_path": None, "fd": 3, "socket_group": "kvm"},
        {"blk_file": None},
        {"blk_file": ""},
        {"size": "1G"},
        {"engine": "null"},
        {"engine": "null", "size": "1G"},
        {"engine": "null", "blk_file": None},
        {"num_queues": 0},
        {"num_queues": 257},
        {"num_queues": -1},
        {"workers": 0},
        {"workers": 3, "num_queues": 2},
        {"workers": 2, "cpus": "0"},
        {"cpus": "0-2", "num_queues": 2},
        {"metrics": "127.0.0.1:1", "metrics_socket": "/run/m"},
        {"metrics_socket": ""},
        {"metrics_socket": "/run/s"},
        {"metrics_socket": "/run/../run/s"},
    ],
    ids=str,
)
def test_options_that_contradict_each_other_are_a_usage_error(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as error:
        config(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options",
    [{"poll": "kernel"}, {"poll": "module"}],
    ids=str,
)
def test_what_this_release_does_not_have_says_what_to_use_instead(options: dict[str, Any]) -> None:
    with pytest.raises(KpollError, match="use ") as error:
        config(**options)
    assert error.value.exit_code == 1


def test_a_kernel_that_cannot_be_asked_does_not_poll(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_descriptors(*_args: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "eventfd", no_descriptors)
    for name in ("MODULE_DEVICE", "NET_BUSY_POLL", "EVENTFD_BUSY_POLL"):
        monkeypatch.setattr(probe, name, tmp_path / "absent")
    assert probe.probe_kernel() == KernelFacts(patch=errno.EMFILE)


def test_the_sysctls_are_looked_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, text in {"NET_BUSY_POLL": "20\n", "EVENTFD_BUSY_POLL": "70\n"}.items():
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(probe, name, tmp_path / name)
    kernel = probe.probe_kernel()
    assert (kernel.net_busy_poll_us, kernel.eventfd_busy_poll_us, kernel.spin_us) == (20, 70, 70)


@pytest.mark.parametrize(
    ("net", "own", "spin"),
    [(0, 0, 0), (20, 0, 20), (None, 70, 70), (20, None, 20), (None, 0, None), (0, None, None), (None, None, None)],
)
def test_polling_is_off_only_where_both_sysctls_say_so(net: int | None, own: int | None, spin: int | None) -> None:
    assert KernelFacts(net_busy_poll_us=net, eventfd_busy_poll_us=own).spin_us == spin


def descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


@pytest.mark.parametrize("answer", [0, errno.ENOTTY, errno.EINVAL, errno.EPERM, errno.EFAULT])
def test_a_kernel_polls_if_it_takes_what_a_worker_will_ask_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: int
) -> None:
    device = tmp_path / "eventfd_poll"
    device.touch()
    monkeypatch.setattr(probe, "MODULE_DEVICE", device)
    conditions: list[tuple[int, ...]] = []

    def ioctl(_fd: int, request: int, argument: bytes | int) -> int:
        if isinstance(argument, int):
            assert request == 0xED01
            return os.dup(argument)
        assert request == 0x4038ED00
        conditions.append(struct.unpack("=QIIQQIIQQ", argument))
        if answer:
            raise OSError(answer, os.strerror(answer))
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    before = descriptors()
    facts = probe.probe_kernel()
    assert (facts.patch, facts.module, facts.set_poll) == (answer, answer, answer == 0)
    assert descriptors() == before
    patch, module = conditions
    address, size, op, val, mask, flags, _, arm, _ = patch
    assert (size, op, val, mask, flags, arm) == (4, 2, 0, 0, 1, address + 4), "an arm word of its own"
    assert (module[1:6], module[7]) == ((4, 2, 0, 0, 0), 0), "a module refuses F_ARM"


def test_a_device_that_may_not_be_opened_is_told_from_one_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    device = tmp_path / "eventfd_poll"
    device.touch(mode=0)
    monkeypatch.setattr(probe, "MODULE_DEVICE", device)
    user = os.geteuid()
    if user == 0:  # root may open everything
        os.seteuid(65534)
    try:
        assert probe.probe_kernel().module == errno.EACCES
    finally:
        os.seteuid(user)


def test_one_worker_unless_more_cpus_are_listed() -> None:
    assert config().workers == 1
    assert (config(cpus="0,1").workers, config(cpus="0,1").cpus) == (2, (0, 1))
    assert config(workers=4, num_queues=4).cpus == ()


def test_a_qemu_with_a_queue_per_vcpu_finds_enough_queues() -> None:
    assert config().num_queues >= 16


@pytest.mark.parametrize(
    ("options", "device"),
    [
        ({}, "vm1"),
        ({"serial": "boot"}, "boot"),
        ({"engine": "null", "blk_file": None, "size": "1G"}, "null"),
        ({"blk_file": "images/a.img"}, "a.img"),
        ({"blk_file": "bad\udcff.img"}, "bad\\xff.img"),
    ],
)
def test_the_device_is_called_by_its_serial_or_file(options: dict[str, Any], device: str) -> None:
    assert config(**options).device == device
