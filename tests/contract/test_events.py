"""Events from one service to whoever subscribes."""

from __future__ import annotations

import json
import time
from datetime import datetime, timezone
from typing import Any
from uuid import uuid4

import pytest
from collector import Collector
from contract.conftest import Hub

from message_hub_sync import (
    CircuitBreakerConfig,
    Event,
    MemoryDeduplication,
    MessageHubCircuitBreakerError,
    MessageHubConfigurationError,
    MessageHubDeliveryError,
    MessageValidationError,
)
from message_hub_sync.catalogue import CharacterCreated, catalogue
from message_hub_sync.transport.topology import EVENT_EXCHANGE, Binding, QueueSpec, Topology

#: What an envelope made by hand needs beside its type and payload.
ENVELOPE: dict[str, Any] = {
    "id": uuid4(),
    "source": "elsewhere",
    "correlation_id": "journey-1",
    "timestamp": datetime.now(timezone.utc),
}


def test_every_subscribed_service_gets_an_event_once(hub: Hub) -> None:
    campaign, image = Collector(), Collector()
    hub.client("campaign").subscribe(["character.created"], campaign)
    hub.client("image").subscribe(["character.created"], image)

    hub.client("character").publish_event("character.created", {"character_id": "42"})

    assert [json.loads(text) for text in campaign.stays(1)] == [{"character_id": "42"}]
    assert [json.loads(text) for text in image.stays(1)] == [{"character_id": "42"}]


def test_an_event_arrives_with_its_envelope(hub: Hub, collected: Collector) -> None:
    def handle(event: Event) -> None:
        collected(event)

    hub.client("campaign").subscribe(["character.created"], handle)
    event_id = hub.client("character").publish_event(
        "character.created", {"character_id": "42"}, correlation_id="journey-1"
    )

    (event,) = collected.wait()
    assert event.id == event_id
    assert event.event_type == "character.created"
    assert event.source == hub.name("character")
    assert event.correlation_id == "journey-1"
    assert event.payload == {"character_id": "42"}


def test_a_typed_payload_is_published_and_received(hub: Hub, collected: Collector) -> None:
    def handle(created: CharacterCreated) -> None:
        collected(created)

    hub.client("campaign").subscribe(["character.created"], handle)

    hub.client("character").publish_event(CharacterCreated(character_id="42"))

    (created,) = collected.wait()
    assert isinstance(created, CharacterCreated)
    assert str(created.character_id) == "42"


def test_event_types_stand_wherever_their_names_do(hub: Hub, collected: Collector) -> None:
    created, updated = catalogue.get("character.created"), catalogue.get("character.updated")
    assert created is not None
    assert updated is not None
    client, publisher = hub.client("campaign"), hub.client("character")

    def handle(event: Event) -> None:
        collected((event.event_type, event.payload["next"], event.headers["about"]))

    client.subscribe(created, handle)
    client.on_event(updated)(handle)
    payload = {"character_id": "42", "next": updated}
    publisher.publish_event(created, payload, headers={"about": updated})
    publisher.publish_events([Event(event_type=updated, payload=payload, headers={"about": created}, **ENVELOPE)])
    client.subscribe_messages(lambda message: {"got": message.payload["event"], created: message.headers["about"]})
    reply = publisher.request(hub.name("campaign"), {"event": created}, headers={"about": updated})

    assert sorted(collected.wait(2)) == [  # two queues: there is no order between them
        ("character.created", "character.updated", "character.updated"),
        ("character.updated", "character.updated", "character.created"),
    ]
    assert client.get_health_status()["subscriptions"] == ["character.created", "character.updated"]
    assert reply.payload == {"got": "character.created", "character.created": "character.updated"}


def test_an_event_that_nobody_wants_is_fine(hub: Hub) -> None:
    hub.client("character").publish_event("character.created", {"character_id": "1"})


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("quest.*", ["quest.started"]),
        ("quest.#", ["quest.started", "quest.map.drawn"]),
        ("*.*", ["quest.started", "tale.told"]),
        ("#", ["quest.started", "quest.map.drawn", "tale.told"]),
        ("*.map.*", ["quest.map.drawn"]),
        ("tale.told", ["tale.told"]),
    ],
)
def test_patterns_select_by_words(hub: Hub, collected: Collector, pattern: str, expected: list[str]) -> None:
    def handle(event: Event) -> None:
        collected(event.event_type)

    hub.client("campaign").subscribe([pattern], handle)
    publisher = hub.client("character")

    for event_type in ("quest.started", "quest.map.drawn", "tale.told"):
        publisher.publish_event(event_type, {"n": 1})

    assert collected.stays(len(expected)) == expected


def test_a_name_and_a_pattern_are_two_queues_and_deliver_twice(hub: Hub, collected: Collector) -> None:
    subscription = hub.client("campaign").subscribe(["quest.started", "quest.*"], collected)
    assert subscription.queues == (f"{hub.name('campaign')}.quest.started", f"{hub.name('campaign')}.quest.*")

    hub.client("character").publish_event("quest.started", {"n": 1})

    collected.stays(2)


def test_subscriptions_that_share_a_store_each_drop_what_they_handled_themselves(hub: Hub) -> None:
    store = MemoryDeduplication()
    by_name, by_pattern, passing, elsewhere = Collector(), Collector(), Collector(), Collector()
    client = hub.client("campaign")
    client.subscribe(["quest.started"], by_name, deduplicate=store)
    client.subscribe(["quest.*"], by_pattern, deduplicate=store)
    client.subscribe(["quest.started"], passing, durable=False, deduplicate=store)
    hub.client("image").subscribe(["quest.started"], elsewhere, deduplicate=store)
    publisher = hub.client("character")

    first = publisher.publish_event("quest.started", {"n": 1})
    for received in (by_name, by_pattern, passing, elsewhere):
        received.wait(1)
    publisher.publish_event("quest.started", {"n": 1}, message_id=first)
    publisher.publish_event("quest.started", {"n": 2})

    for received in (by_name, by_pattern, passing, elsewhere):
        assert [json.loads(text)["n"] for text in received.stays(2, 0.05)] == [1, 2]


def test_several_callbacks_share_one_queue_and_each_gets_every_event(hub: Hub) -> None:
    first, second = Collector(), Collector()
    client = hub.client("campaign")
    client.subscribe(["quest.started"], first)
    client.subscribe(["quest.started"], second)

    hub.client("character").publish_event("quest.started", {"n": 1})

    first.stays(1)
    second.stays(1)
    assert client.get_queue_stats()[f"{hub.name('campaign')}.quest.started"]["consumers"] == 1


def test_cancelling_one_of_two_callbacks_leaves_the_other(hub: Hub) -> None:
    first, second = Collector(), Collector()
    client = hub.client("campaign")
    one = client.subscribe(["quest.started"], first)
    two = client.subscribe(["quest.started"], second)

    one.cancel()
    hub.client("character").publish_event("quest.started", {"n": 1})

    second.stays(1)
    assert first.items == []
    assert not one.active
    assert two.active


def test_a_second_subscription_with_other_options_is_refused(hub: Hub, collected: Collector) -> None:
    client = hub.client("campaign")
    client.subscribe(["quest.started"], collected, prefetch=5)

    with pytest.raises(MessageHubConfigurationError, match="already consumed with"):
        client.subscribe(["quest.started"], collected, prefetch=6)


def test_a_durable_subscription_gets_what_was_published_while_it_was_away(hub: Hub, collected: Collector) -> None:
    first = hub.client("campaign")
    first.subscribe(["quest.started"], lambda event: None)
    first.close()
    hub.client("character").publish_event("quest.started", {"n": 1})

    hub.client("campaign").subscribe(["quest.started"], collected)

    assert [json.loads(text) for text in collected.wait()] == [{"n": 1}]


def test_a_passing_subscription_is_each_clients_own_and_ends_with_it(hub: Hub) -> None:
    first, second = Collector(), Collector()
    clients = [hub.client("campaign"), hub.client("campaign")]
    queue = clients[0].subscribe(["quest.started"], first, durable=False).queues[0]
    clients[1].subscribe(["quest.started"], second, durable=False)

    hub.client("character").publish_event("quest.started", {"n": 1})
    first.stays(1)
    second.stays(1)
    clients[0].close()

    assert hub.depth(queue) is None


def test_a_cancelled_subscription_starts_again_where_it_stopped(hub: Hub, collected: Collector) -> None:
    subscription = hub.client("campaign").subscribe(["quest.started"], collected)
    subscription.cancel()
    assert subscription.wait(30)
    hub.client("character").publish_event("quest.started", {"n": 1})

    subscription.start()

    collected.stays(1)
    assert subscription.active
    assert not subscription.wait(0.01)


def test_a_deleted_subscription_takes_its_queue_along(hub: Hub, collected: Collector) -> None:
    subscription = hub.client("campaign").subscribe(["quest.started"], collected)
    queue = subscription.queues[0]

    subscription.delete()

    assert hub.depth(queue) is None


def test_a_refused_second_subscription_leaves_nothing_behind(hub: Hub, collected: Collector) -> None:
    client = hub.client("campaign")
    client.subscribe(["quest.started"], collected, prefetch=5)

    with pytest.raises(MessageHubConfigurationError):
        client.subscribe(["tale.told", "quest.started"], collected, prefetch=6)

    assert client.get_health_status()["subscriptions"] == ["quest.started"]
    assert hub.depth(f"{hub.name('campaign')}.tale.told") is None


def test_a_subscription_that_fails_half_way_is_undone(hub: Hub, collected: Collector) -> None:
    client = hub.client("campaign")
    first, taken = f"{hub.name('campaign')}.quest.started", f"{hub.name('campaign')}.tale.told"
    # Somebody else's exclusive queue: it can be neither declared nor consumed.
    hub.raw().declare_queue(QueueSpec(taken, durable=False, exclusive=True), time.monotonic() + 5)

    with pytest.raises(MessageHubConfigurationError):
        client.subscribe(["quest.started", "tale.told"], collected)

    assert client.get_health_status()["queues"] == {}
    stats = hub.raw().queue_stats([first], time.monotonic() + 5)[first]
    assert stats is not None
    assert stats.consumers == 0


def test_an_event_that_one_of_two_queues_refuses_is_unknown_for_the_other_has_it(
    hub: Hub, collected: Collector
) -> None:
    hub.client("campaign").subscribe(["quest.started"], collected)
    full = f"{hub.name('full')}.quest.started"
    spec = QueueSpec(full, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    hub.raw().declare(Topology(spec, EVENT_EXCHANGE, (Binding("events", "quest.started"),)), time.monotonic() + 5)
    hub.remove(full)
    client = hub.client("character")
    client.publish_event("quest.started", {"n": 1})

    with pytest.raises(MessageHubDeliveryError) as caught:
        client.publish_event("quest.started", {"n": 2})
    assert caught.value.outcome == "unknown"
    with pytest.raises(MessageHubDeliveryError) as caught:
        client.publish_events([("quest.started", {"n": 3})])
    assert [failure.outcome for failure in caught.value.failures] == ["unknown"]

    assert [json.loads(text)["n"] for text in collected.stays(3)] == [1, 2, 3]


def test_a_full_queue_of_one_event_type_stops_no_other_event_type(hub: Hub, collected: Collector) -> None:
    hub.client("campaign").subscribe(["tale.told"], collected)
    full = f"{hub.name('full')}.quest.started"
    spec = QueueSpec(full, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    hub.raw().declare(Topology(spec, EVENT_EXCHANGE, (Binding("events", "quest.started"),)), time.monotonic() + 5)
    hub.remove(full)
    client = hub.client("character", circuit_breaker_config=CircuitBreakerConfig(3, 600, 30))
    client.publish_event("quest.started", {"n": 0})

    for _ in range(3):
        with pytest.raises(MessageHubDeliveryError):
            client.publish_event("quest.started", {"n": 0})
    with pytest.raises(MessageHubCircuitBreakerError, match=r"quest\.started"):
        client.publish_event("quest.started", {"n": 0})

    client.publish_event("tale.told", {"n": 1})
    client.publish_events([("tale.told", {"n": 2})])
    with pytest.raises(MessageHubDeliveryError) as caught:
        client.publish_events([("quest.started", {"n": 0}), ("tale.told", {"n": 3})])
    assert [(failure.index, failure.outcome) for failure in caught.value.failures] == [(0, "rejected")]
    assert [json.loads(text)["n"] for text in collected.stays(3)] == [1, 2, 3]
    circuits = client.get_health_status()["circuit_breakers"]
    assert circuits == {"quest.started": "open", "tale.told": "closed"}


def test_decorators_subscribe(hub: Hub, collected: Collector) -> None:
    client = hub.client("campaign")

    @client.on_event("quest.started", "tale.told")
    def on_quest(event: dict) -> None:  # type: ignore[type-arg]
        collected(event["n"])

    @client.on_message
    def on_message(message: dict) -> None:  # type: ignore[type-arg]
        collected(message["n"])

    publisher = hub.client("character")
    publisher.publish("quest.started", {"n": 1})
    collected.wait(1)
    publisher.publish("tale.told", {"n": 2})
    collected.wait(2)
    publisher.send(hub.name("campaign"), {"n": 3})
    assert collected.wait(3) == [1, 2, 3]


def test_the_first_event_of_a_new_hub_needs_no_exchange_made_before(hub: Hub) -> None:
    hub.client("character").publish_event("quest.started", {"n": 1})


@pytest.mark.parametrize(
    "event_types", [[], ["nodots"], ["Upper.Case"], ["quest..started"], [""], [7], 7, ["quest.started", "x y"]]
)
def test_a_wrong_event_type_is_refused_at_subscribe(hub: Hub, collected: Collector, event_types: object) -> None:
    client = hub.client("campaign")

    with pytest.raises(MessageValidationError):
        client.subscribe(event_types, collected)

    assert client.get_health_status()["subscriptions"] == []


@pytest.mark.parametrize("event_type", ["quest.*", "#", "quest", "Quest.Started", "", None, 7, "quest.started "])
def test_a_wrong_event_type_is_refused_at_publish(hub: Hub, event_type: object) -> None:
    with pytest.raises(MessageValidationError):
        hub.client("character").publish_event(event_type, {"n": 1})


@pytest.mark.parametrize(
    "options",
    [{"prefetch": 0}, {"prefetch": 70_000}, {"workers": 0}, {"retry": 3}, {"deduplicate": True}, {"durable": 1}],
)
def test_a_wrong_option_is_refused_at_subscribe(hub: Hub, collected: Collector, options: dict[str, object]) -> None:
    with pytest.raises(MessageValidationError):
        hub.client("campaign").subscribe(["quest.started"], collected, **options)  # type: ignore[arg-type]


def test_a_callback_of_the_wrong_shape_is_refused_at_subscribe(hub: Hub) -> None:
    async def asynchronous(event: str) -> None: ...

    for callback in (asynchronous, lambda: None, 7, lambda a, b, c: None):
        with pytest.raises(MessageValidationError):
            hub.client("campaign").subscribe(["quest.started"], callback)  # type: ignore[arg-type]
