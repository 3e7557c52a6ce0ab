"""A body that is larger than ``max_message_bytes``: it is not kept, its message is dead-lettered, and all are told."""

from __future__ import annotations

import logging
from typing import Any
from uuid import uuid4

import pytest
from collector import Collector
from contract.conftest import Hub
from contract.test_replies import Asked

from message_hub_sync import Message, MessageHubClient, MessageHubRejectError, MessageHubRemoteError, Middleware
from message_hub_sync.envelope.header_names import BODY_BYTES
from message_hub_sync.envelope.values import Properties
from message_hub_sync.middleware import Received

LIMIT = 1_000
#: In one frame and in several, one byte too many and far too many.
SIZES = [LIMIT + 1, 150_000, 1_000_000]


def body(size: int) -> bytes:
    """A JSON object of so many bytes."""
    return b'{"n": "' + b"x" * (size - 9) + b'"}'


def kinds(hub: Hub, client: MessageHubClient, handler: Any, kind: str) -> str:
    """Subscribe to messages or to events; the queue."""
    subscription = client.subscribe_messages(handler) if kind == "message" else client.subscribe(["quest.*"], handler)
    (queue,) = subscription.queues
    return queue


@pytest.mark.parametrize("kind", ["message", "event"])
@pytest.mark.parametrize("size", SIZES)
def test_a_body_that_is_too_large_is_not_kept_and_its_message_is_dead_lettered_without_it(
    hub: Hub, collected: Collector, caplog: pytest.LogCaptureFixture, size: int, kind: str
) -> None:
    client = hub.client("image", max_message_bytes=LIMIT)
    queue = kinds(hub, client, collected, kind)
    caplog.set_level(logging.ERROR, "message_hub_sync")
    identity = str(uuid4())

    hub.put(queue, body(size), Properties(identity, app_id="sender", headers={"own": 1}))
    hub.put(queue, body(LIMIT), Properties(str(uuid4())))
    hub.put(queue, b"{}", Properties(str(uuid4())))

    collected.wait(2, 30)
    dead = hub.take(f"{queue}.dead", 30)
    headers = dead.properties.headers
    assert (dead.body, headers[BODY_BYTES], headers["own"]) == (b"", size, 1)
    assert (dead.properties.message_id, dead.properties.app_id) == (identity, "sender")
    assert f"at most {LIMIT} bytes (max_message_bytes), not {size}" in headers["x-reason"]
    assert any(identity in line and str(size) in line for line in caplog.messages)
    assert len(collected.items) == 2


@pytest.mark.parametrize("wants", [bytes, Message], ids=["bytes", "envelope"])
def test_no_handler_gets_an_empty_body_instead_of_one_that_is_too_large(
    hub: Hub, collected: Collector, wants: Any
) -> None:
    def handle(message: Any) -> None:
        collected(message)

    handle.__annotations__["message"] = wants
    queue = kinds(hub, hub.client("image", max_message_bytes=LIMIT), handle, "message")

    hub.put(queue, body(5_000), Properties(str(uuid4())))

    assert hub.take(f"{queue}.dead", 30).properties.headers[BODY_BYTES] == 5_000
    assert collected.items == []


def test_a_large_message_to_a_queue_that_is_not_durable_is_dropped_and_counted(
    hub: Hub, collected: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    client = hub.client("image", max_message_bytes=LIMIT)
    subscription = client.subscribe(["quest.*"], collected, durable=False)
    caplog.set_level(logging.ERROR, "message_hub_sync")

    hub.put("quest.started", body(5_000), Properties(str(uuid4())), exchange="events")
    hub.put("quest.started", b"{}", Properties(str(uuid4())), exchange="events")

    collected.wait(1, 30)
    assert any("not 5000" in line and subscription.queues[0] in line for line in caplog.messages)


def test_who_sent_a_request_that_is_too_large_is_told(hub: Hub, collected: Collector) -> None:
    queue = kinds(hub, hub.client("image", max_message_bytes=LIMIT), collected, "message")

    with pytest.raises(MessageHubRemoteError, match=f"InvalidMessage: .*at most {LIMIT} bytes .*, not 4010"):
        hub.client("character").request(hub.name("image"), {"n": "x" * 4_000 + "yz"}, timeout=30)

    assert hub.take(f"{queue}.dead", 30).body == b""


def test_the_caller_whose_reply_is_too_large_is_told(hub: Hub) -> None:
    hub.client("image").subscribe_messages(lambda message: {"n": "x" * 300_000})

    with pytest.raises(MessageHubRemoteError, match=f"cannot be decoded: .*at most {LIMIT} bytes .*, not 300008"):
        hub.client("character", max_message_bytes=LIMIT).request(hub.name("image"), {}, timeout=30)


def test_the_caller_whose_reply_in_the_inbox_is_too_large_is_told(hub: Hub, collected: Collector) -> None:
    asked = Asked(hub, max_message_bytes=LIMIT)
    asked.client.subscribe_messages(collected)

    asked.answer(
        body(5_000),
        f"{hub.name('character')}.messages",
        correlation_id=asked.request.correlation_id,
        app_id=hub.name("campaign"),
    )

    (error,) = asked.results.wait()
    assert isinstance(error, MessageHubRemoteError)
    assert f"at most {LIMIT} bytes (max_message_bytes), not 5000" in str(error)
    assert collected.items == []


class Signed(Middleware):
    """Verifies a body, as a middleware for signatures does."""

    def arrived(self, received: Received) -> None:
        if not received.body:
            raise MessageHubRejectError("its signature does not fit")


def test_a_middleware_does_not_judge_a_body_that_is_not_there(
    hub: Hub, collected: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    client = hub.client("image", max_message_bytes=LIMIT, middleware=[Signed()])
    queue = kinds(hub, client, collected, "message")
    caplog.set_level(logging.ERROR, "message_hub_sync")

    hub.put(queue, body(5_000), Properties(str(uuid4())))

    assert "not 5000" in hub.take(f"{queue}.dead", 30).properties.headers["x-reason"]
    assert not [line for line in caplog.messages if "signature" in line]


def test_a_header_of_the_sender_makes_no_message_too_large(hub: Hub, collected: Collector) -> None:
    queue = kinds(hub, hub.client("image", max_message_bytes=LIMIT), collected, "message")

    hub.put(queue, b"{}", Properties(str(uuid4()), headers={BODY_BYTES: 5_000}))

    collected.wait(1, 30)


def test_a_message_that_is_too_large_for_one_service_reaches_another(hub: Hub, collected: Collector) -> None:
    small = kinds(hub, hub.client("image", max_message_bytes=LIMIT), collected, "event")
    large = Collector()
    kinds(hub, hub.client("campaign"), large, "event")

    hub.put("quest.started", body(500_000), Properties(str(uuid4())), exchange="events")

    (text,) = large.wait(1, 30)
    assert len(text) == 500_000
    assert hub.take(f"{small}.dead", 30).body == b""
    assert collected.items == []
