"""To the wire: a payload as the body, the rest of the envelope as AMQP properties and headers."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import lru_cache
from typing import Any, NoReturn
from uuid import UUID

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, to_json

from message_hub_sync.envelope.correlation import correlation_text, current_message
from message_hub_sync.envelope.decode import NotJSON, decode_payload, refuse_constant
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
from message_hub_sync.envelope.ids import new_id
from message_hub_sync.envelope.values import (
    EVENT,
    JSON,
    MAX_TTL_SECONDS,
    PERSISTENT,
    SERVICE_MESSAGE,
    InvalidMessage,
    Properties,
)
from message_hub_sync.errors import MessageValidationError
from message_hub_sync.runtime.text import encodable, printable, shown

__all__ = ["check_header", "check_headers_size", "encode_payload", "event_properties", "message_properties"]

_INT64 = 2**63
#: Python's own limit on the digits of a whole number that is read from text (sys.get_int_max_str_digits()).
MAX_DIGITS = 4300
_MANY_DIGITS = re.compile(rb"[0-9]{%d}" % (MAX_DIGITS + 1))
_CONTAINERS = frozenset({dict, list, tuple})
_TEXT = frozenset({str})
#: What the constants begin with that JSON does not have.
_N, _I = b"NI"


def encode_payload(payload: Any, max_bytes: int) -> bytes:
    """A payload as UTF-8 JSON.

    :param payload: a mapping, a pydantic model or a dataclass; UUID, datetime, Decimal, enums and nested
        models inside it are written as pydantic writes them.
    :param max_bytes: the largest body allowed.
    :raises MessageValidationError: it is not a JSON object, holds what JSON cannot (NaN included), or is too large.
    """
    if not isinstance(payload, (dict, BaseModel)):
        if isinstance(payload, Mapping):
            payload = dict(payload)
        elif isinstance(payload, type) or not dataclasses.is_dataclass(payload):
            _refuse_payload(f"is a {type(payload).__name__}")
    try:
        body = to_json(payload)
    except (PydanticSerializationError, ValueError, TypeError, RecursionError) as error:
        raise MessageValidationError(
            f"payload cannot be written as JSON ({_first_line(error)}): use JSON's types, UUID, datetime, "
            "Decimal, enums, dataclasses or pydantic models"
        ) from None
    if body[:1] != b"{":
        _refuse_payload(f"of type {type(payload).__name__} becomes something else in JSON")
    # One byte is found ten times quicker than a word, and mostly is not there.
    if ((_N in body and b"NaN" in body) or (_I in body and b"Infinity" in body)) and _holds_constants(body):
        raise MessageValidationError("payload holds NaN or an infinity, which JSON does not have: use None or a text")
    if len(body) > max_bytes:
        raise MessageValidationError(
            f"payload is {len(body)} bytes as JSON; at most {max_bytes} are allowed "
            "(max_message_bytes): store it elsewhere and send a reference"
        )
    if (len(body) > MAX_DIGITS and _MANY_DIGITS.search(body)) or _has_other_keys(payload, body):
        _check_readable(body, max_bytes)
    return body


def _has_other_keys(payload: Any, body: bytes) -> bool:
    """Whether an object in it has keys that are no texts: ``{1: …, "1": …}`` becomes an object with a key twice."""
    if type(payload) is not dict:
        return False
    # Most payloads hold no object but themselves, which their JSON tells without a look at each value.
    return _deeply(payload) if body.find(b"{", 1) > 0 else not _TEXT.issuperset(map(type, payload))


def _deeply(value: Any) -> bool:
    if type(value) is dict:
        if not _TEXT.issuperset(map(type, value)):
            return True
        value = value.values()
    elif type(value) not in _CONTAINERS:
        return False
    # By C's loops, as they are quicker.
    return not _CONTAINERS.isdisjoint(map(type, value)) and any(map(_deeply, value))


def _check_readable(body: bytes, max_bytes: int) -> None:
    """What receivers would refuse is not sent."""
    try:
        decode_payload(body, max_bytes)
    except InvalidMessage as error:
        raise MessageValidationError(
            f"payload cannot be read back ({error}): use texts as keys, each once, and send very long numbers as text"
        ) from None


def _refuse_payload(what: str) -> NoReturn:
    raise MessageValidationError(f"payload {what}; a JSON object is needed: a dict, a pydantic model or a dataclass")


def _holds_constants(body: bytes) -> bool:
    """Whether ``NaN`` or ``Infinity`` stands in the JSON as a number (not inside a text)."""
    try:
        # Numbers stay text: a whole number of too many digits is not what is asked about.
        json.loads(body, parse_constant=refuse_constant, parse_int=str, parse_float=str)
    except NotJSON:
        return True
    return False


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
    """Properties and headers of a message, every value checked.

    :param ttl: seconds, ``None`` for a message that never expires.
    :param priority: 0 to 9, 9 the most urgent.
    :raises MessageValidationError: which value is wrong and what is allowed.
    """
    try:
        kind, expiration = _common_headers(source, destination, ttl, priority)
    except TypeError:  # what cannot be a key cannot be a number either
        _check_ttl(ttl)
        _check_priority(priority)
        raise
    return _properties(
        SERVICE_MESSAGE, source, kind, message_id, correlation_id, headers, priority, expiration, reply_to
    )


# Remembered: most messages are like another one but for the payload. Typed: a ttl of 1.0 is not one of 1, nor True.
@lru_cache(maxsize=1024, typed=True)
def _common_headers(
    source: str, destination: str, ttl: float | None, priority: int
) -> tuple[dict[str, Any], str | None]:
    """The headers that all such messages have in common, not to be changed, and their expiration."""
    _check_ttl(ttl)
    _check_priority(priority)
    kind = {SOURCE: source, DESTINATION: destination, PRIORITY: priority}
    if ttl is None:
        return kind, None
    kind[TTL] = ttl if isinstance(ttl, int) else str(ttl)
    return kind, str(max(1, round(ttl * 1000)))


def event_properties(
    *,
    source: str,
    event_type: str,
    message_id: UUID | None = None,
    correlation_id: UUID | str | None = None,
    headers: Mapping[str, Any] | None = None,
) -> Properties:
    """Properties and headers of an event, every value checked (:class:`MessageValidationError`)."""
    kind = {SOURCE: source, EVENT_TYPE: event_type}
    return _properties(EVENT, source, kind, message_id, correlation_id, headers)


def _properties(
    type_: str,
    source: str,
    kind: dict[str, Any],
    message_id: UUID | None,
    correlation_id: UUID | str | None,
    extra: Mapping[str, Any] | None,
    priority: int | None = None,
    expiration: str | None = None,
    reply_to: str | None = None,
) -> Properties:
    now = time.time()
    seconds = int(now)
    # The moment comes first: what differs from message to message is then where an encoder expects it.
    headers = {TIMESTAMP: f"{_second(seconds)}.{int((now - seconds) * 1_000_000):06}+00:00", **kind}
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
            f"message_id of type {type(message_id).__name__} is not usable: a uuid.UUID is "
            "(the one of the error, when a call that ended unknown is repeated)"
        )
    return Properties(  # by position, which takes half the time
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


# The messages of one second begin alike.
@lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")


def _check_ttl(ttl: Any) -> None:
    if ttl is None:
        return
    if isinstance(ttl, (int, float)) and not isinstance(ttl, bool) and 0 < ttl <= MAX_TTL_SECONDS:
        return
    raise MessageValidationError(
        f"ttl {printable(repr(ttl))} is not usable: seconds greater than 0 and at most {MAX_TTL_SECONDS}, "
        "or None for a message that never expires"
    )


def _check_priority(priority: Any) -> None:
    if isinstance(priority, int) and not isinstance(priority, bool) and 0 <= priority <= 9:
        return
    raise MessageValidationError(
        f"priority {printable(repr(priority))} is not usable: a whole number from 0 to 9 is, 9 the most urgent"
    )


def _checked_headers(extra: Any) -> dict[str, Any]:
    if not isinstance(extra, Mapping):
        raise MessageValidationError(f"headers must be a dict, not {shown(extra)}")
    for name, value in extra.items():
        check_header(name, value)
        if name in WIRE_HEADERS or name.startswith(RESERVED_PREFIX):
            raise MessageValidationError(
                f"a header's name must not be one of the hub, not {name!r}: choose another one that does not begin "
                f"with '{RESERVED_PREFIX}'"
            )
    check_headers_size(extra)
    return dict(extra)


def check_header(name: Any, value: Any) -> None:
    """Refuse a header that a broker or another client could not read (:class:`MessageValidationError`)."""
    if not (isinstance(name, str) and encodable(name) and 0 < len(name.encode()) <= 128):
        raise MessageValidationError(f"a header's name must be a text of 1 to 128 bytes, not {shown(name)}")
    whole = isinstance(value, int) and -_INT64 <= value < _INT64
    if not (whole or value is None or (isinstance(value, str) and encodable(value))):
        raise MessageValidationError(
            f"header {name!r} must be a text, a 64-bit whole number, a bool or None, not "
            # Not the text itself: it may be a secret.
            f"{'a text that UTF-8 cannot encode' if isinstance(value, str) else shown(value)}"
        )


def check_headers_size(headers: Mapping[str, Any]) -> None:
    """Refuse headers that are too large together (:class:`MessageValidationError`)."""
    # The broker ends the connection, for all that is in flight on it, at about 129 KiB of headers, whatever frame_max
    # is.
    if sum(len(name) + len(str(value).encode()) for name, value in headers.items()) > 64 * 1024:
        raise MessageValidationError("headers must be at most 64 KiB together: put such data into the payload")


def _first_line(error: BaseException) -> str:
    return printable(str(error).split("\n", 1)[0] or type(error).__name__)
