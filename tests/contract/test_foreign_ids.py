"""Messages of clients that send no message id: handled, answered, never deduplicated."""

from __future__ import annotations

from typing import Any

import pytest
from collector import Collector
from contract.conftest import Hub

from message_hub_sync import Event, MemoryDeduplication, Message
from message_hub_sync.envelope.values import Properties


@pytest.mark.parametrize("absent", [None, ""])
def test_equal_messages_without_an_id_are_all_handled(hub: Hub, collected: Collector, absent: Any) -> None:
    hub.client("image").subscribe_messages(collected, deduplicate=MemoryDeduplication())

    for _ in range(3):
        hub.put(f"{hub.name('image')}.messages", b'{"n": 1}', Properties(message_id=absent))

    messages = collected.wait(3, timeout=30)
    assert len({message.id for message in messages}) == 3
    assert all(message.correlation_id == str(message.id) for message in messages)


def test_an_event_without_an_id_is_handled_and_what_follows_has_its_correlation_id(hub: Hub) -> None:
    seen, followed = Collector(), Collector()
    client = hub.client("campaign")
    client.subscribe_messages(followed)

    def handle(event: Event) -> None:
        client.send_message(hub.name("campaign"), {})
        seen(event)

    client.subscribe(["quest.started"], handle)
    hub.put("quest.started", b"{}", Properties(), exchange="events")

    (event,), (message,) = seen.wait(timeout=30), followed.wait(timeout=30)
    assert message.correlation_id == event.correlation_id == str(event.id)
    assert message.causation_id is None


@pytest.mark.parametrize("fails", [False, True])
def test_a_request_without_an_id_is_answered(hub: Hub, fails: bool) -> None:
    def answer(message: Message) -> dict[str, Any]:
        if fails:
            raise ValueError
        return {"n": 2}

    hub.client("image").subscribe_messages(answer)
    inbox = f"{hub.name('node')}.messages"
    hub.client("node").subscribe_messages(lambda message: None).cancel()
    hub.put(
        f"{hub.name('image')}.messages",
        b"{}",
        Properties(correlation_id="c-1", reply_to=inbox, app_id=hub.name("node")),
    )

    reply = hub.take(inbox, 30).properties
    assert reply.correlation_id == "c-1"
    assert "x-in-reply-to" not in reply.headers
    assert ("x-error-type" in reply.headers) is fails


def test_a_reply_without_an_id_is_the_reply(hub: Hub) -> None:
    def answer(message: Message) -> None:
        reply_to, headers = message.reply_to or "", {"x-in-reply-to": str(message.id), "source": hub.name("image")}
        hub.put(reply_to, b'{"n": 3}', Properties(correlation_id=message.correlation_id, headers=headers))

    hub.client("image").subscribe_messages(answer)
    assert hub.client("character").request(hub.name("image"), {}, timeout=30).payload == {"n": 3}
