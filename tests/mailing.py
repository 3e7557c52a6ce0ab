"""A logging handler of an application whose server is down."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


class Mailing(logging.Handler):
    """Raises at every record, past the check with which the handlers of the standard library catch their own."""

    def emit(self, record: logging.LogRecord) -> None:
        raise ConnectionError("no mail today")


@contextlib.contextmanager
def mailing(logger: str = "message_hub_sync") -> Iterator[None]:
    """Everything of that logger, at any level, is mailed, which fails."""
    ours = logging.getLogger(logger)
    handler, level = Mailing(), ours.level
    ours.addHandler(handler)
    ours.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        ours.setLevel(level)
        ours.removeHandler(handler)
