"""Which message is being handled, so that what is sent inside continues its correlation.

The state is one context variable, hence local to a thread (or a greenlet, or a copied context). A thread that a
handler starts begins without it: ``threading.Thread(target=contextvars.copy_context().run, args=(work, …))``, or
``with bound_correlation(current_correlation_id()):`` inside the thread, hands it on.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from contextvars import ContextVar, Token
from typing import NamedTuple
from uuid import UUID, uuid4

from message_hub_sync.errors import MessageValidationError

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

#: AMQP's short string (specification 0-9-1, section 4.2.5.3).
MAX_CORRELATION_ID_BYTES = 255


class MessageContext(NamedTuple):
    """What the current thread is at work on."""

    correlation_id: str
    message_id: str | None = None
    event_type: str | None = None
    service: str | None = None


_current: ContextVar[MessageContext | None] = ContextVar("message_hub_handling", default=None)


def current_message() -> MessageContext | None:
    """The message being handled in this context, or what :func:`bound_correlation` bound, or ``None``."""
    return _current.get()


def current_correlation_id() -> str | None:
    """The correlation id that a message sent now would continue, or ``None`` when it would get a new one."""
    current = _current.get()
    return None if current is None else current.correlation_id


def enter(current: MessageContext) -> Token[MessageContext | None]:
    """Set what is being handled; the token is for :func:`leave`."""
    return _current.set(current)


def leave(token: Token[MessageContext | None]) -> None:
    """Put back what was set before :func:`enter`."""
    _current.reset(token)


@contextlib.contextmanager
def entered(current: MessageContext) -> Iterator[None]:
    """Set what is being handled for the duration of a ``with`` block."""
    token = enter(current)
    try:
        yield
    finally:
        leave(token)


@contextlib.contextmanager
def bound_correlation(correlation_id: UUID | str | None = None) -> Iterator[str]:
    """Give everything sent inside the ``with`` block one correlation id: a web request's, a script's.

    :param correlation_id: a UUID or printable text up to 255 bytes; ``None`` makes a new UUID.
    :returns: the id, as text.
    :raises MessageValidationError: the id is neither.
    """
    text = correlation_text(correlation_id) if correlation_id is not None else str(uuid4())
    with entered(MessageContext(correlation_id=text)):
        yield text


def correlation_text(value: UUID | str) -> str:
    """The text of a correlation id on the wire.

    :raises MessageValidationError: it is not a UUID or printable text of 1 to 255 bytes.
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
        f"correlation_id of type {type(value).__name__} is not usable: "
        f"a UUID or printable text of 1 to {MAX_CORRELATION_ID_BYTES} bytes is"
    )


class CorrelationFilter(logging.Filter):
    """Puts ``correlation_id``, ``message_id``, ``event_type`` and ``service`` on each record it sees.

    Add it to a *handler* (``handler.addFilter(CorrelationFilter())``), so that it sees the records of
    every logger. What a record already has, through ``extra=``, wins. Never drops a record.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        current = _current.get()
        for name in ("correlation_id", "message_id", "event_type", "service"):
            if not hasattr(record, name):
                value = None if current is None else getattr(current, name)
                # Other clients send any text: one that would forge a line of the log is escaped.
                setattr(record, name, value if value is None or value.isprintable() else ascii(value)[1:-1])
        return True
