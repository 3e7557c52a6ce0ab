"""``message-hub dead-letters requeue`` and ``purge``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import click

from message_hub_sync.cli.dead_letters import options
from message_hub_sync.cli.dead_letters.hub import connected, end_if_stopped, exit_code, reason
from message_hub_sync.cli.terminal import CommandError, Exit, Progress, Stop, say, say_json
from message_hub_sync.dead_letters import DeadLetter
from message_hub_sync.dead_letters.queues import requeue_selected, take_dead_letters
from message_hub_sync.dead_letters.reading import Patience
from message_hub_sync.dead_letters.requeueing import Named, Requeued
from message_hub_sync.dead_letters.selection import Selection
from message_hub_sync.transport.topology import DEAD_LETTER_SUFFIX

__all__ = ["purge", "requeue"]

#: Letters that are named on a terminal. --json names all.
_NAMED = 20

_every = click.option(
    "--all", "every", is_flag=True, help="All messages that are there now and that the options choose."
)
_dry_run = click.option("--dry-run", is_flag=True, help="Only count the messages; all of them stay.")
_json = click.option("--json", "as_json", is_flag=True, help="Write one JSON object per line.")


@click.command("requeue")
@options.url
@options.queue
@options.which
@_every
@_dry_run
@_json
@options.force
@options.timeout
def requeue(
    url: str, queue: str, every: bool, dry_run: bool, as_json: bool, force: bool, timeout: float, **chosen: Any
) -> None:
    """Put dead letters back into their queues: the oldest one that the options choose, or with --all all of them.

    Their service then handles them again. A requeued message gets all its attempts again, and no longer expires. It is
    removed from the dead-letter queue after the hub has confirmed it. A message that cannot be put back stays, and is
    named. Ctrl-C and SIGTERM end the command in order. If the connection is lost, it goes on when the hub is back, and
    names the messages that may be there twice, with the same message id. If it is killed, repeat it: at most 2,000
    messages are then there twice.
    """
    only, patience = options.selection(**chosen), Patience(step=timeout)
    most = sys.maxsize if every else 1
    with connected(url) as (transport, stop):
        if dry_run:
            take = partial(
                take_dead_letters, transport, queue, patience=patience, only=only, most=most, force=force, stop=stop
            )
            _say_what_would_be("put back", take, stop)
            return
        with Progress("letters put back") as progress:

            def done(letter: DeadLetter) -> None:
                progress.advance()
                if as_json:
                    say_json({"message_id": letter.message_id, "key": letter.key, "result": "requeued"})
                elif not every:
                    say(f"message {letter.message_id} ({reason(letter)}) is back in {letter.queue}")

            result = requeue_selected(
                transport, queue, patience, only=only, most=most, done=done, force=force, stop=stop
            )
        _report(result, queue.removesuffix(DEAD_LETTER_SUFFIX), only, as_json, stop)


def _report(result: Requeued, queue: str, only: Selection, as_json: bool, stop: Stop) -> None:
    """Say what has become of the letters, and choose the exit code."""
    _name(result.left, "stays", "left", as_json)
    _name(result.doubtful, "may be there twice", "doubtful", as_json)
    if not (result.count or result.left or result.doubtful or result.error or result.missed or stop()):
        raise CommandError(f"the queue {queue}{DEAD_LETTER_SUFFIX} has {only}; messages read: {result.found}")
    say(f"{result.count} put back into {queue}", err=as_json)
    if result.left:
        say(f"{len(result.left)} could not be put back, and stay", err=True)
    if result.doubtful:
        say(f"{len(result.doubtful)} may be there twice, with the same message id", err=True)
    if result.missed:
        say(f"{result.missed} were not delivered: another consumer holds them, or has taken them", err=True)
    if result.error is not None:
        raise CommandError(f"{result.error}; the others stay, repeat the command", exit_code(result.error))
    end_if_stopped(stop, f"{result.count} put back, the others stay")
    if result.doubtful:
        click.get_current_context().exit(Exit.DOUBTFUL)
    if result.left or result.missed:
        click.get_current_context().exit(Exit.NOT_ALL)


def _name(letters: list[Named], what: str, outcome: str, as_json: bool) -> None:
    if as_json:
        for one in letters:
            say_json({"message_id": one.message_id, "key": one.key, "result": outcome, "reason": one.reason})
        return
    for one in letters[:_NAMED]:
        say(f"message {one.message_id} (key {one.key}) {what}: {one.reason}", err=True)
    if len(letters) > _NAMED:
        say(f"… and {len(letters) - _NAMED} more: --json names all", err=True)


@click.command("purge")
@options.url
@options.queue
@options.which
@_every
@_dry_run
@click.option("--yes", is_flag=True, help="Do not ask.")
@options.force
@options.timeout
def purge(
    url: str, queue: str, every: bool, dry_run: bool, yes: bool, force: bool, timeout: float, **chosen: Any
) -> None:
    """Delete dead letters: the oldest one that the options choose, or with --all all of them.

    A deleted message cannot be brought back: export it first. Messages that come while the command runs stay.
    """
    only, patience = options.selection(**chosen), Patience(step=timeout)
    most = sys.maxsize if every else 1
    with connected(url) as (transport, stop):
        take = partial(
            take_dead_letters, transport, queue, patience=patience, only=only, most=most, force=force, stop=stop
        )
        if dry_run:
            _say_what_would_be("deleted", take, stop)
            return
        if not yes:
            if not sys.stdin.isatty():
                raise CommandError("standard input is no terminal, so nobody can be asked: give --yes", Exit.USAGE)
            click.confirm(
                f"delete {'all messages' if every else 'the oldest message'} that the options choose?", abort=True
            )
        deleted = _counted("letters deleted", partial(take, remove=True))
        end_if_stopped(stop, f"{deleted} deleted, the others stay")
    say(f"{deleted} deleted from {queue.removesuffix(DEAD_LETTER_SUFFIX)}{DEAD_LETTER_SUFFIX}")


#: Calls its argument with each letter that the options choose.
Take = Callable[[Callable[[DeadLetter], None]], object]


def _say_what_would_be(done: str, take: Take, stop: Stop) -> None:
    count = _counted("letters found", take)
    end_if_stopped(stop, f"{count} found so far")
    say(f"{count} would be {done}")


def _counted(shown: str, take: Take) -> int:
    """Take the letters, show the progress, and return how many they were."""
    count = 0
    with Progress(shown) as progress:

        def one(letter: DeadLetter) -> None:
            nonlocal count
            count += 1
            progress.advance()

        take(one)
    return count
