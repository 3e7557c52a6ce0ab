"""Messages from service to service."""

from __future__ import annotations

import threading
from typing import Any
from uuid import UUID, uuid4

import pytest
from collector import Collector
from contract.conftest import Hub

from message_hub_sync import (
    MemoryDeduplication,
    Message,
    MessageHubDeliveryError,
    MessageValidationError,
    bound_correlation,
    current_correlation_id,
)


def test_a_message_arrives_with_its_envelope(hub: Hub, collected: Collector) -> None:
    receiver = hub.client("image")
    receiver.subscribe_messages(collected)
    correlation_id = uuid4()

    message_id = hub.client("character").send_message(
        hub.name("image"),
        {"action": "paint", "name": "Æthel ⚔"},
        correlation_id=correlation_id,
        ttl=300,
        headers={"tenant": "north"},
    )

    (message,) = collected.wait()
    assert isinstance(message, Message)
    assert message.id == message_id
    assert message.source == hub.name("character")
    assert message.destination == hub.name("image")
    assert message.correlation_id == str(correlation_id) == message["correlation_id"]
    assert message.payload == {"action": "paint", "name": "Æthel ⚔"}
    assert message.ttl == 300
    assert message.headers["tenant"] == "north"
    assert not message.redelivered


def test_a_message_waits_for_a_service_that_is_away(hub: Hub, collected: Collector) -> None:
    away = hub.client("image")
    away.subscribe_messages(lambda message: None)
    away.close()
    hub.client("character").send_message(hub.name("image"), {"n": 1})

    hub.client("image").subscribe_messages(collected)

    assert [message.payload for message in collected.wait()] == [{"n": 1}]


def test_a_message_to_a_service_without_an_inbox_is_rejected(hub: Hub) -> None:
    client = hub.client("character")

    with pytest.raises(MessageHubDeliveryError, match="has no inbox: it has never called subscribe_messages") as caught:
        client.send_message(hub.name("nobody"), {"n": 1})

    assert caught.value.outcome == "rejected"
    assert isinstance(caught.value.message_id, UUID)
    assert client.get_health_status()["circuit_breaker_state"] == "closed"


def test_messages_of_one_sender_are_handled_in_order(hub: Hub, collected: Collector) -> None:
    hub.client("image").subscribe_messages(collected)
    sender = hub.client("character")

    for number in range(100):
        sender.send_message(hub.name("image"), {"n": number})

    assert [message.payload["n"] for message in collected.wait(100)] == list(range(100))


def test_processes_of_one_service_share_its_messages(hub: Hub) -> None:
    handled = Collector()
    workers = [hub.client("image"), hub.client("image")]
    for number, worker in enumerate(workers):
        worker.subscribe_messages(lambda message, number=number: handled((number, message["payload"]["n"])), prefetch=1)
    sender = hub.client("character")

    sender.send_messages((hub.name("image"), {"n": n}) for n in range(40))

    items = handled.stays(40)
    assert sorted(n for _, n in items) == list(range(40))
    assert {worker for worker, _ in items} == {0, 1}


def test_prefetch_bounds_what_a_busy_consumer_holds(hub: Hub) -> None:
    started, go_on = Collector(), threading.Event()

    def busy(message: Message) -> None:
        started(message)
        go_on.wait(30)

    hub.client("image").subscribe_messages(busy, prefetch=3)
    hub.client("character").send_messages((hub.name("image"), {"n": n}) for n in range(10))
    started.wait()

    assert hub.depth(f"{hub.name('image')}.messages") == 7
    go_on.set()
    started.wait(10)


def test_more_workers_handle_at_the_same_time(hub: Hub) -> None:
    together = threading.Barrier(3)
    passed = Collector()

    def meet(message: Message) -> None:
        together.wait(30)
        passed(message)

    hub.client("image").subscribe_messages(meet, workers=3)
    hub.client("character").send_messages((hub.name("image"), {"n": n}) for n in range(3))

    passed.wait(3)


def test_a_message_past_its_ttl_is_not_delivered(hub: Hub, collected: Collector) -> None:
    away = hub.client("image")
    away.subscribe_messages(lambda message: None)
    away.close()
    sender = hub.client("character")
    sender.send_message(hub.name("image"), {"n": "short"}, ttl=0.05)
    threading.Event().wait(0.2)  # a ttl is a matter of time alone
    sender.send_message(hub.name("image"), {"n": "none"}, ttl=None)

    hub.client("image").subscribe_messages(collected)

    assert [message.payload["n"] for message in collected.stays(1)] == ["none"]


def test_an_inbox_made_with_priorities_delivers_the_urgent_first(hub: Hub, collected: Collector) -> None:
    away = hub.client("image", message_priorities=True)
    away.subscribe_messages(lambda message: None)
    away.close()
    sender = hub.client("character", message_priorities=True)
    for priority in (0, 5, 9, 1):
        sender.send_message(hub.name("image"), {"p": priority}, priority=priority)

    hub.client("image", message_priorities=True).subscribe_messages(collected, prefetch=1)

    assert [message.priority for message in collected.wait(4)] == [9, 5, 1, 0]


def test_what_a_handler_sends_continues_the_correlation(hub: Hub, collected: Collector) -> None:
    hub.client("image").subscribe_messages(collected)
    relay = hub.client("campaign")
    relay.subscribe_messages(lambda message: relay.send_message(hub.name("image"), {"relayed": True}) and None)

    first_id = hub.client("character").send_message(hub.name("campaign"), {"n": 1}, correlation_id="journey-7")

    (message,) = collected.wait()
    assert message.correlation_id == "journey-7"
    assert message.causation_id == str(first_id)
    assert current_correlation_id() is None


def test_a_bound_correlation_is_sent(hub: Hub, collected: Collector) -> None:
    hub.client("image").subscribe_messages(collected)

    with bound_correlation("web-request-1"):
        hub.client("character").send_message(hub.name("image"), {"n": 1})

    assert collected.wait()[0].correlation_id == "web-request-1"


def test_a_repeated_message_id_is_dropped_where_the_subscription_deduplicates(hub: Hub, collected: Collector) -> None:
    hub.client("image").subscribe_messages(collected, deduplicate=MemoryDeduplication())
    sender = hub.client("character")
    first = sender.send_message(hub.name("image"), {"n": 1})
    collected.wait()

    sender.send_message(hub.name("image"), {"n": 1}, message_id=first)
    sender.send_message(hub.name("image"), {"n": 2})

    assert [message.payload["n"] for message in collected.stays(2)] == [1, 2]


@pytest.mark.parametrize(
    "arguments",
    [
        {"destination": "Not A Service"},
        {"destination": ""},
        {"payload": ["not", "an", "object"]},
        {"payload": {"x": float("nan")}},
        {"payload": {"x": object()}},
        {"payload": None},
        {"priority": 10},
        {"priority": -1},
        {"priority": True},
        {"ttl": 0},
        {"ttl": -5},
        {"correlation_id": ""},
        {"correlation_id": 7},
        {"message_id": "no-uuid"},
        {"timeout": 0},
        {"timeout": float("inf")},
        {"headers": {"x-own": "1"}},
    ],
)
def test_a_wrong_value_is_refused_and_nothing_is_sent(
    hub: Hub, collected: Collector, arguments: dict[str, Any]
) -> None:
    hub.client("image").subscribe_messages(collected)
    sender = hub.client("character")

    with pytest.raises(MessageValidationError):
        sender.send_message(**{"destination": hub.name("image"), "payload": {"n": 1}, **arguments})

    sender.send_message(hub.name("image"), {"n": "last"})
    assert [message.payload["n"] for message in collected.wait()] == ["last"]
