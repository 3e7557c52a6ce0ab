"""Talking to the broker past the library: what an operator, another client or an attacker does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pika
from pika import frame, spec

__all__ = ["publish_raw", "raw_channel"]


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
