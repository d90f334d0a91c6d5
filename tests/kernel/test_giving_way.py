"""A worker never spins on a CPU that somebody else needs: a hog there keeps what it has beside one that never spins."""

from __future__ import annotations

import os

import pytest

from tests.kernel.share import shares


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="the driver needs a CPU of its own")
def test_a_spin_in_userspace_leaves_a_hog_what_it_has_beside_a_worker_that_never_spins() -> None:
    """A blind spin would leave it about half of the CPU."""
    seen = shares("off", "user")
    print(seen)
    assert seen["user"] >= 0.95 * seen["off"]
