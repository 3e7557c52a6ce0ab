"""``message-hub dead-letters``: list, show, requeue and export dead letters."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from message_hub_sync.client.session import _transport
from message_hub_sync.config import ClientConfig, MemoryAddress, parse_addresses
from message_hub_sync.dead_letters import (
    DeadLetter,
    Gathered,
    dead_letter_json,
    dead_letter_queues,
    each_dead_letter,
    existing,
    fetch_dead_letter,
    gathered,
    requeue_dead_letters,
    save_dead_letter,
)
from message_hub_sync.envelope.names import validate_service_name
from message_hub_sync.errors import MessageHubError, MessageValidationError
from message_hub_sync.runtime.real_time import time
from message_hub_sync.runtime.text import printable
from message_hub_sync.transport.base import Transport
from message_hub_sync.transport.topology import DEAD_LETTER_SUFFIX

__all__ = ["dead_letters"]

#: Seconds for closing the connection at the end.
CLOSE_TIMEOUT = 5.0
#: Limits of --timeout in seconds. No command takes as long as a day.
MIN_TIMEOUT, MAX_TIMEOUT = 0.1, 86_400.0


@click.group("dead-letters")
def dead_letters() -> None:
    """List, show, requeue and export dead letters.

    A dead letter is a message or event that its service could not handle.
    """


def _queue_name(context: click.Context, option: click.Parameter, value: Any) -> Any:
    for name in value if isinstance(value, tuple) else (value,):
        if not name.removesuffix(DEAD_LETTER_SUFFIX):
            raise click.BadParameter("must be a queue name, not empty; for example campaign-service.messages")
    return value


def _seconds(context: click.Context, option: click.Parameter, value: float) -> float:
    if not MIN_TIMEOUT <= value <= MAX_TIMEOUT:  # also false for NaN, which click.FloatRange accepts
        raise click.BadParameter(f"must be a number of seconds from {MIN_TIMEOUT:g} to {MAX_TIMEOUT:g}, not {value}")
    return value


_url = click.option(
    "--url",
    metavar="URL",
    envvar="MESSAGE_HUB_URL",
    default="amqp://localhost:5672",
    show_default=True,
    help="URL of the hub. Use MESSAGE_HUB_URL instead to keep the password out of the process list.",
    show_envvar=True,
)
_queue = click.option(
    "--queue",
    required=True,
    metavar="QUEUE",
    callback=_queue_name,
    help="Queue in which the message failed, for example campaign-service.messages.",
)
_message_id = click.option("--message-id", metavar="ID", help="Id of the message.  [default: the oldest]")
_timeout = click.option(
    "--timeout",
    type=float,
    callback=_seconds,
    default=10.0,
    show_default=True,
    help="Seconds for the whole command.",
)


@dead_letters.command("list")
@_url
@click.option("--service", "services", multiple=True, metavar="NAME", help="Service to look at; repeatable.")
@click.option(
    "--queue", "queues", multiple=True, metavar="QUEUE", callback=_queue_name, help="Queue to look at; repeatable."
)
@click.option("--messages", is_flag=True, help="Show one line per message: first failure, attempts and error.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object per line.")
@_timeout
def show_all(
    url: str, services: tuple[str, ...], queues: tuple[str, ...], messages: bool, as_json: bool, timeout: float
) -> None:
    """Show which queues have dead letters.

    For each queue it shows the number of dead letters, and when and why the oldest one failed.

    For a service, the command looks at its inbox, the events of the catalogue and their patterns. AMQP cannot list
    queues: add the queues of the service's other events with --queue. If none of the queues exists, the exit code is 1.
    """
    if not services and not queues:
        raise click.UsageError("name a service with --service, or a queue with --queue")
    with _hub(url) as transport:
        deadline = time.monotonic() + timeout
        looked_at = {service: dead_letter_queues(validate_service_name(service)) for service in services}
        names = [*queues, *(name for of_service in looked_at.values() for name in of_service)]
        found = gathered(transport, names, deadline, with_oldest=not messages)
        # How many queues exist: otherwise a mistyped service name looks like a service without dead letters.
        there = {service: len(existing(transport, of_service, deadline)) for service, of_service in looked_at.items()}
        named = existing(transport, queues, deadline)
        letters: list[dict[str, Any]] = []
        for one in found if messages else ():
            each_dead_letter(transport, one.queue, lambda letter: letters.append(_summary(letter)), deadline)
    for service, count in there.items():
        click.echo(f"of the {len(looked_at[service])} queues looked at for {service}, {count} exist", err=True)
    if services:
        click.echo(
            f"AMQP cannot list queues: add those of events of your own, as --queue {services[0]}.EVENT_TYPE", err=True
        )
    if not named and not any(there.values()):
        raise click.ClickException(
            "none of the queues looked at exists: check the names, and the virtual host in --url"
        )
    if not found:
        click.echo("no dead letters in those that exist", err=True)
        return
    if messages:
        _show(letters, as_json, _MESSAGE_COLUMNS)
    else:
        _show([_overview(one) for one in found], as_json, _QUEUE_COLUMNS)


@dead_letters.command("show")
@_url
@_queue
@_message_id
@_timeout
def show(url: str, queue: str, message_id: str | None, timeout: float) -> None:
    """Show one dead letter as JSON.

    The JSON contains the payload and the traceback. The message stays in the dead-letter queue.
    """
    with _hub(url) as transport:
        letter = fetch_dead_letter(
            transport, queue, message_id, lambda found: None, deadline=time.monotonic() + timeout
        )
    click.echo(dead_letter_json(letter), nl=False)


@dead_letters.command("requeue")
@_url
@_queue
@_message_id
@click.option("--all", "every", is_flag=True, help="Requeue all messages that are there now.")
@_timeout
def requeue(url: str, queue: str, message_id: str | None, every: bool, timeout: float) -> None:
    """Put dead letters back into their queues.

    Their service then handles them again. A requeued message gets all its attempts again, and no longer expires. It is
    removed from the dead-letter queue after the hub has confirmed it. If the command is interrupted in between, both
    queues hold the message, with the same message id.
    """
    if every and message_id is not None:
        raise click.UsageError("--message-id and --all exclude each other: give one of the two")
    with _hub(url) as transport:
        count = requeue_dead_letters(
            transport, queue, message_id, _print_moved("back in"), every=every, deadline=time.monotonic() + timeout
        )
    click.echo(f"{count} put back into {queue.removesuffix(DEAD_LETTER_SUFFIX)}")


@dead_letters.command("export")
@_url
@_queue
@click.option(
    "--file",
    required=True,
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write, as JSON.",
)
@_message_id
@click.option("--remove", is_flag=True, help="Remove the message from the dead-letter queue.")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@_timeout
def export(url: str, queue: str, file: Path, message_id: str | None, remove: bool, force: bool, timeout: float) -> None:
    """Write one dead letter to a file.

    A test can load and replay it. The message stays in the dead-letter queue unless --remove is given.
    """
    if file.is_dir():
        raise click.BadParameter(f"{file} is a directory: name a file in it", param_hint="'--file'")

    def save(letter: DeadLetter) -> None:
        # Checked only here: an existing file does not matter if there is no dead letter to write.
        if file.exists() and not force:
            raise click.ClickException(f"{file} exists: use --force to replace it")
        try:
            save_dead_letter(letter, file)
        except OSError as error:
            raise click.ClickException(f"{file} cannot be written: {error.strerror}") from None

    with _hub(url) as transport:
        letter = fetch_dead_letter(
            transport, queue, message_id, save, remove=remove, deadline=time.monotonic() + timeout
        )
    click.echo(f"message {letter.message_id} of {letter.queue} ({_reason(letter)}) written to {file}", err=True)


@contextlib.contextmanager
def _hub(url: str) -> Iterator[Transport]:
    """A transport to the hub. Its errors become one line on standard error."""
    # Without any handler, Python would also write the log records of these errors to standard error.
    silent, log = logging.NullHandler(), logging.getLogger("message_hub_sync")
    log.addHandler(silent)
    note = ""
    try:
        config = ClientConfig("message-hub-dead-letters", parse_addresses(url))
        if isinstance(config.address, MemoryAddress):
            note = " (a memory:// hub lives inside one process, and this command is another one: give the broker's URL)"
        transport = _transport(config)
        try:
            yield transport
        finally:
            transport.close(time.monotonic() + CLOSE_TIMEOUT)
    except MessageValidationError as error:
        raise click.ClickException(f"{error}{note}") from None
    except MessageHubError as error:
        raise click.ClickException(str(error)) from None
    finally:
        log.removeHandler(silent)


def _print_moved(what: str) -> Callable[[DeadLetter], None]:
    return lambda letter: click.echo(f"message {letter.message_id} ({_reason(letter)}) is {what} {letter.queue}")


#: Key in JSON and heading of each column. Lines are cut at the terminal's width.
_QUEUE_COLUMNS = {
    "queue": "Queue",
    "depth": "Depth",
    "first_failed_at": "Oldest since",
    "message_id": "Oldest id",
    "reason": "Oldest reason",
}
_MESSAGE_COLUMNS = {
    "queue": "Queue",
    "message_id": "Message id",
    "first_failed_at": "First failed",
    "attempts": "Attempts",
    "error": "Error",
}


def _overview(one: Gathered) -> dict[str, Any]:
    summary = {} if one.oldest is None else _summary(one.oldest)
    kept = {key: summary.get(key) for key in ("first_failed_at", "message_id", "reason")}
    return {"queue": one.queue.removesuffix(DEAD_LETTER_SUFFIX), "depth": one.depth, **kept}


def _summary(letter: DeadLetter) -> dict[str, Any]:
    known = ("first_failed_at", "attempts", "error_type", "error_message")
    failure = {key: letter.failure.get(key) for key in known}
    return {"queue": letter.queue, "message_id": letter.message_id, **failure, "reason": _reason(letter)}


def _show(found: list[dict[str, Any]], as_json: bool, columns: dict[str, str]) -> None:
    if as_json:
        for one in found:
            click.echo(json.dumps(one, ensure_ascii=False, default=str))
        return
    rows = [tuple(columns.values()), *(tuple(_cell(one, key) for key in columns) for one in found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    end = _width()
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        click.echo(line if end is None else printable(line, end))


def _cell(one: dict[str, Any], key: str) -> str:
    if key == "error":
        # Some have only a reason, for example a message that expired: no handler raised an exception.
        raised = one["error_type"] is not None
        return printable(f"{one['error_type']}: {one['error_message']}" if raised else one["reason"], 500)
    value = one[key]
    text = "-" if value is None else str(value)
    # Headers come from the publisher: escape control characters and cut the text.
    return printable(text[:19] if key == "first_failed_at" else text, 500)


def _width() -> int | None:
    """Characters per line of the terminal, or ``None`` if standard output is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _reason(letter: DeadLetter | None) -> str:
    return "-" if letter is None else str(letter.failure.get("reason", "reason unknown"))
