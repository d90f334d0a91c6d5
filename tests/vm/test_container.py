"""The container image: built from the Dockerfile, and a front-end outside uses a disk that is served from inside.

There is no Docker Hub in CI: the base image is made by debootstrap, once, and kept in the cache; wheels are fetched by
the pip of this machine, with its configuration, and handed to the build as a folder.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from trio.testing import trio_test

from tests.vm.daemon import serving
from tests.vm.guest import uml
from tests.vm.image import cache_dir, locked

ROOT = Path(__file__).resolve().parents[2]
BASE = "localhost/debian:bookworm-slim"
IMAGE = "localhost/kpoll:test"
SIZE = 64 << 20
OURS = 80 << 20  # bytes that the image may add to its base; 47 MB of them are Debian's Python

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="debootstrap, and a podman without user namespaces, need root"
)


def podman(*arguments: str) -> str:
    """Run podman on a store of its own in the cache, so that neither sees the other's images; return its output."""
    run = subprocess.run([*PODMAN, *arguments], capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"podman {' '.join(arguments)}: {run.stdout}\n{run.stderr}"
    return run.stdout


PODMAN = ("podman", f"--root={cache_dir() / 'containers'}", "--runroot=/run/kpoll-test-containers", "--log-level=error")


@pytest.fixture(scope="module")
def base() -> str:
    """Give the base image: Debian's minimal system, imported as it is."""
    with locked("containers"):
        if subprocess.run([*PODMAN, "image", "exists", BASE], check=False).returncode != 0:
            folder = cache_dir() / "debian-bookworm.partial"
            tarball = folder.with_suffix(".tar")
            subprocess.run(["rm", "-rf", str(folder)], check=True)  # of an interrupted run; may hold device nodes
            subprocess.run(["debootstrap", "--variant=minbase", "bookworm", str(folder)], check=True)
            subprocess.run(["tar", "-C", str(folder), "--one-file-system", "-cf", str(tarball), "."], check=True)
            podman("import", str(tarball), BASE)
            subprocess.run(["rm", "-rf", str(folder), str(tarball)], check=True)
    return BASE


@pytest.fixture(scope="module")
def image(base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Give the image, built as a user builds it, with a folder of wheels for an index."""
    wheels = tmp_path_factory.mktemp("wheels")
    needs = ["setuptools>=77", "cffi>=2", "click", "prometheus-client", "rich", "structlog", "trio"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "-w", str(wheels), *needs], check=True)
    with locked("containers"):
        podman(
            *("build", "--isolation=chroot", "--network=host", f"--build-arg=BASE={base}", f"--tag={IMAGE}"),
            *(f"--volume={wheels}:/wheels:ro", "--build-arg=PIP_FIND_LINKS=/wheels", "--build-arg=PIP_NO_INDEX=1"),
            str(ROOT),
        )
        # What was built stays: the next build begins with its layers. What is of no use goes a day later.
        podman("image", "prune", "--force", "--filter=until=24h")
    return IMAGE


def inside(*arguments: str) -> list[str]:
    """Return the command that runs something in a container."""
    # Machines without systemd (CI) have cgroups that crun refuses: a mount namespace of its own, with cgroup2 alone.
    namespace = 'mount --make-rprivate /; umount -R /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup; exec "$@"'
    options = ("--cgroups=disabled", "--network=host", "--ulimit=nofile=20000:20000", "--ulimit=nproc=1024:1024")
    return ["unshare", "-m", "sh", "-c", namespace, "sh", *PODMAN, "run", "--rm", *options, *arguments]


def test_the_doctor_names_what_a_container_is_refused(image: str, tmp_path: Path) -> None:
    """Docker's default is to refuse io_uring by a seccomp filter; there are no devices, and its user has no rights."""
    refusal = {"names": ["io_uring_setup"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EPERM}
    profile = tmp_path / "seccomp.json"
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [refusal]}))
    command = inside(f"--security-opt=seccomp={profile}", image, "doctor", "--json")
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    found = {each["name"]: each for each in report["findings"]}
    assert (report["user"], report["can_serve_disks"], found["Linux AIO"]["state"]) == (1000, True, "good")
    assert (found["io_uring"]["state"], found["taps"]["state"]) == ("missing", "missing")
    assert found["io_uring"]["found"].startswith("a seccomp filter refuses it")
    assert "`--device /dev/net/tun`" in found["taps"]["change"]
    assert found["CAP_SYS_ADMIN"]["state"] == "improvable"
    assert found["libseccomp"]["state"] == "good"


def test_the_image_is_small_and_runs_as_a_user_without_rights(image: str) -> None:
    """It adds Python and kpoll to its base, no compiler; its user is not root."""
    size, user = podman("image", "inspect", "--format={{.Size}} {{.User}}", image).split()
    assert user == "kpoll"
    assert int(size) - int(podman("image", "inspect", "--format={{.Size}}", BASE)) < OURS


@trio_test
async def test_a_guest_outside_uses_a_disk_that_is_served_from_inside(image: str, tmp_path: Path) -> None:
    """The socket lies in a shared folder; what the guest wrote is in the image file, and SIGTERM ends the container."""
    run, disk = tmp_path / "run", tmp_path / "disk.img"
    run.mkdir(mode=0o777)
    run.chmod(0o777)
    with disk.open("wb") as file:
        file.truncate(SIZE)
    disk.chmod(0o600)
    os.chown(disk, 1000, 1000)  # as the README has it: the image's user
    tmp_path.chmod(0o755)
    command = inside(
        *(f"--volume={run}:/run/kpoll", f"--volume={disk}:/disk.img", image),
        *("blk", "--socket-path=/run/kpoll/disk.sock", "--blk-file=/disk.img", "--log-format=json"),
    )
    async with serving("kpoll in a container", command, run / "disk.sock", run / "unused") as daemon:
        async with uml(disk=daemon.socket) as guest:
            wrote = await guest.run("""
                dd if=/dev/urandom of=/tmp/random bs=1M count=16 status=none
                dd if=/tmp/random of=/dev/vda bs=64k oflag=direct conv=fsync status=none
                dd if=/dev/vda bs=4k count=4096 iflag=direct status=none | cmp - /tmp/random
                sha256sum < /tmp/random""")
            await guest.power_off()
        assert hashlib.sha256(disk.read_bytes()[: 16 << 20]).hexdigest() == wrote.split()[0]
        assert await daemon.stop(seconds=30) == 0
