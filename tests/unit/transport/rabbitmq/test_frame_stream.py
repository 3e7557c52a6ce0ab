"""Frames in an order that AMQP does not allow: the connection ends, and no message gets what belongs to another."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest
from locking import held
from pika import frame, spec
from scripted_broker import ScriptedBroker

from message_hub_sync.config import ClientConfig, parse_addresses
from message_hub_sync.envelope.values import Properties
from message_hub_sync.transport.base import Outgoing, PublishResult
from message_hub_sync.transport.rabbitmq import RabbitMQTransport
from message_hub_sync.transport.rabbitmq.connection import ThreadedConnection
from message_hub_sync.transport.rabbitmq.polling import Waker

RETURN = frame.Method(1, spec.Basic.Return(312, "NO_ROUTE", "", "gone")).marshal()
ACK = frame.Method(1, spec.Basic.Ack(1)).marshal()
HEADER = frame.Header(1, 2, spec.BasicProperties(message_id="a")).marshal()
EMPTY = frame.Header(1, 0, spec.BasicProperties(message_id="a")).marshal()
BODY = frame.Body(1, b"{}").marshal()
OTHER_BODY = frame.Body(2, b"{}").marshal()


def soon() -> float:
    return time.monotonic() + 30


@pytest.fixture
def result() -> Iterator[Callable[[bytes], tuple[PublishResult | None, str]]]:
    """What becomes of a mandatory publish that a broker answers with these bytes."""
    made: list[Any] = []

    def publish(answer: bytes) -> tuple[PublishResult | None, str]:
        def answers(peer: socket.socket) -> None:
            peer.sendall(answer)

        broker = ScriptedBroker({"Basic.Publish": answers})
        transport = RabbitMQTransport(ClientConfig("svc", parse_addresses(broker.url)))
        made.append((broker, transport))
        outgoing = Outgoing("", "gone", b"{}", Properties("a"), mandatory=True)
        receipt = transport.publish(outgoing, soon())
        return receipt.wait(soon()), receipt.reason

    yield publish
    for broker, transport in made:
        broker.close()
        transport.close(time.monotonic() + 5)


@pytest.mark.parametrize(
    "answer",
    [
        RETURN + ACK,
        RETURN + HEADER + ACK,
        RETURN + RETURN + HEADER + BODY + ACK,
        RETURN + BODY + ACK,
        RETURN + HEADER + HEADER + BODY + ACK,
        RETURN + HEADER + frame.Body(1, b"{}}").marshal() + ACK,
        HEADER + BODY + ACK,
        BODY + ACK,
        RETURN + EMPTY + BODY + ACK,
        OTHER_BODY + ACK,
    ],
    ids=[
        "no content",
        "no body",
        "a second method",
        "no header",
        "two headers",
        "a longer body",
        "no method",
        "a body alone",
        "more than an empty body",
        "of a channel that is not open",
    ],
)
def test_content_that_does_not_follow_its_method_ends_the_connection(result: Any, answer: bytes) -> None:
    assert result(answer)[0] is PublishResult.LOST


@pytest.mark.parametrize("content", [HEADER + BODY, HEADER + frame.Body(1, b"{").marshal() * 2, EMPTY])
@pytest.mark.parametrize("between", [b"", frame.Heartbeat().marshal()])
def test_a_message_that_comes_back_with_its_content_is_returned(result: Any, content: bytes, between: bytes) -> None:
    assert result(RETURN + between + content + between + ACK)[0] is PublishResult.RETURNED


def test_acknowledgements_after_a_returned_message_are_read_as_before(result: Any) -> None:
    two = frame.Method(1, spec.Basic.Return(312, "NO_ROUTE", "", "another")).marshal()
    assert result(two + HEADER + BODY + ACK) == (PublishResult.CONFIRMED, "")


def test_a_flood_of_heartbeats_costs_as_little_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each one that pika handles takes 10 µs, in which no caller gets the connection's lock.
    ours, peer = socket.socketpair()
    waker = Waker()
    connection = ThreadedConnection(pika.ConnectionParameters(), ours, waker)
    handled: list[Any] = []
    monkeypatch.setattr(connection, "_process_frame", handled.append)
    beat, ack = frame.Heartbeat().marshal(), frame.Method(1, spec.Basic.Ack(1)).marshal()
    stream = beat * 8_000 + ack + beat * 8_000
    with held(connection.lock):
        connection._on_data_available(stream[:-3])
        connection._on_data_available(stream[-3:])
    kinds = [type(each) for each in handled]
    assert kinds == [frame.Heartbeat, frame.Method, frame.Heartbeat, frame.Heartbeat]
    assert connection.bytes_received == len(stream)
    connection.end("the test is over")
    peer.close()
    waker.close()


def test_a_caller_gets_its_answer_in_a_flood_of_heartbeats() -> None:
    flooding = threading.Event()

    def floods(peer: socket.socket) -> None:
        def flood() -> None:
            with contextlib.suppress(OSError):
                while flooding.is_set():
                    peer.sendall(frame.Heartbeat().marshal() * 1_000)

        flooding.set()
        peer.sendall(frame.Heartbeat().marshal() * 100_000 + ACK)
        threading.Thread(target=flood, daemon=True).start()

    broker = ScriptedBroker({"Basic.Publish": floods})
    transport = RabbitMQTransport(ClientConfig("svc", parse_addresses(broker.url)))
    try:
        receipt = transport.publish(Outgoing("", "gone", b"{}", Properties("a"), mandatory=True), soon())
        assert receipt.wait(soon()) is PublishResult.CONFIRMED
        # The flood goes on, and its connection is used: the answer to this one never comes.
        assert transport.publish(Outgoing("", "gone", b"{}", Properties("b")), soon()).wait(time.monotonic()) is None
    finally:
        flooding.clear()
        broker.close()
        transport.close(time.monotonic() + 5)
