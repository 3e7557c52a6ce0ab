"""Actions that a forked child runs first. Only this module registers with ``os.register_at_fork``."""

from __future__ import annotations

import os
from collections.abc import Callable

from message_hub_sync.runtime.log import SafeLogger

__all__ = ["call_after_fork_in_child"]

logger = SafeLogger("message_hub_sync.fork")

# An action cannot be removed, as os.register_at_fork cannot unregister.
_actions: list[Callable[[], None]] = []  # appended to at import only, by the thread that holds the import lock


def call_after_fork_in_child(action: Callable[[], None]) -> None:
    """Register ``action`` to run in each forked child, in the order of registration.

    Call this at import only. An action must not acquire a lock of the parent, but create a new one: a thread that does
    not exist in the child may have held the lock at the fork. If an action raises, the error is logged and the next
    action runs.

    :param action: called without arguments, on the only thread of the child. It cannot be unregistered.
    """
    _actions.append(action)


def _after_fork_in_child() -> None:
    for action in _actions:
        try:
            action()
        except Exception:
            logger.exception("an action after the fork failed in the child process; the remaining actions run")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
