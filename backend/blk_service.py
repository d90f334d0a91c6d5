"""A disk as the daemon runs it: opened, counted, and followed when it grows."""

from __future__ import annotations

from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING

import trio

from .blk_config import lifetime
from .blk_connection import ConnectionWatch
from .blk_device import open_device
from .blk_disk import open_disk
from .blk_errors import ErrorWatch
from .blk_health import open_health
from .blk_metrics import BlkCollector
from .blk_opener import opener
from .blk_return import ReturnWatch
from .blk_unpolled import UnpolledWatch
from .metrics import Identity
from .resize import ResizeWatch
from .service import Service, nothing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from structlog.typing import FilteringBoundLogger

    from kpoll.nvme.pages import SmartLog

    from .config import BlkConfig


@contextmanager
def open_blk(config: BlkConfig, log: FilteringBoundLogger) -> Iterator[Service]:
    """Open the disk and make its device; close all on leaving, when no worker runs any more. Raises KpollError."""
    with ExitStack() as stack:
        name = config.device
        reached = None
        if config.nvme_tcp is not None:
            from .blk_fabrics import reach  # noqa: PLC0415 - other disks need none of it

            reached = stack.enter_context(reach(config.nvme_tcp, config.on_error))
            config = replace(config, blk_file=reached.node, nvme_tcp=None)
        disk = stack.enter_context(open_disk(config))
        again = stack.enter_context(opener(disk.fd)) if disk.fd >= 0 else None
        watched = config.metrics.tcp is not None or config.metrics.path is not None
        news = None if again is None else again.news
        health = stack.enter_context(open_health(disk.fd, watched=watched, news=news))

        def learn(page: SmartLog) -> None:
            disk.lifetime = lifetime(page.percent_used, page.avail_spare, page.spare_thresh)

        if health.log is not None:
            learn(health.log)
        device = stack.enter_context(open_device(config, disk, log))
        device.lifetime_used = health.used
        resize = stack.enter_context(closing(ResizeWatch(device, log)))
        errors = stack.enter_context(closing(ErrorWatch(device, config.on_error, log)))
        unpolled = stack.enter_context(closing(UnpolledWatch(device, log)))

        async def came_back() -> None:
            await resize.check()
            errors.disk_returned()
            health.returned()
            unpolled.returned()

        returned = stack.enter_context(closing(ReturnWatch(device, again, came_back, log)))

        async def watch() -> None:
            async with trio.open_nursery() as nursery:
                if reached is not None:
                    reached.tell(log)
                    nursery.start_soon(ConnectionWatch(reached.controller, reached.state_fd, log).run)
                nursery.start_soon(resize.run)
                nursery.start_soon(errors.run)
                nursery.start_soon(returned.run)
                nursery.start_soon(unpolled.run)
                if watched or health.late or disk.lifetime:
                    nursery.start_soon(health.run, log, learn, lambda: watched or device.lifetime_in_use)

        async def refresh() -> None:
            await returned.look()
            errors.resume()
            await resize.check()

        def ready() -> None:
            resize.open()
            returned.open()

        identity = Identity(name, version("kpoll"), device.engine.name, config.poll.strategy)
        yield Service(
            device=device,
            facts={
                "engine": device.engine.name,
                "engine_why": device.engine.why,
                "iopoll": device.engine.iopoll,
                "iopoll_why": device.iopoll.why,
                "pin_guest_memory": config.pin_guest_memory,
                "write_cache": disk.limits.write_cache,
                "capacity": disk.capacity,
                "queues": config.num_queues,
                "workers": config.workers,
                "read_only": config.read_only,
            },
            collector=BlkCollector(identity, device, health),
            ready=ready,
            watch=watch,
            refresh=refresh,
            abandon=nothing if reached is None else reached.abandon,
        )
