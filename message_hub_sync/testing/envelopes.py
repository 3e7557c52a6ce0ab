"""Converts what passes through a transport's hooks into the events and messages that tests see. No side effects."""

from __future__ import annotations

import re
from typing import Any

from message_hub_sync.envelope.decode import decode_payload, event_from_wire, message_from_wire
from message_hub_sync.envelope.header_names import ORIGINAL_ROUTING_KEY
from message_hub_sync.envelope.values import Event, InvalidMessage, Message
from message_hub_sync.transport.base import Delivery, Outgoing
from message_hub_sync.transport.topology import DEFAULT_EXCHANGE, EVENTS

__all__ = ["delivered", "left_queue", "sent"]

_MOVED = re.compile(r"(?P<queue>.+)\.(dead|retry\.\d+)")


def left_queue(outgoing: Outgoing) -> str | None:
    """The queue from which a message is moved to a retry or dead-letter queue, or ``None`` if it is not moved."""
    if outgoing.exchange != DEFAULT_EXCHANGE:
        return None
    found = _MOVED.fullmatch(outgoing.routing_key)
    return None if found is None else found["queue"]


def sent(outgoing: Outgoing) -> Event[Any] | Message[Any]:
    """The event or message that a client publishes."""
    payload = decode_payload(outgoing.body, len(outgoing.body))
    if outgoing.exchange == EVENTS:
        return event_from_wire(outgoing.properties, outgoing.routing_key, payload)
    return message_from_wire(outgoing.properties, outgoing.routing_key.removesuffix(".messages"), payload)


def delivered(delivery: Delivery) -> Event[Any] | Message[Any] | None:
    """The event or message that was delivered to a client, or ``None`` if it cannot be decoded."""
    properties = delivery.properties
    try:
        payload = decode_payload(delivery.body, max(1, len(delivery.body)))
        if properties.type == "event":
            origin = properties.headers.get(ORIGINAL_ROUTING_KEY)
            routing_key = origin if isinstance(origin, str) else delivery.routing_key
            return event_from_wire(properties, routing_key, payload, redelivered=delivery.redelivered)
        service = delivery.queue.removesuffix(".messages")
        return message_from_wire(properties, service, payload, redelivered=delivery.redelivered)
    except InvalidMessage:
        return None
