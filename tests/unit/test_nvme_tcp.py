"""--nvme-tcp, and what NVMe over Fabrics takes to be named: addresses, NQNs, hosts."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from structlog.testing import LogCapture

from kpoll.backend.blk_fabrics import Reached, Used, live_path
from kpoll.backend.errors import UsageError
from kpoll.backend.nvme_tcp import NvmeTcp, parse_nvme_tcp
from kpoll.nvme import sysfs
from kpoll.nvme.bounded import CrashedError, TooLateError, bounded
from kpoll.nvme.fabrics import Address, ConnectError, check_ready, default_host
from kpoll.nvme.libnvme import Libnvme
from kpoll.nvme.poll_queues import polls
from kpoll.nvme.topology import Controller, Namespace, Subsystem
from kpoll.nvme.topology import Path as Way

NQN = "nqn.2024-01.example:disk"


def controller(address: str, transport: str = "tcp") -> Controller:
    return Controller(
        name="nvme1",
        transport=transport,
        address=address,
        state="live",
        serial="",
        model="",
        firmware="",
        queues=None,
    )


@pytest.mark.parametrize(
    ("text", "traddr", "port", "nsid"),
    [
        (f"addr=192.0.2.1,nqn={NQN}", "192.0.2.1", 4420, None),
        (f"addr=192.0.2.1:8009,nqn={NQN},nsid=3", "192.0.2.1", 8009, 3),
        (f"nqn={NQN},nsid=4294967294,addr=[2001:db8::1]:1", "2001:db8::1", 1, 4294967294),
        (f"addr=[2001:db8::1],nqn={NQN}", "2001:db8::1", 4420, None),
        (f"addr=2001:db8::1,nqn={NQN}", "2001:db8::1", 4420, None),
    ],
)
def test_a_namespace_is_named_by_address_subsystem_and_number(
    text: str, traddr: str, port: int, nsid: int | None
) -> None:
    wanted = parse_nvme_tcp(text)
    assert wanted == NvmeTcp(traddr=traddr, port=port, nqn=NQN, nsid=nsid)
    assert str(wanted) == (NQN if nsid is None else f"{NQN}:{nsid}")


def test_queues_to_be_polled_are_asked_for_by_number() -> None:
    assert parse_nvme_tcp(f"addr=192.0.2.1,nqn={NQN},poll-queues=2").poll_queues == 2
    assert parse_nvme_tcp(f"addr=192.0.2.1,nqn={NQN}").poll_queues is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"addr=192.0.2.1,nqn={NQN},poll-queues=0", "poll-queues=0: give a number from 1 to 1024"),
        (f"addr=192.0.2.1,nqn={NQN},poll-queues=many", "poll-queues=many: give a number from 1 to 1024"),
        ("", "nothing is none of its parts"),
        ("addr=192.0.2.1", "has no nqn="),
        (f"nqn={NQN}", "has no addr="),
        (f"addr=192.0.2.1,nqn={NQN},port=1", "port=1 is none of its parts"),
        (f"addr=192.0.2.1,addr=192.0.2.2,nqn={NQN}", "addr= was given twice"),
        (f"addr=host.example,nqn={NQN}", "is no IP address"),
        (f"addr=192.0.2.1:0,nqn={NQN}", "give a port"),
        (f"addr=192.0.2.1:65536,nqn={NQN}", "give a port"),
        (f"addr=192.0.2.1:,nqn={NQN}", "is no IP address"),
        (f"addr=,nqn={NQN}", "is no IP address"),
        (f"addr=[192.0.2.1,nqn={NQN}", "is no IP address"),
        ("addr=192.0.2.1,nqn=", "is no NQN"),
        (f"addr=192.0.2.1,nqn={'n' * 224}", "is no NQN"),
        ("addr=192.0.2.1,nqn=a b", "is no NQN"),
        ("addr=192.0.2.1,nqn=nqn.2014-08.org.nvmexpress.discovery", "has no disks"),
        (f"addr=192.0.2.1,nqn={NQN},nsid=0", "nsid=0"),
        (f"addr=192.0.2.1,nqn={NQN},nsid=-1", "nsid=-1"),
        (f"addr=192.0.2.1,nqn={NQN},nsid=4294967295", "nsid=4294967295"),
    ],
)
def test_what_names_no_namespace_is_a_usage_error(text: str, says: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_nvme_tcp(text)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_an_address_is_a_controllers_whatever_else_the_kernel_says_of_it() -> None:
    address = Address(transport="tcp", traddr="2001:db8::1", trsvcid=4420)
    assert address.is_of(controller("traddr=2001:db8:0::1,trsvcid=4420,src_addr=2001:db8::2"))
    assert not address.is_of(controller("traddr=2001:db8::1,trsvcid=4421"))
    assert not address.is_of(controller("traddr=2001:db8::1,trsvcid=4420", "rdma"))
    assert not address.is_of(controller("0000:00:05.0", "pcie"))
    assert str(address) == "tcp [2001:db8::1]:4420"


def subsystem(states: dict[str, str], *ways: set[str], ana_state: str | None = None) -> Subsystem:
    """Have controllers in these states, and a namespace for each set of them."""
    namespaces = tuple(
        Namespace(
            name=f"nvme0n{nsid}",
            nsid=nsid,
            size_bytes=4096,
            block_bytes=512,
            metadata_bytes=None,
            nguid=None,
            eui64=None,
            uuid=None,
            paths=tuple(Way(name=f"{each}n{nsid}", controller=each, ana_state=ana_state) for each in sorted(names)),
        )
        for nsid, names in enumerate(ways, 1)
    )
    controllers = tuple(replace(controller(""), name=name, state=state) for name, state in states.items())
    return Subsystem(name="nvme-subsys0", nqn=NQN, controllers=controllers, namespaces=namespaces)


@pytest.mark.parametrize(
    ("states", "ways", "wanted"),
    [
        ({"nvme1": "live", "nvme2": "live"}, [{"nvme1", "nvme2"}], "nvme1"),
        ({"nvme1": "connecting", "nvme2": "live"}, [{"nvme1", "nvme2"}], "nvme2"),
        ({"nvme1": "connecting", "nvme2": "connecting"}, [{"nvme1", "nvme2"}], None),
        # Without multipath each has a block device of its own.
        ({"nvme1": "connecting", "nvme2": "live"}, [{"nvme1"}, {"nvme2"}], None),
    ],
)
def test_another_way_to_the_same_namespace_does_for_one_that_is_lost(
    states: dict[str, str], ways: list[set[str]], wanted: str | None
) -> None:
    there = subsystem(states, *ways)
    assert live_path(there, there.controllers[0], None) == wanted


def test_another_way_has_to_lead_to_the_namespace_that_is_wanted() -> None:
    states = {"nvme1": "connecting", "nvme2": "live", "nvme3": "live"}
    there = subsystem(states, {"nvme1", "nvme2"}, {"nvme1", "nvme3"})
    assert [live_path(there, there.controllers[0], nsid) for nsid in (1, 2, 3)] == ["nvme2", "nvme3", None]
    assert live_path(there, there.controllers[0], None) is None  # one of two: it would have to be said which


@pytest.mark.parametrize(("ana_state", "wanted"), [("non-optimized", "nvme2"), ("inaccessible", None)])
def test_another_way_has_to_be_one_on_which_requests_need_not_wait(ana_state: str, wanted: str | None) -> None:
    there = subsystem({"nvme1": "connecting", "nvme2": "live"}, {"nvme1", "nvme2"}, ana_state=ana_state)
    assert live_path(there, there.controllers[0], None) == wanted


def test_a_host_has_nvme_clis_name_or_one_of_its_own_that_stays(tmp_path: Path) -> None:
    machine = tmp_path / "machine-id"
    machine.write_text("0123456789abcdef0123456789abcdef\n")
    own = default_host(tmp_path, machine)
    assert own.nqn.startswith("nqn.2014-08.org.nvmexpress:uuid:")
    assert own.id == own.nqn[-36:]
    assert default_host(tmp_path, machine) == own
    (tmp_path / "hostnqn").write_text("nqn.2014-08.org.nvmexpress:uuid:01234567-89AB-cdef-0123-456789abcdef\n")
    assert default_host(tmp_path, machine).id == "01234567-89ab-cdef-0123-456789abcdef"
    (tmp_path / "hostid").write_text("fedcba98-0000-0000-0000-000000000000\n")
    assert default_host(tmp_path, machine).id == "fedcba98-0000-0000-0000-000000000000"


def test_a_hosts_own_name_does_not_tell_the_machine_id(tmp_path: Path) -> None:
    """As `systemd-id128 machine-id --app-specific=5d7c1d0e3b0a4c559f7e0c6a2e8b41d3 -u` has it."""
    machine = tmp_path / "machine-id"
    machine.write_text("0123456789abcdef0123456789abcdef\n")
    assert default_host(tmp_path, machine).id == "6c988df4-f3d7-445c-ab49-ad271a3ced4d"


@pytest.mark.parametrize("text", ["", "uninitialized\n", "0" * 32, "0123456789ABCDEF0123456789ABCDEF\n"])
def test_a_host_without_a_machine_id_has_a_new_name_each_time(tmp_path: Path, text: str) -> None:
    machine = tmp_path / "machine-id"
    machine.write_text(text)
    assert default_host(tmp_path, machine) != default_host(tmp_path, machine)
    assert default_host(tmp_path, tmp_path / "none") != default_host(tmp_path, tmp_path / "none")


def test_what_it_takes_is_looked_at_before_anything_is_tried(tmp_path: Path) -> None:
    with pytest.raises(ConnectError, match="apt install libnvme1"):
        check_ready(None)
    with pytest.raises(ConnectError, match=r"with `modprobe nvme-loop`$"):
        check_ready(Libnvme(None), tmp_path / "nvme-fabrics", "loop")
    with pytest.raises(ConnectError, match=r"isn't there: load the kernel's driver with `modprobe nvme-tcp`$"):
        check_ready(Libnvme(None), tmp_path / "nvme-fabrics")


def test_a_controller_is_removed_by_who_made_it_and_only_when_nobody_else_uses_it(tmp_path: Path) -> None:
    node, delete = tmp_path / "nvme1", tmp_path / "delete_controller"
    node.touch()
    delete.touch()

    def used() -> int:
        fd = os.open(node, os.O_RDONLY)
        fcntl.flock(fd, fcntl.LOCK_SH)
        return fd

    maker = Used("nvme1", used(), os.open(delete, os.O_WRONLY))
    finder = Used("nvme1", used(), -1)
    maker.remove()
    finder.remove()
    assert delete.read_bytes() == b""
    os.close(finder.lock_fd)
    maker.remove()
    assert delete.read_bytes() == b"1"
    os.close(maker.lock_fd)
    os.close(maker.delete_fd)


def test_what_is_done_in_time_returns_its_result_or_error() -> None:
    assert bounded(lambda: [os.getpid()], 60) != [os.getpid()]

    def fails() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        bounded(fails, 60)


def children() -> set[str]:
    """Our child processes; other tests' may be among them."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_what_takes_too_long_is_killed() -> None:
    began, before = time.monotonic(), children()
    with pytest.raises(TooLateError):
        bounded(signal.pause, 0.1)
    assert time.monotonic() - began < 30
    assert children() == before


def test_what_ends_without_an_answer_is_not_taken_for_late() -> None:
    with pytest.raises(CrashedError, match=r"^it was killed by signal 11 \(Segmentation fault\)$"):
        bounded(lambda: os.kill(os.getpid(), signal.SIGSEGV), 60)
    with pytest.raises(CrashedError, match=r"^it ended with exit code 3$"):
        bounded(lambda: os._exit(3), 60)


class Fifo:
    """By which a process and we wait for each other, whatever descriptors it has."""

    def __init__(self, path: Path) -> None:
        """Make it."""
        os.mkfifo(path)
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    def write(self, text: str) -> None:
        """Write to who reads it, or will."""
        os.write(self._fd, text.encode())

    def read(self) -> str:
        """Read what somebody writes."""
        assert select.select([self._fd], [], [], 60)[0], "nobody writes"
        return os.read(self._fd, 4096).decode()


def test_what_comes_too_late_is_undone_by_who_did_it(tmp_path: Path) -> None:
    held, undone = Fifo(tmp_path / "held"), Fifo(tmp_path / "undone")

    def late() -> str:
        with held.path.open() as file:
            return file.readline() + "made"

    began = time.monotonic()
    with pytest.raises(TooLateError):
        bounded(late, 0.1, lambda made: undone.path.write_text(f"{made} undone"))
    assert time.monotonic() - began < 30
    held.write("late\n")
    assert undone.read() == "late\nmade undone"
    os.wait()


def test_what_is_taken_over_in_time_is_not_undone(tmp_path: Path) -> None:
    for _ in range(20):
        assert bounded(lambda: "made", 60, lambda _: (tmp_path / "undone").touch()) == "made"
    assert not (tmp_path / "undone").exists()


def test_what_was_made_is_undone_also_when_who_asked_is_killed(tmp_path: Path) -> None:
    began, held, undone = (Fifo(tmp_path / name) for name in ("began", "held", "undone"))

    def makes() -> str:
        began.path.write_text("began")
        with held.path.open() as file:
            return file.readline()

    asks = os.fork()
    if asks == 0:
        try:
            bounded(makes, 600, lambda made: undone.path.write_text(f"{made}undone"))
        finally:
            os._exit(1)
    assert began.read() == "began"
    os.kill(asks, signal.SIGKILL)
    os.waitpid(asks, 0)
    held.write("made\n")
    assert undone.read() == "made\nundone"


def test_what_can_be_interrupted_does_not_go_on_for_ever(tmp_path: Path) -> None:
    said = Fifo(tmp_path / "said")

    def hangs() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        done = libc.pause()  # as read(2) from a target that says nothing: -EINTR, and nobody here tries again
        said.path.write_text(f"{done} {errno.errorcode[ctypes.get_errno()]}")

    with pytest.raises(TooLateError):
        bounded(hangs, 0.1, lambda _: None)
    assert said.read() == "-1 EINTR"
    os.wait()


def test_its_process_keeps_no_descriptor_but_what_it_is_to_have(tmp_path: Path) -> None:
    def descriptors() -> dict[int, str]:
        found = {}
        for fd in os.listdir("/proc/self/fd"):  # noqa: PTH208 - numbers
            with contextlib.suppress(FileNotFoundError):  # the one by which they are listed
                found[int(fd)] = os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115
        return found

    with (tmp_path / "kept").open("w") as kept, (tmp_path / "secret").open("w"):
        found = bounded(descriptors, 60, keep=[kept.fileno()])
        assert isinstance(found, dict)
        assert [found.pop(fd) for fd in range(3)] == [os.devnull] * 3
        assert found.pop(kept.fileno()) == str(tmp_path / "kept")
        assert [link.partition(":")[0] for link in found.values()] == ["socket"]


def test_it_answers_also_who_was_started_without_standard_streams() -> None:
    program = "from kpoll.nvme.bounded import bounded; import os; os._exit(bounded(lambda: 7, 60))"
    command = ["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, program]
    assert subprocess.run(command, check=False).returncode == 7


INTERRUPTS = "poll-queues=2, without which completions come by interrupt"


@pytest.mark.parametrize(
    ("fast_io_fail_tmo", "poll_queues", "io_poll", "level", "then"),
    [
        ("5", None, "0", "info", ""),
        ("5", 2, "1", "info", ""),
        ("off", 2, "1", "warning", "the timeouts of --on-error retry"),
        ("5", 2, "0", "warning", INTERRUPTS),
        ("off", 2, "0", "warning", f"the timeouts of --on-error retry and {INTERRUPTS}"),
    ],
)
def test_a_connection_that_was_there_is_told_and_warned_of_when_it_is_otherwise_than_asked_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fast_io_fail_tmo: str,
    poll_queues: int | None,
    io_poll: str,
    level: str,
    then: str,
) -> None:
    folder, queue = tmp_path / "class/nvme/nvme1", tmp_path / "block/nvme1n1/queue"
    folder.mkdir(parents=True)
    queue.mkdir(parents=True)
    (folder / "fast_io_fail_tmo").write_text(fast_io_fail_tmo + "\n")
    (folder / "ctrl_loss_tmo").write_text("off\n")
    (queue / "io_poll").write_text(io_poll + "\n")
    monkeypatch.setattr(sysfs.timeouts, "__defaults__", (tmp_path,))
    monkeypatch.setattr(polls, "__defaults__", (tmp_path,))
    log = LogCapture()
    found = Reached(
        "/dev/nvme1n1", "nvme1", ours=False, on_error="retry", abandon=lambda: None, poll_queues=poll_queues
    )
    found.tell(structlog.wrap_logger(structlog.PrintLogger(), [log]))
    connected, line = log.entries
    assert (connected["event"], connected["ours"]) == ("nvme_connected", False)
    assert (line["event"], line["log_level"], line["controller"]) == ("nvme_connection_found", level, "nvme1")
    assert (line["fast_io_fail_tmo"], line["ctrl_loss_tmo"]) == (fast_io_fail_tmo, "off")
    rid = "to be rid of it: `kpoll nvme disconnect --device nvme1`"
    assert line["error"].endswith(f"{rid}, then a new start has {then}" if then else rid)


def test_a_connection_of_our_own_is_told_as_that_alone() -> None:
    log = LogCapture()
    made = Reached("/dev/nvme1n1", "nvme1", ours=True, on_error="stop", abandon=lambda: None)
    made.tell(structlog.wrap_logger(structlog.PrintLogger(), [log]))
    assert [line["event"] for line in log.entries] == ["nvme_connected"]
