"""Output of the demo: coloured in a terminal, plain lines otherwise, or one JSON document.

There is one line for each event or message. It is printed when all its deliveries have happened, in the order of
sending: a consequence of an event is never printed before the event.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Protocol

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from message_hub_sync.cli.demo.ledger import Sent
from message_hub_sync.cli.demo.report import Report
from message_hub_sync.runtime.real_time import time

__all__ = ["PATIENCE", "Screen", "open_screen"]

Cells = tuple[str, str, str, list[tuple[str, str]]]

#: Seconds without a new line after which the output says what the demo waits for.
PATIENCE = 2.0
_WIDTHS = (9, 27, 8)
_HEADINGS: Cells = ("from", "event ->message <->request", "correl.", [("handled by (after ms)", "")])
_COLOURS = {"character": "cyan", "campaign": "magenta", "image": "yellow", "llm": "green", "reply": "bold"}
_SUMMARY = ("service", "published", "sent", "expected", "handled", "median", "slowest")


class Screen(Protocol):
    """The output of the demo. Used by one thread."""

    def begin(self, hub: str) -> None: ...

    def scene(self, number: int, title: str) -> None: ...

    def show(self, sent: list[Sent]) -> None: ...

    def finish(self, report: Report) -> None: ...

    def close(self) -> None: ...


def open_screen(as_json: bool) -> Screen:
    """Choose the output: JSON if asked for, coloured if standard output is a terminal, otherwise plain."""
    if as_json:
        return _JsonScreen()
    console = Console(highlight=False)
    return _TerminalScreen(console) if console.is_terminal else _PlainScreen()


class _Ordered:
    """Decides which lines can be printed. Used by one thread."""

    def __init__(self) -> None:
        self._shown = 0  # number of lines printed
        self._since = time.monotonic()  # time of the last line

    def due(self, sent: list[Sent]) -> list[Sent]:
        """What can be printed now."""
        begin = self._shown
        while self._shown < len(sent) and not sent[self._shown].missing:
            self._shown += 1
        if self._shown > begin:
            self._since = time.monotonic()
        return sent[begin : self._shown]

    def rest(self, sent: Sequence[Sent]) -> Sequence[Sent]:
        """What was not printed, because a delivery is missing."""
        return sent[self._shown :]

    def awaited(self, sent: Sequence[Sent]) -> str | None:
        """A line that says what the demo waits for, if there was no line for ``PATIENCE`` seconds."""
        if time.monotonic() - self._since < PATIENCE:
            return None
        self._since = time.monotonic()
        waiting = [f"{service} to handle {one.name}" for one in self.rest(sent) for service in one.missing]
        return f"waiting for {', '.join(waiting) or 'the services'}"


class _PlainScreen:
    def __init__(self) -> None:
        self._lines = _Ordered()

    def begin(self, hub: str) -> None:
        click.echo(f"Four services exchange messages over {hub}")

    def scene(self, number: int, title: str) -> None:
        click.echo(f"\n{number}. {title}")
        if number == 1:
            click.echo(_plain(_HEADINGS))

    def show(self, sent: list[Sent]) -> None:
        for one in self._lines.due(sent):
            click.echo(_plain(_cells(one)))
        awaited = self._lines.awaited(sent)
        if awaited is not None:
            click.echo(f"... {awaited}")

    def finish(self, report: Report) -> None:
        for one in self._lines.rest(report.sent):
            click.echo(_plain(_cells(one)))
        rows = [_SUMMARY, *_summary_rows(report)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        click.echo("\nSummary (times in ms)")
        for row in rows:
            numbers = "  ".join(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
            click.echo(f"{row[0].ljust(widths[0])}  {numbers}")
        click.echo("\n" + "\n".join([*report.complaints, _verdict(report)]))

    def close(self) -> None:
        pass


class _TerminalScreen:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._lines = _Ordered()
        self._status = console.status("connecting")

    def begin(self, hub: str) -> None:
        self._console.print(Text.assemble("Four services exchange messages over ", (hub, "bold")))
        self._status.start()

    def scene(self, number: int, title: str) -> None:
        self._console.print()
        self._console.print(Text(f"{number}. {title}", style="bold"))
        if number == 1:
            self._print(_HEADINGS, "dim")
        self._status.update(title)

    def show(self, sent: list[Sent]) -> None:
        for one in self._lines.due(sent):
            self._print(_cells(one))
        awaited = self._lines.awaited(sent)
        if awaited is not None:
            self._status.update(awaited)

    def finish(self, report: Report) -> None:
        self._status.stop()
        for one in self._lines.rest(report.sent):
            self._print(_cells(one))
        table = Table(title="Summary (times in ms)", box=box.ROUNDED, header_style="bold", title_justify="left")
        for heading in _SUMMARY:
            table.add_column(heading, justify="left" if heading == "service" else "right")
        for row in _summary_rows(report):
            table.add_row(Text(row[0], style=_colour(row[0].removesuffix("-service"))), *row[1:])
        self._console.print()
        self._console.print(table)
        for complaint in report.complaints:
            self._console.print(Text(complaint, style="red"))
        self._console.print(Text(_verdict(report), style="bold green" if report.ok else "bold red"))

    def close(self) -> None:
        self._status.stop()

    def _print(self, cells: Cells, style: str = "") -> None:
        source, name, correlation, handled = cells
        row = Table.grid(padding=(0, 1))
        for width in _WIDTHS:
            row.add_column(width=width, overflow="fold")
        row.add_column(overflow="fold")
        people = Text("  ").join(Text.assemble((who, _colour(who)), f" {what}".rstrip()) for who, what in handled)
        row.add_row(Text(source, style=_colour(source)), name, Text(correlation, style="dim"), people, style=style)
        self._console.print(row)


class _JsonScreen:
    def begin(self, hub: str) -> None:
        pass

    def scene(self, number: int, title: str) -> None:
        pass

    def show(self, sent: list[Sent]) -> None:
        pass

    def finish(self, report: Report) -> None:
        click.echo(json.dumps(report.as_dict(), indent=2))

    def close(self) -> None:
        pass


def _cells(sent: Sent) -> Cells:
    name = sent.name
    if sent.kind != "event":
        name = f"{name} {'->' if sent.kind == 'message' else '<->'} {_short(sent.expected[0])}"
    handled = []
    for service in sent.expected:
        who = "reply" if sent.kind == "request" and service == sent.source else _short(service)
        receipt = sent.handled.get(service)
        if receipt is None or service in sent.missing:
            handled.append((who, "MISSING"))
        else:
            handled.append((who, f"{receipt.milliseconds:.1f}"))
    return _short(sent.source), name, sent.correlation_id[:8], handled or [("-", "")]


def _plain(cells: Cells) -> str:
    *fixed, handled = cells
    people = "  ".join(f"{who} {what}".rstrip() for who, what in handled)
    return " ".join([*(cell.ljust(width) for cell, width in zip(fixed, _WIDTHS, strict=True)), people])


def _short(service: str) -> str:
    return service.removesuffix("-service")


def _colour(service: str) -> str:
    return _COLOURS.get(service, "dim" if service == "-" else "")


def _summary_rows(report: Report) -> list[tuple[str, ...]]:
    return [
        (
            service.name,
            str(service.published),
            str(service.sent),
            str(service.expected),
            str(service.handled),
            "-" if service.median_ms is None else f"{service.median_ms:.1f}",
            "-" if service.slowest_ms is None else f"{service.slowest_ms:.1f}",
        )
        for service in report.services
    ]


def _verdict(report: Report) -> str:
    expected = sum(service.expected for service in report.services)
    handled = sum(service.handled for service in report.services)
    events = [one.name for one in report.sent if one.kind == "event"]
    return (
        f"{'Every delivery happened' if report.ok else 'Not every delivery happened'}: {handled} of {expected}, "
        f"of {len(events)} events ({len(set(events))} kinds) and {len(report.sent) - len(events)} messages, "
        f"in {report.seconds:.2f} s"
    )
