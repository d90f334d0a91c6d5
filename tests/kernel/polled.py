"""Run inside the test VM, whose NVMe driver has poll queues: disks whose completions are polled for; prints JSON.

`python -m tests.kernel.polled IO_TEST`. The contents of its NVMe disks, which are alike, go. IO_TEST is
tests/c/test_io_uring.c.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from tests.kernel.polled_aio import aio
from tests.kernel.polled_ratios import ratios
from tests.kernel.polled_uring import uring
from tests.kernel.quiet import leave_the_worker_alone


def main(io_test: str) -> None:
    """Show it all."""
    leave_the_worker_alone()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(json.dumps({"uring": uring(folder, io_test), "aio": aio(folder), "ratios": ratios(folder)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
