"""The options that the commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from message_hub_sync.dead_letters.selection import Selection
from message_hub_sync.runtime.real_time import time
from message_hub_sync.transport.topology import DEAD_LETTER_SUFFIX

__all__ = ["conditions", "force", "queue", "queue_name", "selection", "timeout", "url", "which"]

F = TypeVar("F", bound=Callable[..., Any])

#: Limits of --timeout in seconds. No answer takes as long as a day.
MIN_TIMEOUT, MAX_TIMEOUT = 0.1, 86_400.0
#: The shortest --key: shorter ones would often fit several letters.
_SHORTEST_KEY = 4
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def queue_name(context: click.Context, option: click.Parameter, value: Any) -> Any:
    """Check one queue name or several."""
    for name in value if isinstance(value, tuple) else (value,):
        if not name.removesuffix(DEAD_LETTER_SUFFIX):
            raise click.BadParameter("must be a queue name, not empty; for example campaign-service.messages")
    return value


def _seconds(context: click.Context, option: click.Parameter, value: float) -> float:
    if not MIN_TIMEOUT <= value <= MAX_TIMEOUT:  # also false for NaN, which click.FloatRange accepts
        raise click.BadParameter(f"must be a number of seconds from {MIN_TIMEOUT:g} to {MAX_TIMEOUT:g}, not {value}")
    return value


def _age(context: click.Context, option: click.Parameter, value: str | None) -> float | None:
    """The time of that age, in seconds since the epoch."""
    if value is None:
        return None
    found = re.fullmatch(r"([0-9]{1,6})([smhd])", value)
    if found is None:
        raise click.BadParameter("must be a number with s, m, h or d, for example 90s, 15m, 2h or 7d")
    return time.time() - int(found[1]) * _SECONDS[found[2]]


def _key(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    if value is not None and re.fullmatch(rf"[0-9a-f]{{{_SHORTEST_KEY},12}}", value) is None:
        raise click.BadParameter(f"must be at least {_SHORTEST_KEY} characters of a key that list --messages shows")
    return value


url = click.option(
    "--url",
    metavar="URL",
    envvar="MESSAGE_HUB_URL",
    default="amqp://localhost:5672",
    show_default=True,
    help="URL of the hub. Use MESSAGE_HUB_URL instead to keep the password out of the process list.",
    show_envvar=True,
)
queue = click.option(
    "--queue",
    required=True,
    metavar="QUEUE",
    callback=queue_name,
    help="Queue in which the message failed, for example campaign-service.messages.",
)
timeout = click.option(
    "--timeout",
    type=float,
    callback=_seconds,
    default=10.0,
    show_default=True,
    help="Seconds to wait for each answer of the hub.",
)
force = click.option(
    "--force", is_flag=True, help="Read the queue even if it drops a message that is read too often (delivery limit)."
)
_WHICH = (
    click.option("--message-id", metavar="ID", help="Only messages with this id."),
    click.option("--key", metavar="KEY", callback=_key, help="Only the message with this key, which list shows."),
)
_CONDITIONS = (
    click.option("--error", metavar="TEXT", help="Only messages whose error or reason contains this text."),
    click.option("--source", metavar="SERVICE", help="Only messages that this service sent."),
    click.option("--older-than", metavar="AGE", callback=_age, help="Only messages that failed before: 15m, 2h, 7d."),
    click.option("--newer-than", metavar="AGE", callback=_age, help="Only messages that have failed since then."),
)


def conditions(command: F) -> F:
    """Add the options that choose messages by error, source and age."""
    for option in reversed(_CONDITIONS):
        command = option(command)
    return command


def which(command: F) -> F:
    """Add all options that choose messages."""
    command = conditions(command)
    for option in reversed(_WHICH):
        command = option(command)
    return command


def selection(
    *,
    message_id: str | None = None,
    key: str | None = None,
    error: str | None,
    source: str | None,
    older_than: float | None,
    newer_than: float | None,
) -> Selection:
    """The messages that these options choose."""
    return Selection(message_id, key, error, source, failed_before=older_than, failed_after=newer_than)
