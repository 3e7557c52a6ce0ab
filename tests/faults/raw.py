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


def publish_raw(channel: Any, queue: str, body: bytes, header: bytes) -> None:
    """Publish with a content header that pika would not encode, through the default exchange."""
    method = spec.Basic.Publish(exchange="", routing_key=queue)
    number = channel.channel_number
    frames = [
        frame.Method(number, method).marshal(),
        b"\x02" + number.to_bytes(2, "big") + len(header).to_bytes(4, "big") + header + b"\xce",
        frame.Body(number, body).marshal(),
    ]
    channel.connection._impl._adapter_emit_data(b"".join(frames))
    channel.connection.process_data_events(0.05)
