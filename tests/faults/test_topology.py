"""Queues and exchanges in the broker were deleted or changed, or have other arguments than expected."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from faults.judging import judge
from faults.names import Names, NewClient
from faults.oracle import Oracle
from faults.raw import raw_channel
from faults.timing import TOLERANCE, eventually, in_thread, within

from message_hub_sync import MessageHubClient, MessageHubConfigurationError
from message_hub_sync.testing.rabbitmq_node import RabbitMQNode

pytestmark = pytest.mark.rabbitmq


@pytest.fixture
def vhost(node: RabbitMQNode, names: Names) -> Iterator[str]:
    """A virtual host for this test alone, because all clients share the event exchange."""
    yield node.create_vhost(names.service)
    node.delete_vhost(names.service)


@pytest.mark.row(10)
def test_a_queue_deleted_under_its_consumer_is_declared_and_consumed_again(
    node: RabbitMQNode, oracle: Oracle, new_client: NewClient, names: Names
) -> None:
    client = new_client(names.service)

    def handler(event: dict[str, Any], envelope: Any) -> None:
        oracle.ledger.handled(envelope.id)

    events = client.subscribe([names.event], handler)
    inbox = client.subscribe_messages(handler)
    for _ in range(3):
        with raw_channel(node.url) as channel:
            channel.queue_delete(names.event_queue)
            channel.queue_delete(names.inbox)
        deleted = time.monotonic()
        eventually(lambda: consumers(node, names.event_queue) == consumers(node, names.inbox) == 1, 5)
        assert time.monotonic() - deleted <= 5 + TOLERANCE
        eventually(lambda: events.active and inbox.active, 1)
        assert oracle.ledger.call(lambda id: client.publish_event(names.event, {}, message_id=id)) is None
        assert oracle.ledger.call(lambda id: client.send_message(names.service, {}, message_id=id)) is None
        assert oracle.drained(5)
    assert judge(oracle).counts.handled == 6


def consumers(node: RabbitMQNode, queue: str) -> int:
    """The number of consumers of a queue; 0 if it does not exist."""
    import pika

    try:
        with raw_channel(node.url) as channel:
            return int(channel.queue_declare(queue, passive=True).method.consumer_count)
    except pika.exceptions.ChannelClosedByBroker:
        return 0


@pytest.mark.row(11)
def test_a_queue_with_other_arguments_is_adopted_with_one_warning(
    node: RabbitMQNode, oracle: Oracle, new_client: NewClient, names: Names, caplog: pytest.LogCaptureFixture
) -> None:
    with raw_channel(node.url) as channel:
        channel.queue_declare(names.event_queue, durable=True, arguments={"x-max-length": 1_000})
        channel.queue_declare(names.inbox, durable=True, arguments={"x-max-priority": 5})
    client = new_client(names.service)

    def handler(event: dict[str, Any], envelope: Any) -> None:
        oracle.ledger.handled(envelope.id)

    client.subscribe([names.event], handler)
    client.subscribe_messages(handler)
    node.ctl("close_all_connections", "a fault test")  # the client adopts the queues again, without another warning
    for _ in range(10):
        assert oracle.ledger.call(lambda id: client.publish_event(names.event, {}, message_id=id)) is None
        assert oracle.ledger.call(lambda id: client.send_message(names.service, {}, message_id=id)) is None
    judge(oracle)
    warnings = [record.getMessage() for record in caplog.records if "other arguments" in record.getMessage()]
    assert len(warnings) == 2
    assert all(sum(queue in text for text in warnings) == 1 for queue in (names.event_queue, names.inbox))


@pytest.mark.row(11)
def test_a_queue_that_belongs_to_another_connection_is_one_clear_error_at_the_start(
    node: RabbitMQNode, new_client: NewClient, names: Names, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "message_hub_sync")
    client = new_client(names.service)
    client.connect()
    with raw_channel(node.url) as channel:
        channel.queue_declare(names.event_queue, exclusive=True)
        with within(0), pytest.raises(MessageHubConfigurationError, match="405"):
            client.subscribe([names.event], lambda event: None)
        eventually(lambda: "resource_locked" in node.log(), 5)
        tries = node.log().count("resource_locked")
        threading.Event().wait(2)
        assert node.log().count("resource_locked") == tries, "it is tried again and again"
    client.subscribe([names.event], lambda event: None)


@pytest.mark.row(12)
def test_a_missing_exchange_is_declared_by_a_publisher_who_may_configure_nothing_else(
    node: RabbitMQNode, vhost: str, new_client: NewClient, names: Names
) -> None:
    user = f"user-{names.service}"
    node.ctl("add_user", user, "password")
    node.ctl("set_permissions", "-p", names.service, user, "^events$", "^events$", "^$")
    client = new_client(names.service, vhost.replace("guest:guest", f"{user}:password"))
    with within(1):
        client.publish_event(names.event, {})
    client.close()
    node.ctl("delete_user", user)


@pytest.mark.row(12)
def test_a_missing_exchange_is_declared_and_no_publisher_of_the_channel_suffers(
    oracle: Oracle, new_client: NewClient, names: Names, vhost: str
) -> None:
    client: MessageHubClient = new_client(names.service, vhost)
    client.subscribe_messages(lambda message: oracle.ledger.handled(message.id))
    stop = threading.Event()
    errors = []

    def send_messages() -> None:
        while not stop.is_set():
            error = oracle.ledger.call(lambda id: client.send_message(names.service, {}, message_id=id))
            if error is not None:
                errors.append(error)

    with in_thread(send_messages), in_thread(send_messages), in_thread(send_messages):
        try:
            for _ in range(5):
                client.publish_event(names.event, {})  # the exchange is missing or was deleted: the client declares it
                with raw_channel(vhost) as channel:
                    channel.exchange_declare("events", passive=True)
                    channel.exchange_delete("events")
            client.publish_events([(names.event, {"number": number}) for number in range(200)])
        finally:
            stop.set()
    assert errors == []
    counts = judge(oracle).counts
    assert counts.ok > 100
    # A publish to the missing exchange closes the channel. Messages in flight on it were published again.
    assert counts.unknown == 0

    client.subscribe([names.event], lambda event, envelope: oracle.ledger.handled(envelope.id))
    assert oracle.ledger.call(lambda id: client.publish_event(names.event, {}, message_id=id)) is None
    judge(oracle)
