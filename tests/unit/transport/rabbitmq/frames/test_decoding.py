"""Hostile headers become one bad message; whatever else there is to it stays readable."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import exceptions as amqp
from pika import frame, spec

from message_hub_sync.envelope.header_names import UNDECODABLE
from message_hub_sync.transport.base import Outgoing
from message_hub_sync.transport.rabbitmq.frames.decoding import DEEPEST, LARGEST_FRAME, decode, frame_start
from message_hub_sync.transport.rabbitmq.frames.encoding import encode_publish, properties_from_pika


def table(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


def field(name: bytes, kind: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + kind + value


def nested(depth: int) -> bytes:
    content = field(b"x", b"t", b"\1")
    for _ in range(depth):
        content = field(b"x", b"F", table(content))
    return content


def nested_lists(depth: int) -> bytes:
    content = b"t\1"
    for _ in range(depth):
        content = b"A" + table(content)
    return field(b"x", content[:1], content[1:])


def header_frame(headers: bytes, *, body_size: int = 2) -> bytes:
    """A header as a hand-written publisher sends it, with all that stands around the headers."""
    flags = (
        spec.BasicProperties.FLAG_CONTENT_TYPE
        | spec.BasicProperties.FLAG_HEADERS
        | spec.BasicProperties.FLAG_DELIVERY_MODE
        | spec.BasicProperties.FLAG_CORRELATION_ID
        | spec.BasicProperties.FLAG_MESSAGE_ID
    )
    payload = struct.pack(">HHQH", 60, 0, body_size, flags)
    payload += b"\x10application/json" + table(headers) + b"\2" + b"\3cor" + b"\2id"
    return struct.pack(">BHI", spec.FRAME_HEADER, 5, len(payload)) + payload + bytes([spec.FRAME_END])


HOSTILE = {
    "nested 500 deep": nested(500),
    "nested one too deep": nested(DEEPEST),
    "lists nested 5,000 deep": nested_lists(5000),
    "not a number": field(b"n", b"d", struct.pack(">d", float("nan"))),
    "infinity": field(b"n", b"f", struct.pack(">f", float("inf"))),
    "an unknown type": field(b"n", b"Z", b"\0" * 4),
    "a value cut short": field(b"n", b"l", b"\0"),
    "a table longer than the frame": field(b"n", b"F", b"\xff\xff\xff\xff"),
    "a value that ends beyond its list": field(b"n", b"A", table(b"l\0")) + field(b"o", b"l", b"\0" * 8),
    "a string longer than the frame": field(b"n", b"S", b"\xff\xff\xff\xff"),
}


@pytest.mark.parametrize("headers", HOSTILE.values(), ids=HOSTILE.keys())
def test_headers_that_cannot_be_decoded_are_replaced_and_the_rest_is_kept(headers: bytes) -> None:
    value = decode(spec.FRAME_HEADER, header_frame(headers))
    assert (value.channel_number, value.body_size) == (5, 2)
    properties = properties_from_pika(value.properties)
    assert list(properties.headers) == [UNDECODABLE]
    # By the id a returned message is recognised: without it a return would count as a confirm.
    assert (properties.message_id, properties.correlation_id) == ("id", "cor")
    assert (properties.content_type, properties.delivery_mode) == ("application/json", 2)


@pytest.mark.parametrize("seconds", [2**64 - 1, 2**40], ids=["0xFF x 8", "a year above 9999"])
def test_a_moment_that_python_cannot_represent_is_replaced_or_a_number(seconds: int) -> None:
    """From 1.5 on, pika reads such a timestamp as a whole number."""
    value = decode(spec.FRAME_HEADER, header_frame(field(b"when", b"T", struct.pack(">Q", seconds))))
    properties = properties_from_pika(value.properties)
    assert properties.headers.get("when", seconds) == seconds
    assert list(properties.headers) in ([UNDECODABLE], ["when"])
    assert (properties.message_id, properties.correlation_id) == ("id", "cor")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (b"", {}),
        (field(b"n", b"l", b"\x7f" + b"\xff" * 7), {"n": 2**63 - 1}),
        (field(b"text", b"S", table(b"\xff\xfe")), {"text": b"\xff\xfe"}),
        (field(b"\xff", b"V", b""), {"\\xff": None}),
        (nested(1), {"x": {"x": True}}),
        (field(b"x", b"F", table(field(b"\xff", b"V", b""))), {"x": {"\\xff": None}}),
        (field(b"n", b"d", struct.pack(">d", 1.5)), {"n": 1.5}),
        (field(b"n", b"f", struct.pack(">f", 0.25)), {"n": 0.25}),
        (field(b"n", b"A", table(b"d" + struct.pack(">d", -0.5) + b"V")), {"n": [-0.5, None]}),
    ],
)
def test_odd_headers_that_can_be_decoded_are_left_alone(headers: bytes, expected: dict[str, Any]) -> None:
    value = decode(spec.FRAME_HEADER, header_frame(headers))
    assert properties_from_pika(value.properties).headers == expected


def test_headers_may_be_nested_as_deep_as_allowed() -> None:
    properties = properties_from_pika(decode(spec.FRAME_HEADER, header_frame(nested(DEEPEST - 1))).properties)
    assert UNDECODABLE not in properties.headers


@given(st.binary(max_size=300))
def test_any_bytes_in_a_header_make_a_message_that_can_be_moved_on(payload: bytes) -> None:
    payload = struct.pack(">HHQ", 60, 0, 0) + payload
    data = struct.pack(">BHI", spec.FRAME_HEADER, 1, len(payload)) + payload + bytes([spec.FRAME_END])
    properties = properties_from_pika(decode(spec.FRAME_HEADER, data).properties)
    for name in ("message_id", "correlation_id", "type", "app_id", "content_type", "reply_to", "expiration"):
        # Escaped bytes may be too long for a short string now; that is the mover's to shorten.
        text = getattr(properties, name)
        if text is not None:
            setattr(properties, name, text[:60])
    properties.user_id = properties.content_encoding = None
    properties.headers = {name[:60]: value for name, value in properties.headers.items()}
    encode_publish(Outgoing("", "x.dead", b"", properties), 1, 131_064)


@given(st.recursive(st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_other_frames_are_pikas_business(value: Any) -> None:
    body = repr(value).encode("utf-8", "replace")
    decoded = decode(spec.FRAME_BODY, frame.Body(3, body).marshal())
    assert decoded.fragment == body


def test_a_frame_without_its_end_ends_the_connection() -> None:
    data = header_frame(b"")
    with pytest.raises(amqp.InvalidFrameError):
        decode(spec.FRAME_HEADER, data[:-1] + b"\0")


@pytest.mark.parametrize(
    "data",
    [
        b"AMQP\0\0\x09\1",
        b"HTTP/1.1 400 Bad Request",
        b"\x15\x03\x03\x00\x02\x02\x46\0",
        struct.pack(">BHI", spec.FRAME_BODY, 1, LARGEST_FRAME) + b"\0",
    ],
)
def test_what_is_no_frame_is_recognised_by_its_beginning(data: bytes) -> None:
    with pytest.raises(amqp.IncompatibleProtocolError):
        frame_start(data, 0)
