"""What goes to a terminal. Every text of another service passes :func:`say`, so that it cannot control the terminal."""

from __future__ import annotations

import shutil
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from types import FrameType, TracebackType
from typing import Any

import click
from rich.cells import cell_len, set_cell_size

from message_hub_sync.cli.exits import Exit
from message_hub_sync.runtime.real_time import time
from message_hub_sync.runtime.text import printable, printable_json

__all__ = ["CommandError", "Exit", "Progress", "Stop", "Table", "say", "say_json", "width"]

#: Characters of one line. Longer texts of other services are cut.
_LONGEST_LINE = 20_000
#: Rows that decide the widths of the columns.
_ROWS_FOR_WIDTHS = 200
#: Cells that the last column keeps on a narrow terminal, if leaving out other columns can give them.
_LAST_COLUMN = 24
#: Seconds until progress is shown, and between two updates.
_PROGRESS_AFTER, _PROGRESS_EVERY = 2.0, 0.25


class CommandError(click.ClickException):
    """Ends the command with one line on standard error."""

    def __init__(self, message: str, exit_code: int = Exit.FAILED) -> None:
        super().__init__(printable(message, _LONGEST_LINE))
        self.exit_code = exit_code  # type: ignore[misc]  # click declares it as ClassVar


def say(text: str, *, err: bool = False) -> None:
    """Write one line. Characters that control a terminal are escaped."""
    _write(printable(text, _LONGEST_LINE), err)


def say_json(value: Any, *, indent: int | None = None) -> None:
    """Write JSON, which has no character that controls a terminal."""
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "")
    _write(printable_json(value, indent=indent, ascii_only=encoding != "utf8"), False)


def _write(text: str, err: bool) -> None:
    stream = sys.stderr if err else sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    click.echo(text.encode(encoding, "backslashreplace").decode(encoding), err=err)


def width() -> int | None:
    """Cells per line of the terminal, or ``None`` if standard output is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


class Table:
    """Writes rows as they come. The first 200 rows decide the widths.

    :param columns: key and heading of each column. The last one takes what is left of a line.
    :param dropped: keys of columns to leave out on a narrow terminal, in this order. Others are ignored.
    """

    def __init__(self, columns: Mapping[str, str], dropped: Sequence[str] = ()) -> None:
        self._columns = dict(columns)
        self._dropped = [key for key in dropped if key in columns]
        self._rows: list[Mapping[str, str]] | None = [columns]
        self._widths: dict[str, int] = {}
        self._end = width()

    def add(self, row: Mapping[str, Any]) -> None:
        """Write one row, or keep it until the widths are known."""
        cells = {key: printable("-" if row[key] is None else str(row[key]), 500) for key in self._columns}
        if self._rows is None:
            self._line(cells)
        else:
            self._rows.append(cells)
            if len(self._rows) > _ROWS_FOR_WIDTHS:
                self.finish()

    def finish(self) -> None:
        """Write the rows that were kept."""
        rows, self._rows = self._rows or [], None
        if len(rows) < 2:
            return
        self._widths = {key: max(cell_len(row[key]) for row in rows) for key in self._columns}
        for key in self._dropped:
            *others, last = self._widths.values()
            if self._end is None or sum(others) + 2 * len(others) + min(last, _LAST_COLUMN) <= self._end:
                break
            del self._widths[key]
        for row in rows:
            self._line(row)

    def _line(self, cells: Mapping[str, str]) -> None:
        line = "  ".join(
            cells[key] + " " * max(0, size - cell_len(cells[key])) for key, size in self._widths.items()
        ).rstrip()
        if self._end is not None and cell_len(line) > self._end:
            line = set_cell_size(line, self._end - 1) + "…"
        say(line)


class Progress:
    """After two seconds, shows on standard error how far a command is. Shows nothing if that is no terminal.

    :param what: what is counted, for example ``letters read``.
    :param total: how many there are; ``None`` if that is not known.
    """

    def __init__(self, what: str, total: int | None = None) -> None:
        self._what = what
        self._total = total
        self._count = 0
        self._next = time.monotonic() + _PROGRESS_AFTER
        self._visible = sys.stderr.isatty()
        self._shown = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._shown:
            click.echo("\r\x1b[K", err=True, nl=False)

    def advance(self) -> None:
        """One more is done."""
        self._count += 1
        if self._visible and time.monotonic() >= self._next:
            self._next = time.monotonic() + _PROGRESS_EVERY
            self._shown = True
            total = "" if self._total is None else f" of {self._total:,}"
            click.echo(f"\r{self._count:,}{total} {self._what}\x1b[K", err=True, nl=False)


class Stop:
    """Inside the ``with`` block, SIGINT and SIGTERM are noted, so that the command can end in order.

    A second signal interrupts at once. Call the object to ask whether a signal came.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._earlier: dict[int, Any] = {}

    def __call__(self) -> bool:
        return self.number is not None

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._earlier[number] = signal.signal(number, self._signalled)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, earlier in self._earlier.items():
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            raise KeyboardInterrupt
        self.number = number
