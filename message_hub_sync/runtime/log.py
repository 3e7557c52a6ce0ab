"""A logger that raises no ``Exception`` of a logging handler or filter."""

from __future__ import annotations

import contextlib
import logging

__all__ = ["SafeLogger"]

#: ``stacklevel`` of the caller: `SafeLogger._log` is 1, the public method (``warning``, …) is 2, its caller is 3.
_FRAMES = 3


class SafeLogger:
    """A logger for this library: an ``Exception`` that a handler or filter raises is dropped.

    Handlers and filters belong to the application. If one raises, it must not end a thread of this library, keep a
    message unacknowledged, or replace the result of a call. (The handlers of the standard library print their own
    errors to ``stderr`` and raise nothing.) Other exceptions pass: ``KeyboardInterrupt``, a gevent timeout.

    Methods: see :class:`logging.Logger`. Safe from any thread.
    """

    __slots__ = ("_logger",)

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, text: str, *args: object) -> None:
        self._log(logging.DEBUG, text, args)

    def info(self, text: str, *args: object) -> None:
        self._log(logging.INFO, text, args)

    def warning(self, text: str, *args: object) -> None:
        self._log(logging.WARNING, text, args)

    def error(self, text: str, *args: object, exc_info: BaseException | None = None) -> None:
        self._log(logging.ERROR, text, args, exc_info)

    def exception(self, text: str, *args: object) -> None:
        self._log(logging.ERROR, text, args, True)

    def log(self, level: int, text: str, *args: object, exc_info: BaseException | None = None) -> None:
        self._log(level, text, args, exc_info)

    def _log(
        self, level: int, text: str, args: tuple[object, ...], exc_info: BaseException | bool | None = None
    ) -> None:
        with contextlib.suppress(Exception):
            self._logger.log(level, text, *args, exc_info=exc_info, stacklevel=_FRAMES)
