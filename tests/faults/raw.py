"""Talks to the broker without the library, as an operator, another client or an attacker does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pika
from pika import frame, spec

from message_hub_sync.testing.rabbitmq_node import RabbitMQNode

__all__ = ["kill", "publish_raw", "raw_channel"]


def kill(node: RabbitMQNode) -> None:
    """Kill the broker with SIGKILL, after it has written its queues to disk."""
    # RabbitMQ writes a new queue to disk up to 2 s later. A kill before that loses the queue with its confirmed
    # messages, and events that are published until it is declared again reach no queue.
    node.ctl("eval", "mnesia:sync_log().")
    node.kill()


@contextlib.contextmanager
def raw_channel(url: str) -> Iterator[Any]:
    """A blocking channel of pika in confirm mode."""
    parameters = pika.URLParameters(url)
    parameters.socket_timeout = parameters.stack_timeout = 10
    with contextlib.closing(pika.BlockingConnection(parameters)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        yield channel


def publish_raw(url: str, queue: str, body: bytes, header: bytes) -> None:
    """Publish with a content header that pika does not encode. Returns when the broker has handled it."""
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(url))) as connection:
        channel = connection.channel()
        number = channel.channel_number
        frames = [
            frame.Method(number, spec.Basic.Publish(exchange="", routing_key=queue)).marshal(),
            b"\x02" + number.to_bytes(2, "big") + len(header).to_bytes(4, "big") + header + b"\xce",
            frame.Body(number, body).marshal(),
        ]
        connection._impl._adapter_emit_data(b"".join(frames))
        channel.queue_declare(queue, passive=True)  # the broker answers only after handling the publish
