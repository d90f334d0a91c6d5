"""What a network card counts: frames, their bytes, and those that were dropped (names: docs/metrics.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from kpoll.kernel.busy_poll import busy_poll_rx_packets, incoming_napi_id
from kpoll.vhost._core import ffi, lib

from .metrics import DeviceCollector, Identity

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from .net_device import NetDevice

# Labels of enum net_drop, in its order.
DROPS: Final = tuple(ffi.string(lib.net_drop_name(i)).decode() for i in range(lib.NET_DROPS))


class NetCollector(DeviceCollector):
    """Reads a network card's counters at each scrape."""

    def __init__(self, identity: Identity, device: NetDevice) -> None:
        """Collect from `device`."""
        super().__init__(identity, device)
        self._card = device

    def own_metrics(self) -> Iterator[Metric]:
        """Yield the families of frames, and of the network card below; the log says why frames were dropped."""
        self._card.errors.tell()
        yield from self._frames()
        sock = self._card.ports.sock
        if sock is not None:
            yield from self._busy_poll(sock)

    def _frames(self) -> Iterator[Metric]:
        labels = ["device", "queue", "direction"]
        packets = CounterMetricFamily("kpoll_net_packets", "Frames that arrived", labels=labels)
        sizes = CounterMetricFamily("kpoll_net_bytes", "Their bytes", labels=labels)
        drops = CounterMetricFamily("kpoll_net_drops", "Frames that did not", labels=[*labels, "reason"])
        for queue in (queue for queue in self._card.queues if queue.used):
            stats = queue.stats
            key = [self.identity.device, str(queue.index), queue.direction]
            packets.add_metric(key, stats.packets)
            sizes.add_metric(key, stats.bytes)
            for i, reason in enumerate(DROPS):
                drops.add_metric([*key, reason], stats.drops[i])
        yield from (packets, sizes, drops)

    def _busy_poll(self, sock: socket.socket) -> Iterator[Metric]:
        device = self.identity.device
        napi = GaugeMetricFamily(
            "kpoll_net_napi_id", "The NAPI that the last frame came through, 0 if none", labels=["device"]
        )
        napi.add_metric([device], incoming_napi_id(sock))
        yield napi
        packets = busy_poll_rx_packets()
        if packets is not None:
            found = CounterMetricFamily(
                "kpoll_net_busy_poll_packets",
                "Packets that busy polling has found in this network namespace, whoever polled",
                labels=["device"],
            )
            found.add_metric([device], packets)
            yield found
