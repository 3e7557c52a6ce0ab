"""Decoders for the most frequent received frames, faster than pika's.

They return the same values as pika for the same bytes. If a frame is not of the common shape, they return ``None`` and
pika decodes it. Property-based tests compare both.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from struct import Struct
from struct import error as struct_error
from typing import Any

from message_hub_sync.envelope.values import Properties

__all__ = ["Deliver", "decode_deliver", "decode_properties"]

_CONTENT_TYPE, _CONTENT_ENCODING, _HEADERS, _DELIVERY_MODE = 1 << 15, 1 << 14, 1 << 13, 1 << 12
_PRIORITY, _CORRELATION_ID, _REPLY_TO, _EXPIRATION = 1 << 11, 1 << 10, 1 << 9, 1 << 8
_MESSAGE_ID, _TIMESTAMP, _TYPE, _USER_ID, _APP_ID = 1 << 7, 1 << 6, 1 << 5, 1 << 4, 1 << 3
#: ``cluster_id`` (deprecated), and the bit for more flags.
_UNUSUAL = 1 << 2 | 1 << 1 | 1

_FLAGS = Struct(">H")
_LONG = Struct(">I")
_INTEGER = Struct(">i")
_LONG_INTEGER = Struct(">q")
_LONGLONG = Struct(">Q")
_TAG_AND_BITS = Struct(">QB")

#: The start of the header ``timestamp``: its name and type. The size and the text follow; the text differs in each
#: message.  [below, "the moment" means this text: call it `timestamp_text`]
_MOMENT = b"\x09timestampS"
_MOMENT_START = len(_MOMENT) + 4
#: Larger headers (in bytes) are not cached, so that the caches stay small.
_LARGEST_KEPT = 1024

#: The last second of the year 9999. ``datetime`` cannot hold a later timestamp, so pika decodes those.
_LATEST = 253_402_300_799


#: Delivery tag, redelivered, exchange and routing key of a ``basic.deliver``.
Deliver = tuple[int, bool, str, str]


def decode_deliver(payload: bytes) -> Deliver | None:
    """Decode a ``basic.deliver``.

    :param payload: the payload of the method frame, class and method included.
    :returns: ``None`` if pika must decode it.
    """
    try:
        end = 5 + payload[4]  # of the consumer tag
        tag, redelivered = _TAG_AND_BITS.unpack_from(payload, end)
        exchange, routing_key = _origin(payload[end + 9 :])
    except (IndexError, UnicodeDecodeError, struct_error, _NotCommon):
        return None
    return tag, redelivered & 1 != 0, exchange, routing_key


@lru_cache(maxsize=4096)
def _origin(data: bytes) -> tuple[str, str]:
    """Decode exchange and routing key. Cached: most messages of a queue have the same."""
    start = 1 + data[0]
    if len(data) != start + 1 + data[start]:
        raise _NotCommon
    return data[1:start].decode(), data[start + 1 :].decode()


@lru_cache(maxsize=4096)
def _constant(data: bytes) -> str:
    """Decode a short string. Cached: most messages have the same."""
    return data.decode()


def decode_properties(payload: bytes) -> Properties | None:
    """Decode the properties in a content header.

    :param payload: the payload of the header frame: class, weight, body size, flags, properties.
    :returns: ``None`` if pika must decode it.
    """
    try:
        return _of_a_kind(payload)
    except (IndexError, UnicodeDecodeError, struct_error, _NotCommon):
        return None


class _NotCommon(Exception):
    """A value that pika must decode."""


class _Layout:
    """The positions of the values that differ between messages of one kind.

    ``moment`` is the text of the header ``timestamp``, ``timestamp`` the property.
    """

    __slots__ = ("correlation_id", "message_id", "moment", "timestamp")

    def __init__(self) -> None:
        self.moment = self.correlation_id = self.message_id = (0, 0)  # start and end
        self.timestamp = 0  # start


#: Layouts, by the header's size and its bytes before the moment. Kinds, by all bytes that their messages share.
_layouts: dict[tuple[int, bytes], _Layout] = {}
_kinds: dict[tuple[bytes, bytes, bytes, bytes], Properties] = {}
_MOST_KINDS = 512


def _of_a_kind(data: bytes) -> Properties:
    """Decode the properties with the help of an earlier message of the same kind."""
    # Two messages are of one kind if their headers have equal bytes, except for the moment, both ids and the timestamp,
    # and these four have the same positions and sizes. Then all other properties are equal too.
    moment = data.find(_MOMENT, 14)
    layout = _layouts.get((len(data), data[12 : moment + _MOMENT_START])) if moment > 0 else None
    if layout is None:
        return _learned(data)
    start, end = layout.moment
    correlation_start, correlation_end = layout.correlation_id
    message_start, message_end = layout.message_id
    timestamp = layout.timestamp
    # Two layouts of the same total size may have ids of different sizes: compare the size byte before each id.
    if data[correlation_start - 1] != correlation_end - correlation_start or data[message_start - 1] != (
        message_end - message_start
    ):
        return _learned(data)
    known = _kinds.get(
        (
            data[12:start],
            data[end:correlation_start],
            data[correlation_end:message_start],
            data[timestamp + 8 :],
        )
    )
    if known is None:
        return _learned(data)
    (seconds,) = _LONGLONG.unpack_from(data, timestamp)
    if seconds > _LATEST:
        raise _NotCommon
    headers = known.headers.copy()
    headers["timestamp"] = data[start:end].decode()
    return Properties(
        data[message_start:message_end].decode(),
        data[correlation_start:correlation_end].decode(),
        known.type,
        known.app_id,
        known.content_type,
        known.content_encoding,
        known.delivery_mode,
        known.priority,
        known.expiration,
        seconds,
        known.reply_to,
        known.user_id,
        headers,
    )


def _learned(data: bytes) -> Properties:
    """Decode value by value. Remember the layout and the kind if the message has all four values that differ."""
    layout = _Layout()
    found = _decoded(data, layout)
    start, end = layout.moment
    if start and layout.correlation_id[0] and layout.message_id[0] and layout.timestamp and len(data) <= _LARGEST_KEPT:
        if len(_kinds) >= _MOST_KINDS:  # rare: services send few kinds of messages
            _layouts.clear()
            _kinds.clear()
        _layouts[len(data), data[12:start]] = layout
        common = (
            data[12:start],
            data[end : layout.correlation_id[0]],
            data[layout.correlation_id[1] : layout.message_id[0]],
            data[layout.timestamp + 8 :],
        )
        _kinds[common] = replace(found, headers=dict(found.headers))
    return found


def _decoded(data: bytes, layout: _Layout) -> Properties:
    """Decode value by value. Record in ``layout`` the positions of the values that differ between messages."""
    (flags,) = _FLAGS.unpack_from(data, 12)
    if flags & _UNUSUAL:
        raise _NotCommon
    found = Properties(content_type=None, delivery_mode=None)
    at = _add_first_five(data, 14, flags, found, layout)
    at = _add_others(data, at, flags, found, layout)
    if at != len(data):  # the lengths inside do not add up to the size
        raise _NotCommon
    return found


def _add_first_five(data: bytes, at: int, flags: int, found: Properties, layout: _Layout) -> int:
    """Decode the properties from content type to priority into ``found``; return where they end."""
    if flags & _CONTENT_TYPE:
        end = at + 1 + data[at]
        found.content_type = _constant(data[at + 1 : end])
        at = end
    if flags & _CONTENT_ENCODING:
        end = at + 1 + data[at]
        found.content_encoding = _constant(data[at + 1 : end])
        at = end
    if flags & _HEADERS:
        at = _table(data, at, found.headers, layout)
    if flags & _DELIVERY_MODE:
        found.delivery_mode = data[at]
        at += 1
    if flags & _PRIORITY:
        found.priority = data[at]
        at += 1
    return at


def _add_others(data: bytes, at: int, flags: int, found: Properties, layout: _Layout) -> int:
    """Decode the properties from correlation id to app id into ``found``; return where they end."""
    if flags & _CORRELATION_ID:
        end = at + 1 + data[at]
        found.correlation_id = data[at + 1 : end].decode()
        layout.correlation_id = (at + 1, end)
        at = end
    if flags & _REPLY_TO:
        end = at + 1 + data[at]
        found.reply_to = _constant(data[at + 1 : end])
        at = end
    if flags & _EXPIRATION:
        end = at + 1 + data[at]
        found.expiration = _constant(data[at + 1 : end])
        at = end
    if flags & _MESSAGE_ID:
        end = at + 1 + data[at]
        found.message_id = data[at + 1 : end].decode()
        layout.message_id = (at + 1, end)
        at = end
    if flags & _TIMESTAMP:
        (found.timestamp,) = _LONGLONG.unpack_from(data, at)
        if found.timestamp > _LATEST:
            raise _NotCommon
        layout.timestamp = at
        at += 8
    if flags & _TYPE:
        end = at + 1 + data[at]
        found.type = _constant(data[at + 1 : end])
        at = end
    if flags & _USER_ID:
        end = at + 1 + data[at]
        found.user_id = _constant(data[at + 1 : end])
        at = end
    if flags & _APP_ID:
        end = at + 1 + data[at]
        found.app_id = _constant(data[at + 1 : end])
        at = end
    return at


def _table(data: bytes, at: int, found: dict[str, Any], layout: _Layout) -> int:
    """Decode a table into ``found``; return where it ends."""
    # All messages of a kind have the same entries before and after the moment, so both parts are cached. If the bytes
    # of _MOMENT are found inside another value, the part before does not end with a whole entry: pika decodes it.
    (size,) = _LONG.unpack_from(data, at)
    at += 4
    limit = int(at + size)
    moment = data.find(_MOMENT, at, limit)
    if moment >= 0:
        start = moment + _MOMENT_START
        end = start + _LONG.unpack_from(data, start - 4)[0]
        found.update(_entries(data[at:moment]))
        found["timestamp"] = data[start:end].decode()
        layout.moment = (start, end)
        at = end
    if at > limit or limit > len(data):
        raise _NotCommon
    rest = _entries(data[at:limit])
    if "timestamp" in rest and moment >= 0:
        raise _NotCommon  # two timestamps: the last one counts, and it is not the moment
    found.update(rest)
    return limit


def _entries(data: bytes) -> dict[str, Any]:
    """Decode entries of a table. The caller must not change the result, which may be cached."""
    return _remembered(data) if len(data) <= _LARGEST_KEPT else _decoded_entries(data)


def _decoded_entries(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {}
    at, limit = 0, len(data)
    while at < limit:
        end = at + 1 + data[at]
        name = _constant(data[at + 1 : end])
        kind = data[end]
        at = end + 1
        if kind == 0x53:  # S, a long string
            start = at + 4
            at = start + _LONG.unpack_from(data, at)[0]
            found[name] = data[start:at].decode()
        elif kind == 0x49:  # I, 32 bits
            (found[name],) = _INTEGER.unpack_from(data, at)
            at += 4
        elif kind == 0x6C:  # l, 64 bits
            (found[name],) = _LONG_INTEGER.unpack_from(data, at)
            at += 8
        elif kind == 0x74:  # t
            found[name] = data[at] != 0
            at += 1
        elif kind == 0x56:  # V
            found[name] = None
        else:
            raise _NotCommon
    if at != limit:
        raise _NotCommon
    return found


_remembered = lru_cache(maxsize=512)(_decoded_entries)
