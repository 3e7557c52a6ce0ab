"""Saying something in the log, at no risk to whoever says it."""

from __future__ import annotations

import contextlib
import logging

__all__ = ["SafeLogger"]

#: What stands between the caller and the logger: this module's method and `SafeLogger._say`.
_FRAMES = 3


class SafeLogger:
    """A logger whose handlers and filters may raise, which then ends here.

    They are an application's: one that raises must not end a thread of ours, leave a message unsettled, or take the
    place of what a call came to. The handlers of the standard library print a fault of their own to ``stderr`` and
    raise nothing. What is no ``Exception`` goes through: a signal's, a gevent timeout's.
    """

    __slots__ = ("_logger",)

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, text: str, *args: object) -> None:
        """As the logger's."""
        self._say(logging.DEBUG, text, args)

    def info(self, text: str, *args: object) -> None:
        """As the logger's."""
        self._say(logging.INFO, text, args)

    def warning(self, text: str, *args: object) -> None:
        """As the logger's."""
        self._say(logging.WARNING, text, args)

    def error(self, text: str, *args: object, exc_info: BaseException | None = None) -> None:
        """As the logger's."""
        self._say(logging.ERROR, text, args, exc_info)

    def exception(self, text: str, *args: object) -> None:
        """As the logger's: with the traceback of what is being handled."""
        self._say(logging.ERROR, text, args, True)

    def log(self, level: int, text: str, *args: object, exc_info: BaseException | None = None) -> None:
        """As the logger's."""
        self._say(level, text, args, exc_info)

    def _say(
        self, level: int, text: str, args: tuple[object, ...], exc_info: BaseException | bool | None = None
    ) -> None:
        with contextlib.suppress(Exception):
            self._logger.log(level, text, *args, exc_info=exc_info, stacklevel=_FRAMES)
