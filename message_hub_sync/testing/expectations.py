"""What a test expects of a message or event, and the error text if nothing fits. No side effects."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel

from message_hub_sync.catalogue import catalogue
from message_hub_sync.envelope.decode import validated_json
from message_hub_sync.envelope.encode import encode_payload
from message_hub_sync.envelope.names import validate_event_type
from message_hub_sync.envelope.values import Event, Message
from message_hub_sync.errors import MessageValidationError
from message_hub_sync.runtime.text import printable, shown

__all__ = ["Where", "described", "event_wanted", "fitting", "typed", "unfulfilled"]

E = TypeVar("E")

#: A function of the message or event that returns true or false, or a dict of values that the payload must hold.
Where = Callable[[E], Any] | Mapping[str, Any] | None

_SHOWN = 20
_PAYLOAD_CHARACTERS = 300


def fitting(where: Where[E]) -> Callable[[E], bool]:
    """Turn a ``where=`` argument into a function of the message or event.

    :param where: such a function, a mapping of payload values, or ``None`` for any.
    :raises MessageValidationError: ``where`` is none of these.
    """
    if where is None:
        return lambda _: True
    if isinstance(where, Mapping):
        wanted = dict(where)
        return lambda envelope: _holds(envelope, wanted)
    if callable(where):
        function = where
        return lambda envelope: bool(function(envelope))
    raise MessageValidationError(
        f"where must be a function of the envelope (a Message or Event) or a dict of payload values, not {shown(where)}"
    )


def _holds(envelope: Any, wanted: dict[str, Any]) -> bool:
    payload = envelope.payload
    if isinstance(payload, BaseModel):
        payload = payload.model_dump()
    return all(name in payload and payload[name] == value for name, value in wanted.items())


def event_wanted(event_type: Any) -> tuple[str | None, type[BaseModel] | None]:
    """The event type's name, and the model into which its payload must be validated.

    :param event_type: a name, an ``EventType``, the payload's model class, or ``None`` for any event type.
    :returns: the name, or ``None`` for any; the model if ``event_type`` was one, else ``None``.
    :raises MessageValidationError: the model belongs to no event type, or the name is not valid.
    """
    if event_type is None:
        return None, None
    if isinstance(event_type, type) and issubclass(event_type, BaseModel):
        return catalogue.event_type_of(event_type).name, event_type
    return validate_event_type(event_type), None


def typed(event: Event[Any], model: type[BaseModel] | None) -> Event[Any]:
    """The event with its payload validated into ``model``.

    :raises ValidationError: pydantic's: the payload does not fit the model.
    """
    if model is None:
        return event
    payload = validated_json(
        model.model_validate_json, model.model_validate, encode_payload(event.payload, sys.maxsize)
    )
    return Event[model].model_construct(**{**dict(event), "payload": payload})  # type: ignore[valid-type]


def described(envelope: Event[Any] | Message[Any]) -> str:
    """One line: kind, name or destination, id, source, payload (cut to 300 characters)."""
    what = f"event {envelope.event_type}" if isinstance(envelope, Event) else f"message to {envelope.destination}"
    again = ", redelivered" if envelope.redelivered else ""
    payload = printable(repr(envelope.payload), _PAYLOAD_CHARACTERS)
    return f"{what} {envelope.id} from {envelope.source}{again}: {payload}"


def unfulfilled(expected: str, arrived: Sequence[str], failures: Sequence[str]) -> AssertionError:
    """The error of a failed expectation: what was expected, what did arrive, and which handlers failed."""
    lines = [expected]
    lines.append(f"what did arrive ({len(arrived)}):" if arrived else "nothing arrived")
    if len(arrived) > _SHOWN:
        lines.append(f"  … {len(arrived) - _SHOWN} before these")
    lines += [f"  - {line}" for line in arrived[-_SHOWN:]]
    if failures:
        lines.append("handlers that failed meanwhile:")
        lines += [f"  - {line}" for line in failures]
    return AssertionError("\n".join(lines))
