"""Run inside the test VM, whose NVMe driver has poll queues: disks whose completions are polled for; prints JSON.

`python -m tests.kernel.polled PROGRAM...`. The contents of its NVMe disks, which are alike, go. The programs test
engines without a daemon.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.kernel.polled_aio import aio
from tests.kernel.polled_disk import POLLED
from tests.kernel.polled_ratios import WAYS, ratios
from tests.kernel.polled_uring import alone, uring
from tests.kernel.quiet import leave_the_worker_alone

MAPPED = "kpoll-test"
# The last of the disks is slow; the others are alike.
SLOW = f"/dev/nvme{len(WAYS)}n1"


def mapped(disk: str) -> str:
    """Put a device-mapper's disk above one; return it."""
    size = subprocess.run(["blockdev", "--getsz", disk], check=True, capture_output=True, text=True).stdout.strip()
    subprocess.run(["dmsetup", "create", MAPPED, "--table", f"0 {size} linear {disk} 0"], check=True)
    return "/dev/dm-0"


def main(*programs: str) -> None:
    """Show it all."""
    leave_the_worker_alone()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seen: dict[str, Any] = {"alone": {}}
        # The mapper may refuse to be polled; the last program doesn't mind.
        for disk, some in ((POLLED, programs), (mapped(POLLED), programs[-1:])):
            seen["alone"][disk] = {Path(program).name: alone(program, disk) for program in some}
        subprocess.run(["dmsetup", "remove", MAPPED], check=True)
        seen |= {"uring": uring(folder), "aio": aio(folder, SLOW), "ratios": ratios(folder)}
    print(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
