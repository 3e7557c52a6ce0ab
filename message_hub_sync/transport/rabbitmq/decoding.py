"""Frames by pika's decoder, with a door before it that hostile headers do not pass.

Headers come from whoever may publish. Some make pika's decoder raise (a timestamp beyond the year 9999, an
unknown type of field, tables nested by the hundred), and an exception there ends the connection, again at
each redelivery: one message would stop a consumer for good. Here it becomes one bad message.
"""

from __future__ import annotations

import struct
from typing import Any

from pika import exceptions as amqp
from pika import frame, spec

__all__ = ["FRAME_END", "FRAME_START", "LARGEST_FRAME", "UNDECODABLE", "decode", "decode_header", "frame_start"]

#: The header that replaces all headers of a message when they cannot be decoded; its value says why.
UNDECODABLE = "x-undecodable"
#: The byte that ends every frame.
FRAME_END: int = spec.FRAME_END
#: How deep tables and lists may be nested, the headers' own included: far more than any use, far less than
#: Python's stack, which pika's decoder and everything after it climb.
DEEPEST = 32
#: What pika proposes as ``frame_max``, so that no broker may send more.
LARGEST_FRAME = spec.FRAME_MAX_SIZE

#: What begins every frame: its kind, its channel and the bytes of its payload.
FRAME_START = struct.Struct(">BHI")
_KINDS = (spec.FRAME_METHOD, spec.FRAME_HEADER, spec.FRAME_BODY, spec.FRAME_HEARTBEAT)
_FIXED = 12  # class, weight and body size, before the flags of the properties


def frame_start(data: bytes, position: int) -> tuple[int, int, int]:
    """The kind of the frame at ``position``, its channel, and its size in bytes, all included.

    :raises IncompatibleProtocolError: this is no AMQP 0-9-1.
    """
    kind, channel, size = FRAME_START.unpack_from(data, position)
    if kind not in _KINDS or size + 8 > LARGEST_FRAME:
        raise amqp.IncompatibleProtocolError("no frame of AMQP 0-9-1")
    return kind, channel, size + 8


def decode(kind: int, data: bytes) -> Any:
    """One whole frame, as pika's value.

    :raises Exception: whatever pika raises, for anything but a message's properties.
    """
    if kind != spec.FRAME_HEADER:
        return frame.decode_frame(data)[1]
    if data[-1] != spec.FRAME_END:
        raise amqp.InvalidFrameError("Invalid FRAME_END marker")
    try:
        value: Any = frame.decode_frame(data)[1]
        headers = value.properties.headers
        if not headers or not _deeper(headers, DEEPEST):
            return value
        reason = f"nested deeper than {DEEPEST} levels"
    except Exception as error:
        reason = type(error).__name__
    _, channel, _ = FRAME_START.unpack_from(data)
    payload = data[FRAME_START.size : -1]
    (body_size,) = struct.unpack_from(">Q", payload, 4)
    properties = _without_headers(payload)
    properties.headers = {UNDECODABLE: reason}
    return frame.Header(channel, body_size, properties)


def decode_header(payload: bytes) -> Any:
    """pika's properties in the payload of a content header, through the same door."""
    data = FRAME_START.pack(spec.FRAME_HEADER, 0, len(payload)) + payload + bytes((FRAME_END,))
    return decode(spec.FRAME_HEADER, data).properties


def _deeper(value: Any, levels: int) -> bool:
    if isinstance(value, dict):
        values = value.values()
    elif isinstance(value, list):
        values = value  # type: ignore[assignment]
    else:
        return False
    return levels == 0 or any(_deeper(each, levels - 1) for each in values)


def _without_headers(payload: bytes) -> Any:
    """The other properties, where they can be read: above all the message id, by which a return is recognised."""
    properties: Any = spec.BasicProperties()
    try:
        (flags,) = struct.unpack_from(">H", payload, _FIXED)
        start = _FIXED + 2
        for before in (spec.BasicProperties.FLAG_CONTENT_TYPE, spec.BasicProperties.FLAG_CONTENT_ENCODING):
            if flags & before:
                start += 1 + payload[start]
        (size,) = struct.unpack_from(">I", payload, start)
        others = struct.pack(">H", flags & ~spec.BasicProperties.FLAG_HEADERS)
        properties.decode(others + payload[_FIXED + 2 : start] + payload[start + 4 + size :])
    except Exception:  # nothing of it can be read: what is there counts as nothing
        return spec.BasicProperties()
    return properties
