"""The exit codes of all commands."""

from __future__ import annotations

from enum import IntEnum

from message_hub_sync.errors import MessageHubAuthorizationError, MessageHubConnectionError, MessageHubError

__all__ = ["Exit", "exit_code"]


class Exit(IntEnum):
    """Exit codes, by kind. 0 is success."""

    FAILED = 1
    """What was asked for is not there, or any other error."""
    USAGE = 2
    """Wrong options."""
    NO_HUB = 3
    """No connection, or no answer in time."""
    NOT_ALLOWED = 4
    """The hub refuses the login, or the user lacks a permission."""
    NOT_ALL = 5
    """The rest was done. What was left is named."""
    DOUBTFUL = 6
    """Some messages may be there twice, because a connection was lost. They are named."""
    NEEDS_FORCE = 7
    """Reading would cost messages: see ``--force``."""
    SIGNALLED = 128
    """Plus the number of the signal: 130 for Ctrl-C, 143 for SIGTERM."""


def exit_code(error: MessageHubError) -> Exit:
    """The exit code of an error of the hub."""
    if isinstance(error, MessageHubAuthorizationError):
        return Exit.NOT_ALLOWED
    return Exit.NO_HUB if isinstance(error, MessageHubConnectionError) else Exit.FAILED
