"""One ppoll spins on the virtqueue and on the network card: neither the guest nor the wire has to wake the worker."""

from __future__ import annotations

import json

from tests.kernel.quiet import OPTIONS
from tests.kernel.vm import vm_ok

TRIPS = 200
FEW = TRIPS // 4  # an isolated CPU has other things to do now and then, and then a spin ends


def test_while_the_kernel_polls_ring_and_card_nobody_wakes_the_worker_and_a_hog_keeps_its_share(patched: str) -> None:
    said = vm_ok("python", "-m", "tests.kernel.wire", str(TRIPS), kernel=patched, options=OPTIONS, seconds=300)
    print(said)
    seen = json.loads(said.splitlines()[-1])
    for off, kernel in zip(seen["off"], seen["kernel"], strict=True):
        assert off["kicks"] >= TRIPS
        assert kernel["kicks"] <= FEW
        assert kernel["sleeps"] <= FEW
        assert kernel["napi"] > 0
        assert kernel["missing"] == []
        assert kernel["hog"] >= 0.95 * off["hog"]
