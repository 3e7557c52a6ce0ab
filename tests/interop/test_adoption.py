"""What the asynchronous replicas have declared, whatever its arguments, is adopted; and they find ours as theirs."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from collector import Collector
from interop.conftest import Start

from message_hub_sync import Event, Message, MessageHubClient

pytestmark = pytest.mark.rabbitmq

EVENT = "character.created"


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno == logging.WARNING and "PRECONDITION_FAILED" in record.getMessage()
    ]


@pytest.mark.parametrize("durable", [True, False])
def test_their_exchange_is_adopted(
    durable: bool, url: str, theirs: Start, collected: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    peer = theirs("character-service")
    peer.do("subscribe", event_type="campaign.created", exchange_durable=durable)

    def receive(event: Event) -> None:
        collected(event)

    with MessageHubClient("campaign-service", url) as client:
        client.subscribe([EVENT], receive)
        client.publish_event("campaign.created", {"campaign_id": "7"})
        sent = peer.do("publish", event_type=EVENT, payload={"character_id": "42"}, exchange_durable=durable)
        assert [str(event.id) for event in collected.wait(1)] == [sent]
    assert [one["routing_key"] for one in peer.got(1)] == ["campaign.created"]
    assert len(warnings_of(caplog)) == (0 if durable else 1)


@pytest.mark.parametrize(
    ("durable", "arguments"),
    [
        (True, {"x-max-length": 1000}),
        (True, {"x-message-ttl": 60_000, "x-dead-letter-exchange": "amq.fanout"}),
        (True, {"x-queue-type": "quorum"}),
        (True, {"x-max-priority": 9}),
        (False, {}),
    ],
)
def test_their_queues_are_adopted(
    durable: bool,
    arguments: dict[str, Any],
    url: str,
    theirs: Start,
    collected: Collector,
    caplog: pytest.LogCaptureFixture,
) -> None:
    replica, sender = theirs("campaign-service"), theirs("character-service")
    replica.do("inbox", durable=durable, arguments=arguments)
    replica.do("subscribe", event_type=EVENT, durable=durable, arguments=arguments)

    def receive_message(message: Message) -> None:
        collected(message.id)

    def receive_event(event: Event) -> None:
        collected(event.id)

    with MessageHubClient("campaign-service", url) as client:
        messages = client.subscribe_messages(receive_message)
        events = client.subscribe([EVENT], receive_event)
        assert (messages.queues, events.queues) == (("campaign-service.messages",), (f"campaign-service.{EVENT}",))
        sent = sender.do("send_many", destination="campaign-service", count=10)
        sent += sender.do("publish_many", event_type=EVENT, count=10)
        # Broker and consumers take turns: each of the two replicas gets half.
        of_ours, of_theirs = collected.wait(10), replica.got(10)
    assert sorted([*map(str, of_ours), *(one["message_id"] for one in of_theirs)]) == sorted(sent)
    assert len(warnings_of(caplog)) == 2, "one for each queue, with the broker's text"


def test_they_find_our_queues_and_exchange_as_their_own(ours: Start, theirs: Start) -> None:
    replica = ours("campaign-service")
    replica.do("inbox")
    replica.do("subscribe", event_types=[EVENT])
    colleague = theirs("campaign-service")
    assert colleague.do("inbox") == "campaign-service.messages"
    assert colleague.do("subscribe", event_type=EVENT) == f"campaign-service.{EVENT}"
    assert "PRECONDITION_FAILED" not in replica.output + colleague.output


def test_a_publisher_that_consumes_nothing_finds_an_exchange_of_another_durability(url: str, theirs: Start) -> None:
    peer = theirs("campaign-service")
    peer.do("subscribe", event_type=EVENT, exchange_durable=False)
    with MessageHubClient("character-service", url) as client:
        sent = client.publish_event(EVENT, {"character_id": "42"})
    assert [one["message_id"] for one in peer.got(1)] == [str(sent)]
