"""``message-hub dead-letters``: messages that were given up, to look at elsewhere."""

from __future__ import annotations

import time
from pathlib import Path

import click

from message_hub_sync.config import ClientConfig, parse_addresses
from message_hub_sync.errors import MessageHubError
from message_hub_sync.session import _transport
from message_hub_sync.testing.dead_letter import save_dead_letter
from message_hub_sync.testing.dead_letter_queue import fetch_dead_letter

__all__ = ["dead_letters"]

#: Seconds for an orderly goodbye, once all is done.
CLOSE_TIMEOUT = 5.0


@click.group("dead-letters")
def dead_letters() -> None:
    """Messages that services have given up."""


@dead_letters.command("export")
@click.option(
    "--url",
    metavar="URL",
    envvar="MESSAGE_HUB_URL",
    default="amqp://localhost:5672",
    show_default=True,
    help="The hub; MESSAGE_HUB_URL where left out, which keeps a password out of the list of processes.",
)
@click.option(
    "--queue", required=True, metavar="QUEUE", help="The queue it failed in, for example campaign-service.messages."
)
@click.option(
    "--file",
    required=True,
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write it, as JSON.",
)
@click.option("--message-id", metavar="ID", help="Which one; the oldest where left out.")
@click.option("--remove", is_flag=True, help="Take it out of the dead-letter queue.")
@click.option("--force", is_flag=True, help="Replace FILE where it exists.")
@click.option(
    "--timeout", type=click.FloatRange(min=0.1), default=10.0, show_default=True, help="Seconds for all of it."
)
def export(url: str, queue: str, file: Path, message_id: str | None, remove: bool, force: bool, timeout: float) -> None:
    """Write one message that was given up to a file, which a test can load and replay.

    It stays in its dead-letter queue unless --remove is given.
    """
    if file.exists() and not force:
        raise click.ClickException(f"{file} exists: --force replaces it")
    deadline = time.monotonic() + timeout
    try:
        transport = _transport(ClientConfig("message-hub-dead-letters", parse_addresses(url)))
        try:
            letter = fetch_dead_letter(
                transport,
                queue,
                message_id,
                lambda found: save_dead_letter(found, file),
                remove=remove,
                deadline=deadline,
            )
        finally:
            transport.close(time.monotonic() + CLOSE_TIMEOUT)
    except MessageHubError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{file} cannot be written: {error.strerror}") from None
    reason = letter.failure.get("reason", "no reason is known")
    click.echo(f"message {letter.message_id} of {letter.queue} ({reason}) written to {file}", err=True)
