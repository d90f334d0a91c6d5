"""What `kpoll doctor` says of hosts that are played, and that what it probes on this one is what there is."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kpoll.backend.doctor_cards import CardFacts, cards
from kpoll.backend.doctor_engines import AIO_NR, AioFacts, engines, probe_aio
from kpoll.backend.doctor_nvme import nvme
from kpoll.backend.doctor_polling import polling
from kpoll.backend.doctor_rights import LimitFacts, rights, sandbox
from kpoll.kernel.busy_poll import BusyPoll
from kpoll.kernel.probe import KernelFacts
from kpoll.kernel.rights import CAP_IPC_LOCK, CAP_SYS_ADMIN, Rights, probe_rights
from kpoll.nvme.fabrics_probe import FabricsFacts, probe_fabrics
from kpoll.nvme.poll_queues import PollQueues, pcie_poll_queues, poll_queues
from kpoll.nvme.sysfs import scan
from kpoll.nvme.uring_probe import UringFacts, probe_uring

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kpoll.backend.doctor import Finding

ROOT = Rights(capabilities=frozenset(range(41)))
USER = Rights()
CONTAINER = Rights(filtered=True)
PATCHED = KernelFacts(patch=0, eventfd_busy_poll_us=0, net_busy_poll_us=0)
MODULE = KernelFacts(module=0, net_busy_poll_us=0)
SOCKETS = BusyPoll(us=50, prefer=True, budget=32, refused=())
WORKS = UringFacts(setup=0, disabled=0, iopoll=True)
AIO = AioFacts(setup=0, polls=True, used=2048, most=65536)
TCP = FabricsFacts(device=True, openable=True, tcp="loaded")


def by_name(findings: Iterable[Finding]) -> dict[str, Finding]:
    found = {each.name: each for each in findings}
    assert all(each.change is None for each in found.values() if each.state == "good")
    return found


@pytest.mark.parametrize(
    ("kernel", "name", "state", "words"),
    [
        (PATCHED, "EVENTFD_SET_POLL", "good", "arm word"),
        (KernelFacts(), "EVENTFD_SET_POLL", "missing", "kernel/patches"),
        (MODULE, "EVENTFD_SET_POLL", "improvable", "kernel/patches"),
        (KernelFacts(patch=errno.EPERM), "EVENTFD_SET_POLL", "missing", "seccomp profile"),
        (PATCHED, "module eventfd_poll", "good", "not needed"),
        (MODULE, "module eventfd_poll", "good", "loaded"),
        (KernelFacts(), "module eventfd_poll", "missing", "linux-headers-6.1.0-9-amd64"),
        (KernelFacts(module=errno.EACCES), "module eventfd_poll", "missing", "--device /dev/eventfd_poll"),
        (PATCHED, "fs.eventfd_busy_poll", "improvable", "`sysctl fs.eventfd_busy_poll=100`"),
        (replace(PATCHED, eventfd_busy_poll_us=50), "fs.eventfd_busy_poll", "good", "50 µs"),
        (replace(PATCHED, net_busy_poll_us=50), "fs.eventfd_busy_poll", "good", "net.core.busy_poll counts"),
        (replace(PATCHED, eventfd_busy_poll_us=None), "fs.eventfd_busy_poll", "unknown", "can't be read"),
        (KernelFacts(), "fs.eventfd_busy_poll", "missing", "comes with the patches"),
        (PATCHED, "net.core.busy_poll", "good", "as it may be"),
        (MODULE, "net.core.busy_poll", "improvable", "`sysctl net.core.busy_poll=100`"),
        (replace(MODULE, net_busy_poll_us=50), "net.core.busy_poll", "good", "50 µs"),
        (KernelFacts(net_busy_poll_us=0), "net.core.busy_poll", "improvable", "once the module is loaded"),
        (KernelFacts(), "net.core.busy_poll", "unknown", "on the host itself"),
    ],
    ids=str,
)
def test_polling_in_the_kernel(kernel: KernelFacts, name: str, state: str, words: str) -> None:
    finding = by_name(polling(kernel, SOCKETS, "6.1.0-9-amd64"))[name]
    assert (finding.area, finding.state) == ("polling", state)
    assert words in f"{finding.found} {finding.change}"


def test_the_module_is_not_offered_for_kernels_that_it_is_not_made_for() -> None:
    change = by_name(polling(KernelFacts(), SOCKETS, "6.12.1"))["module eventfd_poll"].change
    assert change is not None
    assert change.startswith("boot Debian 12's kernel")
    assert "6.12.1" in change


def test_a_socket_that_may_not_be_polled_says_what_that_takes() -> None:
    denied = replace(SOCKETS, us=0, refused=("SO_BUSY_POLL: raising it takes the capability CAP_NET_ADMIN",))
    finding = by_name(polling(PATCHED, denied, "6.1"))["SO_BUSY_POLL"]
    assert finding.state == "improvable"
    assert "CAP_NET_ADMIN" in finding.found
    assert "`sysctl net.core.busy_read=50`" in str(finding.change)


@pytest.mark.parametrize(
    ("aio", "name", "state", "words"),
    [
        (AIO, "Linux AIO", "good", "works"),
        (AioFacts(), "Linux AIO", "missing", "seccomp profile"),
        (AioFacts(setup=errno.EAGAIN), "Linux AIO", "missing", "`sysctl fs.aio-max-nr=1048576`"),
        (AioFacts(setup=errno.ENOMEM), "Linux AIO", "missing", "Cannot allocate memory"),
        (AIO, "Linux AIO: polling", "good", "for --iopoll with --poll kernel"),
        (replace(AIO, polls=False), "Linux AIO: polling", "improvable", "boot a kernel with kpoll's patches"),
        (AIO, "fs.aio-max-nr", "good", "room for 62 more workers"),
        (replace(AIO, used=64000), "fs.aio-max-nr", "improvable", "room for 1 more workers"),
        (replace(AIO, used=65000), "fs.aio-max-nr", "missing", "`sysctl fs.aio-max-nr=1048576`"),
        (replace(AIO, used=None), "fs.aio-max-nr", "unknown", "on the host itself"),
    ],
    ids=str,
)
def test_linux_aio(aio: AioFacts, name: str, state: str, words: str) -> None:
    finding = by_name(engines(aio, WORKS, ROOT, cpus=2))[name]
    assert (finding.area, finding.state) == ("engines", state)
    assert words in f"{finding.found} {finding.change}"


@pytest.mark.parametrize(
    ("uring", "rights", "words"),
    [
        (UringFacts(setup=errno.EPERM, disabled=2), ROOT, "kernel.io_uring_disabled is 2"),
        (UringFacts(setup=errno.EPERM, disabled=1), USER, "kernel.io_uring_group"),
        (UringFacts(setup=errno.EPERM, disabled=0), CONTAINER, "--security-opt seccomp=FILE"),
        (UringFacts(setup=errno.ENOSYS), CONTAINER, "--security-opt seccomp=FILE"),
        (UringFacts(setup=errno.ENOSYS), USER, "CONFIG_IO_URING"),
        (UringFacts(setup=errno.ENOMEM), USER, "RLIMIT_MEMLOCK"),
        (UringFacts(setup=errno.EMFILE), USER, "Too many open files"),
    ],
    ids=str,
)
def test_io_uring_that_is_refused_says_by_whom(uring: UringFacts, rights: Rights, words: str) -> None:
    found = by_name(engines(AIO, uring, rights, cpus=2))
    assert found["io_uring"].state == "missing"
    assert words in f"{found['io_uring'].found} {found['io_uring'].change}"
    assert found["io_uring: IOPOLL"].state == "unknown"


def test_of_what_io_uring_can_only_that_counts_which_kpoll_uses() -> None:
    names = [each.name for each in engines(AIO, WORKS, USER, cpus=2)]
    assert names == ["Linux AIO", "Linux AIO: polling", "fs.aio-max-nr", "io_uring", "io_uring: IOPOLL"]
    found = by_name(engines(AIO, replace(WORKS, iopoll=False), USER, cpus=2))["io_uring: IOPOLL"]
    assert (found.state, found.change) == ("improvable", "take Linux 5.1 or newer")
    assert by_name(engines(AIO, WORKS, USER, cpus=2))["io_uring: IOPOLL"].state == "good"


def found_of(namespaces: list[PollQueues], parameter: int | None = 0, **more: object) -> dict[str, Finding]:
    facts = {"libnvme": True, "fabrics": TCP, "rights": ROOT, **more}
    return by_name(nvme(namespaces, parameter, **facts))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("transports", "there", "parameter", "state", "words"),
    [
        (("pcie",), True, 2, "good", "without interrupts"),
        (("pcie",), False, 0, "improvable", "`nvme.poll_queues=2`"),
        (("pcie",), False, 4, "improvable", "was 0 when the driver started"),
        (("tcp",), False, 0, "improvable", "`kpoll nvme connect … --nr-poll-queues 2`"),
        (("loop",), False, 0, "missing", "loop has none"),
        (("pcie",), None, 0, "unknown", "queue/io_poll"),
    ],
)
def test_the_poll_queues_of_a_namespace(
    transports: tuple[str, ...], there: bool | None, parameter: int, state: str, words: str
) -> None:
    namespace = PollQueues(namespace="nvme0n1", transports=transports, there=there)
    finding = found_of([namespace], parameter)["nvme0n1: poll queues"]
    assert finding.state == state
    assert words in f"{finding.found} {finding.change}"


def test_poll_queues_are_read_where_sysfs_has_them(tmp_path: Path) -> None:
    controller = tmp_path / "class/nvme-subsystem/nvme-subsys0/nvme0"
    for folder in (controller / "nvme0n1", tmp_path / "block/nvme0n1"):
        (folder / "queue").mkdir(parents=True)
        (folder / "queue/logical_block_size").write_text("512\n")
        (folder / "queue/io_poll").write_text("1\n")
    (controller / "transport").write_text("pcie\n")
    (controller / "nvme0n1/nsid").write_text("1\n")
    (controller / "nvme0n1/size").write_text("8\n")
    topology = scan("", sys=tmp_path)
    assert poll_queues(topology, tmp_path) == (PollQueues(namespace="nvme0n1", transports=("pcie",), there=True),)
    (tmp_path / "block/nvme0n1/queue/io_poll").write_text("0\n")
    assert poll_queues(topology, tmp_path)[0].there is False
    assert pcie_poll_queues(tmp_path) is None


def test_a_host_without_nvme_is_not_told_to_buy_one() -> None:
    found = found_of([], libnvme=False)
    assert (found["namespaces"].state, found["namespaces"].change) == ("missing", None)
    assert found["libnvme"].change == "`apt install libnvme1`"


@pytest.mark.parametrize(
    ("fabrics", "rights", "state", "words"),
    [
        (TCP, ROOT, "good", "is there"),
        (replace(TCP, tcp="loadable"), ROOT, "good", "loads itself"),
        (replace(TCP, device=False, tcp="loadable"), ROOT, "missing", "`modprobe nvme-tcp`"),
        (replace(TCP, tcp="absent"), ROOT, "missing", "CONFIG_NVME_TCP"),
        (replace(TCP, device=False, tcp="unknown"), ROOT, "unknown", "modules can't be seen from here ask on the host"),
        (replace(TCP, openable=False), USER, "improvable", "`kpoll nvme connect` as root, then `--blk-file`"),
        (TCP, replace(ROOT, initial=False), "improvable", "`kpoll blk --nvme-tcp` takes root itself"),
    ],
    ids=str,
)
def test_nvme_over_tcp(fabrics: FabricsFacts, rights: Rights, state: str, words: str) -> None:
    finding = found_of([], fabrics=fabrics, rights=rights)["NVMe over TCP"]
    assert finding.state == state
    assert words in f"{finding.found} {finding.change}"


def test_the_driver_is_found_loaded_built_in_or_on_disk(tmp_path: Path) -> None:
    assert probe_fabrics(tmp_path) == FabricsFacts(device=False, openable=False, tcp="unknown")
    modules = tmp_path / "lib/modules" / os.uname().release
    modules.mkdir(parents=True)
    assert probe_fabrics(tmp_path).tcp == "absent"
    (modules / "modules.dep").write_text("kernel/x.ko: kernel/drivers/nvme/host/nvme-tcp.ko\n")
    assert probe_fabrics(tmp_path).tcp == "absent", "another module's need of it is not the module"
    (modules / "modules.dep").write_text("kernel/drivers/nvme/host/nvme-tcp.ko.xz: kernel/x.ko\n")
    assert probe_fabrics(tmp_path).tcp == "loadable"
    (modules / "modules.builtin").write_text("kernel/drivers/nvme/host/nvme-tcp.ko\n")
    assert probe_fabrics(tmp_path).tcp == "loaded"


@pytest.mark.parametrize(
    ("facts", "name", "state", "words"),
    [
        (CardFacts(tun=0), "taps", "good", "can be opened"),
        (CardFacts(), "taps", "missing", "`modprobe tun`"),
        (CardFacts(tun=errno.EACCES), "taps", "missing", "--device /dev/net/tun"),
        (CardFacts(xdp=0), "AF_XDP", "good", "can be had"),
        (CardFacts(xdp=errno.EPERM), "AF_XDP", "missing", "CAP_NET_RAW"),
        (CardFacts(), "AF_XDP", "missing", "CONFIG_XDP_SOCKETS"),
        (CardFacts(libraries=frozenset({"libxdp"})), "libxdp", "good", "libxdp.so.1"),
        (CardFacts(libraries=frozenset({"libxdp"})), "libbpf", "missing", "`apt install libbpf1`"),
    ],
    ids=str,
)
def test_cards(facts: CardFacts, name: str, state: str, words: str) -> None:
    finding = by_name(cards(facts))[name]
    assert (finding.area, finding.state) == ("cards", state)
    assert words in f"{finding.found} {finding.change}"


@pytest.mark.parametrize(
    ("limits", "name", "state", "words"),
    [
        (LimitFacts(landlock=0), "Landlock", "good", "out of reach"),
        (
            LimitFacts(landlock=errno.EOPNOTSUPP, lsm="lockdown,yama"),
            "Landlock",
            "missing",
            "`lsm=landlock,lockdown,yama`",
        ),
        (LimitFacts(landlock=errno.EOPNOTSUPP), "Landlock", "missing", "boot option lsm="),
        (LimitFacts(), "Landlock", "missing", "CONFIG_SECURITY_LANDLOCK"),
        (LimitFacts(seccomp=0), "seccomp", "good", "out of reach"),
        (LimitFacts(), "seccomp", "missing", "CONFIG_SECCOMP_FILTER"),
        (LimitFacts(), "libseccomp", "missing", "`apt install libseccomp2`"),
    ],
    ids=str,
)
def test_the_sandbox(limits: LimitFacts, name: str, state: str, words: str) -> None:
    finding = by_name(sandbox(limits))[name]
    assert (finding.area, finding.state) == ("sandbox", state)
    assert words in f"{finding.found} {finding.change}"


def test_a_capability_that_is_missing_says_what_for_and_one_of_a_user_namespace_is_none() -> None:
    mine = Rights(capabilities=frozenset({CAP_SYS_ADMIN, CAP_IPC_LOCK}))
    found = by_name(rights(mine, LimitFacts(memlock=8 << 20)))
    assert (found["CAP_SYS_ADMIN"].state, found["RLIMIT_MEMLOCK"].state) == ("good", "good")
    assert found["CAP_BPF"].state == "improvable"
    assert "needed only for: xdp:" in found["CAP_BPF"].found
    assert "`AmbientCapabilities=CAP_BPF`" in str(found["CAP_BPF"].change)
    assert "`--cap-add BPF`" in str(found["CAP_BPF"].change)
    found = by_name(rights(replace(mine, initial=False), LimitFacts(memlock=8 << 20)))
    assert (found["CAP_SYS_ADMIN"].state, found["RLIMIT_MEMLOCK"].state) == ("improvable", "improvable")
    assert "user namespace" in found["CAP_SYS_ADMIN"].found


def test_limits_that_are_enough_and_such_that_are_not() -> None:
    enough = by_name(rights(ROOT, LimitFacts(nofile=None, kvm=0)))
    assert {each.state for each in enough.values()} == {"good"}
    few = by_name(rights(USER, LimitFacts(memlock=8 << 20, nofile=1024, kvm=errno.EACCES)))
    assert "8192 KiB" in few["RLIMIT_MEMLOCK"].found
    assert "`LimitNOFILE=1088`" in str(few["RLIMIT_NOFILE"].change)
    assert "usermod -aG kvm" in str(few["KVM"].change)


def test_this_process_has_the_capabilities_that_the_kernel_says() -> None:
    """Played by a process that has but one, and one whose user namespace is its own."""
    program = "from kpoll.kernel.rights import probe_rights as p; r = p(); print(sorted(r.capabilities), r.initial)"

    def said(*prefix: str) -> str:
        return subprocess.run(
            [*prefix, sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout

    if os.geteuid() == 0:
        only = said("setpriv", "--bounding-set=-all,+net_raw", "--inh-caps=-all,+net_raw")
        assert only == "[13] True\n"
    assert probe_rights(Path("/nonexistent")).initial is False


def test_one_workers_share_of_linux_aio_is_what_a_worker_takes_and_is_given_back() -> None:
    before = int(AIO_NR.read_text())
    facts = probe_aio()
    assert facts.setup == 0
    assert facts.used is not None
    for _ in range(100):  # would add up to more than other processes come and go with
        probe_aio()
    assert int(AIO_NR.read_text()) - before < 50 * 1024


def test_probing_io_uring_leaves_nothing_behind() -> None:
    probe_uring()
    before = len(list(Path("/proc/self/fd").iterdir()))
    facts = probe_uring()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    if facts.setup == 0:
        assert facts.iopoll is True  # as documented in io_uring_setup(2)
