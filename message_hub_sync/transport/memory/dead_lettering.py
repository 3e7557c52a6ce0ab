"""Dead-lettering: the headers that RabbitMQ adds, and the cycles that it detects. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from message_hub_sync.envelope.header_names import X_DEATH
from message_hub_sync.transport.memory.validation import StoredMessage, copy_headers, copy_properties

__all__ = ["Reason", "dead_letter", "is_cycle"]

Reason = Literal["expired", "maxlen", "delivery_limit"]


def dead_letter(
    message: StoredMessage, queue: str, reason: Reason, when: datetime, exchange: str, routing_key: str | None
) -> StoredMessage:
    """The dead-lettered message, with the headers that RabbitMQ adds (``x-death``, ``x-first-death-…``).

    It has no expiration, else it would expire again in the next queue.

    :param message: the message in the queue ``queue``.
    :param when: the time for ``x-death``.
    :param exchange: the dead-letter exchange of the queue.
    :param routing_key: the dead-letter routing key of the queue; ``None`` keeps the message's own.
    """
    properties = message.properties
    headers = copy_headers(message)
    deaths = _deaths(headers)
    earlier = next((d for d in deaths if d.get("queue") == queue and d.get("reason") == reason), None)
    if earlier is not None:
        deaths.remove(earlier)
        count = earlier.get("count")
        death = {**earlier, "count": count + 1 if isinstance(count, int) else 1, "time": when}
    else:
        death = {
            "count": 1,
            "reason": reason,
            "queue": queue,
            "time": when,
            "exchange": message.exchange,
            "routing-keys": [message.routing_key],
        }
        if properties.expiration is not None:
            death["original-expiration"] = properties.expiration
    headers[X_DEATH] = [death, *deaths]
    for name, value in (("exchange", message.exchange), ("queue", queue), ("reason", reason)):
        headers.setdefault(f"x-first-death-{name}", value)
    copied = copy_properties(properties, headers)
    copied.expiration = None
    key = message.routing_key if routing_key is None else routing_key
    return StoredMessage(message.body, copied, exchange, key, flat=False, ttl=math.inf)


def is_cycle(message: StoredMessage, queue: str) -> bool:
    """Whether ``message`` was dead-lettered from ``queue`` before, and no consumer has rejected it since.

    RabbitMQ drops such a message, else it would circulate for ever.
    """
    deaths: Sequence[dict[str, Any]] = _deaths(message.properties.headers)
    for index, death in enumerate(deaths):
        if death.get("queue") == queue:
            return all(d.get("reason") != "rejected" for d in deaths[: index + 1])
    return False


def _deaths(headers: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of ``x-death``. Any publisher can write that header, so ignore what has another type."""
    found = headers.get(X_DEATH)
    return [death for death in found if isinstance(death, dict)] if isinstance(found, list) else []
