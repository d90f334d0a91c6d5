"""Whatever a user gets wrong is told in one line that says what to do, with the exit code that says whose fault it is.

2: the command line is wrong. 1: the command line is fine, but this host doesn't have what it names.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from pathlib import Path

import click
import pytest

from kpoll.backend.cli import blk
from tests.cli.harness import KPOLL, Daemon, refused, run

KEEP_FILE_PERMISSIONS = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.touch()
    os.truncate(path, 1 << 20)
    return path


@pytest.fixture
def sock(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "no socket: give --socket-path PATH"),
        (["--socket-path", "S", "--fd", "3", "--blk-file", "F"], "exclude each other"),
        (["--blk-file", "F"], "no socket"),
        (["--socket-path", "S"], "no disk: give --blk-file"),
        (["--socket-path", "S", "--blk-file", "F", "--frobnicate"], "No such option"),
        (["--socket-path", "S", "--blk-file", "F", "extra"], "unexpected extra argument"),
        (["--socket-path", "S", "--blk-file", "F", "--blk-file", "G"], "--blk-file was given twice; give it once"),
        (["--socket-path", "S", "--engine", "aio", "--blk-file", "F", "--engine=aio"], "--engine was given twice"),
        (["--socket-path"], "requires an argument"),
        (["--fd", "x", "--blk-file", "F"], "'x' is not a valid integer"),
        (["--socket-path", "S", "--engine", "null", "--size", "10Q"], "--size 10Q: give bytes"),
        (["--socket-path", "S", "--engine", "null", "--size", "1000"], "multiple of 512"),
        (["--socket-path", "S", "--engine", "null", "--size", "0"], "above 0"),
        (["--socket-path", "S", "--engine", "null"], "needs a disk size"),
        (["--socket-path", "S", "--blk-file", "F", "--size", "1G"], "--size is for --engine null"),
        (["--socket-path", "S", "--blk-file", "F", "--engine", "spdk"], "'spdk' is not one of"),
        (["--socket-path", "S", "--blk-file", "F", "--iopoll", "yes"], "'yes' is not one of"),
        (["--socket-path", "S", "--engine", "null", "--size", "1G", "--iopoll", "on"], "null has nothing to poll"),
        (["--socket-path", "S", "--blk-file", "F", "--pin-guest-memory", "--engine", "aio"], "--engine aio has no use"),
        (["--socket-path", "S", "--engine", "null", "--size", "1G", "--pin-guest-memory"], "--engine null has no use"),
        (["--socket-path", "S", "--blk-file", "F", "--num-queues", "0"], "give 1 to 256"),
        (["--socket-path", "S", "--blk-file", "F", "--num-queues", "1000"], "give 1 to 256"),
        (["--socket-path", "S", "--blk-file", "F", "--num-queues", "2", "--workers", "3"], "give 1 to 2"),
        (["--socket-path", "S", "--blk-file", "F", "--cpus", "1-"], "--cpus 1-: give CPU numbers"),
        (["--socket-path", "S", "--blk-file", "F", "--serial", "x" * 21], "1 to 20 printable"),
        (["--socket-path", "S", "--blk-file", "F", "--metrics", "9100"], "give HOST:PORT"),
        (["--socket-path", "S", "--blk-file", "F", "--socket-mode", "rw"], "octal permission bits"),
        (["--socket-path", "S", "--blk-file", "F", "--metrics-socket", "./S"], "is the --socket-path"),
        (["--socket-path", "S", "--blk-file", "F", "--log-level", "debug"], "'debug' is not one of"),
        (["--socket-path", "S", "--blk-file", "F", "--poll", "harder"], "'harder' is not one of"),
        (["--socket-path", "S", "--blk-file", "F", "--poll-max-us", "-1"], "not in the range"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_line_is_a_usage_error(args: list[str], says: str) -> None:
    line = refused("blk", *args, code=2)
    assert line.startswith("kpoll blk: ")
    assert says in line


def test_an_unknown_subcommand_is_a_usage_error() -> None:
    assert "No such command 'frobnicate'" in refused("frobnicate", code=2)


def disk_refused(sock: Path, path: Path | str, *args: str, prefix: tuple[str, ...] = ()) -> str:
    line = refused("blk", "--socket-path", sock, "--blk-file", path, *args, code=1, prefix=prefix)
    assert str(path) in line
    assert not sock.exists()
    return line


def test_polling_for_what_is_no_block_device(sock: Path, image: Path) -> None:
    line = disk_refused(sock, image, "--iopoll", "on")
    assert "--iopoll on: is no block device with O_DIRECT" in line
    assert "use --iopoll auto" in line


def test_a_missing_file(sock: Path, tmp_path: Path) -> None:
    assert "no such file" in disk_refused(sock, tmp_path / "missing.img")


def test_a_directory(sock: Path, tmp_path: Path) -> None:
    assert "is a directory" in disk_refused(sock, tmp_path)
    assert "is a directory" in disk_refused(sock, tmp_path, "--read-only")


def test_a_file_without_permission_to_read(sock: Path, image: Path) -> None:
    image.chmod(0)
    assert "permission denied" in disk_refused(sock, image, prefix=KEEP_FILE_PERMISSIONS)


def test_a_file_without_permission_to_write_hints_at_read_only(sock: Path, image: Path) -> None:
    image.chmod(0o444)
    assert "--read-only" in disk_refused(sock, image, prefix=KEEP_FILE_PERMISSIONS)


def test_what_is_neither_file_nor_block_device(sock: Path, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert "neither a regular file nor a block device" in disk_refused(sock, fifo)
    assert "neither a regular file nor a block device" in disk_refused(sock, "/dev/null")


@pytest.mark.parametrize(("size", "padded"), [(1, 512), (1000, 1024), ((1 << 20) + 511, (1 << 20) + 512)])
def test_an_image_that_is_no_whole_number_of_sectors(sock: Path, image: Path, size: int, padded: int) -> None:
    os.truncate(image, size)
    assert f"truncate -s {padded}" in disk_refused(sock, image)


def test_an_empty_image(sock: Path, image: Path) -> None:
    os.truncate(image, 0)
    assert "is empty" in disk_refused(sock, image)


def test_a_file_name_that_is_no_text_is_still_one_line(sock: Path) -> None:
    line = refused("blk", "--socket-path", sock, "--blk-file", os.fsdecode(b"/nowhere/a\xff\nb"), code=1)
    assert "no such file" in line


def socket_refused(path: Path | str, image: Path, *args: str) -> str:
    line = refused("blk", "--socket-path", path, "--blk-file", image, *args, code=1)
    assert "--socket-path" in line or "--socket-group" in line
    return line


def test_a_socket_path_that_a_live_server_has(sock: Path, image: Path) -> None:
    with Daemon("blk", "--socket-path", sock, "--blk-file", image, "--read-only") as first:
        first.logged("listening")
        assert "another server listens there" in socket_refused(sock, image, "--read-only")
        assert sock.is_socket()
        assert first.stop() == 0
    assert not sock.exists()


def test_a_socket_path_that_a_busy_server_has(sock: Path, image: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(sock))
        busy.listen(0)
        waiting.connect(str(sock))  # the backlog is full now
        assert "another server listens there" in socket_refused(sock, image)


def test_a_socket_that_a_dead_server_left_behind_is_replaced(sock: Path, image: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(sock))
    with Daemon("blk", "--socket-path", sock, "--blk-file", image) as daemon:
        daemon.logged("listening")
        assert daemon.stop() == 0


def test_a_socket_path_that_is_too_long(tmp_path: Path, image: Path) -> None:
    assert "at most 107 bytes" in socket_refused(tmp_path / ("x" * 108), image)


def test_a_socket_path_in_a_directory_that_does_not_exist(tmp_path: Path, image: Path) -> None:
    assert "directory doesn't exist" in socket_refused(tmp_path / "nowhere" / "s", image)


def test_a_file_in_the_place_of_the_socket_is_left_alone(tmp_path: Path, image: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("data")
    assert "exists and is no socket" in socket_refused(precious, image)
    assert precious.read_text() == "data"


def test_a_datagram_socket_in_the_place_of_the_socket_is_left_alone(sock: Path, image: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(sock))
        assert "can't be asked" in socket_refused(sock, image)
        assert sock.is_socket()


def test_an_unknown_group(sock: Path, image: Path) -> None:
    assert "no such group" in socket_refused(sock, image, "--socket-group", "nobody-has-this-group")
    assert not sock.exists()


def fd_refused(image: Path, fd: int) -> str:
    line = refused("blk", "--fd", str(fd), "--blk-file", image, code=1, pass_fds=(fd,))
    assert f"--fd {fd}: is " in line
    return line


def test_an_fd_that_is_closed(image: Path) -> None:
    line = refused("blk", "--fd", "99", "--blk-file", image, code=1)
    assert "--fd 99: is no open descriptor" in line


def test_an_fd_that_is_a_file(image: Path) -> None:
    with image.open() as file:
        assert "no socket" in fd_refused(image, file.fileno())


def test_an_fd_that_is_a_network_socket(image: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        assert "no unix stream socket" in fd_refused(image, udp.fileno())


def test_an_fd_that_is_neither_listening_nor_connected(image: Path) -> None:
    with socket.socket(socket.AF_UNIX) as idle:
        assert "neither listening nor connected" in fd_refused(image, idle.fileno())


def test_a_metrics_port_that_is_taken(sock: Path, image: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        line = refused("blk", "--socket-path", sock, "--blk-file", image, "--metrics", where, code=1)
    assert f"--metrics {where}: Address already in use" in line
    assert not sock.exists()


def test_a_metrics_host_that_does_not_exist(sock: Path, image: Path) -> None:
    line = refused("blk", "--socket-path", sock, "--blk-file", image, "--metrics", "no.such.host.invalid:1", code=1)
    assert "--metrics no.such.host.invalid:1: " in line


def test_a_cpu_that_this_process_may_not_use(sock: Path, image: Path) -> None:
    line = refused("blk", "--socket-path", sock, "--blk-file", image, "--cpus", "9999", code=1)
    assert re.search(r"CPU 9999 isn't there for this process, it may run on [0-9,]+", line)


@pytest.mark.parametrize("options", [["--poll", "kernel"], ["--poll", "module"]], ids=" ".join)
def test_what_is_not_in_this_release_names_the_alternative(sock: Path, image: Path, options: list[str]) -> None:
    line = refused("blk", "--socket-path", sock, "--blk-file", image, *options, code=1)
    assert " ".join(options) in line
    assert "use " in line


def test_print_capabilities_ignores_everything_else() -> None:
    done = run("blk", "--no-such-option", "--fd", "x", "--print-capabilities", "--blk-file", "/nowhere")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == '{"type": "block", "features": ["read-only", "blk-file"]}\n'


def test_help_says_what_each_value_of_on_error_means() -> None:
    [option] = [each for each in blk.params if each.name == "on_error"]
    assert isinstance(option, click.Option)
    assert isinstance(option.type, click.Choice)
    assert all(f"{value}: " in str(option.help) for value in option.type.choices)


def test_help_lists_every_option_of_the_contract() -> None:
    text = run("blk", "--help").stdout
    for option in [
        "--socket-path",
        "--fd",
        "--blk-file",
        "--read-only",
        "--engine",
        "--iopoll",
        "--pin-guest-memory",
        "--size",
        "--num-queues",
        "--serial",
        "--workers",
        "--cpus",
        "--on-error",
        "--poll",
        "--poll-max-us",
        "--log-format",
        "--log-level",
        "--metrics",
        "--metrics-socket",
        "--socket-mode",
        "--socket-group",
        "--sandbox",
        "--print-capabilities",
    ]:
        assert option in text


@pytest.mark.parametrize("kind", ["blk", "net"])
def test_the_description_for_management_software_says_what_the_program_says_of_itself(kind: str) -> None:
    described = json.loads((Path(__file__).parents[2] / f"backend/data/50-kpoll-{kind}.json").read_text())
    capable = json.loads(run(kind, "--print-capabilities").stdout)
    assert {key: described.get(key) for key in ("type", "features")} == {
        key: capable.get(key) for key in ("type", "features")
    }
    assert described["binary"] == f"/usr/bin/kpoll-{kind}"


def test_kpoll_blk_is_the_same_program_under_its_own_name() -> None:
    kpoll_blk = KPOLL.with_name("kpoll-blk")
    capable = subprocess.run([kpoll_blk, "--print-capabilities"], capture_output=True, text=True, check=True)
    assert "block" in capable.stdout
    done = subprocess.run([kpoll_blk], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.split(":")[0]) == (2, "kpoll-blk")
