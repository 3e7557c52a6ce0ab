"""What an async replica, an operator or a missing permission left on the broker is adopted, or named."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from message_hub_sync.errors import MessageHubAuthorizationError, MessageHubConfigurationError
from message_hub_sync.publishing.publish_attempts import PublishAttempts, Verdict
from message_hub_sync.transport.base import ConnectionState, PublishResult
from message_hub_sync.transport.topology import (
    Binding,
    ExchangeSpec,
    QueueSpec,
    Topology,
    event_subscription,
    inbox_subscription,
)

pytestmark = pytest.mark.rabbitmq


def restricted(bench: Any, configure: str, write: str = ".*", read: str = ".*") -> Any:
    """A transport of a user with these permissions."""
    bench.node.ctl("add_user", bench.service, "password")
    bench.node.ctl("set_permissions", bench.service, configure, write, read)
    return bench.transport(bench.node.url.replace("guest:guest", f"{bench.service}:password"))


def test_a_queue_with_other_arguments_is_adopted_and_warned_about_once(
    bench: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with bench.raw() as other:
        other.channel().queue_declare(f"{bench.service}.messages", durable=True, arguments={"x-max-priority": 5})
    transport = bench.transport()
    with caplog.at_level(logging.WARNING, "message_hub_sync"):
        consumer = bench.consume(transport)
        transport.declare(inbox_subscription(bench.service), bench.within())
    bench.confirmed(transport)
    consumer.ack(bench.take(consumer))
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert "x-max-priority" in warnings[0]


def test_an_exchange_that_is_not_durable_is_adopted_and_one_of_another_type_is_an_error(bench: Any) -> None:
    with bench.raw() as other:
        other.channel().exchange_declare(f"{bench.service}-topic", "topic", durable=False)
        other.channel().exchange_declare(f"{bench.service}-fanout", "fanout", durable=True)
    transport = bench.transport()
    for name in ("topic", "fanout"):
        exchange = f"{bench.service}-{name}"
        topology = Topology(
            QueueSpec(f"{bench.service}.q"), ExchangeSpec(exchange), (Binding(exchange, "character.created"),)
        )
        if name == "topic":
            transport.declare(topology, bench.within())
        else:
            with pytest.raises(MessageHubConfigurationError, match="406"):
                transport.declare(topology, bench.within())


def test_an_exchange_is_declared_alone_by_who_may_configure_nothing_else(
    bench: Any, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"{bench.service}-events"
    transport = restricted(bench, configure=f"^{name}$", read="")
    with pytest.raises(MessageHubAuthorizationError, match=r"declaring the exchange.*403"):
        transport.declare_exchange(ExchangeSpec("of-others"), bench.within())
    with caplog.at_level(logging.WARNING, "message_hub_sync"):
        for durable in (True, True, False):
            transport.declare_exchange(ExchangeSpec(name, durable=durable), bench.within())
    assert "inequivalent arg 'durable'" in "".join(record.getMessage() for record in caplog.records)
    with bench.raw() as other:
        other.channel().exchange_declare(name, "topic", durable=True, passive=True)


def test_without_permission_to_configure_what_exists_is_used(bench: Any) -> None:
    bench.transport().declare(inbox_subscription(bench.service), bench.within())
    transport = restricted(bench, configure="nothing")
    consumer = bench.consume(transport)
    bench.confirmed(transport)
    consumer.ack(bench.take(consumer))


def test_without_permission_to_configure_what_is_missing_is_an_authorization_error(bench: Any) -> None:
    transport = restricted(bench, configure="nothing")
    with pytest.raises(MessageHubAuthorizationError, match=r"declaring the queue.*403"):
        bench.consume(transport)
    with pytest.raises(MessageHubAuthorizationError, match="403"):
        transport.declare(event_subscription(bench.service, "character.created"), bench.within())
    # It is the call's failure, not the connection's.
    assert {status.state for status in transport.status()} == {ConnectionState.OPEN}


def test_a_queue_of_another_connection_alone_is_a_configuration_error(bench: Any) -> None:
    with bench.raw() as other:
        other.channel().queue_declare(f"{bench.service}.messages", exclusive=True)
        with pytest.raises(MessageHubConfigurationError, match=r"405.*belongs to another connection"):
            bench.consume(bench.transport())


def test_a_publish_that_is_not_allowed_closes_its_channel_with_403(bench: Any) -> None:
    bench.transport().declare(inbox_subscription(bench.service), bench.within())
    transport = restricted(bench, configure=".*", write="nothing")
    receipt = bench.publish(transport, own_channel=True)
    assert receipt.code == 403


def test_of_many_that_are_not_allowed_each_is_known_to_be_refused(bench: Any) -> None:
    topology = event_subscription(bench.service, "character.created")
    bench.transport().declare(topology, bench.within())
    bench.transport().declare(inbox_subscription(bench.service), bench.within())
    transport = restricted(bench, configure="", write="^amq.default$")
    event = bench.message()
    event.exchange, event.routing_key = "events", "character.created"
    receipts = transport.publish_many([event] * 50, bench.within())
    assert {receipt.wait(bench.within()) for receipt in receipts} == {PublishResult.CHANNEL_ERROR}
    # The broker takes the first one, and the channel ends over the second.
    receipts = transport.publish_many([bench.message(), event], bench.within())
    assert receipts[0].wait(bench.within()) is not PublishResult.CHANNEL_ERROR
    bench.node.ctl("set_permissions", bench.service, "^$", "^$", "^$")
    transport.interrupt()
    receipts = transport.publish_many([bench.message()] * 10, bench.within())
    assert {receipt.wait(bench.within()) for receipt in receipts} == {PublishResult.CHANNEL_ERROR}


def test_what_was_accepted_before_its_permission_was_taken_away_is_not_called_refused(bench: Any) -> None:
    topology = event_subscription(bench.service, "character.created")
    bench.transport().declare(topology, bench.within())
    transport = restricted(bench, configure="", write="^events$")
    event, other = bench.message(), bench.message()
    event.exchange, event.routing_key, event.mandatory = "events", "character.created", False
    attempts = PublishAttempts(event)

    first, closing = transport.publish_many([event, other], bench.within())
    assert closing.wait(bench.within()) is PublishResult.CHANNEL_ERROR
    attempts.note(first.wait(bench.within()), first.reason, first.code)
    assert attempts.verdict is None, "it was confirmed before the channel closed"
    bench.node.ctl("set_permissions", bench.service, "^$", "^$", "^$")
    second = bench.publish(transport, event, own_channel=True)
    attempts.note(second.result, second.reason, second.code)

    name = topology.queue.name
    assert transport.queue_stats([name], bench.within())[name].depth == 1, "the broker has it"
    assert second.code == 403
    assert attempts.verdict is Verdict.UNKNOWN


def test_questions_about_queues_are_answered_and_missing_ones_are_none(bench: Any) -> None:
    transport = bench.transport()
    bench.consume(transport)
    bench.confirmed(bench.transport())
    stats = transport.queue_stats([f"{bench.service}.messages", "missing"], bench.within())
    assert stats["missing"] is None
    assert stats[f"{bench.service}.messages"].consumers == 1


def test_deleting_what_is_not_there_is_fine(bench: Any) -> None:
    transport = bench.transport()
    topology = inbox_subscription(bench.service)
    transport.declare(topology, bench.within())
    for _ in range(2):
        transport.delete(topology, f"{bench.service}.messages", bench.within())
    assert transport.queue_stats([f"{bench.service}.messages"], bench.within()) == {f"{bench.service}.messages": None}


def test_a_queue_that_the_virtual_host_has_no_room_for_is_refused_with_the_text_of_the_broker(
    bench: Any, caplog: pytest.LogCaptureFixture
) -> None:
    transport = bench.transport()
    bench.node.ctl("set_vhost_limits", "-p", "/", '{"max-queues": 0}')
    try:
        with pytest.raises(MessageHubConfigurationError, match="queue limit"):
            transport.declare_queue(QueueSpec(f"{bench.service}.one-too-many"), bench.within())
        with pytest.raises(MessageHubConfigurationError, match="queue limit"):
            bench.consume(transport)
    finally:
        bench.node.ctl("clear_vhost_limits", "-p", "/")
    assert "exists with other arguments" not in caplog.text


def test_a_queue_with_arguments_that_the_broker_does_not_know_is_refused_and_not_adopted(
    bench: Any, caplog: pytest.LogCaptureFixture
) -> None:
    transport = bench.transport()
    spec = QueueSpec(f"{bench.service}.invalid", arguments={"x-message-ttl": -1})
    with pytest.raises(MessageHubConfigurationError, match="invalid arg"):
        transport.declare_queue(spec, bench.within())
    assert "exists with other arguments" not in caplog.text
