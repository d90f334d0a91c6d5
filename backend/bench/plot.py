"""The comparison as a picture: three panels, one per metric, a group of bars per case."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kpoll.backend.bench.report import number
from kpoll.backend.errors import KpollError

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from kpoll.backend.bench.compare import Case, Results, type_metric
    from kpoll.backend.bench.peers import Peer

try:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
except ImportError as e:
    raise KpollError("matplotlib is missing: pip install 'kpoll[dev]'") from e

COLOURS: Final = ("#1b7f5c", "#b0b7bf", "#5b8fd9", "#d9a441", "#8a5bd9")
_GROUP: Final = 0.8  # of the distance between two cases
_NARROW: Final = 3  # cases that a panel has room for at least: bars of one case need not fill it


def draw(cases: list[Case], peers: list[Peer], results: Results, path: Path) -> None:
    """Draw medians as bars and write them as an SVG file; cases with a null disk have panels of their own."""
    panels: list[tuple[str, type_metric, list[Case]]] = [
        ("thousand requests per second, zram (more is better)", "kIOPS", _pick(cases, "disk", deep=True)),
        ("latency p50 at depth 1, µs (less is better)", "p50 µs", _pick(cases, None, deep=False)),
        ("back-end CPU per request, µs (less is better)", "CPU µs/IO", _pick(cases, "disk", deep=True)),
        ("thousand requests per second, null disk (more is better)", "kIOPS", _pick(cases, "null", deep=True)),
    ]
    shown = [panel for panel in panels if panel[2]]
    figure = Figure(figsize=(9, 2.9 * len(shown)), layout="constrained")
    FigureCanvasSVG(figure)
    for axes, (title, metric, some) in zip(figure.subplots(len(shown), squeeze=False)[:, 0], shown, strict=True):
        _panel(axes, some, peers, results, metric)
        axes.set_title(title, loc="left", fontsize=10)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(peers), frameon=False
    )
    figure.savefig(path)


def _pick(cases: list[Case], target: str | None, *, deep: bool) -> list[Case]:
    return [case for case in cases if target in (None, case.target) and deep == (case.load["iodepth"] > 1)]


def _panel(axes: Axes, cases: list[Case], peers: list[Peer], results: Results, metric: type_metric) -> None:
    width = _GROUP / len(peers)
    for index, peer in enumerate(peers):
        at = [place + (index - (len(peers) - 1) / 2) * width for place in range(len(cases))]
        heights = [results.median(case, peer, metric) for case in cases]
        bars = axes.bar(at, heights, width, label=peer.name, color=COLOURS[index % len(COLOURS)])
        axes.bar_label(bars, labels=[number(height) for height in heights], fontsize=8, padding=1)
    axes.set_xticks(range(len(cases)), [case.name for case in cases])
    axes.set_xlim(-0.6, max(len(cases), _NARROW) - 0.4)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.15)
