"""Requests and replies."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from collector import Collector
from contract.conftest import Hub

from message_hub_sync import (
    Message,
    MessageHubDeliveryError,
    MessageHubRemoteError,
    MessageHubRetryError,
    MessageHubTimeoutError,
    MessageValidationError,
)


def test_what_a_handler_returns_is_the_reply(hub: Hub) -> None:
    hub.client("campaign").subscribe_messages(lambda message: {"echo": message.payload, "from": message.source})
    client = hub.client("character")

    reply = client.request(hub.name("campaign"), {"n": 1}, correlation_id="journey-1")

    assert isinstance(reply, Message)
    assert reply.payload == {"echo": {"n": 1}, "from": hub.name("character")}
    assert reply.source == hub.name("campaign")
    assert reply.correlation_id == "journey-1"


def test_a_handler_may_reply_by_itself(hub: Hub) -> None:
    def handle(message: Message) -> None:
        message.reply({"n": 2})

    hub.client("campaign").subscribe_messages(handle)

    assert hub.client("character").request(hub.name("campaign"), {"n": 1}).payload == {"n": 2}


def test_a_reply_to_a_plain_message_goes_to_its_senders_inbox(hub: Hub, collected: Collector) -> None:
    hub.client("campaign").subscribe_messages(lambda message: message.reply({"n": 2}) and None)
    sender = hub.client("character")
    sender.subscribe_messages(collected)

    sender.send_message(hub.name("campaign"), {"n": 1}, correlation_id="journey-1")

    (reply,) = collected.wait()
    assert (reply.payload, reply.correlation_id) == ({"n": 2}, "journey-1")


def test_a_service_that_answers_as_the_guide_does_is_understood(hub: Hub, collected: Collector) -> None:
    responder = hub.client("campaign")

    def handle_message(message: Any) -> None:
        responder.send_message(
            destination=message["source"],
            payload={"data": "response data"},
            correlation_id=message["correlation_id"],
        )

    responder.subscribe_messages(handle_message)
    client = hub.client("character")
    client.subscribe_messages(collected)

    reply = client.request(hub.name("campaign"), {"action": "get_data"})

    assert reply.payload == {"data": "response data"}
    assert collected.items == []


def test_other_messages_of_the_same_conversation_still_reach_the_handler(hub: Hub, collected: Collector) -> None:
    client = hub.client("character")
    client.subscribe_messages(collected)
    hub.client("stranger").send_message(hub.name("character"), {"n": 1}, correlation_id="journey-1")
    collected.wait()
    bystander = hub.client("stranger")
    responder = hub.client("campaign")

    def handle(message: Message) -> dict[str, int]:
        bystander.send_message(hub.name("character"), {"n": 2}, correlation_id=message.correlation_id)
        return {"n": 3}

    responder.subscribe_messages(handle)

    assert client.request(hub.name("campaign"), {}, correlation_id="journey-1").payload == {"n": 3}
    assert [message.payload["n"] for message in collected.wait(2)] == [1, 2]


def test_an_exception_reaches_the_caller_at_once_and_is_not_retried(hub: Hub) -> None:
    attempts = Collector()

    def fail(message: Message) -> None:
        attempts(message)
        raise KeyError("no such character")

    hub.client("campaign").subscribe_messages(fail)
    started = time.monotonic()

    with pytest.raises(MessageHubRemoteError) as caught:
        hub.client("character").request(hub.name("campaign"), {"n": 1}, timeout=120)

    assert time.monotonic() - started < 60
    assert caught.value.error_type == "KeyError"
    assert caught.value.error_message == ""
    assert attempts.stays(1)[0].payload == {"n": 1}
    assert hub.depth(f"{hub.name('campaign')}.messages.dead") is None


def test_a_handler_that_asks_for_a_retry_answers_later(hub: Hub) -> None:
    def handle(message: Message) -> dict[str, int]:
        if "x-attempts" not in message.headers:
            raise MessageHubRetryError(delay=1)
        return {"n": 2}

    hub.client("campaign").subscribe_messages(handle)

    assert hub.client("character").request(hub.name("campaign"), {"n": 1}).payload == {"n": 2}


def test_a_result_that_cannot_be_sent_is_the_callers_error(hub: Hub) -> None:
    hub.client("campaign").subscribe_messages(lambda message: ["no", "object"])

    with pytest.raises(MessageHubRemoteError) as caught:
        hub.client("character").request(hub.name("campaign"), {"n": 1})

    assert caught.value.error_type == "MessageValidationError"


def test_no_reply_is_a_timeout_and_the_late_one_is_dropped(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    go_on, answered = threading.Event(), Collector()

    def slow(message: Message) -> dict[str, int]:
        go_on.wait(30)
        return {"n": 2}

    hub.client("campaign").subscribe_messages(slow)
    client = hub.client("character")
    with pytest.raises(MessageHubTimeoutError, match=r"within 2 s"):
        client.request(hub.name("campaign"), {"n": 1}, timeout=2)

    with caplog.at_level("INFO", "message_hub_sync.request_reply"):
        go_on.set()
        # In order: when the second reply is here, the first one was dropped.
        assert client.request(hub.name("campaign"), {"n": 1}).payload == {"n": 2}

    assert "a reply came too late and was dropped: no caller waits for it" in caplog.text
    assert answered.items == []


def test_a_request_to_a_service_without_an_inbox_fails_at_once(hub: Hub) -> None:
    with pytest.raises(MessageHubDeliveryError, match="has no inbox"):
        hub.client("character").request(hub.name("nobody"), {"n": 1})


def test_a_wrong_timeout_is_refused(hub: Hub) -> None:
    for timeout in (0, -1, float("nan"), "5", True):
        with pytest.raises(MessageValidationError):
            hub.client("character").request(hub.name("campaign"), {"n": 1}, timeout)  # type: ignore[arg-type]


def test_every_reply_finds_its_own_caller(hub: Hub) -> None:
    hub.client("campaign").subscribe_messages(lambda message: {"n": message.payload["n"]}, workers=4)
    client = hub.client("character")

    def ask(number: int) -> bool:
        reply = client.request(hub.name("campaign"), {"n": number}, correlation_id="the same for all")
        return bool(reply.payload == {"n": number})

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(320)))


def test_a_handler_may_request_of_its_own_client(hub: Hub) -> None:
    hub.client("image").subscribe_messages(lambda message: {"n": message.payload["n"] + 1})
    middle = hub.client("campaign")
    middle.subscribe_messages(lambda message: middle.request(hub.name("image"), message.payload).payload)

    assert hub.client("character").request(hub.name("campaign"), {"n": 1}).payload == {"n": 2}


def test_a_request_that_nobody_took_expires_with_its_caller(hub: Hub, collected: Collector) -> None:
    away = hub.client("campaign")
    away.subscribe_messages(lambda message: None)
    away.close()
    client = hub.client("character")
    with pytest.raises(MessageHubTimeoutError):
        client.request(hub.name("campaign"), {"n": "request"}, timeout=1)
    threading.Event().wait(0.2)  # its ttl began when it was sent, a little after its timeout
    client.send_message(hub.name("campaign"), {"n": "message"})

    hub.client("campaign").subscribe_messages(collected)

    assert [message.payload["n"] for message in collected.stays(1)] == ["message"]


def test_a_request_after_a_lost_connection_names_a_reply_queue_that_is_there(hub: Hub) -> None:
    hub.client("campaign").subscribe_messages(lambda message: message.payload)
    client = hub.client("character")
    for number in range(5):
        assert client.request(hub.name("campaign"), {"n": number}).payload == {"n": number}

        client._lifecycle.session().transport.interrupt()
