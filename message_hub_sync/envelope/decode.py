"""Decode deliveries: a body to a JSON object, AMQP properties to a message or an event."""

from __future__ import annotations

import json
import typing
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from functools import lru_cache
from typing import Any, NoReturn, TypeVar, cast
from uuid import UUID

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core.core_schema import ErrorType

from message_hub_sync.envelope.header_names import BODY_BYTES, CAUSATION_ID, DESTINATION, SOURCE, TIMESTAMP, TTL
from message_hub_sync.envelope.ids import new_id, uuid_of
from message_hub_sync.envelope.values import (
    EVENT,
    MAX_TTL_SECONDS,
    SERVICE_MESSAGE,
    Event,
    InvalidMessage,
    Message,
    Properties,
)
from message_hub_sync.runtime.real_time import time
from message_hub_sync.runtime.text import printable, shown

__all__ = [
    "NotJSON",
    "check_body_kept",
    "checked_identity",
    "decode_payload",
    "event_from_wire",
    "message_from_wire",
    "raise_not_json",
    "source_of",
    "ttl_of",
    "validated_json",
    "validation_reason",
]

T = TypeVar("T")

_NO_HEADERS: Mapping[str, Any] = {}


def check_body_kept(headers: Mapping[str, Any], max_bytes: int) -> None:
    """Check that an empty body was empty when it was sent.

    :param headers: of the message with the empty body.
    :param max_bytes: the largest body that is kept, in bytes.
    :raises InvalidMessage: the body was too large, so it was not kept.
    """
    if BODY_BYTES in headers:
        raise InvalidMessage(
            f"the body must be at most {max_bytes} bytes (max_message_bytes), not {shown(headers[BODY_BYTES])}: "
            "it was not kept"
        )


def decode_payload(body: bytes, max_bytes: int, headers: Mapping[str, Any] = _NO_HEADERS) -> dict[str, Any]:
    """Decode a body to a JSON object.

    :param max_bytes: the largest body allowed, in bytes.
    :param headers: of the message; they tell whether the body was too large to be kept.
    :raises InvalidMessage: the body is empty, too large, not UTF-8, not JSON, not an object or nested too deeply, or it
        contains NaN, an infinity, a duplicate key or a number of too many digits.
    """
    if not body:
        check_body_kept(headers, max_bytes)
        raise InvalidMessage("the body must be a JSON object, not empty")
    if len(body) > max_bytes:
        raise InvalidMessage(f"the body must be at most {max_bytes} bytes (max_message_bytes), not {len(body)}")
    try:
        text = body.decode("utf-8")
        payload = _DECODER.decode(text)
    except UnicodeDecodeError:
        raise InvalidMessage("the body is not UTF-8") from None
    except RecursionError:
        raise InvalidMessage("the body is nested too deeply") from None
    except (NotJSON, _DuplicateKey) as error:
        raise InvalidMessage(str(error)) from None
    except json.JSONDecodeError as error:
        raise InvalidMessage(f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except ValueError:  # more digits than sys.get_int_max_str_digits()
        raise InvalidMessage("the body contains a number of too many digits") from None
    if not isinstance(payload, dict):
        raise InvalidMessage(f"the body must be a JSON object, not a JSON {_json_kind(payload)}")
    return payload


class NotJSON(ValueError):
    """The text contains ``NaN`` or an infinity as a number, which Python's parser accepts and JSON does not have."""


class _DuplicateKey(ValueError):
    """An object of the text has the same key twice."""


def raise_not_json(name: str) -> NoReturn:
    """A ``parse_constant`` for :mod:`json`: raises :class:`NotJSON`."""
    raise NotJSON(f"the body contains {name}, which is not JSON")


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _DuplicateKey("the body contains an object with a duplicate key")
    return found


#: Created once: ``json.loads`` with hooks would create a decoder at each call.
_DECODER = json.JSONDecoder(object_pairs_hook=_object_without_duplicates, parse_constant=raise_not_json)


def _json_kind(value: Any) -> str:
    return {list: "array", str: "string", bool: "boolean", type(None): "null"}.get(type(value), "number")


def event_from_wire(
    properties: Properties,
    event_type: str,
    payload: Any,
    model: Any = Event,
    *,
    redelivered: bool = False,
    identity: UUID | None = None,
    body: bytes | None = None,
) -> Event[Any]:
    """Build the envelope of a received event. Absent properties get default values.

    :param event_type: what its routing key says; the header is not read: a right to publish one event type would be a
        right to publish any.
    :param payload: the decoded body.
    :param model: ``Event`` or ``Event[Model]``.
    :param redelivered: the delivery's ``redelivered`` flag.
    :param identity: the result of :func:`checked_identity`, if it was called before.
    :param body: what ``payload`` was decoded from: a model gets its fields from JSON. Without it, from Python objects.
    :raises InvalidMessage: the ``message_id`` is not a UUID, the ``type`` is another one, or the payload does not
        validate against the model.
    """
    if identity is None:
        identity = checked_identity(properties, EVENT)
    fields = _common_fields(identity, properties, payload, redelivered)
    return cast("Event[Any]", _built(model, {**fields, "event_type": event_type}, body))


def message_from_wire(
    properties: Properties,
    destination: str,
    payload: Any,
    model: Any = Message,
    *,
    redelivered: bool = False,
    identity: UUID | None = None,
    body: bytes | None = None,
) -> Message[Any]:
    """Build the envelope of a received message. Absent properties get default values.

    :param destination: the receiving service's name, used if the header is absent.
    :param payload: the decoded body.
    :param model: ``Message`` or ``Message[Model]``.
    :param redelivered: the delivery's ``redelivered`` flag.
    :param identity: the result of :func:`checked_identity`, if it was called before.
    :param body: what ``payload`` was decoded from: a model gets its fields from JSON. Without it, from Python objects.
    :raises InvalidMessage: the ``message_id`` is not a UUID, the ``type`` is another one, or the payload does not
        validate against the model.
    """
    if identity is None:
        identity = checked_identity(properties, SERVICE_MESSAGE)
    headers = properties.headers
    fields = _common_fields(identity, properties, payload, redelivered)
    fields["destination"] = _text(headers.get(DESTINATION)) or destination
    fields["ttl"] = ttl_of(properties)
    fields["priority"] = properties.priority or 0
    fields["reply_to"] = properties.reply_to or None
    return cast("Message[Any]", _built(model, fields, body))


def checked_identity(properties: Properties, expected: str) -> UUID:
    """Check the ``type`` and the ``message_id`` of a delivery.

    :param expected: :data:`EVENT` or :data:`SERVICE_MESSAGE`. An absent ``type`` is accepted.
    :returns: the message id; a new one if there is none, as in messages of other clients.
    :raises InvalidMessage: the ``type`` is another one, or the ``message_id`` is not a UUID.
    """
    if properties.type and properties.type != expected:
        raise InvalidMessage(f"its type must be {expected!r}, not {shown(properties.type)}")
    if not properties.message_id:
        return uuid_of(new_id())
    try:
        return uuid_of(properties.message_id)
    except ValueError:
        raise InvalidMessage("its message_id is not a UUID") from None


def source_of(properties: Properties) -> str | None:
    """The service that a message or an event says it comes from: its header, else ``app_id``; ``None``: neither."""
    return _text(properties.headers.get(SOURCE)) or properties.app_id or None


def ttl_of(properties: Properties) -> float | None:
    """The ttl of a message in seconds; ``None``: it has none, or its header is not a valid ttl."""
    ttl = properties.headers.get(TTL)
    return None if ttl is None else _seconds(ttl)


def _common_fields(identity: UUID, properties: Properties, payload: Any, redelivered: bool) -> dict[str, Any]:
    headers = properties.headers
    return {
        "id": identity,
        "source": source_of(properties) or "unknown",
        "correlation_id": properties.correlation_id or str(identity),
        "payload": payload,
        "timestamp": _moment(headers.get(TIMESTAMP), properties.timestamp),
        "causation_id": _text(headers.get(CAUSATION_ID)) if CAUSATION_ID in headers else None,
        "headers": headers,
        "redelivered": redelivered,
    }


def _built(model: Any, fields: dict[str, Any], body: bytes | None) -> Any:
    adapter: Any = model
    try:
        if body is None or model is Event or model is Message:
            return model(**fields)
        adapter = _payload_adapter(model)
        payload = validated_json(adapter.validate_json, adapter.validate_python, body)
        plain = Event if issubclass(model, Event) else Message
        if model.__pydantic_generic_metadata__["origin"] is not plain:  # a class of the user's, with its own validators
            return model(**{**fields, "payload": payload})
        # The payload has been validated. A second time, as a Python object, it may be refused.
        checked = plain(**{**fields, "payload": {}})
        return model.model_construct(checked.model_fields_set, **{**checked.__dict__, "payload": payload})
    except ValidationError as error:
        schema = model.__pydantic_core_schema__ if adapter is model else adapter.core_schema
        raise InvalidMessage(validation_reason(error, schema)) from None


# Keyed by classes of this process. Bounded, because a class may be made at run time.
@lru_cache(maxsize=256)
def _payload_adapter(envelope: type[BaseModel]) -> TypeAdapter[Any]:
    kind: Any = envelope.model_fields["payload"].annotation
    return TypeAdapter(kind)


def validated_json(from_json: Callable[[bytes], T], from_python: Callable[[Any], T], body: bytes) -> T:
    """Validate a body as JSON, so that a strict model takes a UUID or a date from its text.

    :param body: a body that :func:`decode_payload` accepts.
    :param from_json: ``Model.model_validate_json`` or that of a ``TypeAdapter``.
    :param from_python: its counterpart for Python objects, for what pydantic's parser does not accept.
    :raises ValidationError: the payload does not fit.
    """
    try:
        return from_json(body)
    except ValidationError as error:
        if error.errors(include_url=False, include_context=False, include_input=False)[0]["type"] != "json_invalid":
            raise
    # pydantic's parser refuses a lone surrogate, and more than 200 objects inside each other.
    return from_python(decode_payload(body, len(body)))


def validation_reason(error: ValidationError, core_schema: Any) -> str:
    """A validation error as text: the first five places, each with what is wrong. Nothing of the payload is shown.

    :param core_schema: pydantic's schema of the model. A place consists of its names; any other name is a key of the
        payload or a member of a union.
    """
    known = _texts_of(core_schema)
    found = []
    for item in error.errors(include_url=False, include_input=False)[:5]:
        place = [printable(str(part)) if isinstance(part, int) or part in known else "*" for part in item["loc"]]
        # The text shows a part of the value, or comes from a validator of the model: name the kind only.
        tells = item["type"] not in _KINDS or not _TELLING.isdisjoint(item.get("ctx", ()))
        found.append(f"{'.'.join(place) or 'payload'}: {printable(item['type'] if tells else item['msg'])}")
    return f"the payload does not fit {printable(error.title)}: {'; '.join(found)}"


#: pydantic's own kinds of errors, and those values of their texts that come from the payload.
_KINDS = frozenset(typing.get_args(ErrorType))
_TELLING = frozenset({"error", "tag", "encoding_error", "input_value", "wrong_value"})


def _texts_of(schema: Any) -> set[str]:
    """All texts in a schema of pydantic: names of fields, aliases, tags and types."""
    found: set[str] = set()
    inside = [schema]
    for value in inside:
        if isinstance(value, str):
            found.add(value)
        elif isinstance(value, dict):
            inside.extend(value.keys())
            inside.extend(item for name, item in value.items() if name not in ("metadata", "default"))
        elif isinstance(value, (list, tuple)):
            inside.extend(value)
    return found


def _moment(iso: Any, seconds: int | None) -> datetime:
    """The time in the header, else in the property, else now. It has a time zone: UTC if the header has none."""
    try:
        if isinstance(iso, datetime):
            found = iso
        else:
            # fromisoformat accepts 'Z' only since Python 3.11.
            found = datetime.fromisoformat(iso[:-1] + "+00:00" if iso.endswith("Z") else iso)
        return found if found.tzinfo is not None else found.replace(tzinfo=timezone.utc)
    except (ValueError, TypeError, AttributeError):
        pass
    try:
        if seconds is not None:
            return datetime.fromtimestamp(seconds, timezone.utc)
    except (ValueError, OverflowError, OSError):
        pass
    return datetime.fromtimestamp(time.time(), timezone.utc)


def _seconds(value: Any) -> float | None:
    if type(value) is int and 0 < value <= MAX_TTL_SECONDS:
        return value
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return (int(found) if found.is_integer() else found) if 0 < found <= MAX_TTL_SECONDS else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
