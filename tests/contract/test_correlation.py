"""One correlation id from the first call to the last reply, and on every line that is logged on the way."""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from collector import Collector
from contract.conftest import Hub

from message_hub_sync import (
    CorrelationFilter,
    Event,
    Message,
    RetryPolicy,
    bound_correlation,
    current_correlation_id,
)
from message_hub_sync.envelope.values import Properties

IDENTITY = "4fa0c3ad-5f9c-4e2e-a0fc-6b6bd8e20001"
NAMES = ("correlation_id", "message_id", "event_type", "service")
logger = logging.getLogger("a.service.of.somebody")


class Lines(logging.Handler):
    """Keeps what a handler with the filter would write."""

    def __init__(self) -> None:
        super().__init__()
        self.addFilter(CorrelationFilter())
        self.records = Collector()

    def emit(self, record: logging.LogRecord) -> None:
        self.records({name: vars(record)[name] for name in NAMES})


@pytest.fixture
def lines() -> Iterator[Collector]:
    handler = Lines()
    logger.addHandler(handler)
    yield handler.records
    logger.removeHandler(handler)


def test_every_kind_of_call_inside_a_handler_continues_and_names_its_cause(hub: Hub, collected: Collector) -> None:
    hub.client("image").subscribe_messages(collected)

    def on_event(event: Event) -> None:
        collected(event)

    hub.client("llm").subscribe(["quest.*"], on_event)
    relay = hub.client("campaign")

    def handle(message: Message) -> dict[str, Any]:
        assert current_correlation_id() == message.correlation_id
        relay.send_message(hub.name("image"), {"n": 1})
        relay.send_messages([(hub.name("image"), {"n": 2})])
        relay.publish_event("quest.started", {"n": 3})
        relay.publish_events([("quest.ended", {"n": 4})])
        relay.send_message(hub.name("image"), {"n": 5}, correlation_id="of-its-own")
        return {}

    relay.subscribe_messages(handle)
    client, asked = hub.client("character"), uuid4()

    with bound_correlation("web-request-7"):
        reply = client.request(hub.name("campaign"), {}, message_id=asked)

    arrived = {item.payload["n"]: item for item in collected.wait(5)}
    assert [arrived[n].correlation_id for n in range(1, 6)] == 4 * ["web-request-7"] + ["of-its-own"]
    assert {item.causation_id for item in (*arrived.values(), reply)} == {str(asked)}
    assert reply.correlation_id == "web-request-7"
    assert current_correlation_id() is None


def test_a_line_that_a_handler_logs_says_what_is_being_handled(hub: Hub, lines: Collector) -> None:
    def handle(event: Event) -> None:
        logger.error("seen")
        logger.error("the guide's way", extra={"correlation_id": "mine"})

    hub.client("campaign").subscribe(["quest.*"], handle)

    event_id = hub.client("character").publish_event("quest.started", {}, correlation_id="journey-1")

    common = {"message_id": str(event_id), "event_type": "quest.started", "service": hub.name("campaign")}
    assert lines.wait(2) == [{"correlation_id": "journey-1", **common}, {"correlation_id": "mine", **common}]
    logger.error("outside")
    assert lines.wait(3)[2] == dict.fromkeys(NAMES)


def test_what_the_library_says_of_a_message_says_it_too(hub: Hub, lines: Collector) -> None:
    ours, handler = logging.getLogger("message_hub_sync.subscription"), logger.handlers[-1]
    ours.addHandler(handler)
    try:

        def fail(event: str) -> None:
            raise OSError("the disk is full")

        queue = hub.client("campaign").subscribe(["quest.*"], fail, retry=RetryPolicy.none()).queues[0]
        properties = {"correlation_id": "journey-1", "headers": {"event_type": "quest.started"}}
        for body in (b"{}", b"not json"):
            hub.put(queue, body, Properties(message_id=IDENTITY, **properties))
        found = lines.wait(2)
    finally:
        ours.removeHandler(handler)
    expected = {"correlation_id": "journey-1", "message_id": IDENTITY, "event_type": "quest.started"}
    assert found == 2 * [{**expected, "service": hub.name("campaign")}]


def test_a_thread_that_a_handler_starts_continues_only_where_the_context_is_handed_on(
    hub: Hub, collected: Collector
) -> None:
    hub.client("image").subscribe_messages(collected)
    relay = hub.client("campaign")

    def send(n: int) -> None:
        relay.send_message(hub.name("image"), {"n": n})

    def bound(correlation_id: str | None) -> None:
        with bound_correlation(correlation_id):
            send(3)

    def handle(message: Message) -> None:
        for target, *arguments in (
            (send, 1),
            (contextvars.copy_context().run, send, 2),
            (bound, current_correlation_id()),
        ):
            thread = threading.Thread(target=target, args=arguments)
            thread.start()
            thread.join(30)

    relay.subscribe_messages(handle)
    sent = hub.client("character").send_message(hub.name("campaign"), {}, correlation_id="journey-1")

    forgotten, copied, again = collected.wait(3)
    assert forgotten.correlation_id != "journey-1"
    assert forgotten.causation_id is None
    assert (copied.correlation_id, copied.causation_id) == ("journey-1", str(sent))
    assert (again.correlation_id, again.causation_id) == ("journey-1", None)


def test_a_correlation_id_of_another_client_comes_back_to_it_as_it_was(hub: Hub, lines: Collector) -> None:
    def handle(message: Message) -> dict[str, int]:
        logger.error("handled")
        if message.payload["fail"]:
            raise KeyError("gone")
        return {"n": 1}

    hub.client("image").subscribe_messages(handle)
    waiting = hub.client("elsewhere")
    waiting.subscribe_messages(lambda message: None)
    waiting.close()
    queue = f"{hub.name('elsewhere')}.messages"
    theirs = "a\r\nERROR b\x1b[31m"

    for fail in (b"false", b"true"):
        properties = Properties(str(uuid4()), theirs, app_id=hub.name("elsewhere"), reply_to=queue)
        hub.put(f"{hub.name('image')}.messages", b'{"fail": ' + fail + b"}", properties)

    assert [hub.take(queue).properties.correlation_id for _ in range(2)] == [theirs, theirs]
    assert {line["correlation_id"] for line in lines.wait(2)} == {r"a\r\nERROR b\x1b[31m"}
