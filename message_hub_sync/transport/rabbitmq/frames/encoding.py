"""Encoding of frames: the common ones by ``fast_encoding``, the others by pika."""

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

#: If the environment has ``MESSAGE_HUB_FRAMES=pika``, pika encodes and decodes every frame, at half the speed.
OWN_FRAMES = os.environ.get("MESSAGE_HUB_FRAMES", "own") != "pika"

_FRAME_OVERHEAD = spec.FRAME_HEADER_SIZE + spec.FRAME_END_SIZE
_HEADER_START = spec.FRAME_HEADER_SIZE + 14


def encode_publish(outgoing: Outgoing, channel_number: int, max_fragment: int) -> bytes:
    """Encode the frames of one publish: method, header, body. In the caller's thread, with no lock held.

    :param max_fragment: the largest part of a body in one frame, in bytes.
    :raises MessageValidationError: AMQP cannot carry a property or a header, or they do not fit into one frame.
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
            f"a property or header cannot be carried by AMQP ({type(error).__name__}): property texts and header names "
            "must have at most 255 bytes, whole numbers must fit into 64 bits, floats must be finite"
        ) from None
    if len(pieces[1]) > max_fragment + _FRAME_OVERHEAD:
        raise MessageValidationError(
            f"properties and headers must fit into one frame of {max_fragment + _FRAME_OVERHEAD} bytes, "
            f"not {len(pieces[1])} bytes: put large values into the payload"
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
    """Encode one ``basic.ack``."""
    if OWN_FRAMES:
        return fast_encoding.encode_ack(channel_number, delivery_tag, multiple)
    data: bytes = frame.Method(channel_number, spec.Basic.Ack(delivery_tag, multiple)).marshal()
    return data


def encode_reject(channel_number: int, delivery_tag: int) -> bytes:
    """Encode one ``basic.reject`` with ``requeue``."""
    data: bytes = frame.Method(channel_number, spec.Basic.Reject(delivery_tag, requeue=True)).marshal()
    return data


def _header_frame(channel_number: int, body_size: int, properties: Properties) -> bytes:
    """Encode the content header by pika. pika cannot encode floats, so headers with floats are encoded here."""
    value = properties_to_pika(properties)
    floats = _holds_float(properties.headers)
    if floats:
        value.headers = {}
    data: bytes = frame.Header(channel_number, body_size, value).marshal()
    if floats:
        texts = (properties.content_type, properties.content_encoding)
        # The headers start after the frame's start, class, weight, body size, flags, and these two properties.
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
            raise ValueError("a float must be finite")  # else RabbitMQ closes the connection
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
    """Convert our properties to pika's."""
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
    """Convert pika's properties to ours. Short strings that are not UTF-8 come as bytes and become escaped text."""
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
    # Cut to 255 bytes, the limit of a short string: escaped, one byte becomes up to four. A longer text could not be
    # published again, and the message could never be dead-lettered.
    return cut(value.decode("utf-8", "backslashreplace"), 255) if isinstance(value, bytes) else value
