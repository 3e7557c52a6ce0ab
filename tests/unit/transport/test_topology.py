"""Queues and exchanges are named and declared as the wire of the async services has them."""

from __future__ import annotations

import pytest

from message_hub_sync.transport.topology import (
    Binding,
    ExchangeSpec,
    QueueSpec,
    Topology,
    dead_letter_queue,
    event_subscription,
    inbox_name,
    inbox_subscription,
    reply_topology,
    retry_queue,
)

QUORUM = {"x-queue-type": "quorum", "x-delivery-limit": 100_000}


def test_an_inbox_is_a_durable_queue_without_arguments_on_the_default_exchange() -> None:
    assert inbox_subscription("character-service") == Topology(QueueSpec("character-service.messages"))
    queue = QueueSpec("q")
    assert (queue.durable, queue.exclusive, queue.auto_delete, queue.arguments) == (True, False, False, {})
    assert inbox_name("character-service") == "character-service.messages"


def test_an_inbox_with_priorities_has_ten_of_them_unless_it_is_a_quorum_queue() -> None:
    assert inbox_subscription("s", priorities=True).queue.arguments == {"x-max-priority": 9}
    quorum = inbox_subscription("s", priorities=True, queue_type="quorum").queue
    assert quorum.arguments == QUORUM


def test_an_event_has_a_durable_queue_bound_to_the_durable_topic_exchange() -> None:
    assert event_subscription("campaign-service", "character.created") == Topology(
        QueueSpec("campaign-service.character.created"),
        ExchangeSpec("events", kind="topic", durable=True),
        (Binding("events", "character.created"),),
    )


def test_a_quorum_queue_for_an_event_is_asked_for_by_its_type() -> None:
    found = event_subscription("s", "a.b", queue_type="quorum").queue
    assert found == QueueSpec("s.a.b", arguments=QUORUM)


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_a_subscription_that_is_not_durable_is_a_queue_of_this_client_alone(queue_type: str) -> None:
    found = event_subscription("s", "a.b", durable=False, queue_type=queue_type)  # type: ignore[arg-type]
    assert found.queue == QueueSpec(
        "s.a.b", durable=False, exclusive=True, auto_delete=True, arguments={}, random_suffix=True
    )
    assert found.bindings == (Binding("events", "a.b"),)


def test_replies_come_to_an_exclusive_queue_of_the_client_bound_to_nothing() -> None:
    assert reply_topology("s", "client-1") == Topology(
        QueueSpec("s.replies.client-1", durable=False, exclusive=True, auto_delete=True, random_suffix=True)
    )


def test_a_retry_queue_hands_back_to_its_source_without_losing_what_was_confirmed() -> None:
    assert retry_queue("s.messages", 5000) == QueueSpec(
        "s.messages.retry.5000",
        durable=True,
        arguments={
            "x-queue-type": "quorum",
            "x-message-ttl": 5000,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": "s.messages",
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        },
    )


def test_a_dead_letter_queue_is_durable_and_of_its_sources_type() -> None:
    assert dead_letter_queue("s.messages") == QueueSpec("s.messages.dead")
    assert dead_letter_queue("s.messages", "quorum").arguments == QUORUM


def test_specifications_do_not_share_their_arguments() -> None:
    one = inbox_subscription("a").queue
    one.arguments["x-changed"] = True
    assert inbox_subscription("b").queue.arguments == {}
