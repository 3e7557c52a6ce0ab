"""What makes a message a duplicate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from collector import Collector
from contract.conftest import Hub

from message_hub_sync import Event, MemoryDeduplication, Message, MessageHubRemoteError
from message_hub_sync.middleware import Middleware, Received


def test_another_sender_that_uses_the_id_of_a_message_does_not_have_it_dropped(hub: Hub) -> None:
    handled, message_id = Collector(), uuid4()

    def handle(event: Event) -> None:
        handled(event.source)

    store = MemoryDeduplication()
    hub.client("image").subscribe(["quest.begun"], handle, deduplicate=store)
    first, second = hub.client("campaign"), hub.client("character")
    for client in (first, second, first, second):
        client.publish_event("quest.begun", {}, message_id=message_id)

    assert sorted(handled.stays(2)) == sorted([hub.name("campaign"), hub.name("character")])


def test_a_repeated_request_that_was_handled_is_answered_at_once(hub: Hub) -> None:
    handled, message_id = Collector(), uuid4()

    def answer(message: Message) -> dict[str, int]:
        handled(message)
        return {"n": 2}

    hub.client("campaign").subscribe_messages(answer, deduplicate=MemoryDeduplication())
    client = hub.client("character")
    assert client.request(hub.name("campaign"), {"n": 1}, message_id=message_id).payload == {"n": 2}

    with pytest.raises(MessageHubRemoteError, match=f"{message_id} was handled before") as caught:
        client.request(hub.name("campaign"), {"n": 1}, timeout=60, message_id=message_id)
    assert caught.value.error_type == "DuplicateRequest"
    handled.stays(1)


def test_a_repeated_message_without_a_caller_is_dropped_without_a_reply(hub: Hub) -> None:
    handled, replies, message_id = Collector(), Collector(), uuid4()

    def handle(message: Message) -> None:
        handled(message)

    def reply(message: Message) -> None:
        replies(message)

    client = hub.client("character")
    client.subscribe_messages(reply)
    hub.client("campaign").subscribe_messages(handle, deduplicate=MemoryDeduplication())
    for _ in range(2):
        client.send_message(hub.name("campaign"), {"n": 1}, message_id=message_id)
    handled.stays(1)
    replies.stays(0)


def test_a_repeated_request_whose_handler_failed_is_handled_again(hub: Hub) -> None:
    failures, message_id = iter([True]), uuid4()

    def answer(message: Message) -> dict[str, int]:
        if next(failures, False):
            raise OSError
        return {"n": 2}

    hub.client("campaign").subscribe_messages(answer, deduplicate=MemoryDeduplication())
    client = hub.client("character")
    with pytest.raises(MessageHubRemoteError) as caught:
        client.request(hub.name("campaign"), {"n": 1}, message_id=message_id)
    assert caught.value.error_type == "OSError"
    assert client.request(hub.name("campaign"), {"n": 1}, message_id=message_id).payload == {"n": 2}


def test_a_middleware_may_answer_a_repeated_request_itself(hub: Hub) -> None:
    class Again(Middleware):
        def handle(self, received: Received, call_next: Callable[[], Any]) -> Any:
            return call_next() or {"again": True}

    message_id = uuid4()
    responder = hub.client("campaign", middleware=[Again()])
    responder.subscribe_messages(lambda message: {"n": 2}, deduplicate=MemoryDeduplication())
    client = hub.client("character")
    for expected in ({"n": 2}, {"again": True}):
        reply = client.request(hub.name("campaign"), {"n": 1}, timeout=60, message_id=message_id)
        assert reply.payload == expected
