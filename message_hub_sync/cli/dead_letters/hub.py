"""The connection of a command to the hub, and its errors as exit codes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import click

from message_hub_sync.cli import exits
from message_hub_sync.cli.terminal import CommandError, Exit, Stop, say
from message_hub_sync.client.session import _transport
from message_hub_sync.config import ClientConfig, MemoryAddress, parse_addresses
from message_hub_sync.dead_letters.letter import DeadLetter
from message_hub_sync.dead_letters.reading import ReadingIsNotFree
from message_hub_sync.errors import MessageHubError, MessageValidationError
from message_hub_sync.runtime.real_time import time
from message_hub_sync.transport.base import LARGEST_BODY, Transport

__all__ = ["connected", "end_if_stopped", "exit_code", "reason", "summary"]

#: Seconds for closing the connection at the end.
CLOSE_TIMEOUT = 5.0


@contextlib.contextmanager
def connected(url: str) -> Iterator[tuple[Transport, Stop]]:
    """A transport to the hub, and whether a signal came. Errors of the hub become one line on standard error."""
    # Without any handler, Python would also write the log records of these errors to standard error.
    silent, log = logging.NullHandler(), logging.getLogger("message_hub_sync")
    log.addHandler(silent)
    note = ""
    try:
        # Of a larger body only the size would be read, so its letter could not be put back.
        config = ClientConfig("message-hub-dead-letters", parse_addresses(url), max_message_bytes=LARGEST_BODY)
        if isinstance(config.address, MemoryAddress):
            note = " (a memory:// hub lives inside one process, and this command is another one: give the broker's URL)"
        transport = _transport(config)
        with Stop() as stop:
            try:
                yield transport, stop
            finally:
                transport.close(time.monotonic() + CLOSE_TIMEOUT)
    except MessageValidationError as error:
        raise CommandError(f"{error}{note}") from None
    except MessageHubError as error:
        raise CommandError(str(error), exit_code(error)) from None
    finally:
        log.removeHandler(silent)


def exit_code(error: MessageHubError) -> int:
    """The exit code of an error of the hub."""
    return Exit.NEEDS_FORCE if isinstance(error, ReadingIsNotFree) else exits.exit_code(error)


def end_if_stopped(stop: Stop, done: str) -> None:
    """After a signal: say what was done, and end with the exit code of the signal."""
    if stop.number is not None:
        say(f"interrupted: {done}", err=True)
        click.get_current_context().exit(Exit.SIGNALLED + stop.number)


def reason(letter: DeadLetter | None) -> str:
    """Why a letter failed."""
    return "-" if letter is None else str(letter.failure.get("reason", "reason unknown"))


def summary(letter: DeadLetter) -> dict[str, object]:
    """What ``--json`` writes about one letter."""
    known = ("first_failed_at", "attempts", "error_type", "error_message")
    failure = {name: letter.failure.get(name) for name in known}
    return {
        "queue": letter.queue,
        "message_id": letter.message_id,
        "key": letter.key,
        "source": letter.properties.headers.get("source"),
        **failure,
        "reason": reason(letter),
    }
