"""``flask message-hub``: consume, look at the health, show the events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from flask import current_app
from flask.cli import AppGroup

from message_hub_sync.cli.exits import Exit, exit_code
from message_hub_sync.client.worker import run_worker
from message_hub_sync.errors import MessageHubError

__all__ = ["message_hub_commands"]


class _Commands(AppGroup):
    """The commands, and ``events`` of the command line ``message-hub``, which is imported only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "events"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name != "events":
            return super().get_command(ctx, cmd_name)
        try:
            from message_hub_sync.cli.events import events
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != "rich":
                raise
            return click.Command("events", callback=_rich_is_missing, help="Show the event catalogue. Needs rich.")
        return events


def _rich_is_missing() -> None:
    raise click.ClickException("this command needs rich, which is not installed: pip install 'message-hub-sync[cli]'")


message_hub_commands = _Commands("message-hub", help="Consume from the Message Hub, or look at it.")


@message_hub_commands.command("consume")
@click.option(
    "--liveness-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Touch this file every 5 seconds while the client works.",
)
def consume(liveness_file: Path | None) -> None:
    """Run the handlers of this app until SIGTERM or SIGINT.

    Exit codes: 0 if every running handler ended in time, 5 if not; 3 without a connection, 4 if the hub refuses the
    login or a permission, 1 after another error.
    """
    hub = current_app.extensions["message_hub"]
    with _errors_as_exit_codes():
        drained = run_worker(hub.client, hub._consumer.consume, liveness_file)
    if not drained:
        click.get_current_context().exit(Exit.NOT_ALL)


@message_hub_commands.command("health")
@click.option("--live", "probe", flag_value="live", help="Do not connect. Tell only whether the app loads.")
@click.option("--ready", "probe", flag_value="ready", default=True, help="Connect, and tell the state.  [default]")
def health(probe: str) -> None:
    """Connect to the hub and show the state of this app's client, as JSON.

    Exit codes: 0 if it is ready, 3 without a connection, 4 if the hub refuses the login, 1 after another error.
    """
    client = current_app.extensions["message_hub"].client
    with _errors_as_exit_codes():
        if probe == "ready":
            client.connect()
        status = client.get_health_status()
        client.close()
    click.echo(json.dumps(status, indent=2))
    if probe == "ready" and not status["ready"]:
        click.get_current_context().exit(Exit.NO_HUB)


@contextmanager
def _errors_as_exit_codes() -> Iterator[None]:
    try:
        yield
    except MessageHubError as error:
        failure = click.ClickException(str(error))
        failure.exit_code = exit_code(error)  # type: ignore[misc]  # click declares it as ClassVar
        raise failure from None
