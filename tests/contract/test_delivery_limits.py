"""How often a queue delivers a message that comes back: counts, limits, and the redelivered flag."""

from __future__ import annotations

import time
from typing import Any

import pytest
from contract.conftest import Hub

from message_hub_sync.transport.base import Consumer, Delivery
from message_hub_sync.transport.topology import QueueSpec, Topology


def soon() -> float:
    return time.monotonic() + 20


def consumed(hub: Hub, name: str, prefetch: int = 10, **arguments: Any) -> Consumer:
    queue = f"{hub.name(name)}.limits"
    hub.remove(queue)
    return hub.raw().consume(Topology(QueueSpec(queue, arguments=arguments)), prefetch=prefetch, deadline=soon())


def take(consumer: Consumer) -> Delivery:
    delivery = consumer.deliveries.get(timeout=20)
    assert delivery is not None
    return delivery


@pytest.mark.parametrize(("quorum", "counts"), [(True, [None, 1, 2]), (False, [None, None, None])])
def test_only_a_quorum_queue_counts_deliveries_and_both_mark_what_comes_again(
    hub: Hub, quorum: bool, counts: list[int | None]
) -> None:
    consumer = consumed(hub, "image", **({"x-queue-type": "quorum"} if quorum else {}))
    hub.put(consumer.queue, b"1")
    found = []
    for _ in counts:
        found.append(take(consumer))
        hub.raw().interrupt()
    last = take(consumer)

    assert [delivery.properties.headers.get("x-delivery-count") for delivery in found] == counts
    assert [delivery.redelivered for delivery in (*found, last)] == [False, True, True, True]
    consumer.ack(last)
    consumer.close(soon())


def test_a_quorum_queue_gives_a_message_up_that_came_back_more_often_than_its_limit(hub: Hub) -> None:
    given_up = consumed(hub, "given-up")
    arguments = {"x-queue-type": "quorum", "x-delivery-limit": 2, "x-dead-letter-exchange": ""}
    consumer = consumed(hub, "image", **arguments, **{"x-dead-letter-routing-key": given_up.queue})
    hub.put(consumer.queue, b"1")
    for _ in range(3):
        consumer.requeue(take(consumer))

    letter = take(given_up)

    assert letter.body == b"1"
    assert letter.properties.headers["x-first-death-reason"] == "delivery_limit"
    given_up.ack(letter)
    for one in (consumer, given_up):
        one.close(soon())


def test_a_quorum_queue_without_a_dead_letter_exchange_drops_what_was_only_prefetched(hub: Hub) -> None:
    consumer = consumed(hub, "image", **{"x-queue-type": "quorum", "x-delivery-limit": 1})
    for body in (b"1", b"2", b"3"):
        hub.put(consumer.queue, body)
    for _ in range(2):
        for _ in range(3):
            take(consumer)
        hub.raw().interrupt()
    hub.put(consumer.queue, b"4")

    last = take(consumer)

    assert last.body == b"4"
    consumer.ack(last)
    consumer.close(soon())


def test_queues_of_a_client_with_quorum_queues_give_nothing_up(hub: Hub) -> None:
    client = hub.client("image", queue_type="quorum")
    client.subscribe(["quest.begun"], lambda event: None)
    queue = f"{hub.name('image')}.quest.begun"
    client.close()
    consumer = hub.raw().consume(Topology(QueueSpec(queue)), prefetch=10, deadline=soon())
    hub.put(queue, b"{}")
    for _ in range(25):  # RabbitMQ 4 has a limit of 20 by default
        consumer.requeue(take(consumer))

    last = take(consumer)

    assert last.properties.headers["x-delivery-count"] == 25
    consumer.ack(last)
    consumer.close(soon())


@pytest.mark.parametrize("declared", ["classic", "quorum"])
def test_a_queue_with_another_limit_is_told_at_once(hub: Hub, declared: Any, caplog: pytest.LogCaptureFixture) -> None:
    queue = f"{hub.name('image')}.quest.begun"
    hub.remove(queue)
    spec = QueueSpec(queue, arguments={"x-queue-type": "quorum", "x-delivery-limit": 5})
    hub.raw().declare_queue(spec, soon())
    client = hub.client("image", queue_type=declared)
    client.subscribe(["quest.begun"], lambda event: None)

    assert client.get_health_status()["queues"][queue]["possibly_limited"] is True
    assert caplog.text.count("rabbitmqctl set_policy message-hub-limit") == 1


@pytest.mark.parametrize("declared", ["classic", "quorum"])
def test_a_queue_that_the_client_declares_itself_is_not_limited(hub: Hub, declared: Any) -> None:
    client = hub.client("image", queue_type=declared)
    client.subscribe(["quest.begun"], lambda event: None)

    queue = f"{hub.name('image')}.quest.begun"
    assert client.get_health_status()["queues"][queue]["possibly_limited"] is False
