"""Writes the table in docs/reliability.md. Rows of faults that ran replace their old rows."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from pathlib import Path

from faults.oracle import Counts
from faults.rows import ROWS

__all__ = ["Row", "write_table"]

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
_BEGIN, _END = "<!-- faults: begin -->", "<!-- faults: end -->"
_COLUMNS = [one.name for one in fields(Counts)]


@dataclass
class Row:
    """The results of the tests of one fault. Used by the one thread of the suite.

    ``played``: a text that the table shows instead of the number of passed tests.
    """

    passed: int = 0
    failed: int = 0
    not_run: list[str] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    played: str = ""

    def line(self, number: int) -> str:
        """The row as a line of the table."""
        if self.failed:
            result = "**fails**"
        else:
            played = self.played or f"{self.passed} test{'s' if self.passed != 1 else ''}"
            result = f"holds ({played})" if self.passed else "not run"
        if self.not_run:
            result += "; not run: " + "; ".join(self.not_run)
        counted = [f"{getattr(self.counts, name):,}" if self.counts.invoked else "" for name in _COLUMNS]
        return f"| {number} | {ROWS[number]} | {result} | {' | '.join(counted)} |"


def write_table(rows: dict[int, Row], document: Path = DOCUMENT) -> None:
    """Replace these rows in the document. Other rows stay unchanged."""
    text = document.read_text("utf-8")
    before, table, after = _parts(text)
    lines = {int(match[1]): match[0] for match in re.finditer(r"^\| (\d+) \|.*$", table, re.MULTILINE)}
    lines.update({number: row.line(number) for number, row in rows.items()})
    header = f"| # | fault | result | {' | '.join(_COLUMNS)} |\n| --- | --- | --- |{' ---: |' * len(_COLUMNS)}"
    body = "\n".join(lines[number] for number in sorted(lines))
    document.write_text(f"{before}{_BEGIN}\n{header}\n{body}\n{_END}{after}", "utf-8")


def _parts(text: str) -> tuple[str, str, str]:
    before, begin, rest = text.partition(_BEGIN)
    table, end, after = rest.partition(_END)
    assert begin, f"the document has no line {_BEGIN}"
    assert end, f"the document has no line {_END}"
    return before, table, after
