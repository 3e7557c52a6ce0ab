"""Every client of this process, for the two moments that concern them all: a fork, and the interpreter's end."""

from __future__ import annotations

import atexit
import logging
import os
from typing import Protocol
from weakref import WeakSet

__all__ = ["watch"]

logger = logging.getLogger("message_hub_sync.client")


class Watched(Protocol):
    """What a client does at those moments."""

    def _after_fork_in_child(self) -> None: ...

    def _at_exit(self) -> None: ...


# Mutable, without a lock: single operations, and a copy before iterating. A child inherits it as it was.
_clients: WeakSet[Watched] = WeakSet()


def watch(client: Watched) -> None:
    """Have ``client`` told. It is not kept alive by that."""
    _clients.add(client)


def _after_fork_in_child() -> None:
    for client in list(_clients):
        client._after_fork_in_child()


def _at_exit() -> None:
    for client in list(_clients):
        try:
            client._at_exit()
        except Exception:
            logger.exception("a client was not closed in order")


# One of each per process: what is registered here cannot be taken back.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
