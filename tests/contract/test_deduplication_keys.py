"""What makes a message a duplicate."""

from __future__ import annotations

from uuid import uuid4

from collector import Collector
from contract.conftest import Hub

from message_hub_sync import Event, MemoryDeduplication


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
