"""Talking to the broker past the library: what an operator, another client or an attacker does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pika
from pika import frame, spec

from message_hub_sync.testing.rabbitmq_node import RabbitMQNode

__all__ = ["kill", "publish_raw", "raw_channel"]


def kill(node: RabbitMQNode) -> None:
    """Kill the broker. It forgets no queue over it: RabbitMQ writes a new one down up to two seconds later, and one
    that is forgotten takes its confirmed messages along, and lets events pass by until it is there again.
    """
    node.ctl("eval", "mnesia:sync_log().")
    node.kill()


@contextlib.contextmanager
def raw_channel(url: str) -> Iterator[Any]:
    """A blocking channel of pika's, in confirm mode."""
    parameters = pika.URLParameters(url)
    parameters.socket_timeout = parameters.stack_timeout = 10
    with contextlib.closing(pika.BlockingConnection(parameters)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        yield channel


def publish_raw(url: str, queue: str, body: bytes, header: bytes) -> None:
    """Publish with a content header that pika would not encode; returns when the broker has it."""
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(url))) as connection:
        channel = connection.channel()
        number = channel.channel_number
        frames = [
            frame.Method(number, spec.Basic.Publish(exchange="", routing_key=queue)).marshal(),
            b"\x02" + number.to_bytes(2, "big") + len(header).to_bytes(4, "big") + header + b"\xce",
            frame.Body(number, body).marshal(),
        ]
        connection._impl._adapter_emit_data(b"".join(frames))
        channel.queue_declare(queue, passive=True)  # answered only after what came before it on this channel
