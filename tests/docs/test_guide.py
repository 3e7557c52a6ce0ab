"""The integration guide's code, ``async`` and ``await`` deleted and the package renamed, run as it stands."""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from code_blocks import Block, python_blocks
from collector import Collector
from programs import ROOT

import message_hub_sync
from message_hub_sync import Event, Message, MessageHubClient

GUIDE = ROOT / "docs" / "integration_guide.md"
BLOCKS = python_blocks(GUIDE)
GUIDE_URL = "amqp://localhost:5672"
#: What the blocks presuppose, but for functions of the reader's own (see ``Guide``).
ERRORS = {name: getattr(message_hub_sync, name) for name in message_hub_sync.__all__ if name.endswith("Error")}


def names_in_the_guide(pattern: str) -> list[str]:
    return list(dict.fromkeys(name for block in BLOCKS for name in re.findall(pattern, block.text)))


class Guide:
    """A reader who types in one block after the other, and the services that the guide speaks of.

    Whatever the blocks send arrives in ``messages`` and ``events``, at services other than the reader's.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.messages = Collector()
        self.events = Collector()
        self.updates = Collector()
        self.done = Collector()
        self.namespace: dict[str, Any] = {
            "__name__": "guide",
            **ERRORS,
            "json": json,
            "uuid": uuid,
            "datetime": datetime,
            "logger": logging.getLogger("guide"),
            "request_id": uuid.uuid4(),
            "data": {"of": "the reader's own"},
            "update_local_state": lambda **state: self.updates(state),
            "do_something": lambda: self.done("something"),
        }
        self.clients: list[MessageHubClient] = []

    def run(self, blocks: list[Block]) -> None:
        for block in blocks:
            block.run(self.namespace, self.transform)

    def transform(self, text: str) -> str:
        """The three differences to the guide's own library, and where the hub is."""
        text = re.sub(r"\b(async|await)\s+", "", text)
        text = re.sub(r"\bmessage_hub\b", "message_hub_sync", text)
        return text.replace(GUIDE_URL, self.url)

    def service(self, name: str) -> MessageHubClient:
        client = MessageHubClient(name, self.url)
        self.clients.append(client)
        return client

    def open_inboxes(self) -> None:
        """Every destination of the text has an inbox, and somebody hears every event of the text."""
        for name in names_in_the_guide(r'destination="([^"]+)"'):

            def receive(message: Message) -> None:
                self.messages(message)

            self.service(name).subscribe_messages(receive)

        def hear(event: Event) -> None:
            self.events(event)

        self.service("listening-service").subscribe(names_in_the_guide(r'event_type="([^"]+)"'), hear)

    def close(self) -> None:
        for client in [*self.clients, self.namespace.get("client")]:
            if client is not None:
                client.close()


@pytest.fixture
def guide(hub_url: str) -> Iterator[Guide]:
    guide = Guide(hub_url)
    guide.open_inboxes()
    yield guide
    guide.close()


def outside_testing() -> list[Block]:
    return [block for block in BLOCKS if block.section != "Testing"]


def test_the_guides_blocks_are_found() -> None:
    assert len(BLOCKS) == GUIDE.read_text("utf-8").count("```python") > 10
    assert [block.section for block in BLOCKS].count("Testing") == 2


def test_every_block_runs_and_what_it_sends_arrives(guide: Guide, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    unexpected = []
    for block in outside_testing():
        caplog.clear()
        guide.run([block])
        if "Unexpected error" in caplog.text:
            unexpected.append(block)
        else:
            problems = [record for record in caplog.records if record.levelno >= logging.ERROR]
            assert not problems, f"{GUIDE}:{block.line}"
    # Only the block that sends a literal Ellipsis ends in the guide's own `except Exception`.
    assert unexpected == [block for block in BLOCKS if "send_message(...)" in block.text]

    sent = [(message.source, message.destination, message.payload) for message in guide.messages.wait(3)]
    assert sorted(sent, key=lambda one: one[1]) == [
        ("your-service-name", "service", {"of": "the reader's own"}),
        ("your-service-name", "service-b", {"action": "get_data", "id": "123"}),
        ("your-service-name", "target-service", {"action": "process_data", "data": {"key": "value"}}),
    ]
    first, second = guide.events.wait(2)
    assert (first.event_type, first.payload["event_data"]) == ("your.event.type", "some data")
    assert (second.event_type, second.payload["duration"]) == ("system.status.changed", 3600)
    assert first.id == guide.namespace["event_id"]
    assert first.correlation_id == str(guide.namespace["request_id"])
    [to_target] = [message for message in guide.messages.items if message.destination == "target-service"]
    assert to_target.id == guide.namespace["message_id"]
    assert (to_target.ttl, to_target.priority) == (300, 0)
    assert guide.done.items == ["something"]


def test_the_subscription_of_the_guide_gets_events(guide: Guide, caplog: pytest.LogCaptureFixture) -> None:
    guide.run(outside_testing())
    heard = Collector()

    class Hear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.funcName == "handle_event":
                heard(record)

    # The name that the handler looks up at each call: by now the one of the chapter on debugging.
    logger = logging.getLogger("message_hub_sync")
    assert guide.namespace["logger"] is logger
    logger.addHandler(listening := Hear(logging.INFO))
    caplog.set_level(logging.INFO, logger.name)
    try:
        publisher = guide.service("publishing-service")
        for event_type in names_in_the_guide(r'"(event\.type\.\w+)"'):
            publisher.publish_event(event_type, {"type": event_type})
        records = heard.wait(2)
    finally:
        logger.removeHandler(listening)
    assert sorted(record.getMessage() for record in records) == [
        "Processed event: {'type': 'event.type.one'}",
        "Processed event: {'type': 'event.type.two'}",
    ]


def test_the_guides_request_is_answered_by_the_guides_handler(guide: Guide) -> None:
    guide.run(outside_testing())
    guide.namespace["client"].subscribe_messages(guide.namespace["handle_message"])
    conversation = uuid.uuid4()
    guide.service("service-a").send_message("your-service-name", {"action": "get_data"}, conversation)
    answers = [message for message in guide.messages.wait(4) if message.destination == "service-a"]
    assert [(answer.payload, answer.correlation_id) for answer in answers] == [
        ({"data": "response data"}, str(conversation))
    ]


def test_the_guides_state_is_synchronised_by_the_guides_handlers(guide: Guide) -> None:
    guide.run(outside_testing())
    guide.namespace["client"].subscribe(["resource.state.changed"], guide.namespace["handle_state_event"])
    guide.namespace["handle_state_change"]()
    assert guide.updates.wait(1) == [{"resource_id": "id", "new_state": "new_state", "version": 2}]


def test_the_guides_metrics_count(guide: Guide) -> None:
    def counted() -> float:
        children = message_hub_sync.MESSAGE_COUNTER.collect()
        return sum(
            sample.value
            for family in children
            for sample in family.samples
            if sample.name == "message_hub_messages_total" and sample.labels["type"] == "custom_event"
        )

    before = counted()
    guide.run(outside_testing())
    assert counted() == before + 1


def test_the_guides_tests_pass(guide: Guide) -> None:
    guide.run(BLOCKS)
    names = re.findall(r"def (test_\w+)", "".join(block.text for block in BLOCKS))
    assert len(names) == 2
    tests = dict(guide.namespace)
    guide.close()  # the guide's mock services bear the names of services that would take their messages
    for name in names:
        tests[name]()
