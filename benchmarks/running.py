"""Runs all rows, round by round. Each measurement has its own process; each peer is measured next to this library."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.hub import Hub
from benchmarks.rows import COMPETITORS, OURS, Row
from benchmarks.work import Task

__all__ = ["Measurement", "Plan", "run"]

_ROOT = Path(__file__).resolve().parent.parent
#: Seconds that one measurement may take. The slowest one takes 10 s.
_LONGEST = 90.0


@dataclass(frozen=True)
class Measurement:
    """The result of one process. Measurements of one ``group`` ran one after the other; ratios are taken within it."""

    row: str
    body_bytes: int
    round: int
    group: int
    competitor: str
    numbers: dict[str, float]
    error: str = ""


@dataclass(frozen=True)
class Plan:
    """What to run. ``scale``: the part of each row's messages; ``seconds``: the duration of the idle rows."""

    rows: Sequence[Row]
    peers: Sequence[str]
    bodies: Sequence[int]
    rounds: int
    scale: float = 1.0
    seconds: float = 5.0
    minutes: float = 60.0

    def steps(self) -> list[_Step]:
        """All steps in order. Rounds are the outer loop, so that an interrupted run has results for every row."""
        return [step for number in range(self.rounds) for step in self._round(number)]

    def _round(self, number: int) -> Iterator[_Step]:
        for row in self.rows:
            peers = [peer for peer in row.peers if peer in self.peers]
            for body in row.bodies or (self.bodies if row.sized else self.bodies[:1]):
                steps = [_Step(row, body, number, group, competitor) for group, competitor in _neighbours(peers)]
                yield from reversed(steps) if number % 2 else steps


@dataclass(frozen=True)
class _Step:
    row: Row
    body_bytes: int
    round: int
    group: int
    competitor: str

    def task(self, plan: Plan, hub: Hub) -> Task:
        pace = COMPETITORS[self.competitor].pace if self.row.paced else 1.0
        task = Task(
            competitor=self.competitor,
            operation=self.row.operation,
            host=hub.host,
            port=hub.port,
            service="",
            messages=int(self.row.messages * plan.scale * pace),
            body_bytes=self.body_bytes,
            seconds=plan.seconds,
            **dict(self.row.settings),
        )
        # At least two messages for each thread.
        return replace(task, messages=max(task.messages, 2 * task.threads)) if task.messages else task


def _neighbours(peers: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Groups of peer, ours, peer: each peer is measured directly before or after this library."""
    for first in range(0, max(len(peers), 1), 2):
        pair = peers[first : first + 2]
        for competitor in (*pair[:1], OURS, *pair[1:]):
            yield first // 2, competitor


def run(plan: Plan, hub: Hub, report: Callable[[int, int, Measurement], None]) -> Iterator[Measurement]:
    """Run the steps of the plan until its minutes are over.

    :param report: called with the number of the step, the number of all steps, and the measurement.
    """
    deadline = time.monotonic() + plan.minutes * 60
    steps = plan.steps()
    for number, step in enumerate(steps, 1):
        if time.monotonic() > deadline:
            return
        measurement = _measure(step, plan, hub)
        report(number, len(steps), measurement)
        yield measurement


def _measure(step: _Step, plan: Plan, hub: Hub) -> Measurement:
    task = step.task(plan, hub)
    task = replace(task, service=hub.fresh_queue(task.messages if step.row.filled else 0, task.body_bytes))
    numbers: dict[str, Any] = {}
    error = ""
    try:
        numbers = json.loads(_in_a_process(task))
    except (subprocess.SubprocessError, ValueError) as problem:
        output = getattr(problem, "stderr", None) or getattr(problem, "output", None) or ""
        error = f"{type(problem).__name__}: {output[-2000:]}".strip()
    finally:
        hub.forget(task.service)
    return Measurement(step.row.name, step.body_bytes, step.round, step.group, step.competitor, numbers, error)


def _in_a_process(task: Task) -> str:
    command = [sys.executable, "-m", "benchmarks.worker", task.to_json(), str(_LONGEST)]
    # If this process is interrupted, subprocess.run kills the worker. A worker that hangs ends itself.
    return subprocess.run(
        command,
        cwd=_ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_LONGEST + 10,
        check=True,
    ).stdout
