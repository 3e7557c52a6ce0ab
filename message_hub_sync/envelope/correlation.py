"""The message that is being handled, so that messages sent by its handler continue its correlation.

The state is one context variable: each thread, greenlet or copied context has its own value. A thread that a handler
starts begins without a value. To pass it on, start the thread with
``threading.Thread(target=contextvars.copy_context().run, args=(work, …))``, or use
``with bound_correlation(correlation_id):`` inside the thread, with the handler's :func:`current_correlation_id`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from contextvars import ContextVar, Token
from typing import Any, NamedTuple
from uuid import UUID, uuid4, uuid5

from message_hub_sync.errors import MessageValidationError
from message_hub_sync.runtime.text import printable, shown

__all__ = [
    "MAX_CORRELATION_ID_BYTES",
    "CorrelationFilter",
    "MessageContext",
    "bound_correlation",
    "correlation_text",
    "current_correlation_id",
    "current_message",
    "enter",
    "entered",
    "leave",
]

#: Limit of AMQP's short string (specification 0-9-1, section 4.2.5.3).
MAX_CORRELATION_ID_BYTES = 255


class MessageContext(NamedTuple):
    """The message that is being handled in a context, or only the correlation id that was bound there."""

    correlation_id: str
    message_id: str | None = None
    event_type: str | None = None
    service: str | None = None
    #: What the correlation id replaces: an id of another system that no message can carry.
    original_correlation_id: str | None = None


_current: ContextVar[MessageContext | None] = ContextVar("message_hub_handling", default=None)


def current_message() -> MessageContext | None:
    """The message being handled in this context, the id bound by :func:`bound_correlation`, or ``None``."""
    return _current.get()


def current_correlation_id() -> str | None:
    """The correlation id that a message sent now would get; ``None`` if it would get a new one."""
    current = _current.get()
    return None if current is None else current.correlation_id


def enter(current: MessageContext) -> Token[MessageContext | None]:
    """Set the message being handled in this context.

    :returns: the token for :func:`leave`.
    """
    return _current.set(current)


def leave(token: Token[MessageContext | None]) -> None:
    """Restore the value before :func:`enter`."""
    _current.reset(token)


@contextlib.contextmanager
def entered(current: MessageContext) -> Iterator[None]:
    """Set the message being handled for the duration of a ``with`` block."""
    token = enter(current)
    try:
        yield
    finally:
        leave(token)


@contextlib.contextmanager
def bound_correlation(correlation_id: UUID | str | None = None, *, foreign: bool = False) -> Iterator[str]:
    """Use one correlation id for all messages sent inside the ``with`` block, for example that of a web request.

    It applies to the current thread (context) only.

    :param correlation_id: a UUID, or printable text of 1 to 255 bytes; ``None``: a new UUID.
    :param foreign: the id comes from another system, for example as ``X-Request-ID``, and may be anything. If messages
        cannot carry it, a UUID takes its place, always the same one for the same id. Log records show the id itself
        as ``original_correlation_id`` (:class:`CorrelationFilter`). An empty id counts as ``None``.
    :returns: a context manager that returns the id as text.
    :raises MessageValidationError: ``correlation_id`` is something else, and not ``foreign``.
    """
    original = None
    if foreign and correlation_id is not None:
        correlation_id, original = _accepted(correlation_id)
    text = correlation_text(correlation_id) if correlation_id is not None else str(uuid4())
    with entered(MessageContext(correlation_id=text, original_correlation_id=original)):
        yield text


def _accepted(foreign: Any) -> tuple[UUID | str | None, str | None]:
    """A foreign id, or what takes its place, and the beginning of the id itself if something does."""
    if isinstance(foreign, bytes):
        foreign = foreign.decode("utf-8", "backslashreplace")
    try:
        return (correlation_text(foreign) if foreign != "" else None), None
    except MessageValidationError:
        text = str(foreign)
        return uuid5(_FOREIGN, text.encode("utf-8", "backslashreplace").decode()), printable(text, 1000)


#: The namespace of the UUIDs that take the place of foreign ids (RFC 9562, 5.5).
_FOREIGN = UUID("b1d1ab5e-51e3-4c1e-9f0a-3c8f0f3c2f2e")


def correlation_text(value: UUID | str) -> str:
    """A correlation id as the text that is sent.

    :param value: a UUID, or printable text of 1 to 255 bytes.
    :raises MessageValidationError: ``value`` is something else.
    """
    if isinstance(value, UUID):
        return str(value)
    if (
        isinstance(value, str)
        and value.isprintable()
        and 0 < len(value.encode("utf-8", "surrogatepass")) <= MAX_CORRELATION_ID_BYTES
    ):
        return value
    raise MessageValidationError(
        f"correlation_id must be a UUID or printable text of 1 to {MAX_CORRELATION_ID_BYTES} bytes, not {shown(value)}"
    )


class CorrelationFilter(logging.Filter):
    """A logging filter that sets ``correlation_id``, ``message_id``, ``event_type`` and ``service`` on each record.

    Inside ``bound_correlation(…, foreign=True)`` also ``original_correlation_id``, if another id takes its place.

    Add it to a *handler* (``handler.addFilter(CorrelationFilter())``): there it gets the records of all loggers. An
    attribute that a record already has, through ``extra=``, is kept. The filter drops no record.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        current = _current.get()
        for name in ("correlation_id", "message_id", "event_type", "service"):
            if not hasattr(record, name):
                value = None if current is None else getattr(current, name)
                # Other clients may send any text. Escape it, so that it cannot forge a line of the log.
                setattr(record, name, value if value is None or value.isprintable() else ascii(value)[1:-1])
        if current is not None and current.original_correlation_id is not None:
            record.original_correlation_id = current.original_correlation_id
        return True
