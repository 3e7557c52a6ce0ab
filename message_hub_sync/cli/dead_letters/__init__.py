"""``message-hub dead-letters``: list, show, requeue, export and purge dead letters."""

from __future__ import annotations

import click

from message_hub_sync.cli.dead_letters.listing import show_all
from message_hub_sync.cli.dead_letters.moving import purge, requeue
from message_hub_sync.cli.dead_letters.reading import export, show

__all__ = ["dead_letters"]


@click.group("dead-letters")
def dead_letters() -> None:
    """List, show, requeue, export and purge dead letters.

    A dead letter is a message or event that its service could not handle.

    Exit codes: 0 done, 1 not there or another error, 2 wrong options, 3 no hub or no answer in time, 4 not allowed,
    5 some letters were left, 6 some may be there twice, 7 reading would cost letters (see --force), 130 and 143
    ended by SIGINT or SIGTERM.
    """


for _command in (show_all, show, requeue, export, purge):
    dead_letters.add_command(_command)
