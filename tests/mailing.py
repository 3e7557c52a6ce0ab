"""A logging handler that raises, like a mail handler whose server is down."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


class Mailing(logging.Handler):
    """Raises for every record. Handlers of the standard library catch their errors in ``emit``; this one does not."""

    def emit(self, record: logging.LogRecord) -> None:
        raise ConnectionError("no mail today")


@contextlib.contextmanager
def mailing(logger: str = "message_hub_sync") -> Iterator[None]:
    """Add the handler to this logger, at any level, during the ``with`` block."""
    ours = logging.getLogger(logger)
    handler, level = Mailing(), ours.level
    ours.addHandler(handler)
    ours.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        ours.setLevel(level)
        ours.removeHandler(handler)
