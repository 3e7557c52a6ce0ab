"""``message-hub dead-letters show`` and ``export``."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import click

from message_hub_sync.cli.dead_letters import options
from message_hub_sync.cli.dead_letters.hub import connected, end_if_stopped, reason
from message_hub_sync.cli.terminal import CommandError, Progress, say, say_json
from message_hub_sync.dead_letters import DeadLetter, dead_letter_json, save_dead_letter
from message_hub_sync.dead_letters.queues import take_dead_letters
from message_hub_sync.dead_letters.reading import Patience

__all__ = ["export", "show"]


@click.command("show")
@options.url
@options.queue
@options.which
@options.force
@options.timeout
def show(url: str, queue: str, force: bool, timeout: float, **chosen: Any) -> None:
    """Show one dead letter as JSON: the oldest one that the options choose.

    The JSON contains the payload and the traceback. The message stays in the dead-letter queue.
    """
    only = options.selection(**chosen)
    found: list[DeadLetter] = []
    with connected(url) as (transport, stop):
        seen = take_dead_letters(
            transport, queue, found.append, Patience(step=timeout), only=only, most=1, force=force, stop=stop
        )
        end_if_stopped(stop, f"{seen} messages read")
    if not found:
        raise CommandError(f"the queue {queue} has {only}; messages read: {seen}")
    say_json(json.loads(dead_letter_json(found[0])), indent=2)


@click.command("export")
@options.url
@options.queue
@click.option("--file", metavar="FILE", type=click.Path(path_type=Path), help="File to write, as JSON.")
@click.option(
    "--directory",
    metavar="DIR",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="Directory to write all chosen messages to, a file for each.",
)
@options.which
@click.option("--remove", is_flag=True, help="Remove the messages from the dead-letter queue.")
@click.option("--force", is_flag=True, help="Replace files that exist, and read a queue with a delivery limit.")
@options.timeout
def export(
    url: str,
    queue: str,
    file: Path | None,
    directory: Path | None,
    remove: bool,
    force: bool,
    timeout: float,
    **chosen: Any,
) -> None:
    """Write dead letters to files: to FILE the oldest one that the options choose, to DIR all of them.

    A test can load and replay a file. A message stays in the dead-letter queue unless --remove is given. It is removed
    after its file is complete, so an interrupted command can be repeated.
    """
    if (file is None) == (directory is None):
        raise click.UsageError("name a file with --file, or a directory with --directory")
    if file is not None and file.is_dir():
        raise click.BadParameter(f"{file} is a directory: name a file in it", param_hint="'--file'")
    only = options.selection(**chosen)
    files = _Files(file, directory, force)
    with connected(url) as (transport, stop), Progress("letters written") as progress:

        def write(letter: DeadLetter) -> None:
            files.write(letter)
            progress.advance()

        patience = Patience(step=timeout)
        most = 1 if file is not None else sys.maxsize
        seen = take_dead_letters(
            transport, queue, write, patience, only=only, most=most, remove=remove, force=force, stop=stop
        )
        end_if_stopped(stop, f"{files.count} messages written")
    if not files.count:
        raise CommandError(f"the queue {queue} has {only}; messages read: {seen}")
    if directory is not None:
        say(f"{files.count} messages written to {directory}", err=True)


class _Files:
    def __init__(self, file: Path | None, directory: Path | None, force: bool) -> None:
        self._file = file
        self._directory = directory
        self._force = force
        self._names: dict[str, int] = {}  # how many letters of this run have this name
        self.count = 0

    def write(self, letter: DeadLetter) -> None:
        """Write one letter."""
        path = self._file or self._path(letter)
        # Checked only here: an existing file does not matter if there is no dead letter to write.
        try:
            # The same letter, written by a run that was interrupted, is no other file.
            if path.exists() and not self._force and not self._is(path, letter):
                raise CommandError(f"{path} exists: use --force to replace it")
            save_dead_letter(letter, path)
        except OSError as error:
            raise CommandError(f"{path} cannot be written: {error.strerror}") from None
        self.count += 1
        if self._file is not None:
            say(f"message {letter.message_id} of {letter.queue} ({reason(letter)}) written to {path}", err=True)

    def _is(self, path: Path, letter: DeadLetter) -> bool:
        return self._directory is not None and path.read_bytes() == dead_letter_json(letter).encode()

    def _path(self, letter: DeadLetter) -> Path:
        assert self._directory is not None
        name = "-".join(filter(None, (re.sub(r"[^0-9A-Za-z-]", "", letter.message_id or "")[:64], letter.key)))
        number = self._names[name] = self._names.get(name, 0) + 1
        return self._directory / (f"{name}.json" if number == 1 else f"{name}-{number}.json")
