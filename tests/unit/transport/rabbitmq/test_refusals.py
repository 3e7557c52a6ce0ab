"""A method that makes the broker close the connection: its task fails, and no other one."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pika import frame, spec
from scripted_broker import USUAL, ScriptedBroker
from waiting import eventually

from message_hub_sync.config import ClientConfig, parse_addresses
from message_hub_sync.errors import MessageHubConfigurationError, MessageHubError
from message_hub_sync.transport.rabbitmq import RabbitMQTransport
from message_hub_sync.transport.topology import QueueSpec, inbox_subscription

REFUSALS = {
    530: "NOT_ALLOWED - no such thing",
    540: "NOT_IMPLEMENTED - no global qos",
    541: "INTERNAL_ERROR - Feature `transient_nonexcl_queues` is deprecated",
}


class Broker:
    """Closes the connection with ``code`` at ``method`` on the inbox of the service ``bad``, once ``bad`` is set."""

    def __init__(self, code: int, method: str) -> None:
        self.bad = False
        self._close = spec.Connection.Close(code, REFUSALS[code], 50, 10)
        self.scripted = ScriptedBroker({f"{method} bad.messages": self._refuse})

    def _refuse(self, peer: socket.socket) -> str:
        if not self.bad:
            return USUAL
        peer.sendall(frame.Method(0, self._close).marshal())
        peer.shutdown(socket.SHUT_WR)  # a broker says nothing more
        return ""


def topology(service: str) -> tuple[Any, int]:
    return inbox_subscription(service), 5


def within(seconds: float = 30) -> float:
    return time.monotonic() + seconds


@pytest.fixture(params=[(code, method) for code in REFUSALS for method in ("Queue.Declare", "Basic.Consume")])
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    made = Broker(*request.param)
    yield made
    made.scripted.close()


@pytest.fixture
def transport(broker: Broker) -> Iterator[RabbitMQTransport]:
    made = RabbitMQTransport(ClientConfig(service_name="svc", address=parse_addresses(broker.scripted.url)))
    yield made
    made.close(within(5))


def test_a_consumer_that_costs_the_connection_fails_at_once_and_the_others_go_on(
    broker: Broker, transport: RabbitMQTransport
) -> None:
    others = transport.consume_many([topology("one"), topology("two")], within())
    broker.bad = True
    with pytest.raises(MessageHubConfigurationError, match=r"'bad.messages': the broker replied 5\d\d [A-Z_]+ - "):
        transport.consume_many([topology("bad")], within(60))
    assert eventually(lambda: all(consumer.active for consumer in others))
    assert broker.scripted.connections == 2


def test_of_many_consumers_started_together_the_one_that_costs_the_connection_is_found(
    broker: Broker, transport: RabbitMQTransport
) -> None:
    broker.bad = True
    with pytest.raises(MessageHubConfigurationError, match=r"'bad.messages': the broker replied 5"):
        transport.consume_many([topology("one"), topology("bad"), topology("two")], within(60))
    transport.consume_many([topology("one"), topology("two")], within())


def test_a_consumer_that_costs_the_connection_when_it_is_restored_is_inactive_and_the_others_go_on(
    broker: Broker, transport: RabbitMQTransport
) -> None:
    one, bad, two = transport.consume_many([topology("one"), topology("bad"), topology("two")], within())
    broker.bad = True
    broker.scripted.cut()
    assert eventually(lambda: bad.error is not None)
    assert eventually(lambda: one.active and two.active)
    assert bad.error is not None
    assert "the broker replied 5" in bad.error
    assert not bad.active
    assert broker.scripted.connections == 4  # the first, the lost one, the one that finds it, the one that stays
    # Nor does it cost the next connections.
    broker.scripted.cut()
    assert broker.scripted.wait_for(lambda: broker.scripted.connections == 5)
    assert eventually(lambda: one.active and two.active)
    assert bad.error is not None


def test_a_declaration_that_costs_the_connection_fails_at_once_and_consumers_go_on(
    broker: Broker, transport: RabbitMQTransport
) -> None:
    consumer = transport.consume_many([topology("one")], within())[0]
    broker.bad = True
    calls: list[Callable[[], object]] = [
        lambda: transport.declare_queue(QueueSpec("bad.messages"), within(60)),
        lambda: transport.queue_stats(["bad.messages"], within(60)),
    ]
    if "Queue.Declare bad.messages" not in broker.scripted._script:
        return
    for call in calls:
        with pytest.raises(MessageHubError, match=r"'bad.messages': the broker replied 5"):
            call()
        assert eventually(lambda: consumer.active)
