"""What a client takes for middleware, what it costs to have none, and what a middleware sees of each message."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import pytest
from collector import Collector

from message_hub_sync import (
    Event,
    Message,
    MessageHubClient,
    MessageHubConfigurationError,
    MessageValidationError,
    Middleware,
    Received,
    Sending,
)
from message_hub_sync.config import ClientConfig, MemoryAddress
from message_hub_sync.consuming.decoded_delivery import DecodedDelivery, Kind
from message_hub_sync.envelope import header_names
from message_hub_sync.envelope.header_names import HUB_HEADERS, WIRE_HEADERS
from message_hub_sync.envelope.values import Properties
from message_hub_sync.middleware.call_next import CallNext, refuse_not_run
from message_hub_sync.middleware.checking import overriding
from message_hub_sync.publishing.outgoing import outgoing_event, outgoing_message
from message_hub_sync.publishing.publisher import Publisher
from message_hub_sync.transport.base import Delivery, Outgoing

CONFIG = ClientConfig("character-service", MemoryAddress("unused"))


class Asynchronous(Middleware):
    async def handle(self, received: Received, call_next: Callable[[], Any]) -> Any:
        return call_next()


class Generating(Middleware):
    def arrived(self, received: Received) -> Iterator[int]:  # type: ignore[override]
        yield 1


class GeneratingAsynchronously(Middleware):
    async def send(  # type: ignore[override]
        self, batch: Sequence[Sending], call_next: Callable[[], None]
    ) -> AsyncIterator[int]:
        yield 1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (Middleware(), "middleware must be a list of Middleware objects, not Middleware"),
        ("text", "middleware must be a list of Middleware objects, not 'text'"),
        (7, "middleware must be a list of Middleware objects, not 7"),
        ([Middleware], r"middleware must hold Middleware objects, not the class Middleware: write Middleware\(\)"),
        ([object()], "middleware must hold Middleware objects, not object"),
        ([Asynchronous()], r"Asynchronous\.handle must be a plain function, not one with 'async' or 'yield'"),
        ([Generating()], r"Generating\.arrived must be a plain function"),
        ([GeneratingAsynchronously()], r"GeneratingAsynchronously\.send must be a plain function"),
        # Each of the list is checked, not the first one only.
        ([Middleware(), Generating()], r"Generating\.arrived must be a plain function"),
    ],
    ids=["object", "text", "number", "class", "other", "async", "generator", "async generator", "second"],
)
def test_what_is_no_list_of_middleware_is_refused(given: Any, says: str) -> None:
    with pytest.raises(MessageHubConfigurationError, match=says):
        MessageHubClient("image-service", "memory://middleware", middleware=given)


def test_any_iterable_of_middleware_is_taken() -> None:
    for given in ([], (), [Middleware()], iter([Middleware(), Middleware()])):
        MessageHubClient("image-service", "memory://middleware", middleware=given).close()


def test_a_method_that_is_not_overridden_is_never_called() -> None:
    class OnlyArrived(Middleware):
        def arrived(self, received: Received) -> None: ...

    assert overriding([OnlyArrived(), Middleware()], "send") == ()
    assert len(overriding([OnlyArrived(), Middleware()], "arrived")) == 1
    with MessageHubClient("image-service", "memory://middleware", middleware=[OnlyArrived()]) as client:
        # The plain publisher: this middleware costs what is sent nothing.
        assert type(client._lifecycle.session().publisher) is Publisher


def test_call_next_can_be_called_once() -> None:
    def method() -> None: ...

    call_next = CallNext(method, 0, lambda: 42)
    assert call_next() == 42
    assert call_next.returned
    with pytest.raises(MessageHubConfigurationError, match="once, before method returns, not twice"):
        call_next()
    assert call_next.end()
    late = CallNext(method, 0, lambda: 42)
    assert not late.end()
    with pytest.raises(MessageHubConfigurationError, match="not after it"):
        late()
    assert not late.returned


# --- headers of what is sent -----------------------------------------------------------------------


def message_to(destination: str = "image-service", **headers: str) -> Outgoing:
    return outgoing_message(CONFIG, destination, {"n": 1}, headers=headers)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1.5, r"1\.5"), (2**63, "9223372036854775808"), (b"x", "bytes"), ([1], "list"), ("\ud800", "UTF-8 cannot encode")],
    ids=["float", "too large", "bytes", "list", "surrogate"],
)
def test_a_header_that_no_broker_carries_is_refused_where_it_is_added(value: Any, shown: str) -> None:
    outgoing = message_to()
    before = dict(outgoing.properties.headers)
    with pytest.raises(MessageValidationError, match=f"header 'mine' must be .* not .*{shown}"):
        Sending(outgoing).headers["mine"] = value
    assert outgoing.properties.headers == before


@pytest.mark.parametrize("name", sorted(HUB_HEADERS))
def test_a_header_of_the_hub_cannot_be_set_or_removed_also_if_it_is_absent(name: str) -> None:
    for outgoing in (message_to(), outgoing_event(CONFIG, "quest.started", {"n": 1})):
        headers = Sending(outgoing).headers
        before = dict(headers)
        with pytest.raises(MessageValidationError, match=f"header '{name}' must not be set by a middleware"):
            headers[name] = "other"
        with pytest.raises(MessageValidationError, match=f"header '{name}' must not be set"):
            del headers[name]
        with pytest.raises(MessageValidationError, match=f"header '{name}' must not be set"):
            headers.update({name: "other"})
        assert dict(headers) == outgoing.properties.headers == before


def test_every_name_that_the_library_or_the_broker_writes_is_one_of_the_hub() -> None:
    named = {name: value for name, value in vars(header_names).items() if name.isupper() and isinstance(value, str)}
    del named["RESERVED_PREFIX"]
    assert len(named) == 26
    assert {*named.values(), *WIRE_HEADERS, "x-delivery-count", "CC", "BCC"} == HUB_HEADERS


def test_a_header_of_the_caller_stays_and_one_that_is_added_can_be_changed_and_removed() -> None:
    outgoing = message_to(mine="own")
    headers = Sending(outgoing).headers
    with pytest.raises(MessageValidationError, match="header 'mine' must not be set by a middleware"):
        headers["mine"] = "other"
    with pytest.raises(MessageValidationError, match="header 'mine' must not be set by a middleware"):
        del headers["mine"]
    assert headers["mine"] == "own"

    headers["trace"] = "1"
    headers["trace"] = "2"
    assert outgoing.properties.headers["trace"] == "2"
    assert len(headers) == len(outgoing.properties.headers)
    del headers["trace"]
    assert "trace" not in outgoing.properties.headers
    with pytest.raises(KeyError):
        del headers["trace"]


def test_the_other_calls_of_a_mapping_add_headers_and_are_checked_as_well() -> None:
    outgoing = message_to(mine="own")
    headers = Sending(outgoing).headers
    headers.update({"a": "1"}, b=2)
    assert headers.setdefault("c", True) is True
    assert headers.setdefault("a", "other") == "1"
    # It is there, so nothing is set: no error.
    assert headers.setdefault("mine", "other") == "own"
    assert headers.pop("b") == 2
    assert (outgoing.properties.headers["a"], outgoing.properties.headers["c"]) == ("1", True)
    assert "b" not in outgoing.properties.headers
    with pytest.raises(MessageValidationError, match="not 1"):
        headers.update(a=1.5)
    with pytest.raises(MessageValidationError, match="header 'x-reason' must not be set"):
        headers.setdefault("x-reason", "none")
    with pytest.raises(MessageValidationError, match="header 'mine' must not be set by a middleware"):
        headers.pop("mine")
    with pytest.raises(MessageValidationError):
        headers.clear()


@pytest.mark.parametrize("name", [7, b"x", None, [], {}, "", "n" * 129, "\ud800"])
def test_a_name_that_is_no_short_text_is_refused(name: Any) -> None:
    headers = Sending(message_to()).headers
    with pytest.raises(MessageValidationError, match="a header's name must be a text of 1 to 128 bytes"):
        headers[name] = "x"


def test_the_headers_together_have_at_most_64_kib() -> None:
    headers = Sending(message_to()).headers
    headers["first"] = "x" * 40_000
    with pytest.raises(MessageValidationError, match="64 KiB"):
        headers["second"] = "x" * 40_000
    # Instead of the first one it fits.
    headers["first"] = "y" * 60_000
    assert "second" not in headers


def test_once_it_is_being_written_no_header_is_added_or_removed() -> None:
    sending = Sending(message_to())
    sending.headers["trace"] = "1"
    sending._freeze()
    with pytest.raises(MessageValidationError, match="must be added before call_next, not after it"):
        sending.headers["late"] = "1"
    with pytest.raises(MessageValidationError, match="before call_next"):
        del sending.headers["trace"]
    assert sending.headers["trace"] == "1"


# --- what is sent, and what is received ------------------------------------------------------------


def test_a_sending_is_of_the_kind_that_its_receiver_sees() -> None:
    event, message, request = outgoing_event(CONFIG, "quest.started", {"n": 1}), message_to(), message_to()
    request.properties.reply_to = "character-service.replies.1"
    reply = message_to("campaign-service")
    reply.properties.headers["x-in-reply-to"] = str(request.properties.message_id)

    found = [Sending(outgoing) for outgoing in (event, message, request, reply)]

    assert [(one.kind, one.destination, one.event_type, one.reply_to) for one in found] == [
        ("event", None, "quest.started", None),
        ("message", "image-service", None, None),
        ("request", "image-service", None, "character-service.replies.1"),
        ("reply", "campaign-service", None, None),
    ]
    for one, outgoing in zip(found, (event, message, request, reply), strict=True):
        assert str(one.message_id) == outgoing.properties.message_id
        assert one.correlation_id == outgoing.properties.correlation_id
        assert (one.body, one.outcome) == (b'{"n":1}', None)


def received(
    kind: Kind = "message",
    *,
    reply: bool = False,
    body: bytes = b"{}",
    redelivered: bool = False,
    headers: dict[str, Any] | None = None,
    **properties: Any,
) -> Received:
    fields = {
        "message_id": "4fa0c3ad-5f9c-4e2e-a0fc-6b6bd8e20001",
        "type": "event" if kind == "event" else "service_message",
        "headers": {"source": "character-service", **(headers or {})},
        **properties,
    }
    delivery = Delivery(
        body=body,
        properties=Properties(**fields),
        exchange="",
        routing_key="quest.started",
        queue="image-service.messages",
        redelivered=redelivered,
        delivery_tag=1,
        channel_generation=1,
        origin=None,
    )
    return Received(DecodedDelivery(delivery, kind, "image-service", 1_000), is_reply=reply)


ANSWER = {"x-in-reply-to": "4fa0c3ad-5f9c-4e2e-a0fc-6b6bd8e20002"}


@pytest.mark.parametrize(
    ("one", "kind", "event_type"),
    [
        (received("event"), "event", "quest.started"),
        # An event that looks like a request or a reply is none.
        (received("event", headers=ANSWER), "event", "quest.started"),
        (received("event", reply_to="q"), "event", "quest.started"),
        (received(), "message", None),
        (received(headers={"event_type": "quest.started"}), "message", None),
        (received(reply_to="q"), "request", None),
        (received(headers=ANSWER), "reply", None),
        (received(reply=True), "reply", None),
        (received(reply=True, reply_to="q"), "reply", None),
        # It is handled and answered as a request, whatever else its sender has written.
        (received(headers=ANSWER, reply_to="q"), "reply", None),
    ],
)
def test_a_delivery_is_of_the_kind_as_which_it_is_handled(one: Received, kind: str, event_type: str | None) -> None:
    assert (one.kind, one.event_type) == (kind, event_type)


def test_a_delivery_shows_what_came() -> None:
    one = received(body=b"no json", redelivered=True, headers={"x-attempts": 2, "mine": "own"}, correlation_id="c")
    assert (one.attempt, one.redelivered, one.queue) == (3, True, "image-service.messages")
    assert (one.body, one.headers["mine"], one.properties.correlation_id) == (b"no json", "own", "c")
    assert (received().attempt, received().redelivered) == (1, False)


def test_the_headers_of_a_delivery_are_read_only() -> None:
    one = received(headers={"mine": "own"})
    with pytest.raises(TypeError):
        one.headers["mine"] = "other"  # type: ignore[index]
    with pytest.raises(TypeError):
        del one.headers["mine"]  # type: ignore[attr-defined]
    assert one.properties.headers["mine"] == "own"


@pytest.mark.parametrize(
    ("one", "says"),
    [
        (received(type="event"), "type"),
        (received("event", type="service_message"), "type"),
        (received(message_id="no UUID"), "id"),
        (received(body=b"[]"), "object"),
        (received(headers={"x-undecodable": "a table in a table"}), "a table in a table"),
    ],
    ids=["type", "type of an event", "id", "body", "headers"],
)
def test_an_envelope_is_checked_like_that_of_a_handler(one: Received, says: str) -> None:
    with pytest.raises(MessageValidationError, match=says):
        _ = one.envelope


def test_an_envelope_is_that_of_its_kind_and_always_the_same() -> None:
    event, message = received("event", body=b'{"n":1}'), received(body=b'{"n":2}')
    assert isinstance(event.envelope, Event)
    assert isinstance(message.envelope, Message)
    assert (event.envelope.payload, message.envelope.payload) == ({"n": 1}, {"n": 2})
    assert message.envelope is message.envelope


# --- results that have not run ---------------------------------------------------------------------


async def coroutine() -> None: ...


def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize("made", [coroutine, generator, async_generator])
def test_a_result_that_has_not_run_is_refused(made: Callable[[], Any]) -> None:
    result = made()
    with pytest.raises(
        MessageHubConfigurationError, match=rf"Middleware\.send must do its work before it returns, .* {made.__name__}"
    ):
        refuse_not_run(result, Middleware().send)
    # Closed, so that Python does not warn that it was never awaited.
    assert getattr(result, "cr_frame", None) is None
    assert getattr(result, "gi_frame", None) is None


def test_any_other_result_is_taken() -> None:
    for result in (None, 0, {"n": 1}, iter([1]), "text"):
        refuse_not_run(result, Middleware().handle)


def test_a_method_that_an_object_got_for_itself_is_called() -> None:
    middleware = Middleware()
    middleware.arrived = print  # type: ignore[method-assign,assignment]
    assert overriding([middleware], "arrived") == (print,)
    assert overriding([middleware], "handle") == ()


def test_of_many_threads_one_calls_on() -> None:
    calls, outcomes, together = Collector(), Collector(), threading.Barrier(8)
    call_next = CallNext(Middleware().send, 0, lambda: calls("called"))

    def call() -> None:
        together.wait(30)
        try:
            call_next()
            outcomes("done")
        except MessageHubConfigurationError as error:
            outcomes("twice" if "not twice" in str(error) else str(error))

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(outcomes.items) == ["done"] + ["twice"] * 7
    assert calls.items == ["called"]


def test_what_call_next_raised_is_kept_until_it_is_taken_once() -> None:
    error = LookupError("no")

    def fail() -> None:
        raise error

    call_next = CallNext(Middleware().send, 0, fail)
    with pytest.raises(LookupError):
        call_next()
    assert call_next.returned
    assert call_next.take_error() is error
    assert call_next.take_error() is None


class TooMany(Middleware):
    def arrived(self, received: Received, more: int) -> None: ...  # type: ignore[override]


class TooFew(Middleware):
    def handle(self, received: Received) -> Any: ...  # type: ignore[override]


class NoMethod(Middleware):
    send = 3  # type: ignore[assignment]


class Optional(Middleware):
    def handle(self, received: Received, call_next: Callable[[], Any], more: int = 1, *rest: Any) -> Any:
        return call_next()


@pytest.mark.parametrize(
    ("middleware", "says"),
    [
        (TooMany(), r"TooMany\.arrived must take \(self, received\), not \(self, received, more\)"),
        (TooFew(), r"TooFew\.handle must take \(self, received, call_next\), not \(self, received\)"),
        (NoMethod(), r"NoMethod\.send must be a method, not 3"),
    ],
    ids=["too many", "too few", "no method"],
)
def test_a_method_that_cannot_be_called_as_it_will_be_is_refused_when_the_client_is_made(
    middleware: Middleware, says: str
) -> None:
    with pytest.raises(MessageHubConfigurationError, match=says):
        MessageHubClient("image-service", "memory://middleware", middleware=[middleware])


def test_a_method_may_have_more_parameters_with_defaults() -> None:
    MessageHubClient("image-service", "memory://middleware", middleware=[Optional()]).close()


def test_a_middleware_that_overrides_nothing_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    class Misspelt(Middleware):
        def sent(self) -> None: ...

    MessageHubClient("image-service", "memory://middleware", middleware=[Misspelt()]).close()
    assert "the middleware Misspelt does nothing: override send, arrived, handle" in caplog.text
    caplog.clear()
    MessageHubClient("image-service", "memory://middleware", middleware=[Optional()]).close()
    assert "does nothing" not in caplog.text
