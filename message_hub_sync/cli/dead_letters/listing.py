"""``message-hub dead-letters list``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from message_hub_sync.cli.dead_letters import options
from message_hub_sync.cli.dead_letters.hub import connected, end_if_stopped, exit_code, reason, summary
from message_hub_sync.cli.terminal import CommandError, Progress, Stop, Table, say, say_json
from message_hub_sync.dead_letters import DeadLetter, Gathered, dead_letter_queues, existing, gathered
from message_hub_sync.dead_letters.queues import take_dead_letters
from message_hub_sync.dead_letters.reading import Patience, ReadingIsNotFree
from message_hub_sync.dead_letters.selection import Selection
from message_hub_sync.envelope.names import validate_service_name
from message_hub_sync.errors import MessageValidationError
from message_hub_sync.transport.base import Transport
from message_hub_sync.transport.topology import DEAD_LETTER_SUFFIX

__all__ = ["show_all"]

#: Key in JSON and heading of each column.
_QUEUE_COLUMNS = {
    "queue": "Queue",
    "depth": "Letters",
    "first_failed_at": "Oldest since",
    "message_id": "Oldest id",
    "reason": "Oldest reason",
}
_MESSAGE_COLUMNS = {
    "queue": "Queue",
    "message_id": "Message id",
    "key": "Key",
    "first_failed_at": "First failed",
    "attempts": "Attempts",
    "error": "Error",
}
_GROUP_COLUMNS = {
    "queue": "Queue",
    "count": "Letters",
    "source": "Source",
    "first_failed_at": "Oldest since",
    "error": "Error",
}
#: Groups of --group beyond this number are counted together.
_MOST_GROUPS = 1_000
_MORE = "(other errors)"


@click.command("list")
@options.url
@click.option("--service", "services", multiple=True, metavar="NAME", help="Service to look at; repeatable.")
@click.option(
    "--queue",
    "queues",
    multiple=True,
    metavar="QUEUE",
    callback=options.queue_name,
    help="Queue to look at; repeatable.",
)
@click.option("--messages", is_flag=True, help="Show one line per message: key, first failure, attempts and error.")
@click.option("--group", is_flag=True, help="Show one line per source and error: how many messages, since when.")
@options.conditions
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object per line.")
@options.force
@options.timeout
def show_all(
    url: str,
    services: tuple[str, ...],
    queues: tuple[str, ...],
    messages: bool,
    group: bool,
    as_json: bool,
    force: bool,
    timeout: float,
    **chosen: Any,
) -> None:
    """Show which queues have dead letters.

    For each queue it shows the number of dead letters, and when and why the oldest one failed. Letters that another
    command or consumer holds are not counted.

    For a service, the command looks at its inbox, the events of the catalogue and their patterns. AMQP cannot list
    queues: add the queues of the service's other events with --queue. If none of the queues exists, the exit code is 1.
    """
    if not services and not queues:
        raise click.UsageError("name a service with --service, or a queue with --queue")
    only = options.selection(**chosen)
    each = messages or group
    if not each and not only.takes_all:
        raise click.UsageError("--error, --source, --older-than and --newer-than need --messages or --group")
    with connected(url) as (transport, stop):
        patience = Patience(step=timeout)
        looked_at = {service: dead_letter_queues(validate_service_name(service)) for service in services}
        names = [*queues, *(name for of_service in looked_at.values() for name in of_service)]
        found = gathered(transport, names, patience.next(), with_oldest=False)
        # How many queues exist: otherwise a mistyped service name looks like a service without dead letters.
        there = {service: len(existing(transport, names, patience.next())) for service, names in looked_at.items()}
        named = existing(transport, queues, patience.next())
        _say_what_was_looked_at({service: len(names) for service, names in looked_at.items()}, there)
        if not named and not any(there.values()):
            raise CommandError("none of the queues looked at exists: check the names, and the virtual host in --url")
        _say_what_is_not_counted(found)
        columns = _GROUP_COLUMNS if group else _MESSAGE_COLUMNS if messages else _QUEUE_COLUMNS
        # The queue is the column one came for, unless all letters are of one queue.
        one_queue = each and sum(bool(one.depth) for one in found) == 1
        rows = _Rows(
            as_json, columns, (*(["queue"] if one_queue else []), "attempts", "message_id", "source", "first_failed_at")
        )
        refused: ReadingIsNotFree | None = None
        if each:
            with rows:
                refused = _read(transport, found, patience, only, force, stop, _Groups(rows) if group else rows)
        else:
            with rows:
                for one in found:
                    [state] = gathered(transport, [one.queue], patience.next(), force=force) or [one]
                    rows.overview(state)
        end_if_stopped(stop, f"{rows.count} lines written")
    if refused is not None:
        raise CommandError(str(refused), exit_code(refused))


def _say_what_was_looked_at(looked_at: dict[str, int], there: dict[str, int]) -> None:
    for service, count in there.items():
        say(f"of the {looked_at[service]} queues looked at for {service}, {count} exist", err=True)
    if there:
        first = next(iter(there))
        say(f"AMQP cannot list queues: add those of events of your own, as --queue {first}.EVENT_TYPE", err=True)


def _say_what_is_not_counted(found: list[Gathered]) -> None:
    for one in found:
        if one.consumers:
            say(
                f"{one.queue} has {one.consumers} consumer{'s' if one.consumers > 1 else ''}, another command or a "
                "program: the letters that it holds are not counted",
                err=True,
            )
    if not any(one.depth for one in found):
        say("no dead letters in those that exist (letters that somebody holds are not counted)", err=True)


class _Rows:
    """Writes rows as a table or as JSON."""

    def __init__(self, as_json: bool, columns: dict[str, str], dropped: tuple[str, ...]) -> None:
        self._table = None if as_json else Table(columns, dropped)
        self.count = 0

    def __enter__(self) -> _Rows:
        return self

    def __exit__(self, *failure: object) -> None:
        if self._table is not None:
            self._table.finish()

    def overview(self, one: Gathered) -> None:
        """One queue."""
        if not one.depth and not one.consumers:
            return
        known = {} if one.oldest is None else summary(one.oldest)
        kept = {name: known.get(name) for name in ("first_failed_at", "message_id", "key", "reason")}
        if not one.reading_is_free:
            kept["reason"] = "not read: the queue drops a message that is read too often (see --force)"
        queue = one.queue.removesuffix(DEAD_LETTER_SUFFIX)
        self.write({"queue": queue, "depth": one.depth, "consumers": one.consumers, **kept})

    def letter(self, letter: DeadLetter) -> None:
        """One letter."""
        self.write(summary(letter), error=_error(letter))

    def end(self) -> None:
        """All letters were written."""

    def write(self, row: dict[str, Any], **only_in_table: str) -> None:
        """One row."""
        self.count += 1
        if self._table is None:
            say_json(row)
        else:
            since = str(row.get("first_failed_at") or "-")[:19]
            self._table.add({**row, **only_in_table, "first_failed_at": since})


class _Groups:
    """Counts letters by queue, source and error."""

    def __init__(self, rows: _Rows) -> None:
        self._rows = rows
        self._groups: dict[tuple[str, str, str], dict[str, Any]] = {}

    def letter(self, letter: DeadLetter) -> None:
        """Count one letter."""
        error = str(letter.failure.get("error_type") or reason(letter))[:200]
        source = str(letter.properties.headers.get("source"))[:200]
        group = (letter.queue, source, error)
        if group not in self._groups and len(self._groups) >= _MOST_GROUPS:
            group = (letter.queue, "-", _MORE)
        since = str(letter.failure.get("first_failed_at") or "-")
        if group in self._groups:
            self._groups[group]["count"] += 1
        else:
            queue, source, error = group
            self._groups[group] = {
                "queue": queue,
                "count": 1,
                "source": source,
                "error": error,
                "first_failed_at": since,
            }

    def end(self) -> None:
        """Write the groups, the largest first."""
        for row in sorted(self._groups.values(), key=lambda row: -int(row["count"])):
            self._rows.write(row)


def _read(
    transport: Transport,
    found: list[Gathered],
    patience: Patience,
    only: Selection,
    force: bool,
    stop: Stop,
    rows: _Rows | _Groups,
) -> ReadingIsNotFree | None:
    """Read the letters of all queues; the error of the first one that must not be read."""
    refused = None
    with Progress("letters read", sum(one.depth for one in found)) as progress:

        def seen(act: Callable[[DeadLetter], None]) -> Callable[[DeadLetter], None]:
            def one(letter: DeadLetter) -> None:
                progress.advance()
                act(letter)

            return one

        for one in found:
            if stop() or not one.depth:
                continue
            try:
                take_dead_letters(transport, one.queue, seen(rows.letter), patience, only=only, force=force, stop=stop)
            except ReadingIsNotFree as error:
                refused = refused or error
            except MessageValidationError:  # it has been emptied or deleted meanwhile
                continue
        rows.end()
    return refused


def _error(letter: DeadLetter) -> str:
    # Some have only a reason, for example a message that expired: no handler raised an exception.
    error_type = letter.failure.get("error_type")
    return reason(letter) if error_type is None else f"{error_type}: {letter.failure.get('error_message')}"
