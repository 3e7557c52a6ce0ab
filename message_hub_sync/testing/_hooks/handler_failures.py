"""Handlers that failed during a test: the message of a failed expectation lists them."""

from __future__ import annotations

import logging
from collections import deque

__all__ = ["HandlerFailures"]

_KEPT = 20
#: Each client logs here which handler raised, the exception, the message id and the queue.
_LOGGER = logging.getLogger("message_hub_sync.subscription")


class HandlerFailures(logging.Handler):
    """Collects the log records about failed handlers of all clients in this process, between start and stop.

    Not only of the framework's own clients: the handlers under test run in the client of the code under test.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._latest: deque[str] = deque(maxlen=_KEPT)  # any thread appends; deque operations are atomic

    def start(self) -> None:
        """Begin to collect log records."""
        _LOGGER.addHandler(self)

    def stop(self) -> None:
        """Stop collecting. Idempotent."""
        _LOGGER.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the log message and the exception of one failure."""
        error = record.exc_info[1] if record.exc_info else None
        text = record.getMessage()
        self._latest.append(text if error is None else f"{text}: {type(error).__name__}: {error}")

    def latest(self) -> list[str]:
        """The last 20 failures, oldest first."""
        return list(self._latest)
