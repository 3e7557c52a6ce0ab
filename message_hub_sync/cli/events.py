"""``message-hub events``: shows the event catalogue, as a table, a document or a web page."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.table import Table

from message_hub_sync.catalogue import EventType, catalogue
from message_hub_sync.cli.asyncapi import asyncapi_document
from message_hub_sync.cli.mermaid import mermaid_flowchart
from message_hub_sync.cli.page import events_page
from message_hub_sync.runtime.text import shown

__all__ = ["events"]

_HEADINGS = ("Event", "Meaning", "Publisher", "Subscribers")


@click.command("events")
@click.option("--service", metavar="NAME", help="Show only events that this service publishes or subscribes to.")
@click.option(
    "--format",
    "output",
    type=click.Choice(["table", "json", "mermaid", "asyncapi"]),
    help="Output format.  [default: table]",
)
@click.option(
    "--html",
    "page",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a self-contained web page with a diagram of publishers, events and subscribers.",
)
def events(service: str | None, output: str | None, page: Path | None) -> None:
    """Show the event catalogue.

    For each event it shows the meaning, the publisher and the subscribers.
    """
    chosen = _chosen(service)
    if page is not None:
        try:
            page.write_text(events_page(chosen, service), encoding="utf-8")
        except OSError as error:
            raise click.ClickException(f"{page} cannot be written: {error.strerror}") from None
        click.echo(f"{len(chosen)} events written to {page}", err=True)
    if output is not None or page is None:
        _FORMATS[output or "table"](chosen, service)


def _chosen(service: str | None) -> tuple[EventType, ...]:
    if service is None:
        return tuple(catalogue)
    chosen = catalogue.of_service(service)
    if not chosen:
        known = ", ".join(catalogue.services())
        raise click.BadParameter(
            f"must be a service of the catalogue, not {shown(service)}; the catalogue has {known}",
            param_hint="'--service'",
        )
    return chosen


def _table(chosen: Sequence[EventType], service: str | None) -> None:
    rows = [
        (event.name, event.description, event.publisher or "-", ", ".join(event.subscribers) or "-") for event in chosen
    ]
    console = Console()
    if not console.is_terminal:
        # Not a terminal: one line per event for grep and awk, without wrapping and table borders.
        widths = [max(map(len, column)) for column in zip(_HEADINGS, *rows, strict=True)]
        for row in (_HEADINGS, *rows):
            click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    title = f"Events of {service}" if service else "Events of the Message Hub"
    table = Table(title=title, box=box.ROUNDED, header_style="bold")
    for heading, style in zip(_HEADINGS, ("cyan", "", "green", "magenta"), strict=True):
        table.add_column(heading, style=style, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _json(chosen: Sequence[EventType], service: str | None) -> None:
    click.echo(json.dumps([event.as_dict() for event in chosen], indent=2))


def _mermaid(chosen: Sequence[EventType], service: str | None) -> None:
    click.echo(mermaid_flowchart(chosen))


def _asyncapi(chosen: Sequence[EventType], service: str | None) -> None:
    click.echo(json.dumps(asyncapi_document(chosen, service), indent=2))


_FORMATS: dict[str, Callable[[Sequence[EventType], str | None], None]] = {
    "table": _table,
    "json": _json,
    "mermaid": _mermaid,
    "asyncapi": _asyncapi,
}
