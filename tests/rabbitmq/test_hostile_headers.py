"""Headers that no decoder survives, written by hand: one bad message, and the others keep flowing."""

from __future__ import annotations

import struct
from typing import Any

import pika
import pytest
from pika import frame, spec

from message_hub_sync.envelope.header_names import UNDECODABLE
from message_hub_sync.transport.topology import inbox_subscription

pytestmark = pytest.mark.rabbitmq


def table(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


def field(name: bytes, kind: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + kind + value


def nested(depth: int) -> bytes:
    content = field(b"x", b"t", b"\1")
    for _ in range(depth):
        content = field(b"x", b"F", table(content))
    return content


class HandWritten(spec.BasicProperties):
    """Properties of which the headers are bytes as they are on the wire."""

    def __init__(self, headers: bytes) -> None:
        super().__init__(delivery_mode=2, message_id="hostile", content_type="application/json")
        self._table = headers

    def encode(self) -> list[bytes]:
        flags = (
            spec.BasicProperties.FLAG_CONTENT_TYPE
            | spec.BasicProperties.FLAG_HEADERS
            | spec.BasicProperties.FLAG_DELIVERY_MODE
            | spec.BasicProperties.FLAG_MESSAGE_ID
        )
        return [struct.pack(">H", flags), b"\x10application/json", table(self._table), b"\2", b"\7hostile"]


def publish_by_hand(bench: Any, *headers: bytes, to: str) -> None:
    with bench.raw() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for each in headers:
            number = channel.channel_number
            method = spec.Basic.Publish(exchange="", routing_key=to)
            connection._impl._output_marshaled_frames(
                [
                    frame.Method(number, method).marshal(),
                    frame.Header(number, 2, HandWritten(each)).marshal(),
                    frame.Body(number, b"{}").marshal(),
                ]
            )
        channel.queue_declare(to, passive=True)  # answered after them


#: Those RabbitMQ 3.10 takes as they are and hands on as they are.
HOSTILE = {
    "nested 500 deep": nested(500),
    "nested 40 deep": nested(40),
    "a timestamp of 0xFF x 8": field(b"when", b"T", b"\xff" * 8),
    "a timestamp after the year 9999": field(b"when", b"T", struct.pack(">Q", 2**40)),
}
ODD = {
    "no UTF-8": field(b"n", b"S", table(b"\xff\xfe")),
    "the largest number": field(b"n", b"l", struct.pack(">q", 2**63 - 1)),
    "the smallest number": field(b"n", b"l", struct.pack(">q", -(2**63))),
    "an array of all sorts": field(b"n", b"A", table(b"t\1" + b"V" + b"S" + table(b"x"))),
}


@pytest.mark.parametrize("headers", [*HOSTILE.values(), *ODD.values()], ids=[*HOSTILE, *ODD])
def test_a_message_with_hostile_headers_arrives_and_those_behind_it_too(bench: Any, headers: bytes) -> None:
    transport = bench.transport()
    consumer = bench.consume(transport, prefetch=1)
    bench.confirmed(transport, bench.message("before"))
    publish_by_hand(bench, headers, to=f"{bench.service}.messages")
    bench.confirmed(transport, bench.message("behind"))
    seen = []
    for _ in range(3):
        delivery = bench.take(consumer)
        seen.append(delivery)
        consumer.ack(delivery)
    assert [delivery.body for delivery in seen] == [b'{"text":"before"}', b"{}", b'{"text":"behind"}']
    assert {delivery.channel_generation for delivery in seen} == {1}
    hostile = seen[1]
    assert hostile.properties.message_id == "hostile"
    assert (UNDECODABLE in hostile.properties.headers) == (headers in HOSTILE.values())
    # It can be moved on to where somebody looks at it.
    hostile.properties.message_id = "moved"
    moved = bench.message()
    moved.properties = hostile.properties
    bench.confirmed(transport, moved)


def test_a_returned_message_with_headers_nested_too_deep_is_not_taken_for_confirmed(bench: Any) -> None:
    headers: dict[str, Any] = {}
    for _ in range(40):
        headers = {"x": headers}
    transport = bench.transport()
    receipt = bench.publish(transport, bench.message(to="nobody", headers=headers))
    assert receipt.code == 312


def test_pika_itself_does_not_survive_them(bench: Any) -> None:
    """Should this fail some day, the door can go."""
    bench.transport().declare(inbox_subscription(bench.service), bench.within())
    publish_by_hand(bench, HOSTILE["a timestamp of 0xFF x 8"], to=f"{bench.service}.messages")
    with pytest.raises((pika.exceptions.AMQPError, OverflowError, ValueError)), bench.raw() as connection:
        connection.channel().basic_get(f"{bench.service}.messages")
