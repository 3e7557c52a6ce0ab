"""The catalogue as an AsyncAPI 3.0 document."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from message_hub_sync import __version__
from message_hub_sync.catalogue import EventType
from message_hub_sync.catalogue.event_type import model_schema
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
    schemas, definitions = _schemas(dict.fromkeys(event.model for event in events))
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
            "messages": {event.name: _message(event, schemas[event.model]) for event in events},
            "schemas": definitions,
        },
    }


def _schemas(models: Iterable[type[BaseModel]]) -> tuple[dict[type[BaseModel], dict[str, Any]], dict[str, Any]]:
    """The schema of each model, and the definitions that these refer to. Pass each model once: for two models of the
    same name, pydantic qualifies both names."""
    found = {model: model_schema(model) for model in models}
    described: list[tuple[type[BaseModel], JsonSchemaMode]] = [
        (model, "validation") for model, schema in found.items() if not _is_missing(model, schema)
    ]
    references, definitions = models_json_schema(described, ref_template="#/components/schemas/{model}")
    for model, _ in described:
        found[model] = references[model, "validation"]
    return found, _without_discriminators(definitions.get("$defs", {}))


def _is_missing(model: type[BaseModel], schema: dict[str, Any]) -> bool:
    return schema == {"title": model.__name__, "description": schema.get("description")}


def _without_discriminators(value: Any) -> Any:
    """A schema without pydantic's ``discriminator`` objects: they are OpenAPI's. In AsyncAPI it is a text that names a
    property of the schema itself. The alternatives in ``oneOf`` have the value of their tag, which says the same."""
    if isinstance(value, dict):
        return {
            name: _without_discriminators(item)
            for name, item in value.items()
            if not (name == "discriminator" and isinstance(item, dict) and "propertyName" in item)
        }
    return [_without_discriminators(item) for item in value] if isinstance(value, list) else value


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
