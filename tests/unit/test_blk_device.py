"""What a disk does with what its driver negotiated, without any driver."""

from __future__ import annotations

from typing import Any

import structlog

from kpoll.backend.blk_config import BlkFeature, lifetime
from kpoll.backend.blk_device import open_device
from kpoll.backend.blk_disk import open_disk
from kpoll.backend.config import BlkConfig, SocketConfig
from kpoll.backend.poll import PollConfig

CONFIG = BlkConfig(
    socket=SocketConfig(path="s"), poll=PollConfig(strategy="off", why=""), blk_file=None, size=1 << 20, engine="null"
)
LIFETIME = int(BlkFeature.VIRTIO_BLK_F_LIFETIME)


def test_a_driver_that_takes_the_feature_of_wear_uses_it_until_it_leaves() -> None:
    begun: list[int] = []
    session: Any = object()
    with open_disk(CONFIG) as disk:
        disk.lifetime = lifetime(50, 100, 10)
        with open_device(CONFIG, disk, structlog.get_logger()) as device:
            device.lifetime_used = lambda: begun.append(1)
            for _ in range(2):
                device.attach(session)
                for features in (0, LIFETIME, LIFETIME):
                    device.set_features(features)
                    assert device.lifetime_in_use == bool(features)
                device.attach(None)
                assert not device.lifetime_in_use
                device.set_features(0)
    assert begun == [1, 1]
