"""Builds an ``Outgoing`` from the arguments of a call, and checks each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from message_hub_sync import catalogue
from message_hub_sync.config import ClientConfig
from message_hub_sync.envelope.encode import encode_payload, event_properties, message_properties
from message_hub_sync.envelope.header_names import RESERVED_PREFIX, WIRE_HEADERS
from message_hub_sync.envelope.names import validate_event_type, validate_service_name
from message_hub_sync.envelope.values import Event, Message
from message_hub_sync.errors import MessageValidationError
from message_hub_sync.transport.base import Outgoing
from message_hub_sync.transport.topology import DEFAULT_EXCHANGE, EVENTS, inbox_name

__all__ = ["DEFAULT_TTL", "outgoing_event", "outgoing_events", "outgoing_message", "outgoing_messages"]

#: The default ttl of a message in seconds: the five minutes of the integration guide.
DEFAULT_TTL = 300


def outgoing_message(
    config: ClientConfig,
    destination: Any,
    payload: Any = None,
    *,
    correlation_id: UUID | str | None = None,
    ttl: float | None = DEFAULT_TTL,
    priority: int = 0,
    message_id: UUID | None = None,
    headers: Mapping[str, Any] | None = None,
    reply_to: str | None = None,
) -> Outgoing:
    """A message to the inbox of a service.

    :param destination: the service, or a ``Message`` given alone.
    :param payload: a JSON object: a dict, a pydantic model or a dataclass.
    :param correlation_id: a UUID or printable text; by default that of the message being handled, else new.
    :param ttl: seconds; ``None``: never expires.
    :param priority: 0 to 9.
    :param message_id: its id; by default a new one.
    :param headers: additional headers: ``str``, 64-bit whole numbers, ``bool`` or ``None`` by name.
    :param reply_to: the queue in which the sender waits for a reply.
    :raises MessageValidationError: a value is invalid; the text says which one and what is allowed.
    """
    if isinstance(destination, Message):
        if payload is not None:
            raise MessageValidationError("payload must be left out if a Message is given: the Message contains one")
        given = destination
        destination, payload = given.destination, given.payload
        correlation_id = given.correlation_id if correlation_id is None else correlation_id
        message_id = given.id if message_id is None else message_id
        ttl, priority = given.ttl, given.priority
        headers = headers if headers is not None else _own_headers(given.headers)
    destination = validate_service_name(destination, what="destination")
    body = encode_payload(payload, config.max_message_bytes, config.json_fallback)
    properties = message_properties(
        source=config.service_name,
        destination=destination,
        message_id=message_id,
        correlation_id=correlation_id,
        ttl=ttl,
        priority=priority,
        reply_to=reply_to,
        headers=headers,
    )
    return Outgoing(DEFAULT_EXCHANGE, inbox_name(destination), body, properties, mandatory=True)


def outgoing_event(
    config: ClientConfig,
    event_type: Any,
    payload: Any = None,
    *,
    correlation_id: UUID | str | None = None,
    message_id: UUID | None = None,
    headers: Mapping[str, Any] | None = None,
) -> Outgoing:
    """An event for the event exchange.

    :param event_type: its name; or, given alone, an ``Event`` or a catalogued payload.
    :param payload: a JSON object: a dict, a pydantic model or a dataclass.
    :param correlation_id: a UUID or printable text; by default that of the message being handled, else new.
    :param message_id: its id; by default a new one.
    :param headers: additional headers: ``str``, 64-bit whole numbers, ``bool`` or ``None`` by name.
    :raises MessageValidationError: a value is invalid; the text says which one and what is allowed.
    """
    if isinstance(event_type, BaseModel):
        if payload is not None:
            raise MessageValidationError(
                f"payload must be left out if event_type is an object of {type(event_type).__name__}: it is the payload"
            )
        payload = event_type
        if isinstance(payload, Event):
            given = payload
            event_type, payload = given.event_type, given.payload
            correlation_id = given.correlation_id if correlation_id is None else correlation_id
            message_id = given.id if message_id is None else message_id
            headers = headers if headers is not None else _own_headers(given.headers)
        else:
            event_type = catalogue.event_type_of(payload)
    name = validate_event_type(event_type)
    body = encode_payload(payload, config.max_message_bytes, config.json_fallback)
    properties = event_properties(
        source=config.service_name,
        event_type=name,
        message_id=message_id,
        correlation_id=correlation_id,
        headers=headers,
    )
    # Check this last: it may log a warning, but not for an event that is invalid for another reason.
    catalogue.check_publish(name, payload, config.service_name, config.strict_catalogue, body=body)
    return Outgoing(EVENTS, name, body, properties)


def outgoing_messages(config: ClientConfig, messages: Any) -> list[Outgoing]:
    """The messages of a bulk call.

    :param messages: pairs of destination and payload, or ``Message`` envelopes.
    :raises MessageValidationError: an item is invalid; the text begins with its index.
    """
    return _each(
        _items(messages, "messages"),
        lambda item: outgoing_message(config, *_parts(item, Message, "(destination, payload)")),
    )


def outgoing_events(config: ClientConfig, events: Any) -> list[Outgoing]:
    """The events of a bulk call.

    :param events: pairs of event type and payload, ``Event`` envelopes, or catalogued payloads.
    :raises MessageValidationError: an item is invalid; the text begins with its index.
    """
    return _each(
        _items(events, "events"),
        lambda item: outgoing_event(config, *_parts(item, BaseModel, "(event_type, payload)")),
    )


def _each(items: list[Any], make: Callable[[Any], Outgoing]) -> list[Outgoing]:
    made: list[Outgoing] = []
    try:
        for item in items:
            made.append(make(item))  # the length of made is the index of the item that fails
    except MessageValidationError as error:
        raise MessageValidationError(f"item {len(made)}: {error}") from None
    return made


def _items(items: Any, name: str) -> list[Any]:
    if isinstance(items, (str, bytes, Mapping, BaseModel)):
        raise MessageValidationError(f"{name} must be a list, not {type(items).__name__}")
    try:
        return list(items)
    except TypeError:
        raise MessageValidationError(f"{name} must be a list, not {type(items).__name__}") from None


def _parts(item: Any, envelope: type[BaseModel], pair: str) -> tuple[Any, ...]:
    if isinstance(item, envelope):
        return (item,)
    if isinstance(item, (tuple, list)) and len(item) == 2:
        return tuple(item)
    # By its type only: the item may contain a message body.
    what = f"a {type(item).__name__} of {len(item)}" if isinstance(item, (tuple, list)) else type(item).__name__
    raise MessageValidationError(f"it must be a pair {pair} or an envelope, not {what}")


def _own_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """The sender's own headers of an envelope that is sent again. The hub's headers are written anew."""
    return {
        name: value
        for name, value in headers.items()
        if name not in WIRE_HEADERS and not name.startswith(RESERVED_PREFIX)
    }
