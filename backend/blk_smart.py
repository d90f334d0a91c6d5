"""An NVMe device's SMART figures as metrics, in base units (names: docs/metrics.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kpoll.nvme.pages import SmartLog

# Bits of Critical Warning, NVMe base 2.0 figure 207.
WARNINGS: Final = ("spare", "temperature", "reliability", "read_only", "backup", "persistent_memory")

_DATA_UNIT: Final = 512_000  # bytes
_ZERO_CELSIUS: Final = 273.15  # kelvin
_HOUR: Final = 3600  # seconds


def smart_metrics(device: str, page: SmartLog) -> Iterator[Metric]:
    """Yield the families.

    Args:
        device: The label.
        page: What the device says.

    """
    gauges = [
        ("available_spare_ratio", "Spare capacity that is left, 1 being all", page.avail_spare / 100),
        ("available_spare_threshold_ratio", "What it warns below", page.spare_thresh / 100),
        ("percentage_used_ratio", "How much of its estimated life is used; may exceed 1", page.percent_used / 100),
    ]
    if page.temperature:  # 0 kelvin: not told
        gauges.append(("temperature_celsius", "Composite temperature", round(page.temperature - _ZERO_CELSIUS, 2)))
    for name, text, value in gauges:
        gauge = GaugeMetricFamily(f"kpoll_nvme_{name}", text, labels=["device"])
        gauge.add_metric([device], value)
        yield gauge
    warning = GaugeMetricFamily(
        "kpoll_nvme_critical_warning", "1 for what the device warns of", labels=["device", "kind"]
    )
    for bit, kind in enumerate(WARNINGS):
        warning.add_metric([device, kind], page.critical_warning >> bit & 1)
    yield warning
    for name, text, value in (
        ("read_bytes", "Bytes read from the device, by whomever", page.data_units_read * _DATA_UNIT),
        ("written_bytes", "Bytes written to it", page.data_units_written * _DATA_UNIT),
        ("power_cycles", "Times that it was turned on", page.power_cycles),
        ("power_on_seconds", "For how long it was on", page.power_on_hours * _HOUR),
        ("unsafe_shutdowns", "Times that its power went without warning", page.unsafe_shutdowns),
        ("media_errors", "Times that data was lost or found damaged", page.media_errors),
        ("error_log_entries", "Entries that its error log has ever had", page.num_err_log_entries),
    ):
        counter = CounterMetricFamily(f"kpoll_nvme_{name}", text, labels=["device"])
        counter.add_metric([device], value)
        yield counter
