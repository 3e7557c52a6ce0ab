"""The command group ``message-hub``. Each command has its own module."""

from __future__ import annotations

import click

from message_hub_sync import __version__
from message_hub_sync.cli.consume.command import consume
from message_hub_sync.cli.dead_letters import dead_letters
from message_hub_sync.cli.demo.command import demo
from message_hub_sync.cli.events import events
from message_hub_sync.cli.health import health

__all__ = ["main"]


@click.group("message-hub", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="message-hub")
def main() -> None:
    """Consume from the Message Hub, or inspect it: its events, its dead letters, and a demo."""


main.add_command(consume)
main.add_command(dead_letters)
main.add_command(demo)
main.add_command(events)
main.add_command(health)
