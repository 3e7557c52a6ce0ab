"""Headers of a retried or dead-lettered message that say which exception its handler raised. Pure.

They hold the class of the exception and where it was raised, but not its text: the text of a foreign exception may
contain a secret (the URL of a database with its password) or a part of the message. Whoever may read the queue would
read it, also years later. The log has the text. The texts of this library's own errors contain no secret, and that of
:class:`~message_hub_sync.MessageHubRejectError` was chosen by the handler: these become headers.
"""

from __future__ import annotations

import traceback
from collections import deque
from types import FrameType

from pydantic_core import ValidationError

from message_hub_sync.envelope.header_names import ERROR_MESSAGE, ERROR_TRACEBACK, ERROR_TYPE
from message_hub_sync.errors import MessageHubError
from message_hub_sync.runtime.text import error_text, printable

__all__ = ["MAX_TRACEBACK_BYTES", "error_headers", "traceback_header"]

MAX_TRACEBACK_BYTES = 4 * 1024
_MAX_TEXT = 500
#: The innermost frames of an exception: a deep recursion has thousands. The last exceptions of a chain of causes.
_MAX_FRAMES, _MAX_CAUSES = 64, 16


def error_headers(error: BaseException) -> dict[str, str]:
    """Class and text of ``error``. Instead of the text of a foreign exception: where it was raised."""
    # error_text() tells of a ValidationError only which kinds of errors it has.
    told = error_text(error) if isinstance(error, (MessageHubError, ValidationError)) else _place(error)
    return {ERROR_TYPE: printable(type(error).__name__), ERROR_MESSAGE: printable(told, _MAX_TEXT)}


def traceback_header(error: BaseException) -> dict[str, str]:
    """File, line and function of each frame of ``error`` and of its causes, the innermost frame last."""
    # No lines of source code: they may contain a secret, too.
    lines: list[str] = []
    for one in reversed(_chain(error)):
        lines += [f'File "{frame.f_code.co_filename}", line {line}, in {_name(frame)}' for frame, line in _frames(one)]
        lines.append(type(one).__name__)
    text = "\n".join(printable(line, 2 * _MAX_TEXT) for line in lines)
    return {ERROR_TRACEBACK: text.encode("utf-8", "replace")[-MAX_TRACEBACK_BYTES:].decode("utf-8", "ignore")}


def _place(error: BaseException) -> str:
    frames = _frames(error)
    where = f"raised in {_name(frames[-1][0])}, line {frames[-1][1]}; " if frames else ""
    return f"{where}its text is in the log"


def _chain(error: BaseException) -> list[BaseException]:
    """``error`` and what caused it, as Python would show them, ``error`` first."""
    chain: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and id(one) not in map(id, chain) and len(chain) < _MAX_CAUSES:
        chain.append(one)
        hidden = one.__suppress_context__ or one.__cause__ is not None
        one = one.__cause__ if hidden else one.__context__
    return chain


def _frames(error: BaseException) -> list[tuple[FrameType, int]]:
    return list(deque(traceback.walk_tb(error.__traceback__), _MAX_FRAMES))


def _name(frame: FrameType) -> str:
    return f"{frame.f_globals.get('__name__', '?')}.{frame.f_code.co_name}"
