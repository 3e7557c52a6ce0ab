"""Encoders for the two most frequent frames, publish and ack, faster than pika's.

They write the same bytes as pika for the same values. If a value is not of the common shape, they return ``None`` and
pika encodes the message. Property-based tests compare both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from operator import attrgetter
from struct import Struct
from struct import error as struct_error
from typing import Any

from message_hub_sync.transport.base import Outgoing

__all__ = ["encode_ack", "encode_publish"]

_FRAME_METHOD, _FRAME_HEADER, _FRAME_BODY = 1, 2, 3
_FRAME_END = b"\xce"
_BASIC, _PUBLISH, _ACK = 60, 40, 80

# AMQP 0-9-1, section 4.2.6: the flags of basic's properties, from the highest bit.
_CONTENT_TYPE, _CONTENT_ENCODING, _HEADERS, _DELIVERY_MODE = 1 << 15, 1 << 14, 1 << 13, 1 << 12
_PRIORITY, _CORRELATION_ID, _REPLY_TO, _EXPIRATION = 1 << 11, 1 << 10, 1 << 9, 1 << 8
_MESSAGE_ID, _TIMESTAMP, _TYPE, _USER_ID, _APP_ID = 1 << 7, 1 << 6, 1 << 5, 1 << 4, 1 << 3

_FRAME_START = Struct(">BHI")
_METHOD = Struct(">HH")
_FLAGS = Struct(">H")
_LONG = Struct(">I")
_LONG_INTEGER = Struct(">cq")
_INTEGER = Struct(">ci")
_LONGLONG = Struct(">Q")
_ACK_FRAME = Struct(">BHIHHQBc")

#: The start of every content header: the class and a weight of 0.
_CLASS = b"\0\x3c\0\0"
#: A message with a larger content header (in bytes) is left to pika, so that the cache stays small.
_LARGEST_KEPT = 4096

#: One byte as bytes, indexed by its value: cheaper than ``bytes((n,))``.
_BYTE = [bytes((n,)) for n in range(256)]


def encode_ack(channel_number: int, delivery_tag: int, multiple: bool) -> bytes:
    """Encode one ``basic.ack``."""
    return _ACK_FRAME.pack(_FRAME_METHOD, channel_number, 13, _BASIC, _ACK, delivery_tag, multiple, _FRAME_END)


def encode_publish(outgoing: Outgoing, channel_number: int, max_fragment: int) -> bytes | None:
    """Encode the frames of one publish.

    :returns: ``None`` if pika must encode the message, or raise an error about it.
    """
    # Messages of one kind share most bytes; _kind() caches these. Five values differ between them and are inserted:
    # two ids, the timestamp as header and as property, the body. This library writes `timestamp` as the first header.
    body = outgoing.body
    size = len(body)
    properties = outgoing.properties
    headers = properties.headers
    try:
        values = tuple(headers.values())
        timestamp = values[0].encode()
        correlation_id = properties.correlation_id.encode()  # type: ignore[union-attr]
        message_id = properties.message_id.encode()  # type: ignore[union-attr]
        begin, to_timestamp, to_correlation_id, to_message_id, end, header_size = _kind(
            channel_number,
            outgoing.exchange,
            outgoing.routing_key,
            outgoing.mandatory,
            len(timestamp),
            len(correlation_id),
            len(message_id),
            _constants(properties),
            tuple(headers),
            values[1:],
            (*map(type, values),),
        )
        seconds = _LONGLONG.pack(properties.timestamp)
    # A value that is not a text, an unhashable value, a number out of range, or no header at all.
    except (_NotCommon, AttributeError, TypeError, ValueError, IndexError, struct_error):
        return None
    if header_size > max_fragment:
        return None
    pieces: tuple[bytes | memoryview, ...] = (
        begin,
        _LONGLONG.pack(size),
        to_timestamp,
        timestamp,
        to_correlation_id,
        correlation_id,
        to_message_id,
        message_id,
        seconds,
        end,
        _FRAME_START.pack(_FRAME_BODY, channel_number, size),
        body,
        _FRAME_END,
    )
    if 0 < size <= max_fragment:
        return b"".join(pieces)
    return b"".join((*pieces[:10], *_body_frames(body, channel_number, max_fragment)))


def _body_frames(body: bytes, channel_number: int, max_fragment: int) -> Iterator[bytes | memoryview]:
    """The pieces of the body's frames. The parts of the body are views: the join copies each byte once."""
    view = memoryview(body)
    for start in range(0, len(body), max_fragment):
        part = view[start : start + max_fragment]
        yield _FRAME_START.pack(_FRAME_BODY, channel_number, len(part))
        yield part
        yield _FRAME_END


class _NotCommon(Exception):
    """A value that pika must encode."""


_constants = attrgetter(
    "content_type",
    "content_encoding",
    "delivery_mode",
    "priority",
    "reply_to",
    "expiration",
    "type",
    "user_id",
    "app_id",
)


@lru_cache(maxsize=512)
def _kind(
    channel_number: int,
    exchange: str,
    routing_key: str,
    mandatory: bool,
    timestamp_size: int,
    correlation_id_size: int,
    message_id_size: int,
    constants: tuple[Any, ...],
    names: tuple[str, ...],
    others: tuple[object, ...],
    _types: tuple[type, ...],  # a part of the cache key: 1 and True are equal and have different bytes
) -> tuple[bytes, bytes, bytes, bytes, bytes, int]:
    """Encode the bytes that all messages of one kind share.

    :returns: the bytes before the body size, the timestamp header, the correlation id and the message id; the bytes
        after the timestamp property; the size of the content header.
    :raises _NotCommon: pika must encode messages of this kind.
    """
    if names[0] != "timestamp" or correlation_id_size > 255 or message_id_size > 255:
        raise _NotCommon
    content_type, content_encoding, delivery_mode, priority, reply_to, expiration, type_, user_id, app_id = constants
    flags = _HEADERS | _CORRELATION_ID | _MESSAGE_ID | _TIMESTAMP
    found: list[bytes] = []
    # The specification's order: headers, correlation id and message id stand between these groups.
    groups: tuple[tuple[tuple[int, Any, Callable[[Any], bytes]], ...], ...] = (
        ((_CONTENT_TYPE, content_type, _short_text), (_CONTENT_ENCODING, content_encoding, _short_text)),
        ((_DELIVERY_MODE, delivery_mode, _octet), (_PRIORITY, priority, _octet)),
        ((_REPLY_TO, reply_to, _short_text), (_EXPIRATION, expiration, _short_text)),
        ((_TYPE, type_, _short_text), (_USER_ID, user_id, _short_text), (_APP_ID, app_id, _short_text)),
    )
    for group in groups:
        flags |= sum(flag for flag, value, _ in group if value is not None)
        found.append(b"".join(encode(value) for _, value, encode in group if value is not None))
    content, delivery, routing, origin = found
    table = b"".join(_short_text(name) + _value(value) for name, value in zip(names[1:], others, strict=True))
    first = _short_text("timestamp") + b"S" + _LONG.pack(timestamp_size)
    to_timestamp = _FLAGS.pack(flags) + content + _LONG.pack(len(first) + timestamp_size + len(table)) + first
    to_correlation_id = table + delivery + _BYTE[correlation_id_size]
    to_message_id = routing + _BYTE[message_id_size]
    size = 12 + len(to_timestamp) + timestamp_size + len(to_correlation_id) + correlation_id_size
    size += len(to_message_id) + message_id_size + 8 + len(origin)
    if size > _LARGEST_KEPT:
        raise _NotCommon
    begin = _method(channel_number, exchange, routing_key, mandatory)
    begin += _FRAME_START.pack(_FRAME_HEADER, channel_number, size) + _CLASS
    return begin, to_timestamp, to_correlation_id, to_message_id, origin + _FRAME_END, size


def _method(channel_number: int, exchange: str, routing_key: str, mandatory: bool) -> bytes:
    ticket = b"\0\0"
    payload = _METHOD.pack(_BASIC, _PUBLISH) + ticket + _short_text(exchange) + _short_text(routing_key)
    payload += _BYTE[1 if mandatory else 0]
    return _FRAME_START.pack(_FRAME_METHOD, channel_number, len(payload)) + payload + _FRAME_END


def _short_text(text: str) -> bytes:
    data = text.encode()
    if len(data) > 255:
        raise _NotCommon
    return _BYTE[len(data)] + data


def _octet(value: int) -> bytes:
    if type(value) is int and 0 <= value <= 255:
        return _BYTE[value]
    raise _NotCommon


def _value(value: object) -> bytes:
    """Encode one value of a headers table: its type and its bytes."""
    if type(value) is str:
        data = value.encode()
        return b"S" + _LONG.pack(len(data)) + data
    if type(value) is int:
        if -(1 << 31) <= value < 1 << 31:
            return _INTEGER.pack(b"I", value)
        if -(1 << 63) <= value < 1 << 63:
            return _LONG_INTEGER.pack(b"l", value)
    elif value is None:
        return b"V"
    elif type(value) is bool:
        return b"t\1" if value else b"t\0"
    raise _NotCommon
