"""The wire, property by property, as a peer without any code of ours reads and writes it."""

from __future__ import annotations

import json
import time
from datetime import datetime, timezone
from uuid import UUID, uuid4

import pytest
from collector import Collector
from interop.conftest import Start

from message_hub_sync import Event, Message, MessageHubClient

pytestmark = pytest.mark.rabbitmq

PAYLOAD = {"character_id": "42", "name": "Míra", "nested": {"list": [1, 2.5, None, True]}}


def is_now(seconds: float) -> bool:
    return abs(time.time() - seconds) < 60


def test_a_message_of_ours_as_the_peer_gets_it(url: str, theirs: Start) -> None:
    peer = theirs("campaign-service")
    peer.do("inbox")
    conversation = uuid4()
    with MessageHubClient("character-service", url, message_priorities=True) as client:
        message_id = client.send_message("campaign-service", PAYLOAD, conversation, ttl=300, priority=7)
    [got] = peer.got(1)
    headers = got.pop("headers")
    stamped = got.pop("timestamp")
    body = got.pop("body")
    assert got == {
        "exchange": "",
        "routing_key": "campaign-service.messages",
        "message_id": str(message_id),
        "correlation_id": str(conversation),
        "content_type": "application/json",
        "content_encoding": None,
        "delivery_mode": 2,
        "priority": 7,
        "expiration": 300.0,  # aio-pika makes seconds of the property's milliseconds
        "app_id": "character-service",
        "user_id": None,
        "type": "service_message",
        "reply_to": None,
    }
    assert json.loads(body) == PAYLOAD
    assert is_now(stamped)
    moment = datetime.fromisoformat(headers.pop("timestamp"))
    assert moment.utcoffset() == timezone.utc.utcoffset(None)
    assert int(moment.timestamp()) == stamped
    assert headers == {"source": "character-service", "destination": "campaign-service", "ttl": 300, "priority": 7}


def test_a_message_that_never_expires_says_nothing_of_a_ttl(url: str, theirs: Start) -> None:
    peer = theirs("campaign-service")
    peer.do("inbox")
    with MessageHubClient("character-service", url) as client:
        client.send_message("campaign-service", PAYLOAD, ttl=None)
    [got] = peer.got(1)
    assert got["expiration"] is None
    assert "ttl" not in got["headers"]


def test_an_event_of_ours_as_the_peer_gets_it(url: str, theirs: Start) -> None:
    peer = theirs("campaign-service")
    peer.do("subscribe", event_type="character.created")
    conversation = uuid4()
    with MessageHubClient("character-service", url) as client:
        event_id = client.publish_event("character.created", PAYLOAD, conversation)
    [got] = peer.got(1)
    headers = got.pop("headers")
    stamped = got.pop("timestamp")
    body = got.pop("body")
    assert got == {
        "exchange": "events",
        "routing_key": "character.created",
        "message_id": str(event_id),
        "correlation_id": str(conversation),
        "content_type": "application/json",
        "content_encoding": None,
        "delivery_mode": 2,
        "priority": 0,  # absent: aio-pika reads that as 0
        "expiration": None,
        "app_id": "character-service",
        "user_id": None,
        "type": "event",
        "reply_to": None,
    }
    assert json.loads(body) == PAYLOAD
    assert is_now(stamped)
    assert int(datetime.fromisoformat(headers.pop("timestamp")).timestamp()) == stamped
    assert headers == {"source": "character-service", "event_type": "character.created"}


def test_a_message_of_the_peer_as_we_get_it(url: str, theirs: Start, collected: Collector) -> None:
    peer = theirs("campaign-service")

    def receive(message: Message) -> None:
        collected(message)

    with MessageHubClient("character-service", url) as client:
        client.subscribe_messages(receive)
        sent = peer.do(
            "send", destination="character-service", payload=PAYLOAD, correlation_id="their-own-text", priority=3
        )
        [got] = collected.wait(1)
    assert got.id == UUID(sent)
    assert (got.type, got.source, got.destination) == ("service_message", "campaign-service", "character-service")
    assert got.correlation_id == "their-own-text"
    assert got.payload == PAYLOAD
    assert (got.ttl, got.priority, got.reply_to, got.redelivered) == (300, 3, None, False)
    assert is_now(got.timestamp.timestamp())
    assert got.timestamp.utcoffset() == timezone.utc.utcoffset(None)


def test_an_event_of_the_peer_as_we_get_it(url: str, theirs: Start, collected: Collector) -> None:
    peer = theirs("campaign-service")

    def receive(event: Event) -> None:
        collected(event)

    with MessageHubClient("character-service", url) as client:
        client.subscribe(["campaign.theme_changed"], receive)
        sent = peer.do("publish", event_type="campaign.theme_changed", payload={"campaign_id": "7", "theme": "winter"})
        [got] = collected.wait(1)
    assert got.id == UUID(sent)
    assert (got.type, got.source, got.event_type) == ("event", "campaign-service", "campaign.theme_changed")
    assert UUID(got.correlation_id)
    assert got.payload == {"campaign_id": "7", "theme": "winter"}
    assert (got.causation_id, got.redelivered) == (None, False)
    assert is_now(got.timestamp.timestamp())
