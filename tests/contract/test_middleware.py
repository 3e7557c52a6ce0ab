"""What stands around each call that sends and each delivery that is handled."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any
from uuid import uuid4

import pytest
from collector import Collector
from contract.conftest import Hub

from message_hub_sync import (
    Event,
    MemoryDeduplication,
    Message,
    MessageHubConfigurationError,
    MessageHubConnectionError,
    MessageHubDeliveryError,
    MessageHubRejectError,
    MessageHubRemoteError,
    MessageHubTimeoutError,
    MessageValidationError,
    Middleware,
    Received,
    RetryPolicy,
    Sending,
    current_correlation_id,
)
from message_hub_sync.envelope.values import Properties
from message_hub_sync.testing import RecordingMiddleware

TWICE = RetryPolicy(attempts=2, delays=(1,))
ONCE = RetryPolicy.none()


class Noting(Middleware):
    """Notes when each of its methods begins and ends."""

    def __init__(self, name: str, notes: Collector) -> None:
        self.name = name
        self.notes = notes

    def send(self, batch: Sequence[Sending], call_next: Callable[[], None]) -> None:
        self.notes(f"{self.name} sends {len(batch)}")
        call_next()
        self.notes(f"{self.name} sent")

    def arrived(self, received: Received) -> None:
        self.notes(f"{self.name} sees {received.kind}")

    def handle(self, received: Received, call_next: Callable[[], Any]) -> Any:
        self.notes(f"{self.name} handles")
        try:
            return call_next()
        finally:
            self.notes(f"{self.name} handled")


class Around(Middleware):
    """Does what a test gives it."""

    def __init__(
        self,
        send: Callable[[Sequence[Sending], Callable[[], None]], None] | None = None,
        arrived: Callable[[Received], None] | None = None,
        handle: Callable[[Received, Callable[[], Any]], Any] | None = None,
    ) -> None:
        self._send, self._arrived, self._handle = send, arrived, handle

    def send(self, batch: Sequence[Sending], call_next: Callable[[], None]) -> None:
        call_next() if self._send is None else self._send(batch, call_next)

    def arrived(self, received: Received) -> None:
        return None if self._arrived is None else self._arrived(received)

    def handle(self, received: Received, call_next: Callable[[], Any]) -> Any:
        return call_next() if self._handle is None else self._handle(received, call_next)


# --- order -----------------------------------------------------------------------------------------


def test_the_first_of_the_list_is_the_outermost_when_sending_and_when_handling(hub: Hub) -> None:
    sending, handling = Collector(), Collector()
    hub.client("image", middleware=[Noting("a", handling), Noting("b", handling)]).subscribe_messages(
        lambda message: handling("handler")
    )

    hub.client("character", middleware=[Noting("a", sending), Noting("b", sending)]).send_message(
        hub.name("image"), {"n": 1}
    )

    assert sending.items == ["a sends 1", "b sends 1", "b sent", "a sent"]
    assert handling.stays(7) == [
        "a sees message",
        "b sees message",
        "a handles",
        "b handles",
        "handler",
        "b handled",
        "a handled",
    ]


def test_a_bulk_call_is_one_batch_in_order(hub: Hub, collected: Collector) -> None:
    recording = RecordingMiddleware()
    hub.client("image").subscribe_messages(collected)

    client = hub.client("character", middleware=[recording])
    ids = client.send_messages([(hub.name("image"), {"n": n}) for n in range(300)])

    assert [sending.message_id for sending in recording.sent] == ids
    assert {sending.call for sending in recording.sent} == {1}
    assert {sending.outcome for sending in recording.sent} == {"confirmed"}
    collected.wait(300)
    assert client.send_messages([]) == []
    assert len(recording.sent) == 300


def test_events_messages_requests_and_replies_pass_with_their_kind(hub: Hub) -> None:
    caller, responder = RecordingMiddleware(), RecordingMiddleware()
    answering = hub.client("campaign", middleware=[responder])
    answering.subscribe_messages(lambda message: {"n": 2})
    answering.subscribe(["character.created"], lambda event: None)
    client = hub.client("character", middleware=[caller])

    client.publish_event("character.created", {"character_id": "1"})
    client.send_message(hub.name("campaign"), {"n": 1})
    assert client.request(hub.name("campaign"), {"n": 1}).payload == {"n": 2}

    assert [(one.kind, one.event_type, one.destination) for one in caller.sent] == [
        ("event", "character.created", None),
        ("message", None, hub.name("campaign")),
        ("request", None, hub.name("campaign")),
    ]
    assert [one.kind for one in caller.arrivals] == ["reply"]
    assert caller.handled == []
    # The reply of a handler, and its arrival, are those of the request that was sent.
    (reply,) = responder.wait_for_sent(1)
    assert (reply.kind, reply.destination, reply.payload) == ("reply", hub.name("character"), {"n": 2})
    assert caller.arrivals[0].message_id == str(reply.message_id)
    kinds = sorted(one.kind for one in responder.wait_for_handled(3))
    assert kinds == ["event", "message", "request"]
    assert sorted(one.kind for one in responder.arrivals) == kinds


def test_a_reply_that_a_handler_sends_itself_passes_too(hub: Hub, collected: Collector) -> None:
    recording = RecordingMiddleware()

    def answer(message: Message) -> None:
        collected(message.reply({"n": 2}))

    hub.client("campaign", middleware=[recording]).subscribe_messages(answer)
    assert hub.client("character").request(hub.name("campaign"), {"n": 1}).payload == {"n": 2}
    collected.wait()
    assert [one.kind for one in recording.wait_for_sent(1)] == ["reply"]


# --- send ------------------------------------------------------------------------------------------


def test_a_header_that_is_added_arrives_and_those_of_the_hub_stay(hub: Hub, collected: Collector) -> None:
    refused: list[str] = []

    def add(batch: Sequence[Sending], call_next: Callable[[], None]) -> None:
        for number, sending in enumerate(batch):
            sending.headers["traceparent"] = f"00-{number}"
            sending.headers["x-signature"] = "abc"
            for name, value in (("source", "other"), ("mine", "other"), ("f", 1.5), ("big", "x" * 70_000)):
                try:
                    sending.headers[name] = value
                except MessageValidationError as error:
                    refused.append(str(error))
        call_next()
        with pytest.raises(MessageValidationError, match="before call_next"):
            batch[0].headers["late"] = "x"

    hub.client("image").subscribe_messages(collected)
    client = hub.client("character", middleware=[Around(send=add)])
    client.send_message(hub.name("image"), {"n": 1}, headers={"mine": "own"})
    client.send_messages([(hub.name("image"), {"n": 2}), (hub.name("image"), {"n": 3})])

    messages = collected.wait(3)
    assert [message.headers["traceparent"] for message in messages] == ["00-0", "00-0", "00-1"]
    assert {message.headers["x-signature"] for message in messages} == {"abc"}
    assert {message.source for message in messages} == {hub.name("character")}
    assert messages[0].headers["mine"] == "own"
    assert sum("header 'source' must not be set by a middleware: the hub" in text for text in refused) == 3
    assert sum("header 'mine' must not be set by a middleware: the caller" in text for text in refused) == 1
    assert sum("64 KiB" in text for text in refused) == 3


@pytest.mark.parametrize("bulk", [False, True])
def test_what_a_middleware_raises_before_sending_reaches_the_caller_and_nothing_is_sent(
    hub: Hub, collected: Collector, bulk: bool
) -> None:
    def refuse(batch: Sequence[Sending], call_next: Callable[[], None]) -> None:
        raise LookupError("not now")

    hub.client("image").subscribe_messages(collected)
    client = hub.client("character", middleware=[Around(send=refuse)])

    message = (hub.name("image"), {"n": 1})
    with pytest.raises(LookupError, match="not now"):
        client.send_messages([message]) if bulk else client.send_message(*message)

    hub.client("campaign").send_message(hub.name("image"), {"n": 2})
    assert [message.payload for message in collected.stays(1)] == [{"n": 2}]


def test_an_error_of_the_hub_passes_the_middleware_with_its_outcome(hub: Hub) -> None:
    recording = RecordingMiddleware()
    client = hub.client("character", middleware=[recording])

    with pytest.raises(MessageHubDeliveryError, match="has no inbox"):
        client.send_message(hub.name("nobody"), {"n": 1})
    with pytest.raises(MessageHubDeliveryError):
        client.send_messages([(hub.name("nobody"), {"n": 1}), (hub.name("nothing"), {"n": 2})])

    assert [one.outcome for one in recording.sent] == ["rejected"] * 3
    assert all(isinstance(one.error, MessageHubDeliveryError) for one in recording.sent)


def test_of_a_bulk_each_message_has_its_own_outcome(hub: Hub, collected: Collector) -> None:
    recording = RecordingMiddleware()
    hub.client("image").subscribe_messages(collected)

    with pytest.raises(MessageHubDeliveryError):
        hub.client("character", middleware=[recording]).send_messages(
            [(hub.name("image"), {"n": 1}), (hub.name("nobody"), {"n": 2}), (hub.name("image"), {"n": 3})]
        )

    assert [one.outcome for one in recording.sent] == ["confirmed", "rejected", "confirmed"]


def test_a_middleware_can_replace_an_error_but_not_hide_it(hub: Hub) -> None:
    def hide(batch: Sequence[Sending], call_next: Callable[[], None]) -> None:
        with contextlib.suppress(MessageHubDeliveryError):
            call_next()

    def replace(batch: Sequence[Sending], call_next: Callable[[], None]) -> None:
        try:
            call_next()
        except MessageHubDeliveryError:
            raise LookupError("nobody is there") from None

    with pytest.raises(MessageHubDeliveryError, match="has no inbox"):
        hub.client("character", middleware=[Around(send=hide)]).send_message(hub.name("nobody"), {})
    with pytest.raises(LookupError, match="nobody is there"):
        hub.client("character", middleware=[Around(send=replace)]).send_message(hub.name("nobody"), {})


def test_a_send_that_never_calls_on_sends_nothing_and_says_so(hub: Hub, collected: Collector) -> None:
    hub.client("image").subscribe_messages(collected)
    recording = RecordingMiddleware()
    client = hub.client("character", middleware=[recording, Around(send=lambda batch, call_next: None)])

    with pytest.raises(MessageHubConfigurationError, match=r"Around\.send must call call_next once, not never"):
        client.send_message(hub.name("image"), {"n": 1})
    with pytest.raises(MessageHubConfigurationError, match="nothing was sent"):
        client.publish_events([("character.created", {"character_id": "1"})])

    assert [one.outcome for one in recording.sent] == ["not_sent", "not_sent"]
    hub.client("campaign").send_message(hub.name("image"), {"n": 2})
    collected.stays(1)


def test_a_send_that_calls_on_twice_sends_once_and_says_so(hub: Hub, collected: Collector) -> None:
    def twice(batch: Sequence[Sending], call_next: Callable[[], None]) -> None:
        call_next()
        call_next()

    hub.client("image").subscribe_messages(collected)
    with pytest.raises(MessageHubConfigurationError, match="not twice"):
        hub.client("character", middleware=[Around(send=twice)]).send_message(hub.name("image"), {"n": 1})
    collected.stays(1)


def test_call_next_after_the_end_of_its_middleware_does_nothing_and_says_so(hub: Hub, collected: Collector) -> None:
    kept: list[Callable[[], None]] = []

    def keep(batch: Sequence[Sending], call_next: Callable[[], None]) -> None:
        kept.append(call_next)
        raise LookupError("later")

    hub.client("image").subscribe_messages(collected)
    with pytest.raises(LookupError):
        hub.client("character", middleware=[Around(send=keep)]).send_message(hub.name("image"), {"n": 1})
    with pytest.raises(MessageHubConfigurationError, match="not after it"):
        kept[0]()
    hub.client("campaign").send_message(hub.name("image"), {"n": 2})
    assert [message.payload for message in collected.stays(1)] == [{"n": 2}]


def test_what_a_middleware_sends_inside_send_passes_those_after_it_only(hub: Hub, collected: Collector) -> None:
    notes = Collector()

    class Auditing(Noting):
        def send(self, batch: Sequence[Sending], call_next: Callable[[], None]) -> None:
            super().send(batch, call_next)
            client.send_message(hub.name("image"), {"audit": self.name})

    hub.client("image").subscribe_messages(collected)
    client = hub.client("character", middleware=[Noting("a", notes), Auditing("b", notes), Noting("c", notes)])
    client.send_message(hub.name("image"), {"n": 1})

    assert notes.items == [
        *("a sends 1", "b sends 1", "c sends 1", "c sent", "b sent"),
        *("c sends 1", "c sent"),
        "a sent",
    ]
    assert [message.payload for message in collected.stays(2)] == [{"n": 1}, {"audit": "b"}]
    # The next call passes all of them again.
    notes.items.clear()
    client.send_message(hub.name("image"), {"n": 2})
    assert notes.items[8] == "a sends 1"


def test_the_time_of_a_middleware_counts_against_the_timeout(hub: Hub, collected: Collector) -> None:
    def slow(batch: Sequence[Sending], call_next: Callable[[], None]) -> None:
        threading.Event().wait(0.2)
        call_next()

    hub.client("image").subscribe_messages(collected)
    with pytest.raises(MessageHubConnectionError, match=r"middleware took all of the 0\.1 s"):
        hub.client("character", middleware=[Around(send=slow)]).send_message(hub.name("image"), {}, timeout=0.1)


def test_a_request_names_the_queue_of_its_reply_and_a_message_names_none(hub: Hub) -> None:
    queues, seen = Collector(), Collector()

    def note(batch: Sequence[Sending], call_next: Callable[[], None]) -> None:
        queues([(sending.kind, sending.reply_to) for sending in batch])
        call_next()

    def answer(message: Message) -> dict[str, Any]:
        seen(message.reply_to)
        return {"n": 2}

    hub.client("campaign", middleware=[Around(send=note)]).subscribe_messages(answer)
    client = hub.client("character", middleware=[Around(send=note)])
    client.send_message(hub.name("campaign"), {"n": 1})
    client.request(hub.name("campaign"), {"n": 1})

    none, reply_queue = seen.wait(2)
    assert none is None
    assert reply_queue is not None
    assert queues.wait(3) == [[("message", None)], [("request", reply_queue)], [("reply", None)]]


# --- arrived ---------------------------------------------------------------------------------------


def test_a_delivery_that_is_rejected_on_arrival_is_dead_lettered_with_the_reason_and_never_handled(
    hub: Hub, collected: Collector
) -> None:
    def check(received: Received) -> None:
        if received.headers.get("password") != "open sesame":
            raise MessageHubRejectError("no password")

    notes = Collector()
    client = hub.client("image", middleware=[Around(arrived=check), Noting("b", notes)])
    client.subscribe_messages(collected)
    sender = hub.client("character")
    sender.send_message(hub.name("image"), {"n": 1})
    sender.send_message(hub.name("image"), {"n": 2}, headers={"password": "open sesame"})

    assert [message.payload for message in collected.stays(1)] == [{"n": 2}]
    dead = hub.take(f"{hub.name('image')}.messages.dead")
    assert dead.properties.headers["x-reason"] == "no password"
    assert dead.properties.headers["x-attempts"] == 0
    assert notes.items == ["b sees message", "b handles", "b handled"]


def test_nobody_gets_a_reply_to_a_request_that_is_rejected_on_arrival(hub: Hub, collected: Collector) -> None:
    def check(received: Received) -> None:
        raise MessageHubRejectError("no")

    hub.client("image", middleware=[Around(arrived=check)]).subscribe_messages(collected)
    with pytest.raises(MessageHubTimeoutError):
        hub.client("character").request(hub.name("image"), {"n": 1}, timeout=2)
    assert hub.take(f"{hub.name('image')}.messages.dead").properties.headers["x-reason"] == "no"
    assert collected.items == []


@pytest.mark.parametrize("body", [b'{"n":1}', b"no json"], ids=["bug", "not decodable"])
def test_nobody_gets_a_reply_to_a_request_for_which_arrived_fails(hub: Hub, collected: Collector, body: bytes) -> None:
    def check(received: Received) -> None:
        raise LookupError(f"no tenant {received.envelope.payload['n']}")

    recording = RecordingMiddleware()
    service = hub.client("image", middleware=[recording, Around(arrived=check)], retry=ONCE)
    service.subscribe_messages(collected)
    inbox = f"{hub.name('image')}.messages"
    reply_to = f"{hub.name('character')}.messages"
    hub.put(
        inbox, body, Properties(str(uuid4()), type="service_message", app_id=hub.name("character"), reply_to=reply_to)
    )

    hub.take(f"{inbox}.dead")
    assert [one.kind for one in recording.arrivals] == ["request"]
    assert (recording.sent, recording.handled, collected.items) == ([], [], [])


def test_a_rejected_event_of_a_transient_queue_is_dropped(hub: Hub, collected: Collector) -> None:
    def check(received: Received) -> None:
        if received.envelope.payload["character_id"] == "1":
            raise MessageHubRejectError("no")

    def handle(event: Event) -> None:
        collected(event.payload)

    subscription = hub.client("image", middleware=[Around(arrived=check)]).subscribe(
        ["character.created"], handle, durable=False
    )
    (queue,) = subscription.queues
    sender = hub.client("character")
    sender.publish_events([("character.created", {"character_id": n}) for n in ("1", "2")])
    assert collected.stays(1) == [{"character_id": "2"}]
    assert hub.depth(f"{queue}.dead") is None


def test_a_reply_that_is_rejected_on_arrival_reaches_nobody(hub: Hub) -> None:
    def check(received: Received) -> None:
        assert received.kind == "reply"
        if received.body == b'{"n":2}':
            raise MessageHubRejectError("forged")

    answers = iter([{"n": 2}, {"n": 3}])
    hub.client("campaign").subscribe_messages(lambda message: next(answers))
    client = hub.client("character", middleware=[Around(arrived=check)])
    with pytest.raises(MessageHubTimeoutError):
        client.request(hub.name("campaign"), {"n": 1}, timeout=2)
    assert client.request(hub.name("campaign"), {"n": 1}).payload == {"n": 3}


@pytest.mark.parametrize("error", [LookupError("a bug"), SystemExit(3)], ids=["error", "exit"])
def test_any_other_error_on_arrival_is_an_error_of_the_handler(
    hub: Hub, collected: Collector, error: BaseException
) -> None:
    arrivals = Collector()

    def fail_once(received: Received) -> None:
        arrivals(received.attempt)
        if received.attempt == 1:
            raise error

    hub.client("image", middleware=[Around(arrived=fail_once)], retry=TWICE).subscribe_messages(collected)
    hub.client("character").send_message(hub.name("image"), {"n": 1})

    collected.stays(1)
    assert arrivals.items == [1, 2]


def test_an_envelope_that_cannot_be_decoded_on_arrival_goes_to_the_dead_letters(hub: Hub, collected: Collector) -> None:
    hub.client(
        "image", middleware=[Around(arrived=lambda received: collected(received.envelope.payload))]
    ).subscribe_messages(lambda message: None)
    hub.put(f"{hub.name('image')}.messages", b"no json")
    dead = hub.take(f"{hub.name('image')}.messages.dead")
    assert "x-reason" in dead.properties.headers
    assert collected.items == []


# --- handle ----------------------------------------------------------------------------------------


def test_each_attempt_passes_and_the_moves_between_them_do_not(hub: Hub) -> None:
    recording = RecordingMiddleware()

    def fail(message: Message) -> None:
        raise ValueError("no")

    hub.client("image", middleware=[recording], retry=TWICE).subscribe_messages(fail)
    hub.client("character").send_message(hub.name("image"), {"n": 1})
    hub.take(f"{hub.name('image')}.messages.dead")

    assert [one.attempt for one in recording.arrivals] == [1, 2]
    assert [one.attempt for one in recording.handled] == [1, 2]
    assert all(isinstance(one.error, ValueError) for one in recording.handled)
    assert recording.sent == []


def test_a_handle_that_never_calls_on_has_handled_the_delivery(hub: Hub, collected: Collector) -> None:
    def skip(received: Received, call_next: Callable[[], Any]) -> Any:
        return call_next() if received.headers.get("run") else {"skipped": True}

    client = hub.client("image", middleware=[Around(handle=skip)])
    client.subscribe_messages(collected)
    sender = hub.client("character")
    sender.send_message(hub.name("image"), {"n": 1})
    assert sender.request(hub.name("image"), {"n": 2}).payload == {"skipped": True}
    sender.send_message(hub.name("image"), {"n": 3}, headers={"run": True})

    assert [message.payload for message in collected.stays(1)] == [{"n": 3}]
    client.close()
    assert hub.depth(f"{hub.name('image')}.messages") == 0
    assert not hub.depth(f"{hub.name('image')}.messages.dead")


def test_a_handle_that_calls_on_twice_runs_the_handler_once_and_fails(hub: Hub, collected: Collector) -> None:
    def twice(received: Received, call_next: Callable[[], Any]) -> Any:
        call_next()
        return call_next()

    hub.client("image", middleware=[Around(handle=twice)], retry=ONCE).subscribe_messages(collected)
    hub.client("character").send_message(hub.name("image"), {"n": 1})

    dead = hub.take(f"{hub.name('image')}.messages.dead")
    assert dead.properties.headers["x-error-type"] == "MessageHubConfigurationError"
    assert "not twice" in dead.properties.headers["x-error-message"]
    collected.stays(1)


def test_what_a_handle_raises_is_the_error_of_the_handler(hub: Hub, collected: Collector) -> None:
    def after(received: Received, call_next: Callable[[], Any]) -> Any:
        call_next()
        raise MessageHubRejectError("the transaction failed")

    hub.client("image", middleware=[Around(handle=after)]).subscribe_messages(collected)
    hub.client("character").send_message(hub.name("image"), {"n": 1})
    assert hub.take(f"{hub.name('image')}.messages.dead").properties.headers["x-reason"] == "the transaction failed"

    with pytest.raises(MessageHubRemoteError) as caught:
        hub.client("character").request(hub.name("image"), {"n": 2})
    assert caught.value.error_type == "MessageHubRejectError"


def test_a_reply_is_what_the_outermost_handle_returns_and_is_sent_after_it(hub: Hub) -> None:
    notes = Collector()

    def wrap(received: Received, call_next: Callable[[], Any]) -> Any:
        result = call_next()
        notes("handled")
        return {"wrapped": result}

    def note(batch: Sequence[Sending], call_next: Callable[[], None]) -> None:
        notes("replied")
        call_next()

    hub.client("campaign", middleware=[Around(handle=wrap, send=note)]).subscribe_messages(lambda message: {"n": 2})
    assert hub.client("character").request(hub.name("campaign"), {}).payload == {"wrapped": {"n": 2}}
    assert notes.items == ["handled", "replied"]


def test_handle_stands_around_the_check_for_duplicates(hub: Hub, collected: Collector) -> None:
    recording = RecordingMiddleware()
    hub.client("image", middleware=[recording]).subscribe_messages(collected, deduplicate=MemoryDeduplication())
    sender = hub.client("character")
    message_id = sender.send_message(hub.name("image"), {"n": 1})
    collected.wait()
    sender.send_message(hub.name("image"), {"n": 1}, message_id=message_id)

    recording.wait_for_handled(2)
    collected.stays(1)


def test_each_delivery_has_a_context_of_its_own_in_which_the_correlation_is_known(hub: Hub) -> None:
    leaked: contextvars.ContextVar[str] = contextvars.ContextVar("leaked", default="nothing")
    notes = Collector()

    def look(received: Received, call_next: Callable[[], Any]) -> Any:
        before = leaked.get()
        result = call_next()
        notes((before, leaked.get(), current_correlation_id()))
        return result

    hub.client("image", middleware=[Around(handle=look)]).subscribe_messages(
        lambda message: leaked.set("mine") and None
    )
    sender = hub.client("character")
    sender.send_message(hub.name("image"), {}, correlation_id="one")
    sender.send_message(hub.name("image"), {}, correlation_id="two")
    assert notes.wait(2) == [("nothing", "mine", "one"), ("nothing", "mine", "two")]


def test_without_middleware_no_handler_sees_the_context_of_the_one_before(hub: Hub, collected: Collector) -> None:
    leaked: contextvars.ContextVar[str] = contextvars.ContextVar("leaked", default="nothing")

    def handle(message: Message) -> None:
        collected(leaked.get())
        leaked.set("mine")

    hub.client("image").subscribe_messages(handle)
    hub.client("character").send_messages([(hub.name("image"), {})] * 3)
    assert collected.wait(3) == ["nothing"] * 3


def test_many_threads_share_one_middleware(hub: Hub, collected: Collector) -> None:
    recording = RecordingMiddleware()
    client = hub.client("character", middleware=[recording, Noting("b", Collector())])
    hub.client("image", middleware=[recording]).subscribe_messages(collected, workers=4)

    def send() -> None:
        for number in range(50):
            client.send_message(hub.name("image"), {"n": number})

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    collected.wait(400, timeout=20)
    assert len(recording.sent) == 400
    assert len(recording.wait_for_handled(400)) == 400


# --- replies that a middleware breaks --------------------------------------------------------------


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("error", [LookupError("a bug"), SystemExit(3)], ids=["error", "exit"])
def test_a_send_that_fails_for_a_reply_leaves_its_request_acknowledged_and_the_next_message_handled(
    hub: Hub, caplog: pytest.LogCaptureFixture, error: BaseException, after: bool
) -> None:
    def fail_for_a_reply(batch: Sequence[Sending], call_next: Callable[[], None]) -> None:
        if after:
            call_next()
        raise error

    handled, recording = Collector(), RecordingMiddleware()

    def answer(message: Message) -> dict[str, Any]:
        handled(message.payload["n"])
        return {"n": 0}

    service = hub.client("campaign", middleware=[Around(send=fail_for_a_reply), recording])
    service.subscribe_messages(answer)
    client = hub.client("character")
    if after:
        assert client.request(hub.name("campaign"), {"n": 1}).payload == {"n": 0}
    else:
        with pytest.raises(MessageHubTimeoutError):
            client.request(hub.name("campaign"), {"n": 1}, timeout=2)
    client.send_message(hub.name("campaign"), {"n": 2})

    assert handled.stays(2) == [1, 2]
    # One reply and no error reply after it.
    assert len(recording.sent) == after
    service.close()
    assert hub.depth(f"{hub.name('campaign')}.messages") == 0
    assert not hub.depth(f"{hub.name('campaign')}.messages.dead")
    (record,) = [record for record in caplog.records if "the reply to message" in record.getMessage()]
    assert record.levelname == "ERROR"
    assert record.exc_info is not None
    assert record.exc_info[1] is error


@pytest.mark.parametrize("error", [LookupError("a bug"), SystemExit(3)], ids=["error", "exit"])
@pytest.mark.parametrize("own", [True, False], ids=["message.reply()", "error reply"])
def test_a_send_that_fails_for_every_reply_of_a_handler_ends_no_worker(
    hub: Hub, caplog: pytest.LogCaptureFixture, error: BaseException, own: bool
) -> None:
    attempts, handled = Collector(), Collector()

    def fail_for_a_reply(batch: Sequence[Sending], call_next: Callable[[], None]) -> None:
        attempts([sending.kind for sending in batch])
        raise error

    def answer(message: Message) -> None:
        handled(message.payload["n"])
        if message.payload["n"] == 1:
            if own:
                message.reply({"n": 0})
            raise ValueError("no")

    service = hub.client("campaign", middleware=[Around(send=fail_for_a_reply)])
    service.subscribe_messages(answer)
    client = hub.client("character")
    with pytest.raises(MessageHubTimeoutError):
        client.request(hub.name("campaign"), {"n": 1}, timeout=2)
    client.send_message(hub.name("campaign"), {"n": 2})

    assert handled.stays(2) == [1, 2]
    # The error of message.reply() is one of the handler, so its caller is told: that fails, too.
    assert attempts.items == [["reply"]] * (1 + own)
    service.close()
    assert hub.depth(f"{hub.name('campaign')}.messages") == 0
    assert not hub.depth(f"{hub.name('campaign')}.messages.dead")
    (record,) = [record for record in caplog.records if "the reply to message" in record.getMessage()]
    assert record.exc_info is not None
    assert record.exc_info[1] is error


@pytest.mark.parametrize("error", [LookupError("a bug"), SystemExit(3)], ids=["error", "exit"])
def test_an_arrived_that_fails_for_a_reply_lets_the_other_replies_come(hub: Hub, error: BaseException) -> None:
    seen = Collector()

    def fail_first(received: Received) -> None:
        seen((received.kind, current_correlation_id()))
        if received.body == b'{"n":1}':
            raise error

    hub.client("campaign").subscribe_messages(lambda message: {"n": message.payload["n"]})
    client = hub.client("character", middleware=[Around(arrived=fail_first)])
    with pytest.raises(MessageHubTimeoutError):
        client.request(hub.name("campaign"), {"n": 1}, timeout=2)
    assert client.request(hub.name("campaign"), {"n": 2}, correlation_id="two").payload == {"n": 2}
    assert client.request(hub.name("campaign"), {"n": 3}, correlation_id="three").payload == {"n": 3}
    assert seen.items[1:] == [("reply", "two"), ("reply", "three")]


# --- retries ---------------------------------------------------------------------------------------


def test_a_handler_whose_middleware_failed_afterwards_runs_again_in_spite_of_deduplication(
    hub: Hub, collected: Collector
) -> None:
    def fail_first(received: Received, call_next: Callable[[], Any]) -> Any:
        result = call_next()
        if received.attempt == 1:
            raise LookupError("the transaction failed")
        return result

    service = hub.client("image", middleware=[Around(handle=fail_first)], retry=TWICE)
    service.subscribe_messages(collected, deduplicate=MemoryDeduplication())
    sender = hub.client("character")
    message_id = sender.send_message(hub.name("image"), {"n": 1})
    collected.wait(2)

    # It is handled now, so the next copy is a duplicate.
    sender.send_message(hub.name("image"), {"n": 1}, message_id=message_id)
    assert [message.id for message in collected.stays(2)] == [message_id] * 2
    assert not hub.depth(f"{hub.name('image')}.messages.dead")


def test_call_next_in_a_thread_that_handle_does_not_wait_for_has_the_message_handled_again(hub: Hub) -> None:
    attempts, go_on, handled = Collector(), threading.Event(), Collector()

    def do_not_wait(received: Received, call_next: Callable[[], Any]) -> Any:
        attempts(received.attempt)
        if received.attempt > 1:
            return call_next()
        inside = threading.Event()

        def run() -> None:
            inside.set()
            call_next()

        threading.Thread(target=run).start()
        assert inside.wait(30)
        return None

    def handle(message: Message) -> None:
        assert go_on.wait(30)
        handled(message.payload)

    service = hub.client("image", middleware=[Around(handle=do_not_wait)], retry=TWICE)
    service.subscribe_messages(handle)
    hub.client("character").send_message(hub.name("image"), {"n": 1})

    assert attempts.wait(2) == [1, 2]
    go_on.set()
    handled.wait(2)
    assert not hub.depth(f"{hub.name('image')}.messages.dead")


async def coroutine() -> None: ...


def generator() -> Iterator[None]:
    yield


async def async_generator() -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize("made", [coroutine, generator, async_generator])
@pytest.mark.parametrize("method", ["arrived", "handle"])
def test_a_method_whose_result_has_not_run_loses_no_message(
    hub: Hub, collected: Collector, made: Callable[[], Any], method: str
) -> None:
    middleware = Around(**{method: lambda *arguments: made()})
    hub.client("image", middleware=[middleware], retry=ONCE).subscribe_messages(collected)
    hub.client("character").send_message(hub.name("image"), {"n": 1})

    dead = hub.take(f"{hub.name('image')}.messages.dead")
    assert dead.properties.headers["x-error-type"] == "MessageHubConfigurationError"
    assert f"Around.{method} must do its work before it returns" in dead.properties.headers["x-error-message"]
    assert (dead.body, collected.items) == (b'{"n":1}', [])


# --- kinds -----------------------------------------------------------------------------------------


def test_a_request_that_claims_to_be_a_reply_is_handled_and_not_answered(hub: Hub) -> None:
    recording = RecordingMiddleware()
    hub.client("image", middleware=[recording]).subscribe_messages(lambda message: {"n": 2})
    asking = hub.client("character", middleware=[RecordingMiddleware()])
    inbox = f"{hub.name('image')}.messages"
    fields: dict[str, Any] = {"message_id": str(uuid4()), "type": "service_message", "app_id": hub.name("character")}
    claim = {"x-in-reply-to": str(uuid4())}
    hub.put(inbox, b'{"n":1}', Properties(**fields, headers=claim))
    hub.put(inbox, b'{"n":1}', Properties(**fields, headers=claim, reply_to=f"{hub.name('character')}.messages"))
    asking.subscribe_messages(lambda message: None)

    assert [one.kind for one in recording.wait_for_handled(2)] == ["reply", "reply"]
    assert [one.kind for one in recording.arrivals] == ["reply", "reply"]
    assert recording.sent == []
