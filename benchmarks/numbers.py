"""Computes medians, spreads and ratios from measurements."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.rows import OURS, ROWS, Target
from benchmarks.running import Measurement

__all__ = ["Ratio", "Spread", "ratios", "spreads"]

#: Row, body size, competitor, metric.
Key = tuple[str, int, str, str]


@dataclass(frozen=True)
class Spread:
    """The median and range of several measurements of one number."""

    median: float
    least: float
    most: float
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values), len(values))


@dataclass(frozen=True)
class Ratio:
    """Our number divided by a peer's, over pairs that ran one after the other. ``target`` may be ``None``."""

    row: str
    body_bytes: int
    peer: str
    metric: str
    spread: Spread
    target: Target | None

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        if not self.target.met(self.spread.median):
            return "not met"
        return "met"

    @property
    def wanted(self) -> bool:
        """Whether the wanted value of the target is reached, too."""
        target = self.target
        if target is None or target.want is None:
            return False
        return Target(target.peer, target.want, metric=target.metric).met(self.spread.median)


def spreads(measurements: Iterable[Measurement]) -> dict[Key, Spread]:
    """The median and range of each number."""
    found: dict[Key, list[float]] = {}
    for measurement in measurements:
        for metric, value in measurement.numbers.items():
            if value == value:  # not NaN, which stands for a number that this machine does not provide
                key = (measurement.row, measurement.body_bytes, measurement.competitor, metric)
                found.setdefault(key, []).append(value)
    return {key: Spread.of(values) for key, values in found.items()}


def ratios(measurements: Sequence[Measurement]) -> list[Ratio]:
    """The median ratio of adjacent pairs, for each row, body size, peer and metric of the row."""
    ours = {(m.row, m.body_bytes, m.round, m.group): m.numbers for m in measurements if m.competitor == OURS}
    found: dict[Key, list[float]] = {}
    for theirs in measurements:
        mine = ours.get((theirs.row, theirs.body_bytes, theirs.round, theirs.group), {})
        if theirs.competitor == OURS:
            continue
        for metric in ROWS[theirs.row].metrics:
            if mine.get(metric) and theirs.numbers.get(metric):
                key = (theirs.row, theirs.body_bytes, theirs.competitor, metric)
                found.setdefault(key, []).append(mine[metric] / theirs.numbers[metric])
    return [
        Ratio(row, body, peer, metric, Spread.of(values), _target(row, peer, metric))
        for (row, body, peer, metric), values in found.items()
    ]


def _target(row: str, peer: str, metric: str) -> Target | None:
    return next((t for t in ROWS[row].targets if (t.peer, t.metric) == (peer, metric)), None)
