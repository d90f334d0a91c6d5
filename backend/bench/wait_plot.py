"""`kpoll bench wait` as a picture: one panel per question, one bar per strategy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kpoll.backend.bench.report import number
from kpoll.backend.bench.wait_report import LABELS
from kpoll.backend.errors import KpollError

if TYPE_CHECKING:
    from pathlib import Path

    from kpoll.backend.bench.wait_report import WaitReport

try:
    from matplotlib.figure import Figure
except ImportError as e:
    raise KpollError("matplotlib is missing: pip install 'kpoll[dev]'") from e

COLOURS: Final = {"off": "#b0b7bf", "user": "#5b8fd9", "module": "#d9a441", "kernel": "#1b7f5c", "blind": "#b5483a"}


def draw(report: WaitReport, path: Path) -> None:
    """Draw medians as bars and write them as the kind of file that the path's ending names (.svg, .png).

    Raises OSError if it can't be written.
    """
    names = list(report.rows)
    rows = report.rows.values()
    panels = [
        ("wake-up latency p50, µs (less is better)", [row.p50_us for row in rows]),
        ("CPU when idle, % (less is better)", [100 * row.idle_cpu for row in rows]),
        ("what a hog on the same CPU gets, % (more is better)", [100 * row.hog_share for row in rows]),
        ("kicks per request (less is better)", [row.kicks_per_request for row in rows]),
    ]
    figure = Figure(figsize=(9, 0.45 * (len(names) + 2) * 2), layout="constrained")
    for axes, (title, values) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        bars = axes.barh(range(len(names)), values, 0.7, color=[COLOURS[name] for name in names])
        axes.bar_label(bars, labels=[number(value) for value in values], fontsize=8, padding=2)
        axes.set_yticks(range(len(names)), [LABELS.get(name, name) for name in names])
        axes.invert_yaxis()
        axes.set_xlim(0, max([1e-9, *(value for value in values if value == value)]) * 1.15)  # noqa: PLR0124 - NaN
        axes.set_title(title, loc="left", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
