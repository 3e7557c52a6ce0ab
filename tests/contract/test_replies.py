"""Which replies are taken, where replies go, and that no reply is answered."""

from __future__ import annotations

import threading
from typing import Any
from uuid import uuid4

import pytest
from collector import Collector
from contract.conftest import Hub

from message_hub_sync import (
    Event,
    Message,
    MessageHubClient,
    MessageValidationError,
)
from message_hub_sync.consuming.retry_policy import RetryPolicy
from message_hub_sync.envelope.values import Properties

ONCE = RetryPolicy(attempts=1)


def fields(**more: Any) -> Properties:
    return Properties(str(uuid4()), type="service_message", **more)


class Asked:
    """A request under way: the service asked answers by what the test does, not by itself."""

    def __init__(self, hub: Hub, **options: Any) -> None:
        self.hub = hub
        self.requests = Collector()
        hub.client("campaign").subscribe_messages(lambda message: self.requests(message) and None)
        self.client: MessageHubClient = hub.client("character", **options)
        self.results = Collector()
        self.thread = threading.Thread(target=self._ask)
        self.thread.start()
        (self.request,) = self.requests.wait()

    def _ask(self) -> None:
        try:
            self.results(self.client.request(self.hub.name("campaign"), {"n": 1}, timeout=20).payload)
        except Exception as error:
            self.results(error)

    def answer(self, body: bytes, queue: str | None = None, **properties: Any) -> None:
        self.hub.put(queue or str(self.request.reply_to), body, fields(**properties))


# --- which reply is taken ------------------------------------------------------------------------


def test_a_reply_in_the_name_of_another_service_is_not_taken(hub: Hub) -> None:
    asked = Asked(hub)
    named = {"x-in-reply-to": str(asked.request.id)}

    asked.answer(b'{"forged": 1}', headers={**named, "source": hub.name("stranger")})
    asked.answer(b'{"forged": 2}', headers=named, app_id=hub.name("stranger"))
    asked.answer(b"{}", headers={**named, "source": hub.name("stranger"), "x-error-type": "Forged"})
    asked.answer(b'{"forged": 3}', correlation_id=asked.request.correlation_id, app_id=hub.name("stranger"))
    asked.answer(b'{"true": 1}', headers={**named, "source": hub.name("campaign")})

    assert asked.results.wait() == [{"true": 1}]


def test_a_forged_reply_in_the_inbox_is_not_taken(hub: Hub, collected: Collector) -> None:
    asked = Asked(hub)
    asked.client.subscribe_messages(collected)
    inbox = f"{hub.name('character')}.messages"

    named = {"x-in-reply-to": str(asked.request.id), "source": hub.name("stranger")}
    asked.answer(b'{"forged": 1}', inbox, headers=named)
    asked.answer(b'{"forged": 2}', inbox, correlation_id=asked.request.correlation_id)
    collected.wait(2)
    asked.answer(b'{"true": 1}', inbox, correlation_id=asked.request.correlation_id, app_id=hub.name("campaign"))

    assert asked.results.wait() == [{"true": 1}]


def test_a_reply_that_bears_only_the_correlation_id_is_taken_from_the_reply_queue(hub: Hub) -> None:
    asked = Asked(hub)

    asked.answer(b'{"n": 2}', correlation_id=asked.request.correlation_id)

    assert asked.results.wait() == [{"n": 2}]


def test_a_bare_reply_that_two_callers_may_wait_for_is_taken_for_none(hub: Hub) -> None:
    requests, results = Collector(), Collector()
    hub.client("campaign").subscribe_messages(lambda message: requests(message) and None)
    client = hub.client("character")

    def ask() -> None:
        results(client.request(hub.name("campaign"), {}, timeout=20, correlation_id="journey-1").payload)

    for _ in range(2):
        threading.Thread(target=ask).start()
    first, second = requests.wait(2)

    hub.put(str(first.reply_to), b'{"bare": 1}', fields(correlation_id="journey-1"))
    hub.put(str(first.reply_to), b'{"n": 1}', fields(headers={"x-in-reply-to": str(first.id)}))
    assert results.wait() == [{"n": 1}]
    hub.put(str(first.reply_to), b'{"n": 2}', fields(correlation_id="journey-1"))  # now one caller is left
    assert results.wait(2) == [{"n": 1}, {"n": 2}]
    assert second.reply_to == first.reply_to


# --- where replies go ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply_to",
    [
        "{victim}.messages",
        "{victim}.replies.1",
        "{victim}.character.created",
        "{source}.messages.dead",
        "{source}.character.created",
        "{source}.replies",
        "{source}",
        "amq.topic",
        "amq_llm-service.messages",
        "amq_0123456789abcdef0123456789abcdef.dead",
        "other",
    ],
)
def test_a_request_whose_reply_would_go_elsewhere_is_dead_lettered(
    hub: Hub, collected: Collector, reply_to: str
) -> None:
    service = hub.client("image", retry=ONCE)
    service.subscribe_messages(lambda message: collected(message) or {"n": 2})
    victim = hub.client("llm")
    victim.subscribe_messages(collected)
    inbox = f"{hub.name('image')}.messages"
    queue = reply_to.format(victim=hub.name("llm"), source=hub.name("character"))

    for sender in ({"app_id": hub.name("character")}, {"headers": {"source": hub.name("character")}}):
        hub.put(inbox, b'{"n": 1}', fields(reply_to=queue, **sender))
        dead = hub.take(f"{inbox}.dead")
        assert "its reply_to must be a reply queue or the inbox of its source" in dead.properties.headers["x-reason"]
    hub.put(inbox, b'{"n": 1}', fields(reply_to=queue))  # without any source
    hub.take(f"{inbox}.dead")

    assert collected.items == []


def test_no_handler_replies_to_a_queue_of_a_third_service(hub: Hub) -> None:
    results = Collector()
    service = hub.client("image")

    def handle(message: Message) -> None:
        elsewhere = message.model_copy(update={"reply_to": f"{hub.name('llm')}.messages"})
        object.__setattr__(elsewhere, "_reply", message._reply)
        try:
            elsewhere.reply({"n": 2})
        except MessageValidationError as error:
            results(str(error))

    service.subscribe_messages(handle)
    hub.client("character").send_message(hub.name("image"), {"n": 1})

    (text,) = results.wait()
    assert text.startswith("reply_to must be a queue of ")


def test_a_reply_expires_with_its_request(hub: Hub) -> None:
    hub.client("image").subscribe_messages(lambda message: {"n": 2})
    away = hub.client("character")
    away.subscribe_messages(lambda message: None)
    away.close()
    inbox = f"{hub.name('character')}.messages"

    for ttl, expected in ((7, 7), ("2.5", "2.5"), (None, 300)):
        headers = {"source": hub.name("character"), **({} if ttl is None else {"ttl": ttl})}
        hub.put(f"{hub.name('image')}.messages", b'{"n": 1}', fields(headers=headers, reply_to=inbox))
        reply = hub.take(inbox).properties
        assert float(reply.headers["ttl"]) == float(expected)
        assert 0 < int(reply.expiration or 0) <= float(expected) * 1000


# --- loops ---------------------------------------------------------------------------------------


def test_a_service_that_replies_to_everything_does_not_answer_itself_for_ever(hub: Hub) -> None:
    handled = Collector()

    def echo(message: Message) -> None:
        handled(message)
        message.reply({"n": 2})

    hub.client("image", retry=ONCE).subscribe_messages(echo)
    inbox = f"{hub.name('image')}.messages"
    hub.put(inbox, b'{"n": 1}', fields(headers={"source": hub.name("image")}))

    dead = hub.take(f"{inbox}.dead")
    assert dead.body == b'{"n":2}'
    assert dead.properties.headers["x-error-type"] == "MessageValidationError"
    assert len(handled.stays(2)) == 2


def test_two_services_whose_handlers_return_something_do_not_play_ping_pong(hub: Hub) -> None:
    handled = Collector()
    for service in ("image", "llm"):
        hub.client(service).subscribe_messages(lambda message: handled(message) or {"n": 2})

    hub.put(
        f"{hub.name('image')}.messages",
        b'{"n": 1}',
        fields(app_id=hub.name("llm"), reply_to=f"{hub.name('llm')}.messages"),
    )

    # A reply that claims to be a request as well.
    hub.put(
        f"{hub.name('image')}.messages",
        b'{"n": 1}',
        fields(
            app_id=hub.name("llm"),
            reply_to=f"{hub.name('llm')}.messages",
            headers={"x-in-reply-to": str(uuid4())},
        ),
    )
    assert len(handled.stays(3)) == 3


# --- what the routing key says -------------------------------------------------------------------


def published(hub: Hub, routing_key: str, headers: dict[str, Any]) -> None:
    hub.put(routing_key, b'{"n": 1}', Properties(str(uuid4()), type="event", headers=headers), exchange="events")


def test_a_header_does_not_make_another_event_of_it(hub: Hub, collected: Collector) -> None:
    word = hub.name("image").replace("-", "_")
    client = hub.client("image", retry=ONCE)
    client.subscribe([f"{word}.*"], collected)

    published(hub, f"{word}.made", {"event_type": f"{word}.deleted"})
    dead = hub.take(f"{hub.name('image')}.{word}.*.dead")
    assert "its header event_type must be its routing key" in dead.properties.headers["x-reason"]
    assert collected.items == []

    published(hub, f"{word}.made", {"event_type": f"{word}.made"})
    published(hub, f"{word}.drawn", {})
    published(hub, f"{word}.bent", {"x-original-routing-key": f"{word}.deleted"})
    collected.wait(3)


def test_a_forged_origin_changes_no_event_type_also_after_a_retry(hub: Hub) -> None:
    word = hub.name("image").replace("-", "_")
    seen = Collector()

    def handle(event: Event) -> None:
        seen(event.event_type)
        if len(seen.items) == 1:
            raise LookupError

    hub.client("image", retry=RetryPolicy(attempts=2, delays=(1,))).subscribe([f"{word}.*"], handle)

    published(hub, f"{word}.made", {"x-original-routing-key": f"{word}.deleted", "x-original-exchange": ""})

    assert seen.wait(2, timeout=20) == [f"{word}.made", f"{word}.made"]


def test_what_is_put_into_a_queue_goes_no_further_than_its_binding(hub: Hub) -> None:
    word = hub.name("image").replace("-", "_")
    seen = Collector()
    hub.client("image", retry=ONCE).subscribe([f"{word}.made"], lambda event: None)
    hub.client("image").subscribe([f"{word}.made"], lambda event: seen(event))
    client = hub.client("llm", retry=ONCE)
    client.subscribe([f"{word}.made"], lambda event, envelope: seen(envelope.event_type))
    queue = f"{hub.name('llm')}.{word}.made"

    for headers in ({"event_type": f"{word}.deleted"}, {"x-original-routing-key": f"{word}.deleted"}):
        hub.put(queue, b'{"n": 1}', Properties(str(uuid4()), type="event", headers=headers))
        reason = hub.take(f"{queue}.dead").properties.headers["x-reason"]
        assert "its event type must match the binding" in reason
    assert seen.items == []

    hub.put(queue, b'{"n": 1}', Properties(str(uuid4()), type="event"))
    assert seen.wait() == [f"{word}.made"]
