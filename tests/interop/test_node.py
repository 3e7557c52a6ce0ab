"""Node's amqplib and this library, both ways: messages, events and requests, as Node programs send them."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from collector import Collector
from interop.conftest import Process, Start

from message_hub_sync import Event, MemoryDeduplication, Message, MessageHubClient, MessageHubTimeoutError, RetryPolicy

pytestmark = pytest.mark.rabbitmq

PAYLOAD = {"character_id": "42", "name": "Míra", "nested": {"list": [1, 2.5, None, True]}}


@pytest.fixture
def peer(on_node: Start) -> Process:
    return on_node("campaign-service")


def now(moment: datetime | str) -> bool:
    at = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    return abs((datetime.now(timezone.utc) - at).total_seconds()) < 60


def test_a_message_of_ours_as_node_gets_it(url: str, peer: Process) -> None:
    peer.do("inbox")
    with MessageHubClient("character-service", url, message_priorities=True) as client:
        message_id = client.send_message("campaign-service", PAYLOAD, "conversation", ttl=300, priority=7)
    [got] = peer.got(1)
    headers = got.pop("headers")
    assert json.loads(got.pop("body")) == PAYLOAD
    stamped = got.pop("timestamp")
    moment = headers.pop("timestamp")
    assert now(moment)
    assert int(datetime.fromisoformat(moment).timestamp()) == stamped
    assert {name: value for name, value in got.items() if value is not None} == {
        "exchange": "",
        "routing_key": "campaign-service.messages",
        "messageId": str(message_id),
        "correlationId": "conversation",
        "contentType": "application/json",
        "deliveryMode": 2,
        "priority": 7,
        "expiration": "300000",
        "appId": "character-service",
        "type": "service_message",
    }
    assert headers == {"source": "character-service", "destination": "campaign-service", "ttl": 300, "priority": 7}


def test_an_event_of_ours_as_node_gets_it(url: str, peer: Process) -> None:
    peer.do("subscribe", event_type="character.created")
    with MessageHubClient("character-service", url) as client:
        event_id = client.publish_event("character.created", PAYLOAD)
    [got] = peer.got(1)
    assert (got["exchange"], got["routing_key"], got["messageId"]) == ("events", "character.created", str(event_id))
    assert json.loads(got["body"]) == PAYLOAD
    assert (got["headers"]["source"], got["headers"]["event_type"]) == ("character-service", "character.created")
    assert now(got["headers"]["timestamp"])


def test_a_message_with_nothing_but_a_body(url: str, peer: Process, collected: Collector) -> None:
    def receive(message: Message) -> None:
        collected(message)

    with MessageHubClient("character-service", url) as client:
        client.subscribe_messages(receive, deduplicate=MemoryDeduplication())
        for _ in range(2):
            peer.do("put", routing_key="character-service.messages", payload=PAYLOAD)
        first, second = collected.wait(2)
    assert first.payload == second.payload == PAYLOAD
    assert first.id != second.id
    assert (first.source, first.ttl, first.priority, first.reply_to) == ("unknown", None, 0, None)
    assert now(first.timestamp)


def test_an_event_with_nothing_but_a_body(url: str, peer: Process, collected: Collector) -> None:
    def receive(event: Event) -> None:
        collected(event)

    with MessageHubClient("character-service", url) as client:
        client.subscribe(["campaign.theme_changed"], receive)
        payload = {"campaign_id": "7", "theme": "winter"}
        peer.do("put", exchange="events", routing_key="campaign.theme_changed", payload=payload)
        [got] = collected.wait(1)
    assert (got.event_type, got.payload, got.source) == ("campaign.theme_changed", payload, "unknown")
    assert UUID(str(got.id))


def test_headers_of_every_type_that_node_writes(url: str, peer: Process, collected: Collector) -> None:
    def receive(message: Message) -> None:
        collected(message)

    headers = {
        "whole": 42,
        "big": 2**40,
        "negative": -(2**31) - 1,
        "fraction": 2.5,
        "yes": True,
        "nothing": None,
        "text": "Míra",
        "nested": {"deeper": {"list": [1, "two", None, {"three": 3}]}},
        "moment": {"!": "timestamp", "value": 1_700_000_000},
        "price": {"!": "decimal", "value": {"digits": 1234, "places": 2}},
        "bytes": {"$buffer": "bytes"},
    }
    with MessageHubClient("character-service", url) as client:
        client.subscribe_messages(receive)
        peer.do("put", routing_key="character-service.messages", payload=PAYLOAD, options={"headers": headers})
        [got] = collected.wait(1)
    assert got.headers == {
        **headers,
        "moment": datetime.fromtimestamp(1_700_000_000, timezone.utc).replace(tzinfo=got.headers["moment"].tzinfo),
        "price": Decimal("12.34"),
        "bytes": b"bytes",
    }


def test_headers_of_the_wrong_type_do_not_stop_a_message(url: str, peer: Process, collected: Collector) -> None:
    def receive(message: Message) -> None:
        collected(message)

    wrong = {"source": 7, "destination": {"a": 1}, "ttl": "soon", "priority": [], "timestamp": 0}
    with MessageHubClient("character-service", url) as client:
        client.subscribe_messages(receive)
        peer.do(
            "put",
            routing_key="character-service.messages",
            payload=PAYLOAD,
            options={"headers": wrong, "appId": "campaign-service", "correlationId": "c"},
        )
        [got] = collected.wait(1)
    assert (got.source, got.correlation_id, got.payload) == ("campaign-service", "c", PAYLOAD)


def test_headers_of_every_type_survive_a_retry(url: str, peer: Process, collected: Collector) -> None:
    def receive(message: Message) -> None:
        collected(message)
        if len(collected.items) == 1:
            raise RuntimeError("once")

    headers = {"nested": {"list": [1, None, {"two": 2.5}]}, "big": 2**40, "bytes": {"$buffer": "b"}, "yes": False}
    with MessageHubClient("character-service", url) as client:
        client.subscribe_messages(receive, retry=RetryPolicy(attempts=2, delays=(1,)))
        peer.do("put", routing_key="character-service.messages", payload=PAYLOAD, options={"headers": headers})
        first, again = collected.wait(2, timeout=30)
    assert again.payload == PAYLOAD
    assert {name: again.headers[name] for name in headers} == first.headers


@pytest.mark.parametrize("given", [["correlationId"], ["correlationId", "messageId"], ["correlationId", "headers"]])
def test_node_answers_in_our_reply_queue(url: str, peer: Process, given: list[str]) -> None:
    peer.do("inbox", answer={"with": given})
    with MessageHubClient("character-service", url) as client:
        reply = client.request("campaign-service", {"n": 1}, timeout=20)
    assert reply.payload == {"data": "from Node"}
    [request] = peer.got(1)
    assert reply.correlation_id == request["correlationId"]


def test_node_answers_as_the_guide_does(url: str, peer: Process, collected: Collector) -> None:
    everything = ["correlationId", "messageId", "appId", "contentType", "headers"]
    peer.do("inbox", answer={"with": everything, "as_the_guide_does": True})
    with MessageHubClient("character-service", url) as client:
        client.subscribe_messages(collected)
        reply = client.request("campaign-service", {"n": 1}, timeout=20)
        assert (reply.source, reply.payload) == ("campaign-service", {"data": "from Node"})
        assert collected.items == []


def test_an_answer_without_a_correlation_id_is_nobodys(url: str, peer: Process) -> None:
    peer.do("inbox", answer={"with": ["messageId"]})
    with MessageHubClient("character-service", url) as client, pytest.raises(MessageHubTimeoutError):
        client.request("campaign-service", {"n": 1}, timeout=1)


@pytest.mark.parametrize("direct", [False, True], ids=["exclusive-queue", "direct-reply-to"])
@pytest.mark.parametrize("named", [False, True], ids=["without-an-id", "with-an-id"])
def test_we_answer_nodes_request(
    url: str, peer: Process, direct: bool, named: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(message: Message) -> dict[str, Any]:
        return {"answer_to": message.payload}

    with MessageHubClient("character-service", url) as client:
        client.subscribe_messages(answer)
        message_id = str(uuid4()) if named else None
        options = {"messageId": message_id} if named else {}
        correlation = peer.do("ask", destination="character-service", payload={"n": 1}, direct=direct, options=options)
        [got] = peer.got(1)
    assert json.loads(got["body"]) == {"answer_to": {"n": 1}}
    assert (got["correlationId"], got["appId"]) == (correlation, "character-service")
    assert got["headers"].get("x-in-reply-to") == message_id
    assert "was not delivered" not in caplog.text


def test_an_error_of_ours_reaches_node_as_a_reply(url: str, peer: Process) -> None:
    def answer(message: Message) -> None:
        raise LookupError("a detail that stays here")

    with MessageHubClient("character-service", url) as client:
        client.subscribe_messages(answer)
        peer.do("ask", destination="character-service", payload={"n": 1})
        [got] = peer.got(1)
    assert "LookupError" in got["body"] + json.dumps(got["headers"])
    assert "a detail that stays here" not in json.dumps(got)
