"""``message-hub health``: for probes, and for a person who asks whether the hub is there."""

from __future__ import annotations

import os
from pathlib import Path

import click

from message_hub_sync.cli.exits import Exit, exit_code
from message_hub_sync.cli.terminal import CommandError, say, say_json
from message_hub_sync.client import MessageHubClient
from message_hub_sync.client.settings import ClientSettings
from message_hub_sync.errors import MessageHubError
from message_hub_sync.runtime.real_time import time

__all__ = ["health"]


@click.command("health")
@click.option("--ready", "probe", flag_value="ready", default=True, help="Connect to the hub.  [default]")
@click.option("--live", "probe", flag_value="live", help="Look at the liveness file of a worker. Do not connect.")
@click.option("--url", metavar="URL", help="URL of the hub, instead of MESSAGE_HUB_URL.")
@click.option(
    "--liveness-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file that message-hub consume touches; for --live.",
)
@click.option(
    "--max-age",
    type=click.FloatRange(min=1),
    default=20.0,
    show_default=True,
    help="Seconds after which the liveness file is too old.",
)
def health(probe: str, url: str | None, liveness_file: Path | None, max_age: float) -> None:
    """Tell whether the hub is there (--ready), or whether a worker of this machine works (--live).

    --ready connects with the settings of the environment and writes the state of the connection as JSON.

    Exit codes: 0 if so; 3 without a connection, 4 if the hub refuses the login, 1 after another error, and if the
    liveness file is missing or too old.
    """
    if probe == "live":
        if liveness_file is None:
            raise click.UsageError("--live needs --liveness-file, the file of message-hub consume")
        _check_age(liveness_file, max_age)
    else:
        _check_connection(url)


def _check_age(file: Path, max_age: float) -> None:
    try:
        age = time.time() - file.stat().st_mtime
    except OSError:
        raise CommandError(f"the liveness file {file} cannot be read: no worker writes it") from None
    if age > max_age:
        raise CommandError(f"the liveness file {file} was touched {age:.0f} s ago, at most {max_age:g} s are allowed")
    say(f"alive: {file} was touched {max(0.0, age):.0f} s ago")


def _check_connection(url: str | None) -> None:
    try:
        settings: ClientSettings = {} if url is None else {"rabbitmq_url": url}
        settings["service_name"] = os.environ.get("MESSAGE_HUB_SERVICE_NAME") or "message-hub-health"
        client = MessageHubClient.from_env(**settings)
        try:
            client.connect()
            status = client.get_health_status()
        finally:
            client.close()
    except MessageHubError as error:
        raise CommandError(str(error), exit_code(error)) from None
    say_json(status, indent=2)
    if not status["ready"]:
        raise CommandError(f"the hub is {status['status']}", Exit.NO_HUB)
