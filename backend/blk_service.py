"""A disk as the daemon runs it: opened, counted, and followed when it grows."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

from .blk_device import open_device
from .blk_disk import open_disk
from .blk_metrics import BlkCollector
from .metrics import Identity
from .resize import ResizeWatch
from .service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from structlog.typing import FilteringBoundLogger

    from .config import BlkConfig


@contextmanager
def open_blk(config: BlkConfig, log: FilteringBoundLogger) -> Iterator[Service]:
    """Open the disk and make its device; close all on leaving, when no worker runs any more. Raises KpollError."""
    with ExitStack() as stack:
        disk = stack.enter_context(open_disk(config))
        device = stack.enter_context(open_device(config, disk, log))
        resize = ResizeWatch(device, log)
        stack.callback(resize.close)
        identity = Identity(config.device, version("kpoll"), device.engine.name, config.poll.strategy)
        yield Service(
            device=device,
            facts={
                "engine": device.engine.name,
                "engine_why": device.engine.why,
                "capacity": disk.capacity,
                "queues": config.num_queues,
                "workers": config.workers,
                "read_only": config.read_only,
            },
            collector=BlkCollector(identity, device),
            ready=resize.open,
            watch=resize.run,
            refresh=resize.check,
        )
