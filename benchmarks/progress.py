"""Shows the progress of a run: a bar if rich is installed and stderr is a terminal, otherwise lines."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from benchmarks.rows import COMPETITORS, METRICS, ROWS
from benchmarks.running import Measurement

__all__ = ["Progress", "shown"]


def shown(value: float, metric: str) -> str:
    """A number with its unit, with as many digits as are significant."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    if value == int(value) and value < 100:
        digits = 0
    return f"{value:,.{digits}f} {METRICS[metric].unit}".strip()


class Progress:
    """Reports each measurement on stderr. Used by one thread."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            try:
                from rich.console import Console
                from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
                from rich.progress import Progress as Bar
            except ImportError:
                return self
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task("benchmarks", total=None)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def measured(self, number: int, total: int, found: Measurement) -> None:
        row = ROWS[found.row]
        what = row.title + (f", {found.body_bytes} bytes" if row.sized else "")
        numbers = ", ".join(
            shown(found.numbers[name], name) + (" CPU per 10k" if name == "cpu_per_10k" else "")
            for name in row.metrics
            if name in found.numbers
        )
        text = f"round {found.round + 1} · {what} · {COMPETITORS[found.competitor].title}: {numbers}"
        if found.error:
            # The JSON has the complete error.
            text = f"{text} FAILED: {found.error.splitlines()[-1]}"
        if self._bar is None:
            self.say(f"[{number}/{total}] {text}")
        else:
            self.say(text)
            self._bar.update(self._task, completed=number, total=total, description=f"round {found.round + 1}")
