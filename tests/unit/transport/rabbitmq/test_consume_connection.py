"""A consumer that the broker ends again and again."""

from __future__ import annotations

import itertools
import logging
import socket
import time
from collections.abc import Callable

import pytest
from pika import frame, spec
from scripted_broker import ScriptedBroker

from message_hub_sync.config import ClientConfig, parse_addresses
from message_hub_sync.transport.rabbitmq import RabbitMQTransport
from message_hub_sync.transport.rabbitmq.consume_connection import RabbitMQConsumer
from message_hub_sync.transport.topology import inbox_subscription


def closed(channel: int, _tag: str) -> list[bytes]:
    text = "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out"
    return [frame.Method(channel, spec.Channel.Close(406, text, 0, 0)).marshal()]


def cancelled(channel: int, tag: str) -> list[bytes]:
    return [frame.Method(channel, spec.Basic.Cancel(tag)).marshal()]


@pytest.mark.parametrize("end", [closed, cancelled])
def test_a_consumer_that_the_broker_ends_each_time_is_consumed_again_with_pauses_and_logged_once(
    end: Callable[[int, str], list[bytes]], caplog: pytest.LogCaptureFixture
) -> None:
    moments: list[float] = []

    def consume(peer: socket.socket) -> None:
        moments.append(time.monotonic())
        consumer_channel = consumers[0]._consumer_channel
        ok = frame.Method(consumer_channel.number, spec.Basic.ConsumeOk(consumer_channel.consumer_tag)).marshal()
        peer.sendall(b"".join([ok, *end(consumer_channel.number, consumer_channel.consumer_tag)]))

    broker = ScriptedBroker({"Basic.Consume svc.messages": consume})
    transport = RabbitMQTransport(ClientConfig(service_name="svc", address=parse_addresses(broker.url)))
    with caplog.at_level(logging.INFO, "message_hub_sync.rabbitmq"):
        consumer = RabbitMQConsumer(transport._consume_connection, inbox_subscription("svc"), 1)
        consumers = [consumer]
        transport._consume_connection._consumers.append(consumer)
        transport._consume_connection.recovering.wait_open(time.monotonic() + 30)
        assert broker.wait_for(lambda: broker.answered.count("Basic.Consume svc.messages") == 5, 60)
    # At once, then after 0.5, 1 and 2 s.
    pauses = [later - earlier for earlier, later in itertools.pairwise(moments)]
    assert all(pause > least for pause, least in zip(pauses[:4], (0, 0.45, 0.95, 1.95), strict=True))
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1
    transport.close(time.monotonic() + 5)
    broker.close()
