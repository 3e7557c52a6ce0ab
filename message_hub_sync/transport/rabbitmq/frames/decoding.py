"""Decoding of frames by pika, except for headers that pika cannot decode safely.

Any client that may publish chooses the headers. Some headers make pika's decoder raise: a timestamp beyond the year
9999, an unknown field type, hundreds of nested tables. An exception there ends the connection, and again at each
redelivery, so a single message would stop a consumer for good. Here such a message gets the header ``UNDECODABLE``
instead, and the connection goes on. Floats are decoded here, because pika truncates them to whole numbers. So are
whole numbers of 64 bits, because pika makes them objects of a class of its own.
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
#: The deepest nesting of tables and lists, with the headers themselves as the first level. Far more than is useful,
#: and far less than Python's recursion limit, which applies to pika's decoder and to all later code.
DEEPEST = 32
#: pika proposes this as ``frame_max``, so no broker may send larger frames.
LARGEST_FRAME = spec.FRAME_MAX_SIZE

#: The start of every frame: kind, channel, size of the payload in bytes.
FRAME_START = struct.Struct(">BHI")
_LONG = struct.Struct(">I")
_NUMBERS = {b"f": struct.Struct(">f"), b"d": struct.Struct(">d"), b"l": struct.Struct(">q"), b"L": struct.Struct(">q")}
_KINDS = (spec.FRAME_METHOD, spec.FRAME_HEADER, spec.FRAME_BODY, spec.FRAME_HEARTBEAT)
_FIXED = 12  # bytes before the property flags: class, weight and body size


def frame_start(data: bytes, position: int) -> tuple[int, int, int]:
    """Read the start of the frame at ``position``.

    :returns: its kind, its channel, and the size of the whole frame in bytes.
    :raises IncompatibleProtocolError: this is not a frame of AMQP 0-9-1.
    """
    kind, channel, size = FRAME_START.unpack_from(data, position)
    if kind not in _KINDS or size + 8 > LARGEST_FRAME:
        raise amqp.IncompatibleProtocolError("no frame of AMQP 0-9-1")
    return kind, channel, size + 8


def decode(kind: int, data: bytes) -> Any:
    """Decode one whole frame to pika's value.

    If the properties of a message cannot be decoded, the headers are ``{UNDECODABLE: reason}``.

    :raises Exception: pika's decoder failed at anything but the properties of a message.
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
    """Decode the payload of a content header to pika's properties, with the same care as :func:`decode`."""
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
    """Decode all properties except the headers; empty properties if that fails."""
    # The message id is needed most: it identifies the publish that a basic.return belongs to.
    properties: Any = spec.BasicProperties()
    try:
        before, start = _parted(payload)
        if start is not None:
            (size,) = _LONG.unpack_from(payload, start)
            before += payload[start + 4 + size :]
        properties.decode(before)
    except Exception:  # no property can be decoded
        return spec.BasicProperties()
    return properties


def _parted(payload: bytes) -> tuple[bytes, int | None]:
    """Split the properties at the headers.

    :returns: the flags without the one for headers, and the properties before the headers; where the headers' table
        starts, ``None`` if there is none.
    """
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
    """Decode a table.

    :param levels: how many levels of nesting are still allowed.
    :returns: the table, and where it ends.
    """
    at, limit = _inside(data, at, levels)
    found: dict[str, Any] = {}
    while at < limit:
        name, at = decode_short_string(data, at)
        if isinstance(name, bytes):  # not UTF-8
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
    number = _NUMBERS.get(kind)
    if number is None:
        found: tuple[Any, int] = decode_value(data, at)
        return found
    (value,) = number.unpack_from(data, at + 1)
    if not math.isfinite(value):
        raise ValueError("a float must be finite")
    return value, at + 1 + number.size


def _inside(data: bytes, at: int, levels: int) -> tuple[int, int]:
    """Return where the content of a table or list starts and ends."""
    if levels == 0:
        raise _TooDeep(f"nested deeper than {DEEPEST} levels")
    (size,) = _LONG.unpack_from(data, at)
    limit = at + 4 + size
    if limit > len(data):
        raise ValueError("a table or list is longer than the frame")
    return at + 4, limit


def _ended(at: int, limit: int) -> int:
    if at != limit:
        raise ValueError("a value is longer than the table or list that holds it")
    return at
