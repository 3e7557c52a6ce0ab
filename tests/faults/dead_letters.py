"""What a test finds in dead-letter queues."""

from __future__ import annotations

from typing import Any

import pika
from faults.raw import raw_channel
from faults.timing import eventually

from message_hub_sync.testing.rabbitmq_node import RabbitMQNode

__all__ = ["dead_letters", "depth"]


def depth(node: RabbitMQNode, queue: str) -> int:
    """The number of ready messages in a queue; 0 if the queue does not exist."""
    try:
        with raw_channel(node.url) as channel:
            return int(channel.queue_declare(queue, passive=True).method.message_count)
    except pika.exceptions.ChannelClosedByBroker:
        return 0


def dead_letters(node: RabbitMQNode, queue: str, count: int, timeout: float) -> list[tuple[Any, bytes]]:
    """Remove exactly so many dead letters of a queue. Returns the properties and body of each."""
    eventually(lambda: depth(node, f"{queue}.dead") >= count, timeout)
    found = []
    with raw_channel(node.url) as channel:
        while True:
            method, properties, body = channel.basic_get(f"{queue}.dead", auto_ack=True)
            if method is None:
                break
            found.append((properties, body))
    assert len(found) == count
    return found
