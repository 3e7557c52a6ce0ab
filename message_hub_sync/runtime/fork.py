"""What a forked child has to do before anything else. The one place that registers with ``os.register_at_fork``."""

from __future__ import annotations

import os
from collections.abc import Callable

from message_hub_sync.runtime.log import SafeLogger

__all__ = ["call_after_fork_in_child"]

logger = SafeLogger("message_hub_sync.fork")

# Appended to at import only, by the thread that holds the import lock; os.register_at_fork can take nothing back.
_actions: list[Callable[[], None]] = []


def call_after_fork_in_child(action: Callable[[], None]) -> None:
    """Have ``action`` called in each forked child, in the order of registration.

    A thread that does not exist in the child may have held any lock at the fork. So an action takes no lock of the
    parent: it makes new ones. An action that raises is logged, and the others are called all the same.

    :param action: called without arguments, on the only thread of the child. It is kept for good.
    """
    _actions.append(action)


def _after_fork_in_child() -> None:
    for action in _actions:
        try:
            action()
        except Exception:
            logger.exception("part of the forked child's state could not be made anew")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
