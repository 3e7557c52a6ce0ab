"""Plots the medians: one panel per row, with this library and its peers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.numbers import Key, Spread, spreads
from benchmarks.progress import shown
from benchmarks.rows import COMPETITORS, OURS, ROWS, Row
from benchmarks.running import Measurement

__all__ = ["plotted"]

_OURS, _PEER, _LIMIT, _TEXT, _FAINT = "#1f6feb", "#9aa4b2", "#d5dae1", "#24292f", "#6e7781"
_COLUMNS = 3


def plotted(about: dict[str, Any], measurements: Sequence[Measurement], path: Path) -> str | None:
    """Write the plot.

    :returns: ``None``, or why it was not written.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        return "no plot: pip install matplotlib"
    mpl.use("Agg")
    from matplotlib import pyplot

    found = spreads(measurements)
    body = min((key[1] for key in found), default=0)
    rows = [
        row
        for row in ROWS.values()
        if row.metrics[0] in ("rate", "p50_us") and any(key[:2] == (row.name, body) for key in found)
    ]
    if not rows:
        return "no plot: no row with a rate or a latency was run"
    lines = -(-len(rows) // _COLUMNS)
    figure, axes = pyplot.subplots(
        lines, min(_COLUMNS, len(rows)), figsize=(5.6 * min(_COLUMNS, len(rows)), 2.9 * lines + 0.9), squeeze=False
    )
    for panel, axis in enumerate(axes.flat):
        if panel < len(rows):
            _panel(axis, rows[panel], body, found)
        else:
            axis.set_visible(False)
    figure.suptitle(
        f"Medians of {about['rounds']} round{'s' if about['rounds'] > 1 else ''}, {body}-byte body; "
        "lines: least and most; "
        "in brackets: the client's CPU seconds per 10,000 messages",
        x=0.01,
        ha="left",
        fontsize=11,
        color=_TEXT,
    )
    figure.text(
        0.01,
        0.005,
        f"{about['date'][:10]} · {about['machine']} · {about['python']} · RabbitMQ {about['rabbitmq']}, same machine",
        fontsize=8,
        color=_FAINT,
    )
    figure.tight_layout(rect=(0, 0.02, 1, 0.98))
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return None


def _panel(axis: Any, row: Row, body: int, found: dict[Key, Spread]) -> None:
    metric = row.metrics[0]
    names = [name for name in COMPETITORS if (row.name, body, name, metric) in found]
    bars = [found[row.name, body, name, metric] for name in names]
    most = max(spread.most for spread in bars)
    for position, (name, spread) in enumerate(zip(names, bars, strict=True)):
        colour = _OURS if name == OURS else _LIMIT if name == "librabbitmq" else _PEER
        axis.barh(position, spread.median, color=colour, height=0.72)
        if spread.runs > 1:
            axis.plot([spread.least, spread.most], [position, position], color=_TEXT, linewidth=1, alpha=0.7)
        label = shown(spread.median, metric).split(" ")[0]
        cpu = found.get((row.name, body, name, "cpu_per_10k"))
        label += f"  ({cpu.median:.2f})" if cpu else ""
        axis.text(
            spread.most + most * 0.02,
            position,
            label,
            va="center",
            fontsize=8.5,
            color=_TEXT,
            fontweight="bold" if name == OURS else "normal",
        )
    axis.set_yticks(range(len(names)), [COMPETITORS[name].title for name in names], fontsize=9, color=_TEXT)
    # The same number of positions in each panel, so that all bars have the same thickness.
    axis.set_ylim(max(len(row.peers) for row in ROWS.values()) + 0.5, -0.5)
    axis.set_xlim(0, most * 1.32)
    unit = "messages per second, more is better" if metric == "rate" else "µs, median of one in flight, less is better"
    axis.set_title(f"{row.title}\n", fontsize=10.5, loc="left", color=_TEXT, fontweight="bold")
    axis.text(0, 1.03, unit, transform=axis.transAxes, fontsize=8, color=_FAINT)
    axis.xaxis.set_major_locator(_few_ticks())
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.tick_params(axis="x", labelsize=8, colors=_FAINT, length=0)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", color="#eaeef2", linewidth=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right", "bottom", "left"):
        axis.spines[side].set_visible(False)


def _few_ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(4)
