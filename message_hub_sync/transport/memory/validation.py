"""Checks the messages of the embedded hub, and copies them.

The hub copies a message when it is published and each time it is delivered: a later change by the sender or by one
receiver does not reach the (other) receivers. A value that AMQP cannot carry is an error here too.
"""

from __future__ import annotations

import decimal
import math
from datetime import datetime, timezone
from operator import attrgetter
from typing import Any

from message_hub_sync.envelope.values import Properties
from message_hub_sync.errors import MessageValidationError
from message_hub_sync.runtime.text import encodable, printable, shown
from message_hub_sync.transport.amqp_values import decimal_fits
from message_hub_sync.transport.base import Outgoing

__all__ = [
    "MAX_TTL_MS",
    "StoredMessage",
    "broker_refusal",
    "checked_copy",
    "copy_headers",
    "copy_properties",
    "short_text",
]

_INT64 = 2**63
#: RabbitMQ 3.10: ``max_message_size``.
_MAX_BODY_BYTES = 134_217_728
#: Ten years, for expirations and ``x-message-ttl``: RabbitMQ 3.10.8 accepts this many milliseconds, and not one more.
MAX_TTL_MS = 315_360_000_000
#: The user name of every client of the embedded hub.
_USER = "guest"

_SHORT_TEXTS = (
    "message_id",
    "correlation_id",
    "type",
    "app_id",
    "content_type",
    "content_encoding",
    "expiration",
    "reply_to",
    "user_id",
)
_short_texts = attrgetter(*_SHORT_TEXTS)


class StoredMessage:
    """A message inside the hub. It never changes; all queues that hold it share it.

    ``flat`` means that no header is a list or a table, so that a copy of the headers is a copy of one dict. ``ttl`` is
    in seconds; infinity if the message has no expiration, or an invalid one.
    """

    __slots__ = ("body", "exchange", "flat", "properties", "routing_key", "ttl")

    def __init__(
        self, body: bytes, properties: Properties, exchange: str, routing_key: str, *, flat: bool, ttl: float
    ) -> None:
        self.body = body
        self.properties = properties
        self.exchange = exchange
        self.routing_key = routing_key
        self.flat = flat
        self.ttl = ttl


def checked_copy(outgoing: Outgoing) -> StoredMessage:
    """Check every value of a message, and copy it.

    :raises MessageValidationError: AMQP cannot carry a value.
    """
    body: Any = outgoing.body
    if type(body) is not bytes:
        raise MessageValidationError(f"body must be bytes, not {type(body).__name__}")
    properties = outgoing.properties
    short_text(outgoing.exchange, "the exchange's name")
    short_text(outgoing.routing_key, "the routing key")
    for name, value in zip(_SHORT_TEXTS, _short_texts(properties), strict=True):
        if value is not None and not (type(value) is str and value.isascii() and len(value) <= 255):
            short_text(value, name)
    _whole(properties.delivery_mode, "delivery_mode", 256)
    _whole(properties.priority, "priority", 256)
    _whole(properties.timestamp, "timestamp", 2**64)
    headers, flat = _checked_table(properties.headers)
    expiration = properties.expiration
    ttl = int(expiration) / 1000 if expiration is not None and _expiration_fits(expiration) else math.inf
    copied = copy_properties(properties, headers)
    return StoredMessage(body, copied, outgoing.exchange, outgoing.routing_key, flat=flat, ttl=ttl)


def broker_refusal(message: StoredMessage) -> str | None:
    """Why RabbitMQ would close the channel because of this message (406); ``None`` if it would accept the message."""
    properties = message.properties
    if properties.user_id is not None and properties.user_id != _USER:
        return (
            f"PRECONDITION_FAILED - user_id property set to '{printable(properties.user_id)}' "
            f"but authenticated user was '{_USER}'"
        )
    if properties.expiration is not None and message.ttl == math.inf:
        return f"PRECONDITION_FAILED - invalid expiration '{printable(properties.expiration)}'"
    if len(message.body) > _MAX_BODY_BYTES:
        return (
            f"PRECONDITION_FAILED - message size {len(message.body)} is larger than "
            f"configured max size {_MAX_BODY_BYTES}"
        )
    return None


def copy_properties(properties: Properties, headers: dict[str, Any]) -> Properties:
    """A copy of the properties, with other headers."""
    # Positional arguments: half the cost of dataclasses.replace.
    return Properties(
        properties.message_id,
        properties.correlation_id,
        properties.type,
        properties.app_id,
        properties.content_type,
        properties.content_encoding,
        properties.delivery_mode,
        properties.priority,
        properties.expiration,
        properties.timestamp,
        properties.reply_to,
        properties.user_id,
        headers,
    )


def copy_headers(message: StoredMessage) -> dict[str, Any]:
    """A copy of the headers, which one receiver may change."""
    headers = message.properties.headers
    return dict(headers) if message.flat else {name: _copy(value) for name, value in headers.items()}


def _copy(value: Any) -> Any:
    if type(value) is dict:
        return {name: _copy(inner) for name, inner in value.items()}
    if type(value) is list:
        return [_copy(inner) for inner in value]
    return value


def short_text(value: Any, what: str) -> None:
    """Check that AMQP can carry ``value`` as a short string (specification 0-9-1, section 4.2.5.3).

    :param what: the name of the value, for the error text.
    :raises MessageValidationError: it cannot.
    """
    if isinstance(value, str):
        try:
            if (len(value) if value.isascii() else len(value.encode())) <= 255:
                return
        except UnicodeEncodeError:
            pass
    given = f"a text of {len(value)} characters" if isinstance(value, str) else shown(value)
    raise MessageValidationError(f"{what} must be a text of at most 255 bytes of valid UTF-8, not {given}")


def _expiration_fits(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 12 and int(text) <= MAX_TTL_MS


def _whole(value: Any, what: str, end: int) -> None:
    if value is not None and not (isinstance(value, int) and 0 <= value < end):
        raise MessageValidationError(f"{what} must be a whole number from 0 to {end - 1}, or None, not {shown(value)}")


def _checked_table(table: Any) -> tuple[dict[str, Any], bool]:
    """A checked copy of a table of AMQP values, and whether it holds no list and no table."""
    if not isinstance(table, dict):
        raise MessageValidationError(f"headers must be a dict, not {type(table).__name__}")
    flat = True
    copied: dict[str, Any] = {}
    for name, value in table.items():
        if not (type(name) is str and name.isascii() and len(name) <= 255):
            short_text(name, "a header's name")
        if type(value) is str and value.isascii():
            copied[name] = value
        else:
            copied[name] = _checked_value(name, value)
            flat = flat and not isinstance(value, (dict, list))
    return copied, flat


def _checked_value(name: str, value: Any) -> Any:
    if value is None or isinstance(value, (bool, bytes)):
        return value
    if isinstance(value, int) and -_INT64 <= value < _INT64:
        return value
    if isinstance(value, str) and encodable(value):
        return value
    if isinstance(value, datetime) and value.year >= 1970:
        moment = value if value.tzinfo is not None else value.replace(tzinfo=timezone.utc)
        return moment.astimezone(timezone.utc).replace(microsecond=0)
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, decimal.Decimal) and decimal_fits(value):
        return value
    if isinstance(value, dict):
        return _checked_table(value)[0]
    if isinstance(value, list):
        return [_checked_value(name, inner) for inner in value]
    # The type only: a header's value may be a secret.
    raise MessageValidationError(
        f"header {printable(name)!r} must be a value that AMQP can carry (a text of valid UTF-8, bytes, a 64-bit whole "
        "number, a finite float, a Decimal of 32 bits, a bool, None, a datetime from 1970 on, or a list or dict of "
        f"these), not {type(value).__name__}"
    )
