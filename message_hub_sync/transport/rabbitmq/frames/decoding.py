"""Frames by pika's decoder, with a door before it that hostile headers do not pass and floats pass whole.

Headers come from whoever may publish. Some make pika's decoder raise (a timestamp beyond the year 9999, an
unknown type of field, tables nested by the hundred), and an exception there ends the connection, again at
each redelivery: one message would stop a consumer for good. Here it becomes one bad message.
"""

from __future__ import annotations

import math
import struct
from typing import Any

from pika import exceptions as amqp
from pika import frame, spec
from pika.data import decode_short_string, decode_value

from message_hub_sync.envelope.header_names import UNDECODABLE

__all__ = ["FRAME_END", "FRAME_START", "LARGEST_FRAME", "decode", "decode_header", "frame_start"]

#: The byte that ends every frame.
FRAME_END: int = spec.FRAME_END
#: How deep tables and lists may be nested, the headers' own included: far more than any use, far less than
#: Python's stack, which pika's decoder and everything after it climb.
DEEPEST = 32
#: What pika proposes as ``frame_max``, so that no broker may send more.
LARGEST_FRAME = spec.FRAME_MAX_SIZE

#: What begins every frame: its kind, its channel and the bytes of its payload.
FRAME_START = struct.Struct(">BHI")
_LONG = struct.Struct(">I")
_FLOATS = {b"f": struct.Struct(">f"), b"d": struct.Struct(">d")}
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
    _, channel, _ = FRAME_START.unpack_from(data)
    payload = data[FRAME_START.size : -1]
    (body_size,) = struct.unpack_from(">Q", payload, 4)
    try:
        properties = _properties(payload)
    except Exception as error:
        reason = str(error) if isinstance(error, _TooDeep) else type(error).__name__
        properties = _without_headers(payload)
        properties.headers = {UNDECODABLE: reason}
    return frame.Header(channel, body_size, properties)


def decode_header(payload: bytes) -> Any:
    """pika's properties in the payload of a content header, through the same door."""
    data = FRAME_START.pack(spec.FRAME_HEADER, 0, len(payload)) + payload + bytes((FRAME_END,))
    return decode(spec.FRAME_HEADER, data).properties


class _TooDeep(ValueError):
    pass


def _properties(payload: bytes) -> Any:
    before, start = _parted(payload)
    properties: Any = spec.BasicProperties()
    if start is None:
        properties.decode(before)
        return properties
    headers, end = _table(payload, start, DEEPEST)
    properties.decode(before + payload[end:])
    properties.headers = headers
    return properties


def _without_headers(payload: bytes) -> Any:
    """The other properties, where they can be read: above all the message id, by which a return is recognised."""
    properties: Any = spec.BasicProperties()
    try:
        before, start = _parted(payload)
        if start is not None:
            (size,) = _LONG.unpack_from(payload, start)
            before += payload[start + 4 + size :]
        properties.decode(before)
    except Exception:  # nothing of it can be read: what is there counts as nothing
        return spec.BasicProperties()
    return properties


def _parted(payload: bytes) -> tuple[bytes, int | None]:
    """Flags and properties up to the headers, as if there were none; and where the headers' table starts."""
    (flags,) = struct.unpack_from(">H", payload, _FIXED)
    if not flags & spec.BasicProperties.FLAG_HEADERS:
        return payload[_FIXED:], None
    start = _FIXED + 2
    while payload[start - 1] & 1:  # more flags follow
        start += 2
    for before in (spec.BasicProperties.FLAG_CONTENT_TYPE, spec.BasicProperties.FLAG_CONTENT_ENCODING):
        if flags & before:
            start += 1 + payload[start]
    others = struct.pack(">H", flags & ~spec.BasicProperties.FLAG_HEADERS)
    return others + payload[_FIXED + 2 : start], start


def _table(data: bytes, at: int, levels: int) -> tuple[dict[str, Any], int]:
    """A table, and where it ends. By pika, but for its floats, which pika cuts to whole numbers."""
    at, limit = _inside(data, at, levels)
    found: dict[str, Any] = {}
    while at < limit:
        name, at = decode_short_string(data, at)
        if isinstance(name, bytes):  # it is no UTF-8
            name = name.decode("utf-8", "backslashreplace")
        found[name], at = _value(data, at, levels)
    return found, _ended(at, limit)


def _list(data: bytes, at: int, levels: int) -> tuple[list[Any], int]:
    at, limit = _inside(data, at, levels)
    found = []
    while at < limit:
        value, at = _value(data, at, levels)
        found.append(value)
    return found, _ended(at, limit)


def _value(data: bytes, at: int, levels: int) -> tuple[Any, int]:
    kind = data[at : at + 1]
    if kind == b"F":
        return _table(data, at + 1, levels - 1)
    if kind == b"A":
        return _list(data, at + 1, levels - 1)
    number = _FLOATS.get(kind)
    if number is None:
        found: tuple[Any, int] = decode_value(data, at)
        return found
    (value,) = number.unpack_from(data, at + 1)
    if not math.isfinite(value):
        raise ValueError("no number that RabbitMQ takes")
    return value, at + 1 + number.size


def _inside(data: bytes, at: int, levels: int) -> tuple[int, int]:
    """Where the content of a table or list starts and ends."""
    if levels == 0:
        raise _TooDeep(f"nested deeper than {DEEPEST} levels")
    (size,) = _LONG.unpack_from(data, at)
    limit = at + 4 + size
    if limit > len(data):
        raise ValueError("longer than the frame")
    return at + 4, limit


def _ended(at: int, limit: int) -> int:
    if at != limit:
        raise ValueError("a value ends beyond what it is in")
    return at
