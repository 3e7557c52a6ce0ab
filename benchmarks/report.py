"""The report of a run, as JSON and as tables in Markdown."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.numbers import Key, Ratio, Spread, ratios, spreads
from benchmarks.progress import shown
from benchmarks.rows import COMPETITORS, METRICS, ROWS
from benchmarks.running import Measurement

__all__ = ["as_json", "as_markdown", "circumstances"]


def circumstances(versions: dict[str, str], broker: str, missing: dict[str, str]) -> dict[str, Any]:
    """The machine and the versions of a run."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {_processor()}",
        "load_average_before": os.getloadavg()[0],
        "rabbitmq": broker,
        "versions": versions,
        "missing": missing,
    }


def as_json(about: dict[str, Any], measurements: Sequence[Measurement]) -> str:
    """All measurements, and the medians and ratios that were computed from them."""
    document = {
        **about,
        "medians": [
            {"row": row, "body_bytes": body, "competitor": competitor, "metric": metric, **asdict(spread)}
            for (row, body, competitor, metric), spread in spreads(measurements).items()
        ],
        "ratios": [
            {
                "row": ratio.row,
                "body_bytes": ratio.body_bytes,
                "peer": ratio.peer,
                "metric": ratio.metric,
                **asdict(ratio.spread),
                "target": str(ratio.target) if ratio.target else None,
                "verdict": ratio.verdict or None,
            }
            for ratio in ratios(measurements)
        ],
        "measurements": [asdict(measurement) for measurement in measurements],
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def as_markdown(about: dict[str, Any], measurements: Sequence[Measurement], plot: Path | None) -> str:
    """The ratios with their targets, then the medians (minimum to maximum) of every number."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [
        "# Benchmarks",
        "",
        f"{about['date']} · {about['machine']} · {about['python']} · RabbitMQ {about['rabbitmq']} on the same machine "
        f"(load average before: {about['load_average_before']:.1f}) · {versions}",
        "",
        f"Median of {about['rounds']} round{'s' if about['rounds'] > 1 else ''} (least to most), order reversed each "
        "round, each measurement in a process of its own, on a fresh durable queue, with persistent messages.",
    ]
    if about["measured"] < about["planned"]:
        lines += ["", f"Ended early: {about['measured']} of {about['planned']} measurements."]
    lines += [f"\nMissing: {name} ({why})." for name, why in about["missing"].items()]
    failed = [m for m in measurements if m.error]
    lines += [f"\nFailed: {m.row}, {m.competitor}, round {m.round + 1}." for m in failed]
    if plot is not None:
        lines += ["", f"![Medians]({plot.name})"]
    lines += ["", "## Ratios: this library to each peer", "", *_ratio_table(ratios(measurements))]
    found = spreads(measurements)
    for metric in METRICS:
        for body in sorted({key[1] for key in found}):
            table = _table(metric, body, found)
            if table:
                bytes_of = f", {body}-byte body" if metric in ("rate", "cpu_per_10k") else ""
                unit = METRICS[metric].unit
                lines += [
                    "",
                    f"## {METRICS[metric].title[0].upper()}{METRICS[metric].title[1:]}"
                    f"{f' ({unit})' if unit else ''}{bytes_of}",
                    "",
                    *table,
                ]
    return "\n".join(lines) + "\n"


def _ratio_table(found: Sequence[Ratio]) -> list[str]:
    """The ratios with a target. Above 1, our number is larger than the peer's; below 1, it is smaller."""
    lines = ["| | body | peer | number | target | ratio | |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for ratio in found:
        if ratio.target is None:
            continue
        verdict = (
            "**not met**" if ratio.verdict == "not met" else "met, and where it should be" if ratio.wanted else "met"
        )
        size = str(ratio.body_bytes) if ROWS[ratio.row].sized else ""
        number = "messages per second" if ratio.metric == "rate" else METRICS[ratio.metric].title
        lines.append(
            f"| {ROWS[ratio.row].title} | {size} | {COMPETITORS[ratio.peer].title} | {number} "
            f"| {ratio.target} | {_around(ratio.spread, None)} | {verdict} |"
        )
    return lines if len(lines) > 2 else ["No peer with a target took part."]


def _table(metric: str, body: int, found: dict[Key, Spread]) -> list[str]:
    rows = [
        name for name, row in ROWS.items() if metric in row.metrics and any(key[:2] == (name, body) for key in found)
    ]
    columns = [name for name in COMPETITORS if any((row, body, name, metric) in found for row in rows)]
    if not rows or not columns:
        return []
    lines = ["| | " + " | ".join(COMPETITORS[name].title for name in columns) + " |"]
    lines.append("| --- |" + " ---: |" * len(columns))
    for row in rows:
        cells = [_around(found.get((row, body, name, metric)), metric) for name in columns]
        lines.append(f"| {ROWS[row].title} | " + " | ".join(cells) + " |")
    return lines


def _around(spread: Spread | None, metric: str | None) -> str:
    """``median (minimum to maximum)``. The unit is in the heading."""
    if spread is None:
        return "—"

    def written(value: float) -> str:
        return f"{value:.2f}" if metric is None else shown(value, metric).removesuffix(METRICS[metric].unit).strip()

    if spread.runs == 1 or spread.least == spread.most:
        return written(spread.median)
    return f"{written(spread.median)} ({written(spread.least)} to {written(spread.most)})"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "processor unknown"
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "processor unknown"
    )
