"""Events and messages for unit tests of handlers: as a client would hand them over, without a hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, overload
from uuid import UUID

from pydantic import BaseModel

from message_hub_sync import catalogue
from message_hub_sync.catalogue import EventType
from message_hub_sync.config import ClientConfig, MemoryAddress
from message_hub_sync.envelope.values import Event, Message
from message_hub_sync.publishing.outgoing import outgoing_event, outgoing_message
from message_hub_sync.testing.envelopes import sent

__all__ = ["make_event", "make_message"]

M = TypeVar("M", bound=BaseModel)
E = TypeVar("E", Event[Any], Message[Any])

#: The sender, if the test names none and the catalogue has none.
_SOURCE = "test-service"


@overload
def make_event(
    event_type: M,
    /,
    *,
    source: str | None = None,
    correlation_id: UUID | str | None = None,
    message_id: UUID | None = None,
    headers: Mapping[str, Any] | None = None,
) -> Event[M]: ...


@overload
def make_event(
    event_type: str,
    payload: M,
    /,
    *,
    source: str | None = None,
    correlation_id: UUID | str | None = None,
    message_id: UUID | None = None,
    headers: Mapping[str, Any] | None = None,
) -> Event[M]: ...


@overload
def make_event(
    event_type: str,
    payload: Mapping[str, Any],
    /,
    *,
    source: str | None = None,
    correlation_id: UUID | str | None = None,
    message_id: UUID | None = None,
    headers: Mapping[str, Any] | None = None,
) -> Event[dict[str, Any]]: ...


def make_event(
    event_type: Any,
    payload: Any = None,
    /,
    *,
    source: str | None = None,
    correlation_id: UUID | str | None = None,
    message_id: UUID | None = None,
    headers: Mapping[str, Any] | None = None,
) -> Event[Any]:
    """An event as a handler gets it: ``handler(make_event(CharacterCreated(character_id="42")))``.

    It is checked as ``publish_event`` would check it, so a test cannot use an event that no service can send.

    :param event_type: its name, with ``payload``; or, alone, a catalogued payload.
    :param payload: a dict or a model. The event's payload is the same: a dict, or the model.
    :param source: the service that sends it; by default the publisher that the catalogue names, else ``test-service``.
    :param correlation_id: a UUID or printable text; by default a new one.
    :param message_id: its id; by default a new one.
    :param headers: additional headers: ``str``, 64-bit whole numbers, ``bool`` or ``None`` by name.
    :raises MessageValidationError: no service could send such an event; the text says why.
    """
    model = event_type if isinstance(event_type, BaseModel) else payload
    known = _known(event_type)
    outgoing = outgoing_event(
        _config(source or (known.publisher if known is not None else None)),
        event_type,
        payload,
        correlation_id=correlation_id,
        message_id=message_id,
        headers=headers,
    )
    event = sent(outgoing)
    assert isinstance(event, Event)
    return _with_model(event, model)


def make_message(
    payload: Any,
    /,
    *,
    destination: str = "service-under-test",
    source: str = _SOURCE,
    correlation_id: UUID | str | None = None,
    ttl: float | None = 300,
    priority: int = 0,
    message_id: UUID | None = None,
    headers: Mapping[str, Any] | None = None,
) -> Message[Any]:
    """A message as a handler gets it: ``handler(make_message({"action": "welcome"}))``. It has no ``reply()``.

    :param payload: a dict or a model. The message's payload is the same: a dict, or the model.
    :param destination: the service that gets it.
    :param source: the service that sends it.
    :param correlation_id: a UUID or printable text; by default a new one.
    :param ttl: seconds; ``None``: never expires.
    :param priority: 0 to 9.
    :param message_id: its id; by default a new one.
    :param headers: additional headers: ``str``, 64-bit whole numbers, ``bool`` or ``None`` by name.
    :raises MessageValidationError: no service could send such a message; the text says why.
    """
    outgoing = outgoing_message(
        _config(source),
        destination,
        payload,
        correlation_id=correlation_id,
        ttl=ttl,
        priority=priority,
        message_id=message_id,
        headers=headers,
    )
    message = sent(outgoing)
    assert isinstance(message, Message)
    return _with_model(message, payload)


def _config(source: str | None) -> ClientConfig:
    return ClientConfig(source or _SOURCE, MemoryAddress("make"))


def _known(event_type: Any) -> EventType | None:
    if isinstance(event_type, EventType):
        return event_type
    if isinstance(event_type, BaseModel):
        return catalogue.event_type_of(event_type)
    return catalogue.get(event_type) if isinstance(event_type, str) else None


def _with_model(envelope: E, payload: Any) -> E:
    """The envelope, with the model that the test gave instead of the dict that travels."""
    return envelope.model_copy(update={"payload": payload}) if isinstance(payload, BaseModel) else envelope
