"""Between our values and AMQP frames: the common ones by our own encoders, the others by pika's."""

from __future__ import annotations

import math
import os
import struct
from typing import Any

from pika import exceptions as amqp
from pika import frame, spec
from pika.data import encode_short_string, encode_value

from message_hub_sync.envelope.values import Properties
from message_hub_sync.errors import MessageValidationError
from message_hub_sync.runtime.text import cut
from message_hub_sync.transport.base import Outgoing
from message_hub_sync.transport.rabbitmq.frames import fast_encoding

__all__ = [
    "OWN_FRAMES",
    "encode_ack",
    "encode_publish",
    "encode_reject",
    "properties_from_pika",
    "properties_to_pika",
]

#: The one switch: ``MESSAGE_HUB_FRAMES=pika`` in the environment leaves every frame to pika, at half the speed.
OWN_FRAMES = os.environ.get("MESSAGE_HUB_FRAMES", "own") != "pika"

_FRAME_OVERHEAD = spec.FRAME_HEADER_SIZE + spec.FRAME_END_SIZE
_HEADER_START = spec.FRAME_HEADER_SIZE + 14


def encode_publish(outgoing: Outgoing, channel_number: int, max_fragment: int) -> bytes:
    """The frames of one publish: method, header, body in pieces of at most ``max_fragment`` bytes.

    Runs in the caller's thread, outside every lock.

    :raises MessageValidationError: AMQP cannot carry a property or a header.
    """
    if OWN_FRAMES:
        data = fast_encoding.encode_publish(outgoing, channel_number, max_fragment)
        if data is not None:
            return data
    body = outgoing.body
    method = spec.Basic.Publish(
        exchange=outgoing.exchange, routing_key=outgoing.routing_key, mandatory=outgoing.mandatory
    )
    try:
        pieces = [
            frame.Method(channel_number, method).marshal(),
            _header_frame(channel_number, len(body), outgoing.properties),
        ]
    except (amqp.AMQPError, struct.error, AssertionError, ValueError, OverflowError) as error:
        raise MessageValidationError(
            f"a property or header cannot be carried by AMQP ({type(error).__name__}): "
            "texts of at most 255 bytes, 64-bit whole numbers and finite floats are"
        ) from None
    if len(pieces[1]) > max_fragment + _FRAME_OVERHEAD:
        raise MessageValidationError(
            f"properties and headers of {len(pieces[1])} bytes do not fit into a frame: "
            f"{max_fragment + _FRAME_OVERHEAD} bytes are allowed; put it into the payload"
        )
    if len(body) <= max_fragment:
        if body:
            pieces.append(frame.Body(channel_number, body).marshal())
    else:
        pieces.extend(
            frame.Body(channel_number, body[start : start + max_fragment]).marshal()
            for start in range(0, len(body), max_fragment)
        )
    return b"".join(pieces)


def encode_ack(channel_number: int, delivery_tag: int, multiple: bool) -> bytes:
    """The frame of one ``basic.ack``."""
    if OWN_FRAMES:
        return fast_encoding.encode_ack(channel_number, delivery_tag, multiple)
    data: bytes = frame.Method(channel_number, spec.Basic.Ack(delivery_tag, multiple)).marshal()
    return data


def encode_reject(channel_number: int, delivery_tag: int) -> bytes:
    """The frame of one ``basic.reject`` that gives the message back to its queue."""
    data: bytes = frame.Method(channel_number, spec.Basic.Reject(delivery_tag, requeue=True)).marshal()
    return data


def _header_frame(channel_number: int, body_size: int, properties: Properties) -> bytes:
    """By pika, but for headers with floats, which it does not write."""
    value = properties_to_pika(properties)
    floats = _holds_float(properties.headers)
    if floats:
        value.headers = {}
    data: bytes = frame.Header(channel_number, body_size, value).marshal()
    if floats:
        texts = (properties.content_type, properties.content_encoding)
        # Behind the frame's start, class, weight, body size and flags stand the two properties before the headers.
        start = _HEADER_START + sum(1 + len(text.encode()) for text in texts if text is not None)
        payload = data[spec.FRAME_HEADER_SIZE : start] + _table(properties.headers) + data[start + 4 : -1]
        data = struct.pack(">BHI", spec.FRAME_HEADER, channel_number, len(payload)) + payload + data[-1:]
    return data


def _holds_float(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_float, value.values()))
    return any(map(_holds_float, value)) if isinstance(value, list) else isinstance(value, float)


def _table(table: dict[str, Any]) -> bytes:
    pieces: list[bytes] = []
    for name, value in table.items():
        encode_short_string(pieces, name)
        _add_value(pieces, value)
    return _with_size(pieces)


def _add_value(pieces: list[bytes], value: Any) -> None:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("the broker would end the connection for it")
        pieces.append(struct.pack(">cd", b"d", value))
    elif isinstance(value, dict):
        pieces += (b"F", _table(value))
    elif isinstance(value, list):
        content: list[bytes] = []
        for each in value:
            _add_value(content, each)
        pieces += (b"A", _with_size(content))
    else:
        encode_value(pieces, value)


def _with_size(pieces: list[bytes]) -> bytes:
    content = b"".join(pieces)
    return struct.pack(">I", len(content)) + content


def properties_to_pika(properties: Properties) -> spec.BasicProperties:
    """Our properties as pika's."""
    return spec.BasicProperties(
        content_type=properties.content_type,
        content_encoding=properties.content_encoding,
        headers=properties.headers,
        delivery_mode=properties.delivery_mode,
        priority=properties.priority,
        correlation_id=properties.correlation_id,
        reply_to=properties.reply_to,
        expiration=properties.expiration,
        message_id=properties.message_id,
        timestamp=properties.timestamp,
        type=properties.type,
        user_id=properties.user_id,
        app_id=properties.app_id,
    )


def properties_from_pika(properties: spec.BasicProperties) -> Properties:
    """pika's properties as ours. Short strings that are not UTF-8 reach us as bytes: they are made text.

    Of such a text goes on what fits into a short string again (255 bytes; a byte becomes up to four), or the message
    could never be moved to where somebody looks at it.
    """
    found: Any = properties
    headers = found.headers or {}
    return Properties(
        message_id=_text(found.message_id),
        correlation_id=_text(found.correlation_id),
        type=_text(found.type),
        app_id=_text(found.app_id),
        content_type=_text(found.content_type),
        content_encoding=_text(found.content_encoding),
        delivery_mode=found.delivery_mode,
        priority=found.priority,
        expiration=_text(found.expiration),
        timestamp=found.timestamp,
        reply_to=_text(found.reply_to),
        user_id=_text(found.user_id),
        headers={_text(name) or "": value for name, value in headers.items()},
    )


def _text(value: Any) -> str | None:
    return cut(value.decode("utf-8", "backslashreplace"), 255) if isinstance(value, bytes) else value
