"""The two frames that a client writes by the thousand, publish and ack, faster than pika encodes them.

Byte for byte what pika makes of the same values; whatever is not of the common shape is left to pika
(``None``). The tests hold it to that under random values.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct

from message_hub_sync.envelope import Properties
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
_HEADER = Struct(">HxxQH")
_LONG = Struct(">I")
_LONG_INTEGER = Struct(">cq")
_INTEGER = Struct(">ci")
_LONGLONG = Struct(">Q")
_ACK_FRAME = Struct(">BHIHHQBc")

#: One byte as bytes, indexed by its value: cheaper than ``bytes((n,))``.
_BYTE = [bytes((n,)) for n in range(256)]


def encode_ack(channel_number: int, delivery_tag: int, multiple: bool) -> bytes:
    """The frame of one ``basic.ack``."""
    return _ACK_FRAME.pack(_FRAME_METHOD, channel_number, 13, _BASIC, _ACK, delivery_tag, multiple, _FRAME_END)


def encode_publish(outgoing: Outgoing, channel_number: int, max_fragment: int) -> bytes | None:
    """The frames of one publish, or ``None`` for pika to encode (or to refuse) it."""
    body = outgoing.body
    size = len(body)
    if size > max_fragment:
        return None
    try:
        header = _properties(outgoing.properties, size)
        method = _method(channel_number, outgoing.exchange, outgoing.routing_key, outgoing.mandatory)
    except (_NotCommon, UnicodeEncodeError):
        return None
    if len(header) > max_fragment:
        return None
    pieces = [method, _FRAME_START.pack(_FRAME_HEADER, channel_number, len(header)), header, _FRAME_END]
    if size:
        pieces += (_FRAME_START.pack(_FRAME_BODY, channel_number, size), body, _FRAME_END)
    return b"".join(pieces)


class _NotCommon(Exception):
    """A value that pika is to encode."""


@lru_cache(maxsize=4096)
def _method(channel_number: int, exchange: str, routing_key: str, mandatory: bool) -> bytes:
    payload = b"".join(
        (
            _METHOD.pack(_BASIC, _PUBLISH),
            b"\0\0",  # ticket
            _short_text(exchange),
            _short_text(routing_key),
            _BYTE[1 if mandatory else 0],
        )
    )
    return _FRAME_START.pack(_FRAME_METHOD, channel_number, len(payload)) + payload + _FRAME_END


def _short_text(text: str) -> bytes:
    data = text.encode()
    if len(data) > 255:
        raise _NotCommon
    return _BYTE[len(data)] + data


@lru_cache(maxsize=1024)
def _constant(text: str) -> bytes:
    """A short string that comes again with every message: a content type, a service's name, a header's name."""
    return _short_text(text)


def _properties(properties: Properties, body_size: int) -> bytes:
    flags = 0
    pieces = [b""]
    if properties.content_type is not None:
        flags |= _CONTENT_TYPE
        pieces.append(_constant(properties.content_type))
    if properties.content_encoding is not None:
        flags |= _CONTENT_ENCODING
        pieces.append(_constant(properties.content_encoding))
    if properties.headers is not None:
        flags |= _HEADERS
        pieces.append(_table(properties.headers))
    if properties.delivery_mode is not None:
        flags |= _DELIVERY_MODE
        pieces.append(_octet(properties.delivery_mode))
    if properties.priority is not None:
        flags |= _PRIORITY
        pieces.append(_octet(properties.priority))
    if properties.correlation_id is not None:
        flags |= _CORRELATION_ID
        pieces.append(_short_text(properties.correlation_id))
    if properties.reply_to is not None:
        flags |= _REPLY_TO
        pieces.append(_short_text(properties.reply_to))
    if properties.expiration is not None:
        flags |= _EXPIRATION
        pieces.append(_constant(properties.expiration))
    if properties.message_id is not None:
        flags |= _MESSAGE_ID
        pieces.append(_short_text(properties.message_id))
    if properties.timestamp is not None:
        flags |= _TIMESTAMP
        if not 0 <= properties.timestamp < 1 << 64:
            raise _NotCommon
        pieces.append(_LONGLONG.pack(properties.timestamp))
    if properties.type is not None:
        flags |= _TYPE
        pieces.append(_constant(properties.type))
    if properties.user_id is not None:
        flags |= _USER_ID
        pieces.append(_constant(properties.user_id))
    if properties.app_id is not None:
        flags |= _APP_ID
        pieces.append(_constant(properties.app_id))
    pieces[0] = _HEADER.pack(_BASIC, body_size, flags)
    return b"".join(pieces)


def _octet(value: int) -> bytes:
    if type(value) is int and 0 <= value <= 255:
        return _BYTE[value]
    raise _NotCommon


def _table(table: dict[str, object]) -> bytes:
    pieces = [b""]
    for name, value in table.items():
        pieces.append(_constant(name))
        kind = type(value)
        if kind is str:
            data = value.encode()  # type: ignore[attr-defined]
            pieces += (b"S", _LONG.pack(len(data)), data)
        elif kind is int:
            if -(1 << 31) <= value < 1 << 31:  # type: ignore[operator]
                pieces.append(_INTEGER.pack(b"I", value))
            elif -(1 << 63) <= value < 1 << 63:  # type: ignore[operator]
                pieces.append(_LONG_INTEGER.pack(b"l", value))
            else:
                raise _NotCommon
        elif value is None:
            pieces.append(b"V")
        elif kind is bool:
            pieces.append(b"t\1" if value else b"t\0")
        else:
            raise _NotCommon
    data = b"".join(pieces)
    return _LONG.pack(len(data)) + data
