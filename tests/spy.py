"""Reads all events of the exchange ``events`` with pika, as another AMQP client sees them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pika


class Spy:
    """Has a queue that is bound to all events. Used by one thread."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        channel.exchange_declare("events", "topic", durable=True)
        self._queue = channel.queue_declare("", exclusive=True).method.queue
        channel.queue_bind(self._queue, "events", "#")

    def events(self) -> list[tuple[str, Any, dict[str, Any]]]:
        """Routing key, properties and payload of each event that arrived since the last call."""
        found: list[tuple[str, Any, dict[str, Any]]] = []
        while True:
            method, properties, body = self._channel.basic_get(self._queue, auto_ack=True)
            if method is None:
                return found
            found.append((method.routing_key, properties, json.loads(body)))


@contextlib.contextmanager
def spying(url: str) -> Iterator[Spy]:
    """A :class:`Spy` on the broker at ``url``."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        yield Spy(connection.channel())
    finally:
        connection.close()
