"""Messages that are made to break their consumer."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pika
import pytest
from faults.dead_letters import dead_letters, depth
from faults.judging import judge
from faults.names import Names, NewClient
from faults.oracle import Oracle
from faults.raw import publish_raw, raw_channel
from faults.timing import eventually, within

from message_hub_sync import MessageHubClient, MessageValidationError, RetryPolicy
from message_hub_sync.testing.rabbitmq_node import RabbitMQNode


def short(text: bytes) -> bytes:
    """An AMQP short string."""
    return bytes([len(text)]) + text


def table(*entries: tuple[bytes, bytes]) -> bytes:
    """An AMQP field table of names and values. Each value begins with its type."""
    content = b"".join(short(name) + value for name, value in entries)
    return struct.pack(">I", len(content)) + content


def nested(depth: int) -> bytes:
    """Nested field tables."""
    value = b"t\x01"
    for _ in range(depth):
        value = b"F" + table((b"x", value))
    return value


def nested_arrays(depth: int) -> bytes:
    """Nested field arrays."""
    value = b"t\x01"
    for _ in range(depth):
        value = b"A" + struct.pack(">I", len(value)) + value
    return value


def header(message_id: bytes, headers: bytes, body: bytes, timestamp: bytes = b"") -> bytes:
    """The payload of a content header frame with headers, a message id and, if given, a timestamp."""
    flags = 1 << 13 | 1 << 7 | (1 << 6 if timestamp else 0)
    return struct.pack(">HHQH", 60, 0, len(body), flags) + headers + short(message_id) + timestamp


HOSTILE: dict[str, tuple[bytes, bytes]] = {
    "tables-500-deep": (table((b"source", nested(500))), b""),
    "arrays-500-deep": (table((b"source", nested_arrays(500))), b""),
    "timestamp-header": (table((b"source", b"T" + b"\xff" * 8)), b""),
    "timestamp-property": (table(), b"\xff" * 8),
    "decimal-255-places": (table((b"source", b"D\xff\x7f\xff\xff\xff")), b""),
    "name-that-is-not-utf8": (table((b"\xff\xfe", b"t\x01")), b""),
    "text-that-is-not-utf8": (table((b"source", b"S" + struct.pack(">I", 2) + b"\xff\xfe")), b""),
}


#: Those that can be decoded nevertheless: they lack nothing that a handler can ask for.
READABLE = {"timestamp-property", "decimal-255-places", "name-that-is-not-utf8", "text-that-is-not-utf8"}


@pytest.mark.rabbitmq
@pytest.mark.row(31)
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_header_costs_one_message_and_the_others_keep_flowing(
    kind: str, node: RabbitMQNode, oracle: Oracle, new_client: NewClient, names: Names
) -> None:
    client = new_client(names.service)
    reached = []

    def handler(event: bytes, envelope: Any) -> None:
        reached.append(envelope.id)
        oracle.ledger.handled(envelope.id)

    client.subscribe([names.event], handler)

    def publish() -> None:
        for _ in range(10):
            assert oracle.ledger.call(lambda id: client.publish_event(names.event, {}, message_id=id)) is None

    headers, timestamp = HOSTILE[kind]
    publish()
    for _ in range(3):
        hostile_id = str(uuid4())
        oracle.ledger.write("invoke", hostile_id)
        publish_raw(node.url, names.event_queue, b"{}", header(hostile_id.encode(), headers, b"{}", timestamp))
        oracle.ledger.write("ok", hostile_id, "0", "")
    publish()
    if kind in READABLE:
        eventually(lambda: len(reached) == 23, 5)
    else:
        # The headers cannot be decoded: no handler gets the message; it is dead-lettered with the reason.
        for properties, _ in dead_letters(node, names.event_queue, 3, timeout=5):
            assert "headers" in properties.headers["x-reason"], properties.headers
            oracle.ledger.dead(properties.message_id)
        eventually(lambda: len(reached) == 20, 5)
    counts = judge(oracle).counts
    assert counts.duplicates == 0
    assert client.get_health_status()["last_error"] is None, "the connection did not survive it"


def ids_of(text: bytes, body: bytes) -> bytes:
    """The payload of a content header in which every short string that the broker does not check is ``text``."""
    # content type and encoding, headers, correlation id, reply to, message id, type, app id
    flags = 1 << 15 | 1 << 14 | 1 << 13 | 1 << 10 | 1 << 9 | 1 << 7 | 1 << 5 | 1 << 3
    return struct.pack(">HHQH", 60, 0, len(body), flags) + 2 * short(text) + table() + 5 * short(text)


@pytest.mark.rabbitmq
@pytest.mark.row(31)
@pytest.mark.parametrize("length", [1, 64, 255])
def test_ids_that_are_no_utf8_are_cut_so_that_the_message_can_be_moved(
    length: int, node: RabbitMQNode, oracle: Oracle, new_client: NewClient, names: Names
) -> None:
    client = new_client(names.service)
    client.subscribe([names.event], lambda event, envelope: oracle.ledger.handled(envelope.id))

    publish_raw(node.url, names.event_queue, b"{}", ids_of(b"\xff" * length, b"{}"))

    ((properties, body),) = dead_letters(node, names.event_queue, 1, timeout=5)
    assert body == b"{}"
    assert properties.message_id == ("\\xff" * length)[:255]
    assert oracle.ledger.call(lambda id: client.publish_event(names.event, {}, message_id=id)) is None
    judge(oracle)


@pytest.fixture(scope="module")
def small_frames() -> Iterator[RabbitMQNode]:
    """A node with frames of 4,096 bytes, the minimum of AMQP. A traceback does not fit into one."""
    with RabbitMQNode(config={"frame_max": "4096"}, install=True) as node:
        yield node


@pytest.mark.rabbitmq
@pytest.mark.row(31)
@pytest.mark.parametrize("attempts", [1, 2])
def test_what_does_not_fit_into_a_small_frame_ends_in_the_dead_letters_all_the_same(
    attempts: int, small_frames: RabbitMQNode, oracle: Oracle, new_client: NewClient, names: Names
) -> None:
    client = new_client(names.service, small_frames.url, retry=RetryPolicy(attempts=attempts))
    calls = []

    def handler(event: dict[str, Any], envelope: Any) -> None:
        calls.append(envelope.id)
        if "fails" in envelope.payload:
            raise ValueError("x" * 400)
        oracle.ledger.handled(envelope.id)

    client.subscribe([names.event], handler)
    # The headers of the message just fit into a frame; with the headers that the consumer adds, they do not.
    failing = client.publish_event(names.event, {"fails": True}, headers={"note": "n" * 3_600})

    ((properties, body),) = dead_letters(small_frames, names.event_queue, 1, timeout=5)
    assert (properties.message_id, body) == (str(failing), b'{"fails":true}')
    assert properties.headers["source"] == names.service
    assert properties.headers["x-original-routing-key"] == names.event
    assert properties.headers["x-error-type"] == "ValueError"
    assert "must fit into one frame of 4096 bytes" in properties.headers["x-left-out"]
    assert "note" not in properties.headers
    assert calls == [failing], "a retry without its headers would be another message"
    assert oracle.ledger.call(lambda id: client.publish_event(names.event, {}, message_id=id)) is None
    judge(oracle)


def deep(levels: int) -> Any:
    """Nested lists."""
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


UNSENDABLE: dict[str, Callable[[MessageHubClient], Any]] = {
    "nested-lists": lambda client: client.publish_event("fault.hostile", {"x": deep(100_000)}),
    "nan": lambda client: client.publish_event("fault.hostile", {"x": float("nan")}),
    "infinity": lambda client: client.publish_event("fault.hostile", {"x": [float("inf")]}),
    "5000-digits": lambda client: client.publish_event("fault.hostile", {"x": 10**5000}),
    "surrogate": lambda client: client.publish_event("fault.hostile", {"x": "\ud800"}),
    "object": lambda client: client.publish_event("fault.hostile", {"x": object()}),
    "100-mb": lambda client: client.publish_event("fault.hostile", {"x": "x" * 100_000_000}),
    "line-break-in-correlation": lambda client: client.publish_event("fault.hostile", {}, correlation_id="a\r\nb"),
    "ansi-in-correlation": lambda client: client.publish_event("fault.hostile", {}, correlation_id="\x1b[31m"),
    "line-break-in-event": lambda client: client.publish_event("fault.hostile\r\n", {}),
    "line-break-in-destination": lambda client: client.send_message("fault\r\n", {}),
    "line-break-in-header-name": lambda client: client.publish_event("fault.hostile", {}, headers={"x" * 300: "y"}),
    "huge-header": lambda client: client.publish_event("fault.hostile", {}, headers={"y": "x" * 200_000}),
}


@pytest.mark.rabbitmq
@pytest.mark.row(33)
def test_what_no_receiver_could_read_is_refused_before_it_is_sent(oracle: Oracle, new_client: NewClient) -> None:
    client = new_client("fault-hostile")
    client.connect()
    for kind, send in UNSENDABLE.items():
        with within(0.5):
            error = oracle.ledger.call(lambda _, send=send: send(client))
        assert isinstance(error, MessageValidationError), kind
        text = str(error)
        assert len(text) < 1_000
        assert text.isprintable(), kind
    assert client.get_health_status()["last_error"] is None
    judge(oracle)


UNREADABLE: dict[str, bytes] = {
    "nested-lists": b'{"x":' + b"[" * 100_000,
    "nested-objects": b'{"x":' * 100_000,
    "nan": b'{"x": NaN}',
    "5000-digits": b'{"x": ' + b"1" * 5_000 + b"}",
    "not-utf8": b'{"x": "\xff\xfe"}',
    "no-object": b"[1, 2, 3]",
    "nothing": b"",
    "line-breaks": b"\r\n\x1b[31m[CRITICAL] all is lost\r\n",
    "20-mb": b'{"x": "' + b"x" * 20_000_000 + b'"}',
}


@pytest.mark.rabbitmq
@pytest.mark.row(33)
def test_a_body_that_cannot_be_read_is_dead_lettered_at_once_with_one_escaped_line(
    node: RabbitMQNode, new_client: NewClient, names: Names, caplog: pytest.LogCaptureFixture, oracle: Oracle
) -> None:
    caplog.set_level(logging.INFO, "message_hub_sync")
    client = new_client(names.service)

    def handler(event: dict[str, Any], envelope: Any) -> None:
        oracle.ledger.handled(envelope.id)

    client.subscribe([names.event], handler)
    with raw_channel(node.url) as channel:
        channel.queue_declare(f"{names.event_queue}.dead", durable=True)
        for count, body in enumerate(UNREADABLE.values(), 1):
            properties = pika.BasicProperties(
                message_id=str(uuid4()), correlation_id="evil\r\n\x1b[31mid", type="event", headers={"source": "evil"}
            )
            oracle.ledger.write("invoke", properties.message_id)
            channel.basic_publish("events", names.event, body, properties)
            oracle.ledger.write("ok", properties.message_id, "0", "")
            eventually(lambda count=count: depth(node, f"{names.event_queue}.dead") == count, 5)
    for properties, body in dead_letters(node, names.event_queue, len(UNREADABLE), timeout=1):
        oracle.ledger.dead(properties.message_id)
        assert body in UNREADABLE.values()
        assert properties.headers["x-reason"].isprintable()
    assert oracle.ledger.call(lambda id: client.publish_event(names.event, {}, message_id=id)) is None
    judge(oracle)
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(lines) == len(UNREADABLE)
    assert all(line.isprintable() and len(line) < 1_000 for line in lines)


@pytest.mark.rabbitmq
@pytest.mark.row(33)
def test_ids_with_line_breaks_and_ansi_stay_within_one_log_line(
    node: RabbitMQNode, new_client: NewClient, names: Names, caplog: pytest.LogCaptureFixture, oracle: Oracle
) -> None:
    caplog.set_level(logging.INFO, "message_hub_sync")
    client = new_client(names.service)
    client.subscribe([names.event], lambda event, envelope: oracle.ledger.handled(envelope.id))
    evil = "evil\r\n\x1b[31mid"
    with raw_channel(node.url) as channel:
        properties = pika.BasicProperties(
            message_id=evil, correlation_id=evil, type=evil, app_id=evil, headers={"source": evil, "event_type": evil}
        )
        channel.basic_publish("events", names.event, b"{}", properties)
    assert oracle.ledger.call(lambda id: client.publish_event(names.event, {}, message_id=id)) is None
    judge(oracle)
    assert all(record.getMessage().isprintable() for record in caplog.records)


@pytest.mark.faults
@pytest.mark.row(33)
def test_a_body_of_100_mb_goes_to_the_dead_letters_and_the_others_keep_flowing(
    node: RabbitMQNode, new_client: NewClient, names: Names, oracle: Oracle
) -> None:
    client = new_client(names.service)
    client.subscribe([names.event], lambda event, envelope: oracle.ledger.handled(envelope.id))
    with raw_channel(node.url) as channel:
        channel.basic_publish("events", names.event, b"x" * 100_000_000, pika.BasicProperties(message_id=str(uuid4())))
    for _ in range(10):
        assert oracle.ledger.call(lambda id: client.publish_event(names.event, {}, message_id=id)) is None
    judge(oracle)
    assert len(dead_letters(node, names.event_queue, 1, timeout=30)[0][1]) == 100_000_000
    assert client.get_health_status()["connected"]
