"""A disk under each strategy, side by side in one VM run: what it does to latency that the kernel polls.

Times are emulation's (TCG), and good for ratios only; the best round of each is compared, since what a CPU loses to the
host only ever adds.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.kernel.quiet import OPTIONS, SPIN_US, spin_for
from tests.kernel.vm import SLOWER, vm_ok

if TYPE_CHECKING:
    from tests.kernel.compiled import Compiled

STRATEGIES = ("off", "user", "module", "kernel")
REQUESTS = 200

pytestmark = pytest.mark.skipif(SLOWER > 1, reason="a debug kernel's checks take longer than what is compared")


@pytest.fixture(scope="module")
def quickest(patched: str, patched_module: Compiled) -> dict[str, float]:
    """Measure null_blk, a disk that answers at once: return each strategy's best median, µs."""
    options = (
        *(*OPTIONS, "--module", str(patched_module.file)),
        *(*spin_for("kernel", SPIN_US), *spin_for("module", SPIN_US)),
    )
    command = ("python", "-m", "tests.kernel.latency", "/dev/nullb0", str(REQUESTS), *STRATEGIES)
    said = vm_ok(*command, kernel=patched, options=options, seconds=300)
    print(said)
    rounds: dict[str, list[float]] = json.loads(said.splitlines()[-1])
    return {strategy: min(rounds[strategy]) for strategy in STRATEGIES}


@pytest.mark.parametrize("strategy", ["kernel", "module"])
def test_a_disk_answers_sooner_where_the_kernel_polls(quickest: dict[str, float], strategy: str) -> None:
    assert quickest[strategy] <= 0.7 * quickest["off"]
