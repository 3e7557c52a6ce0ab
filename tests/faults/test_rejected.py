"""Exactly those messages that the broker returns or nacks are reported as rejected."""

from __future__ import annotations

from typing import Any

import pytest
from collector import Collector
from faults.judging import DELIVERY, judge
from faults.names import Names, NewClient
from faults.oracle import Oracle
from faults.raw import raw_channel
from faults.timing import TOLERANCE, eventually, in_thread

from message_hub_sync import MessageHubDeliveryError
from message_hub_sync.testing.rabbitmq_node import RabbitMQNode

pytestmark = pytest.mark.rabbitmq


@pytest.mark.row(13)
def test_an_unroutable_message_is_rejected_and_its_neighbours_are_not(
    oracle: Oracle, new_client: NewClient, names: Names
) -> None:
    client = new_client(names.service)
    client.subscribe_messages(lambda message: oracle.ledger.handled(message.id))

    def send(destination: str) -> Any:
        return oracle.ledger.call(lambda id: client.send_message(destination, {}, message_id=id))

    def alternate() -> None:
        for _ in range(100):
            assert send(names.service) is None
            error = send("nobody-at-all")
            assert isinstance(error, MessageHubDeliveryError)
            assert error.outcome == "rejected"
            assert "has never called subscribe_messages()" in str(error)

    with in_thread(alternate), in_thread(alternate):
        alternate()
    counts = judge(oracle, slowest=0).counts  # slowest=0: the calls end with the broker's answer, not at their deadline
    assert (counts.ok, counts.rejected, counts.unknown, counts.duplicates) == (300, 300, 0, 0)
    assert client.get_health_status()["circuit_breaker_state"] == "closed"


@pytest.mark.row(14)
def test_a_full_queue_rejects_and_the_next_call_gets_its_own_answer(
    node: RabbitMQNode, oracle: Oracle, new_client: NewClient, names: Names
) -> None:
    with raw_channel(node.url) as channel:
        arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
        channel.queue_declare(names.inbox, durable=True, arguments=arguments)
    client = new_client(names.service)

    def send(destination: str) -> str:
        oracle.ledger.call(lambda id: client.send_message(destination, {}, message_id=id))
        return oracle.calls()[-1].outcome

    assert send(names.service) == "ok"
    assert send(names.service) == "rejected"
    assert oracle.calls()[-1].error == DELIVERY
    assert send("nobody-at-all") == "rejected"
    client.subscribe_messages(lambda message: oracle.ledger.handled(message.id))
    assert oracle.drained(5)
    assert send(names.service) == "ok"
    assert max(call.seconds for call in oracle.calls()) < TOLERANCE
    judge(oracle)


@pytest.mark.row(14)
def test_an_event_that_one_of_two_queues_refuses_is_unknown_for_the_other_has_it(
    node: RabbitMQNode, oracle: Oracle, new_client: NewClient, names: Names
) -> None:
    client = new_client(names.service)
    client.subscribe([names.event], lambda event, envelope: oracle.ledger.handled(envelope.id))
    full = f"{names.service}-full.{names.event}"
    with raw_channel(node.url) as channel:
        channel.queue_declare(full, durable=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
        channel.queue_bind(full, "events", names.event)

    for _ in range(3):
        oracle.ledger.call(lambda id: client.publish_event(names.event, {}, message_id=id))
    eventually(lambda: oracle.verdict().counts.handled == 3, 5)
    counts = judge(oracle).counts
    assert (counts.ok, counts.rejected, counts.unknown, counts.handled) == (1, 0, 2, 3)
    assert max(call.seconds for call in oracle.calls()) < TOLERANCE, "the broker has answered"
    assert client.get_health_status()["circuit_breaker_state"] == "closed"
    with raw_channel(node.url) as channel:
        channel.queue_delete(full)


@pytest.mark.row(14)
def test_of_a_bulk_that_overflows_a_queue_exactly_the_refused_ones_are_named(
    node: RabbitMQNode, new_client: NewClient, names: Names
) -> None:
    with raw_channel(node.url) as channel:
        arguments = {"x-max-length": 10, "x-overflow": "reject-publish"}
        channel.queue_declare(names.inbox, durable=True, arguments=arguments)
    client = new_client(names.service)
    with pytest.raises(MessageHubDeliveryError) as caught:
        client.send_messages([(names.service, {"number": number}) for number in range(100)])
    refused = {failure.index for failure in caught.value.failures}
    assert {failure.outcome for failure in caught.value.failures} == {"rejected"}

    got = Collector()
    client.subscribe_messages(lambda message: got(message.payload["number"]))
    assert set(got.stays(100 - len(refused))) == set(range(100)) - refused
