"""Many messages in one call, and many threads in one client."""

from __future__ import annotations

import threading
from collections import defaultdict
from datetime import datetime
from uuid import UUID, uuid4

import pytest
from collector import Collector
from contract.conftest import Hub

from message_hub_sync import Event, Message, MessageHubDeliveryError, MessageValidationError
from message_hub_sync.catalogue import CharacterCreated


def test_a_bulk_arrives_completely_and_in_order(hub: Hub, collected: Collector) -> None:
    hub.client("image").subscribe_messages(collected)

    ids = hub.client("character").send_messages([(hub.name("image"), {"n": n}) for n in range(2_500)])

    messages = collected.wait(2_500, timeout=20)
    assert [message.payload["n"] for message in messages] == list(range(2_500))
    assert [message.id for message in messages] == ids


def test_events_in_bulk_may_be_pairs_envelopes_and_payloads(hub: Hub, collected: Collector) -> None:
    def handle(event: Event) -> None:
        collected(event)

    hub.client("campaign").subscribe(["character.created"], handle)
    envelope: Event = Event(
        id=uuid4(),
        source="elsewhere",
        event_type="character.created",
        correlation_id="journey-1",
        payload={"character_id": "2"},
        timestamp="2026-01-01T00:00:00Z",
    )

    ids = hub.client("character").publish_events(
        [("character.created", {"character_id": "1"}), envelope, CharacterCreated(character_id="3")]
    )

    events = collected.wait(3)
    assert [event.payload["character_id"] for event in events] == ["1", "2", "3"]
    assert [event.id for event in events] == ids
    assert ids[1] == envelope.id
    assert events[1].correlation_id == "journey-1"
    assert events[1].source == hub.name("character")


def test_a_received_message_can_be_sent_on(hub: Hub, collected: Collector) -> None:
    relay = hub.client("campaign")

    def pass_on(message: Message) -> None:
        relay.send_message(message.model_copy(update={"destination": hub.name("image")}))

    relay.subscribe_messages(pass_on)
    hub.client("image").subscribe_messages(collected)

    sent = hub.client("character").send_message(hub.name("campaign"), {"n": 1}, priority=3, headers={"tenant": "north"})

    (message,) = collected.wait()
    assert (message.id, message.priority, message.headers["tenant"]) == (sent, 3, "north")


def test_failures_name_index_id_and_outcome_and_the_others_are_sent(hub: Hub, collected: Collector) -> None:
    hub.client("image").subscribe_messages(collected)
    there, missing = hub.name("image"), hub.name("nobody")

    envelope: Message = Message(
        id=uuid4(), source="elsewhere", destination=missing, correlation_id="a", payload={}, timestamp=datetime.now()
    )
    batch = [(there, {"n": 0}), (missing, {"n": 1}), (there, {"n": 2}), envelope, (there, {"n": 4})]
    with pytest.raises(MessageHubDeliveryError, match="2 of 5 messages") as caught:
        hub.client("character").send_messages(batch)

    assert [(failure.index, failure.outcome) for failure in caught.value.failures] == [(1, "rejected"), (3, "rejected")]
    assert isinstance(caught.value.failures[0].message_id, UUID)
    assert caught.value.failures[1].message_id == envelope.id
    assert "has no inbox" in caught.value.failures[0].reason
    assert caught.value.outcome == "rejected"
    assert [message.payload["n"] for message in collected.stays(3)] == [0, 2, 4]


def test_nothing_is_sent_when_one_of_them_is_wrong(hub: Hub, collected: Collector) -> None:
    hub.client("image").subscribe_messages(collected)
    client = hub.client("character")

    for wrong in [(hub.name("image"), float), (hub.name("image"),), "text", (hub.name("image"), {"x": float("inf")})]:
        with pytest.raises(MessageValidationError):
            client.send_messages([(hub.name("image"), {"n": 1}), wrong])
    with pytest.raises(MessageValidationError):
        client.send_messages(7)  # type: ignore[arg-type]

    assert client.send_messages([]) == []
    assert hub.depth(f"{hub.name('image')}.messages") == 0
    assert collected.items == []


def test_32_threads_share_one_client_and_each_keeps_its_order(hub: Hub) -> None:
    threads, each = 32, 25
    received: dict[int, list[int]] = defaultdict(list)
    everything = threading.Event()

    def handle(message: Message) -> None:
        received[message.payload["thread"]].append(message.payload["n"])
        if sum(map(len, received.values())) >= threads * each:
            everything.set()

    hub.client("image").subscribe_messages(handle)
    client = hub.client("character")
    ids: list[UUID] = []

    def send(thread: int) -> None:
        for n in range(each):
            ids.append(client.send_message(hub.name("image"), {"thread": thread, "n": n}, timeout=20))

    senders = [threading.Thread(target=send, args=(number,)) for number in range(threads)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join(30)

    assert len(set(ids)) == threads * each
    assert everything.wait(20)
    assert dict(received) == {number: list(range(each)) for number in range(threads)}
