"""A vhost-user entropy device (virtio 1.2 §5.4, device id 4): the smallest whole device there is.

    python -m kpoll.vhost.examples.rng --socket-path /tmp/rng.sock
    qemu-system-x86_64 -object memory-backend-memfd,id=mem,size=1G,share=on -machine q35,memory-backend=mem \
        -chardev socket,id=rng,path=/tmp/rng.sock -device vhost-user-rng-pci,chardev=rng …

One virtqueue, no feature bits, no configuration space: the driver makes writable buffers available, the device fills
them with random bytes.
"""

from __future__ import annotations

import itertools
import os
import signal
import socket
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
import structlog
import trio

from kpoll.vhost.device import Device, VringConfig
from kpoll.vhost.features import VirtioFeature
from kpoll.vhost.memory import survive_truncation
from kpoll.vhost.serve import serve_connection
from kpoll.vhost.virtqueue import Virtqueue, VirtqueueFaultError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from structlog.typing import FilteringBoundLogger

CHUNK_MAX = 64 * 1024
"""Bytes given to one request. A driver may ask for more, and has to take less (virtio 1.2 §5.4.6)."""


class Rng(Device):
    """The entropy device."""

    num_queues = 1
    queue_size_max = 1024

    def __init__(self, nursery: trio.Nursery, log: FilteringBoundLogger) -> None:
        """Make the device; its one queue is served by a task in `nursery` while the vring runs."""
        self._nursery = nursery
        self._log = log
        self._queue: Virtqueue | None = None
        self._scope = trio.CancelScope()
        self._stopped = trio.Event()

    def features(self) -> int:
        """Offer both ring formats, and all that makes rings cheaper."""
        return (
            VirtioFeature.VIRTIO_F_VERSION_1
            | VirtioFeature.VIRTIO_F_INDIRECT_DESC
            | VirtioFeature.VIRTIO_F_EVENT_IDX
            | VirtioFeature.VIRTIO_F_RING_PACKED
        )

    async def start_vring(self, vring: VringConfig) -> None:
        """Begin to fill buffers."""
        queue = Virtqueue(vring)
        self._queue = queue
        self._scope = trio.CancelScope()
        self._stopped = trio.Event()
        self._nursery.start_soon(self._serve, queue)

    async def stop_vring(self, index: int) -> int:
        """Stop between two requests."""
        assert self._queue is not None, f"vring {index} was never started"
        self._scope.cancel()
        await self._stopped.wait()
        queue, self._queue = self._queue, None
        queue.close()
        return queue.base

    async def _serve(self, queue: Virtqueue) -> None:
        try:
            with self._scope:
                await self._fill(queue)
        except VirtqueueFaultError as e:
            self._log.error("queue_fault", queue=queue.index, kind=e.kind)
        finally:
            self._stopped.set()

    @staticmethod
    async def _fill(queue: Virtqueue) -> None:
        while True:
            chain = queue.pop()
            if chain is None:
                await queue.wait()
                continue
            queue.push(chain, chain.write(os.urandom(min(chain.room, CHUNK_MAX))))
            queue.publish()
            await trio.lowlevel.checkpoint()  # a driver that never stops asking is not all that we serve


@contextmanager
def listen(path: Path) -> Iterator[socket.socket]:
    """Listen at `path`, and leave nothing there in the end. Raises OSError when the path is taken."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        try:
            listener.listen(1)
            yield listener
        finally:
            path.unlink()


async def serve(listener: socket.socket, log: FilteringBoundLogger) -> None:
    """Serve one front-end after the other, until SIGTERM or SIGINT."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_accept, trio.socket.from_stdlib_socket(listener), nursery, log)
            await anext(signals)
            nursery.cancel_scope.cancel()


async def _accept(listener: trio.socket.SocketType, nursery: trio.Nursery, log: FilteringBoundLogger) -> None:
    device = Rng(nursery, log)
    for conn_id in itertools.count(1):
        sock, _ = await listener.accept()
        await serve_connection(sock, device, log, conn_id)


@click.command()
@click.option("--socket-path", required=True, type=click.Path(path_type=Path), help="Where QEMU's chardev connects.")
def main(socket_path: Path) -> None:
    """Serve entropy to the virtual machine that connects."""
    log = structlog.get_logger().bind(device="rng")
    try:
        survive_truncation()
        with listen(socket_path) as listener:
            log.info("listening", socket=str(socket_path))
            trio.run(serve, listener, log)
    except OSError as e:
        raise click.ClickException(f"{socket_path}: {e.strerror}") from e


if __name__ == "__main__":
    main()
