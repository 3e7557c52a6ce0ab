"""Handlers that failed while a test ran, so that a failed expectation can say why nothing came."""

from __future__ import annotations

import logging
from collections import deque

__all__ = ["HandlerFailures"]

_KEPT = 20
#: Where the client reports each handler that raised, with what, and on which message of which queue.
_LOGGER = logging.getLogger("message_hub_sync.subscription")


class HandlerFailures(logging.Handler):
    """Listens to what every client of this process logs about its handlers, from :meth:`start` to :meth:`stop`.

    Not only to the framework's own: the client under test is the one whose handlers matter. Mutable: ``_latest``,
    a deque whose single operations are atomic.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._latest: deque[str] = deque(maxlen=_KEPT)

    def start(self) -> None:
        """Begin to listen."""
        _LOGGER.addHandler(self)

    def stop(self) -> None:
        """Listen no more. Idempotent."""
        _LOGGER.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Remember a failure: the client's own line, and the exception."""
        error = record.exc_info[1] if record.exc_info else None
        text = record.getMessage()
        self._latest.append(text if error is None else f"{text}: {type(error).__name__}: {error}")

    def latest(self) -> list[str]:
        """The latest ones, the oldest of them first."""
        return list(self._latest)
