"""Encode messages and events: the payload to a body, the rest of the envelope to AMQP properties and headers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import lru_cache
from typing import Any, NoReturn
from uuid import UUID

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, to_json

from message_hub_sync.envelope.correlation import correlation_text, current_message
from message_hub_sync.envelope.decodable import check_decodable
from message_hub_sync.envelope.header_names import (
    CAUSATION_ID,
    DESTINATION,
    EVENT_TYPE,
    PRIORITY,
    RESERVED_PREFIX,
    SOURCE,
    TIMESTAMP,
    TTL,
    WIRE_HEADERS,
)
from message_hub_sync.envelope.header_sizes import table_size
from message_hub_sync.envelope.ids import new_id
from message_hub_sync.envelope.json_forms import JSONEncoder, json_form
from message_hub_sync.envelope.names import MAX_NAME_BYTES
from message_hub_sync.envelope.values import (
    EVENT,
    JSON,
    MAX_TTL_SECONDS,
    PERSISTENT,
    SERVICE_MESSAGE,
    Properties,
)
from message_hub_sync.errors import MessageValidationError
from message_hub_sync.runtime.real_time import time
from message_hub_sync.runtime.text import encodable, printable, shown

__all__ = ["check_header", "check_headers_size", "encode_payload", "event_properties", "message_properties"]

_INT64 = 2**63
#: RabbitMQ also sends the message to the queues of these routing keys. It closes the channel if they are not a list.
_ROUTING_HEADERS = frozenset({"CC", "BCC"})
#: At about 129 KiB of headers, RabbitMQ closes the connection with all that is in flight on it, whatever frame_max is.
_MAX_HEADERS_BYTES = 64 * 1024


def encode_payload(payload: Any, max_bytes: int, fallback: JSONEncoder = json_form) -> bytes:
    """Encode a payload as JSON in UTF-8.

    :param payload: a mapping, a pydantic model or a dataclass. pydantic serialises UUID, datetime, Decimal, enums and
        models inside it.
    :param max_bytes: the largest body allowed, in bytes.
    :param fallback: gives the JSON form of a value that pydantic does not know.
    :raises MessageValidationError: the payload is not a JSON object, is too large, or contains what JSON does not have
        (NaN included) or what receivers could not decode.
    """
    if not isinstance(payload, (dict, BaseModel)):
        if isinstance(payload, Mapping):
            payload = dict(payload)
        elif isinstance(payload, type) or not dataclasses.is_dataclass(payload):
            _raise_not_an_object(type(payload).__name__)
    try:
        body = to_json(payload, fallback=fallback)
    except (PydanticSerializationError, ValueError, TypeError, RecursionError) as error:
        raise MessageValidationError(
            f"payload must be serialisable as JSON ({_why_not_serialisable(error)}): give the client a json_encoder=, "
            "or use JSON's types, UUID, datetime, Decimal, enums, dataclasses or pydantic models"
        ) from None
    if body[:1] != b"{":
        _raise_not_an_object(f"{type(payload).__name__}, which is something else in JSON")
    if len(body) > max_bytes:
        raise MessageValidationError(
            f"payload must be at most {max_bytes} bytes as JSON (max_message_bytes), not {len(body)}: "
            "store it elsewhere and send a reference"
        )
    check_decodable(payload, body, max_bytes)
    return body


def _raise_not_an_object(what: str) -> NoReturn:
    raise MessageValidationError(f"payload must be a JSON object (a dict, a pydantic model or a dataclass), not {what}")


def message_properties(
    *,
    source: str,
    destination: str,
    message_id: UUID | None = None,
    correlation_id: UUID | str | None = None,
    ttl: float | None = None,
    priority: int = 0,
    reply_to: str | None = None,
    headers: Mapping[str, Any] | None = None,
) -> Properties:
    """Check the values of a message and build its AMQP properties and headers.

    :param source: name of the sending service, already checked.
    :param destination: name of the receiving service, already checked.
    :param message_id: ``None``: a new id.
    :param correlation_id: ``None``: that of the message being handled, else a new one.
    :param ttl: seconds until the message expires; ``None``: it never expires.
    :param priority: 0 to 9; 9 is the most urgent.
    :param reply_to: name of the queue for the reply.
    :param headers: further headers: ``str``, 64-bit whole numbers, ``bool`` or ``None`` by name.
    :raises MessageValidationError: a value is not allowed. The text names the value and the rule.
    """
    try:
        common, expiration = _remembered_headers(source, destination, ttl, priority)
    except _LongName:
        common, expiration = _common_headers(source, destination, ttl, priority)
    except TypeError:  # ttl or priority is unhashable, so it is not a number: the checks below raise the error
        _check_ttl(ttl)
        _check_priority(priority)
        raise
    return _properties(
        SERVICE_MESSAGE, source, common, message_id, correlation_id, headers, priority, expiration, reply_to
    )


# Cached: most messages have the same headers as a previous one. Typed: a ttl of 1, 1.0 and True are three keys.
@lru_cache(maxsize=1024, typed=True)
def _remembered_headers(
    source: str, destination: str, ttl: float | None, priority: int
) -> tuple[dict[str, Any], str | None]:
    if len(destination) > MAX_NAME_BYTES:
        raise _LongName  # a call that raises is not remembered
    return _common_headers(source, destination, ttl, priority)


class _LongName(Exception):
    """The destination of a reply is the source of its request, which may be any text. It is too long to remember."""


def _common_headers(
    source: str, destination: str, ttl: float | None, priority: int
) -> tuple[dict[str, Any], str | None]:
    """The headers of all messages with these values (the caller must not change the dict), and their ``expiration``."""
    _check_ttl(ttl)
    _check_priority(priority)
    common = {SOURCE: source, DESTINATION: destination, PRIORITY: priority}
    if ttl is None:
        return common, None
    common[TTL] = int(ttl) if ttl == int(ttl) else str(ttl)
    return common, str(max(1, round(ttl * 1000)))


def event_properties(
    *,
    source: str,
    event_type: str,
    message_id: UUID | None = None,
    correlation_id: UUID | str | None = None,
    headers: Mapping[str, Any] | None = None,
) -> Properties:
    """Check the values of an event and build its AMQP properties and headers.

    :param source: name of the publishing service, already checked.
    :param event_type: name of the event type, already checked.
    :param message_id: ``None``: a new id.
    :param correlation_id: ``None``: that of the message being handled, else a new one.
    :param headers: further headers: ``str``, 64-bit whole numbers, ``bool`` or ``None`` by name.
    :raises MessageValidationError: a value is not allowed. The text names the value and the rule.
    """
    common = {SOURCE: source, EVENT_TYPE: event_type}
    return _properties(EVENT, source, common, message_id, correlation_id, headers)


def _properties(
    type_: str,
    source: str,
    common: dict[str, Any],
    message_id: UUID | None,
    correlation_id: UUID | str | None,
    extra: Mapping[str, Any] | None,
    priority: int | None = None,
    expiration: str | None = None,
    reply_to: str | None = None,
) -> Properties:
    now = time.time()
    seconds = int(now)
    # The timestamp comes first: it differs between messages, and the fast encoder expects it at this place.
    headers = {TIMESTAMP: f"{_second(seconds)}.{int((now - seconds) * 1_000_000):06}+00:00", **common}
    if extra is not None:
        headers.update(_checked_headers(extra))
    current = current_message()
    if correlation_id is not None:
        correlation = correlation_text(correlation_id)
    else:
        correlation = new_id() if current is None else current.correlation_id
    if current is not None and current.message_id is not None:
        headers[CAUSATION_ID] = current.message_id
    if message_id is None:
        identity = new_id()
    elif isinstance(message_id, UUID):
        identity = str(message_id)
    else:
        raise MessageValidationError(
            f"message_id must be a uuid.UUID, not {shown(message_id)}: to repeat a call whose outcome is unknown, "
            "use error.message_id"
        )
    return Properties(  # positional arguments take half the time of keywords
        identity,
        correlation,
        type_,
        source,
        JSON,
        None,
        PERSISTENT,
        priority,
        expiration,
        seconds,
        reply_to,
        None,
        headers,
    )


# Cached: the timestamps of one second have the same beginning.
@lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")


def _check_ttl(ttl: Any) -> None:
    if ttl is None:
        return
    if isinstance(ttl, (int, float)) and not isinstance(ttl, bool) and 0 < ttl <= MAX_TTL_SECONDS:
        return
    raise MessageValidationError(
        f"ttl must be a number of seconds greater than 0 and at most {MAX_TTL_SECONDS}, or None for a message that "
        f"never expires, not {shown(ttl)}"
    )


def _check_priority(priority: Any) -> None:
    if isinstance(priority, int) and not isinstance(priority, bool) and 0 <= priority <= 9:
        return
    raise MessageValidationError(
        f"priority must be a whole number from 0 to 9 (9 is the most urgent), not {shown(priority)}"
    )


def _checked_headers(extra: Any) -> dict[str, Any]:
    if not isinstance(extra, Mapping):
        raise MessageValidationError(f"headers must be a dict, not {shown(extra)}")
    for name, value in extra.items():
        check_header(name, value)
        if name in _ROUTING_HEADERS:
            raise MessageValidationError(
                f"header {name!r} must not be used: RabbitMQ takes its value for further routing keys. Send one "
                "message to each receiver, or write the name in lower case"
            )
        if name in WIRE_HEADERS or name.startswith(RESERVED_PREFIX):
            raise MessageValidationError(
                f"header {name!r} is reserved for the hub: choose a name that does not begin with '{RESERVED_PREFIX}' "
                f"and is none of {', '.join(sorted(WIRE_HEADERS))}"
            )
    check_headers_size(extra)
    return dict(extra)


def check_header(name: Any, value: Any) -> None:
    """Check that a broker and other clients can read a header.

    :raises MessageValidationError: the name or the value is not allowed. The text does not show the value.
    """
    if not (isinstance(name, str) and encodable(name) and 0 < len(name.encode()) <= 128):
        raise MessageValidationError(f"a header's name must be a text of 1 to 128 bytes, not {shown(name)}")
    whole = isinstance(value, int) and -_INT64 <= value < _INT64
    if not (whole or value is None or (isinstance(value, str) and encodable(value))):
        raise MessageValidationError(
            f"header {name!r} must be a text, a 64-bit whole number, a bool or None, not "
            # Do not show the str itself: it may be a secret.
            f"{'a text that UTF-8 cannot encode' if isinstance(value, str) else shown(value)}"
        )


def check_headers_size(headers: Mapping[str, Any]) -> None:
    """Check the size of all headers together, with what AMQP adds to each of them.

    :raises MessageValidationError: they are larger than 64 KiB.
    """
    size = table_size(headers)
    if size > _MAX_HEADERS_BYTES:
        raise MessageValidationError(
            f"headers must be at most 64 KiB together, not {size} bytes (with up to 10 that AMQP adds to each): put "
            "such data into the payload"
        )


def _why_not_serialisable(error: BaseException) -> str:
    """The error's text if it is pydantic's own; else its class: a text of the caller's code may show a value."""
    text = str(error).split("\n", 1)[0]
    if "surrogates not allowed" in text:
        return "a text that UTF-8 cannot encode"
    own = text.removeprefix("Error serializing to JSON: ").removeprefix("TypeError: ")
    return printable(own if own.startswith(_OWN_TEXTS) else type(error).__name__)


#: Beginnings of pydantic's texts that show no value.
_OWN_TEXTS = ("Unable to serialize unknown type", "Circular reference detected")
