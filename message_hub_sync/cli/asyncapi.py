"""The catalogue as an AsyncAPI 3.0 document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic.json_schema import models_json_schema

from message_hub_sync import __version__
from message_hub_sync.catalogue import EventType
from message_hub_sync.envelope.values import EVENT, JSON, PERSISTENT
from message_hub_sync.transport.topology import EVENT_EXCHANGE, event_queue_name

__all__ = ["asyncapi_document"]

_BINDING_VERSION = "0.3.0"


def asyncapi_document(events: Sequence[EventType], service: str | None = None) -> dict[str, Any]:
    """Build the document: a channel per event, an operation per publisher and subscriber, messages and schemas.

    :param events: the events to describe.
    :param service: include the operations of this service only; ``None`` includes all.
    :returns: the document, ready for ``json.dumps``.
    """
    references, definitions = models_json_schema(
        # Pass each model once: for two models of the same name, pydantic qualifies both names.
        [(model, "validation") for model in dict.fromkeys(event.model for event in events)],
        ref_template="#/components/schemas/{model}",
    )
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": f"Message Hub events of {service}" if service else "Message Hub events",
            "version": __version__,
            "description": "The events, their publishers, subscribers and payloads.",
        },
        "defaultContentType": JSON,
        "servers": {
            "hub": {
                "host": "localhost:5672",
                "protocol": "amqp",
                "protocolVersion": "0.9.1",
                "description": "The Message Hub, a RabbitMQ broker",
            }
        },
        "channels": {event.name: _channel(event) for event in events},
        "operations": {
            name: operation for event in events for who, name, operation in _operations(event) if service in (None, who)
        },
        "components": {
            "messages": {event.name: _message(event, references[event.model, "validation"]) for event in events},
            "schemas": definitions["$defs"],
        },
    }


def _channel(event: EventType) -> dict[str, Any]:
    return {
        "address": event.name,
        "description": event.description,
        "messages": {event.name: {"$ref": f"#/components/messages/{event.name}"}},
        "bindings": {
            "amqp": {
                "is": "routingKey",
                "exchange": {
                    "name": EVENT_EXCHANGE.name,
                    "type": EVENT_EXCHANGE.kind,
                    "durable": EVENT_EXCHANGE.durable,
                    "autoDelete": False,
                },
                "bindingVersion": _BINDING_VERSION,
            }
        },
    }


def _operations(event: EventType) -> list[tuple[str, str, dict[str, Any]]]:
    """Service, operation name and operation of the event's publisher and of each subscriber."""
    found = []
    if event.publisher is not None:
        found.append(
            (
                event.publisher,
                f"{event.publisher}.send.{event.name}",
                _operation(event, event.publisher, "send", {"deliveryMode": PERSISTENT, "timestamp": True}),
            )
        )
    for service in event.subscribers:
        operation = _operation(event, service, "receive", {"ack": True})
        operation["x-queue"] = event_queue_name(service, event.name)
        found.append((service, f"{service}.receive.{event.name}", operation))
    return found


def _operation(event: EventType, service: str, action: str, binding: dict[str, Any]) -> dict[str, Any]:
    return {
        "action": action,
        "summary": f"{service} {'publishes' if action == 'send' else 'subscribes to'} {event.name}",
        "channel": {"$ref": f"#/channels/{event.name}"},
        "messages": [{"$ref": f"#/channels/{event.name}/messages/{event.name}"}],
        "tags": [{"name": service}],
        "bindings": {"amqp": {**binding, "bindingVersion": _BINDING_VERSION}},
    }


def _message(event: EventType, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": event.name,
        "title": event.model.__name__,
        "summary": event.description,
        "contentType": JSON,
        "headers": {
            "type": "object",
            "required": ["source", "event_type", "timestamp"],
            "properties": {
                "source": {"type": "string", "description": "The service that published it"},
                "event_type": {"type": "string", "const": event.name},
                "timestamp": {"type": "string", "format": "date-time"},
            },
        },
        "payload": schema,
        "bindings": {"amqp": {"messageType": EVENT, "bindingVersion": _BINDING_VERSION}},
    }
