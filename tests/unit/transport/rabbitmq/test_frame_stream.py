"""Frames in an order that AMQP does not allow: the connection ends, and no message gets what belongs to another."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pika import frame, spec
from scripted_broker import ScriptedBroker

from message_hub_sync.config import ClientConfig, parse_addresses
from message_hub_sync.envelope.values import Properties
from message_hub_sync.transport.base import Outgoing, PublishResult
from message_hub_sync.transport.rabbitmq import RabbitMQTransport

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
