"""What becomes of a message that its queue gives up. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from message_hub_sync.envelope.header_names import X_DEATH
from message_hub_sync.transport.memory.validation import StoredMessage, copy_headers, copy_properties

__all__ = ["Reason", "dead_letter", "is_cycle"]

Reason = Literal["expired", "maxlen"]


def dead_letter(
    message: StoredMessage, queue: str, reason: Reason, when: datetime, exchange: str, routing_key: str | None
) -> StoredMessage:
    """The message as its queue hands it on, with the headers RabbitMQ adds (``x-death``, ``x-first-death-…``).

    Its expiration is taken off, else it would expire again where it arrives.

    :param routing_key: ``None`` keeps the message's own.
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
    """Whether ``queue`` would get a message back that died there, without anybody having rejected it since.

    RabbitMQ drops such a message, or it would go round for ever.
    """
    deaths: Sequence[dict[str, Any]] = _deaths(message.properties.headers)
    for index, death in enumerate(deaths):
        if death.get("queue") == queue:
            return all(d.get("reason") != "rejected" for d in deaths[: index + 1])
    return False


def _deaths(headers: dict[str, Any]) -> list[dict[str, Any]]:
    """The deaths a message came with; anybody may have written that header."""
    found = headers.get(X_DEATH)
    return [death for death in found if isinstance(death, dict)] if isinstance(found, list) else []
