"""What arrives that no client of ours would send: filled in and handled, or dead-lettered with the reason."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

import pytest
from collector import Collector
from contract.conftest import Hub
from pydantic import BaseModel

from message_hub_sync import Event, Message, MessageHubClient, MessageHubRemoteError
from message_hub_sync.catalogue import CharacterCreated
from message_hub_sync.envelope.values import Properties

IDENTITY = "4fa0c3ad-5f9c-4e2e-a0fc-6b6bd8e20001"
#: Carriage return, line feed, escape: what would forge lines in a log, or colours in a terminal.
HOSTILE = "a\r\nERROR b\x1b[31m\x00\u2028c"


class Scores(BaseModel):
    """A model whose errors name keys of the payload."""

    scores: dict[str, int]


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What the library complains of, whichever of its loggers does."""
    caplog.set_level(logging.WARNING, "message_hub_sync")
    return caplog


def lines(logged: pytest.LogCaptureFixture) -> list[str]:
    """The text of each record as a handler would write it, traceback included."""
    ours = (record for record in logged.records if record.name.startswith("message_hub_sync"))
    return [logging.Formatter().format(record) for record in ours]


# --- filled in, and handled --------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, {"timestamp": "yesterday"}, {"timestamp": 7}, {"timestamp": ""}], ids=str)
def test_what_is_absent_from_a_message_is_filled_in(hub: Hub, collected: Collector, headers: dict[str, Any]) -> None:
    hub.client("image").subscribe_messages(collected)
    before = datetime.now(timezone.utc)

    hub.put(
        f"{hub.name('image')}.messages",
        b'{"n": 1}',
        Properties(message_id=IDENTITY, content_type=None, delivery_mode=None, headers=headers),
    )

    (message,) = collected.wait()
    assert (message.id, message.correlation_id) == (UUID(IDENTITY), IDENTITY)
    assert (message.type, message.source, message.destination) == ("service_message", "unknown", hub.name("image"))
    assert (message.payload, message.ttl, message.priority) == ({"n": 1}, None, 0)
    assert before <= message.timestamp <= datetime.now(timezone.utc)


@pytest.mark.parametrize("pattern", ["quest.started", "quest.*", "#"])
def test_what_is_absent_from_an_event_is_filled_in(hub: Hub, collected: Collector, pattern: str) -> None:
    def handle(event: Event) -> None:
        collected(event)

    hub.client("campaign").subscribe([pattern], handle)

    hub.put(
        "quest.started",
        b'{"n": 1}',
        Properties(message_id=IDENTITY, content_type=None, delivery_mode=None),
        exchange="events",
    )

    (event,) = collected.wait()
    assert (event.id, event.correlation_id, event.source) == (UUID(IDENTITY), IDENTITY, "unknown")
    assert (event.type, event.event_type, event.payload) == ("event", "quest.started", {"n": 1})
    assert abs(datetime.now(timezone.utc) - event.timestamp) < timedelta(minutes=1)


def test_an_unparsable_timestamp_gives_way_to_the_property(hub: Hub, collected: Collector) -> None:
    hub.client("image").subscribe_messages(collected)

    hub.put(
        f"{hub.name('image')}.messages",
        b"{}",
        Properties(message_id=IDENTITY, timestamp=1_700_000_000, headers={"timestamp": "yesterday"}),
    )

    assert collected.wait()[0].timestamp == datetime.fromtimestamp(1_700_000_000, timezone.utc)


def test_what_a_bare_request_expects_in_reply_it_gets(hub: Hub) -> None:
    """Another client's request: its name and its inbox, nothing else."""
    hub.client("image").subscribe_messages(lambda message: {"n": message.payload["n"] + 1})
    waiting = hub.client("elsewhere")
    waiting.subscribe_messages(lambda message: None)
    waiting.close()
    queue = f"{hub.name('elsewhere')}.messages"

    hub.put(
        f"{hub.name('image')}.messages", b'{"n": 1}', Properties(IDENTITY, app_id=hub.name("elsewhere"), reply_to=queue)
    )

    reply = hub.take(queue)
    assert (reply.body, reply.properties.correlation_id) == (b'{"n":2}', IDENTITY)


# --- dead-lettered -----------------------------------------------------------------------------------

#: Body, properties beside the identity, and what the reason says.
NO_MESSAGES: list[tuple[bytes, dict[str, Any], str]] = [
    (b"", {}, "empty"),
    (b"{", {}, "not JSON"),
    (b"[1]", {}, "array"),
    (b'"text"', {}, "string"),
    (b"null", {}, "null"),
    (b'{"a": NaN}', {}, "NaN"),
    (b'{"a": 1, "a": 2}', {}, "duplicate"),
    (b"\xff\xfe", {}, "UTF-8"),
    (HOSTILE.encode(), {}, "not JSON"),
    (b'{"n": ' + b"9" * 5_000 + b"}", {}, "digits"),
    (b"[" * 100_000, {}, "nested too deeply"),
    (b'{"a":' * 30_000, {}, "nested too deeply"),
    (b'{"a":' + b"[" * 90_000 + b"]" * 90_000 + b"}", {}, "nested too deeply"),
    (b"{}", {"message_id": "not-a-uuid"}, "not a UUID"),
    (b"{}", {"message_id": HOSTILE}, "not a UUID"),
    (b"{}", {"type": "strange"}, ", not 'strange'"),
    (b"{}", {"type": HOSTILE, "correlation_id": HOSTILE, "app_id": HOSTILE, "headers": {"source": HOSTILE}}, "type"),
]
IDS = [f"{body[:15]!a}-{index}" for index, (body, _, _) in enumerate(NO_MESSAGES)]


def kinds(hub: Hub, client: MessageHubClient, handler: Any, kind: str) -> tuple[str, str]:
    """Subscribe to messages or to events; the queue, and the type that belongs there."""
    if kind == "message":
        return (*client.subscribe_messages(handler).queues, "service_message")
    return (*client.subscribe(["quest.*"], handler).queues, "event")


def test_a_message_that_lost_its_headers_is_dead_lettered_and_not_handled(hub: Hub, collected: Collector) -> None:
    hub.client("image").subscribe_messages(collected)
    queue = f"{hub.name('image')}.messages"

    hub.put(queue, b"{}", Properties(message_id=IDENTITY, headers={"x-undecodable": "RecursionError"}))

    assert hub.take(f"{queue}.dead").properties.headers["x-reason"] == "its headers cannot be decoded: RecursionError"
    assert collected.items == []


@pytest.mark.parametrize("kind", ["message", "event"])
@pytest.mark.parametrize(("body", "properties", "reason"), NO_MESSAGES, ids=IDS)
def test_what_is_no_message_is_dead_lettered_at_once_and_the_consumer_goes_on(
    hub: Hub,
    collected: Collector,
    logged: pytest.LogCaptureFixture,
    body: bytes,
    properties: dict[str, Any],
    reason: str,
    kind: str,
) -> None:
    queue, right_type = kinds(hub, hub.client("image"), collected, kind)
    logged.clear()

    hub.put(queue, body, Properties(**{"message_id": IDENTITY, "type": right_type, **properties}))
    hub.put(queue, b"{}", Properties(message_id=str(uuid4())))

    collected.stays(1, 0.05)
    dead = hub.take(f"{queue}.dead")
    assert dead.body == body
    assert reason in dead.properties.headers["x-reason"]
    assert dead.properties.headers["x-error-type"] == "InvalidMessage"
    assert dead.properties.headers["x-service"] == hub.name("image")
    assert dead.properties.headers["x-attempts"] == 0
    (line,) = lines(logged)
    assert line.isprintable(), "one line, and nothing that a terminal obeys"
    assert queue in line
    assert hub.depth(queue) == 0


@pytest.mark.parametrize("kind", ["message", "event"])
def test_a_message_of_the_other_kind_is_dead_lettered(hub: Hub, collected: Collector, kind: str) -> None:
    queue, right_type = kinds(hub, hub.client("image"), collected, kind)
    foreign = "event" if kind == "message" else "service_message"

    hub.put(queue, b"{}", Properties(message_id=IDENTITY, type=foreign))

    reason = hub.take(f"{queue}.dead").properties.headers["x-reason"]
    assert f"its type must be '{right_type}', not '{foreign}'" in reason
    assert collected.items == []


@pytest.mark.parametrize("wants", [Scores, Event[Scores]], ids=["model", "envelope"])
def test_a_payload_that_its_model_refuses_is_dead_lettered_saying_where(
    hub: Hub, collected: Collector, logged: pytest.LogCaptureFixture, wants: Any
) -> None:
    def handle(event: Any) -> None:
        collected(event)

    handle.__annotations__["event"] = wants
    queue = hub.client("campaign").subscribe(["quest.*"], handle).queues[0]
    logged.clear()

    hub.put(queue, b'{"scores": {"a\\r\\n\\u001b[31m": "secret"}}', Properties(message_id=IDENTITY))
    hub.put(queue, b'{"scores": {"a": 1}}', Properties(message_id=str(uuid4())))

    collected.stays(1, 0.05)
    reason = hub.take(f"{queue}.dead").properties.headers["x-reason"]
    assert "scores.*: Input should be a valid integer" in reason
    (line,) = lines(logged)
    assert line.isprintable()
    assert "secret" not in reason + line


def test_a_catalogued_event_without_its_identity_never_reaches_a_typed_handler(
    hub: Hub, collected: Collector, logged: pytest.LogCaptureFixture
) -> None:
    def typed(created: CharacterCreated) -> None:
        raise AssertionError("not to be called")

    queue = hub.client("campaign").subscribe(["character.created"], typed).queues[0]
    # Validated where a handler asks for it: another service takes what it gets.
    hub.client("image").subscribe(["character.created"], collected)

    hub.put("character.created", b'{"name": "no id"}', Properties(message_id=IDENTITY), exchange="events")

    assert "character_id" in hub.take(f"{queue}.dead").properties.headers["x-reason"]
    assert collected.wait() == ['{"name": "no id"}']


def test_whoever_sent_a_request_that_is_invalid_is_told(hub: Hub) -> None:
    def handle(message: Message[Scores]) -> dict[str, int]:
        return message.payload.scores

    hub.client("image").subscribe_messages(handle)

    with pytest.raises(MessageHubRemoteError, match=r"InvalidMessage: the payload does not fit .*scores") as caught:
        hub.client("character").request(hub.name("image"), {"n": 1})

    assert caught.value.error_type == "InvalidMessage"
    assert "scores" in hub.take(f"{hub.name('image')}.messages.dead").properties.headers["x-reason"]
