"""Run inside the test VM: one read at a time of a disk, under each strategy in turn; prints latencies in µs, as JSON.

`python -m tests.kernel.latency DISK REQUESTS STRATEGY...`. The daemons' workers share a CPU, which nobody else has
(quiet.py): those whose turn it isn't sleep.
"""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.kernel.quiet import leave_the_worker_alone
from tests.kernel.steady import bench, serving

# In turn, and several: what a CPU loses to the host must not look like the difference between two strategies.
ROUNDS = 3
# So that the worker comes to wait between two requests, as for a guest that does something with the answer.
THINK_US = 300


def p50_us(sock: Path, requests: int) -> float:
    """Return the median latency of one round."""
    return bench(sock, requests, THINK_US).latency.p50 / 1000


def main(disk: str, requests: int, strategies: list[str]) -> None:
    """Measure, and print each strategy's rounds."""
    leave_the_worker_alone()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for strategy in strategies:
            daemon = stack.enter_context(serving(strategy, disk, folder / strategy, "--read-only"))
            assert daemon.logged("started")["poll"] == strategy
            daemon.logged("listening")
        rounds = [{strategy: p50_us(folder / strategy, requests) for strategy in strategies} for _ in range(ROUNDS)]
    print(json.dumps({strategy: [each[strategy] for each in rounds] for strategy in strategies}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
