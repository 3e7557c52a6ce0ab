"""What a call that sends makes of its middleware, played over a scripted transport."""

from __future__ import annotations

import contextlib
import contextvars
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import pytest
from collector import Collector
from scripted_transport import ScriptedTransport, Step

from message_hub_sync.config import CircuitBreakerConfig, ClientConfig, MemoryAddress
from message_hub_sync.errors import (
    MessageHubAuthorizationError,
    MessageHubCircuitBreakerError,
    MessageHubConfigurationError,
    MessageHubConnectionError,
    MessageHubDeliveryError,
    MessageHubError,
    MessageValidationError,
)
from message_hub_sync.metrics import ServiceMetrics
from message_hub_sync.middleware import Middleware, Sending
from message_hub_sync.publishing import middleware_publisher
from message_hub_sync.publishing.circuit_breaker import CircuitBreakers
from message_hub_sync.publishing.middleware_publisher import MiddlewarePublisher
from message_hub_sync.publishing.outgoing import outgoing_message
from message_hub_sync.transport.base import Outgoing, PublishResult, Receipt

NO_CONNECTION = MessageHubConnectionError("no connection to the hub in time")
REFUSED_403 = (PublishResult.CHANNEL_ERROR, "403 ACCESS_REFUSED", 403)
REFUSED_406 = (PublishResult.CHANNEL_ERROR, "406 PRECONDITION_FAILED", 406)
LATE = 0.3

CallNext = Callable[[], None]
Send = Callable[[Sequence[Sending], CallNext], Any]


class Around(Middleware):
    """Does what a test gives it."""

    def __init__(self, send: Send) -> None:
        self._send = send

    def send(self, batch: Sequence[Sending], call_next: CallNext) -> None:
        return self._send(batch, call_next)  # type: ignore[no-any-return]


class Noting(Middleware):
    """Notes what it is called for, and then calls ``after`` with its depth."""

    def __init__(self, name: str, notes: list[str], after: Callable[[], None] | None = None) -> None:
        self._name, self._notes, self.after = name, notes, after

    def send(self, batch: Sequence[Sending], call_next: CallNext) -> None:
        self._notes.append(self._name)
        call_next()
        if self.after is not None:
            self.after()


class Outcomes(Middleware):
    """Keeps the outcomes of each call, also of one that raises."""

    def __init__(self) -> None:
        self.of: list[list[str | None]] = []

    def send(self, batch: Sequence[Sending], call_next: CallNext) -> None:
        assert [sending.outcome for sending in batch] == [None] * len(batch)
        try:
            call_next()
        finally:
            self.of.append([sending.outcome for sending in batch])


class Timed(ScriptedTransport):
    """Notes the seconds that a bulk call has, too."""

    def publish_many(self, batch: Sequence[Outgoing], deadline: float) -> list[Receipt]:
        receipts = super().publish_many(batch, deadline)
        self.log[-1] = ("many", deadline - time.monotonic())
        return receipts


class Bench:
    """A publisher with middleware over a script."""

    def __init__(self, *steps: Step, middleware: Sequence[Middleware | Send] = (), threshold: int = 50) -> None:
        self.transport = Timed(*steps)
        self.config = ClientConfig(
            "character-service", MemoryAddress("unused"), circuit_breaker=CircuitBreakerConfig(threshold, 60, 0.2)
        )
        self.breakers = CircuitBreakers(self.config.circuit_breaker, self.config.service_name)
        self.publisher = MiddlewarePublisher(
            self.transport,
            self.config,
            self.breakers,
            ServiceMetrics(self.config.service_name),
            [one if isinstance(one, Middleware) else Around(one) for one in middleware],
        )

    def message(self, destination: str = "image-service") -> Outgoing:
        return outgoing_message(self.config, destination, {"n": 1})

    def reply(self) -> Outgoing:
        outgoing = self.message()
        outgoing.properties.headers["x-in-reply-to"] = "4fa0c3ad-5f9c-4e2e-a0fc-6b6bd8e20001"
        return outgoing

    def send(self, timeout: float = 5) -> None:
        self.publisher.publish(self.message(), timeout)

    def send_many(self, *destinations: str, timeout: float = 5) -> None:
        self.publisher.publish_many([self.message(destination) for destination in destinations], timeout)

    def open_circuit(self) -> None:
        """Have the circuit of image-service open; its threshold must be 1."""
        self.transport.steps.insert(0, PublishResult.NACKED)
        with pytest.raises(MessageHubDeliveryError):
            self.send()
        self.transport.log.clear()


CALLS: dict[str, Callable[[Bench], Any]] = {
    "message": lambda bench: bench.publisher.publish(bench.message(), 5),
    "reply": lambda bench: bench.publisher.hand_over(bench.reply(), 5),
    "bulk": lambda bench: bench.publisher.publish_many([bench.message()] * 2, 5),
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


# --- time ------------------------------------------------------------------------------------------


class Clock:
    """The clock of a call that passes middleware; a test moves it forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(middleware_publisher, "time", clock)
    return clock


@each_call
def test_only_the_seconds_that_the_middleware_leaves_are_passed_on(clock: Clock, call: Callable[[Bench], Any]) -> None:
    def take_two(batch: Sequence[Sending], call_next: CallNext) -> None:
        clock.ahead += 2
        call_next()

    bench = Bench(middleware=[take_two, take_two])
    call(bench)

    ((_, seconds),) = bench.transport.log
    assert seconds == pytest.approx(1, abs=0.5)


@each_call
def test_a_call_whose_time_the_middleware_took_sends_nothing(clock: Clock, call: Callable[[Bench], Any]) -> None:
    def take_all(batch: Sequence[Sending], call_next: CallNext) -> None:
        clock.ahead += 5
        call_next()

    outcomes = Outcomes()
    bench = Bench(middleware=[outcomes, take_all])
    with pytest.raises(MessageHubConnectionError, match="nothing was sent: the middleware took all of the 5 s"):
        call(bench)

    assert bench.transport.log == []
    assert set(outcomes.of[0]) == {"not_sent"}


# --- which middleware a call passes ----------------------------------------------------------------


@each_call
def test_a_call_passes_each_middleware_once_in_order(call: Callable[[Bench], Any]) -> None:
    notes: list[str] = []
    bench = Bench(middleware=[Noting("a", notes), Noting("b", notes)])
    for _ in range(2):
        call(bench)
    assert notes == ["a", "b"] * 2


@pytest.mark.parametrize("step", [PublishResult.CONFIRMED, PublishResult.RETURNED], ids=["sent", "failed"])
@pytest.mark.parametrize("names", ["a", "ab", "abc"])
def test_a_call_that_a_middleware_makes_passes_those_after_it_before_and_after_call_next(
    names: str, step: PublishResult
) -> None:
    notes: list[str] = []
    nested: list[int] = []

    def nest(batch: Sequence[Sending], call_next: CallNext) -> None:
        notes.append("a")
        nested.append(1)
        assert len(nested) == 1, "it called itself"
        bench.send()
        with contextlib.suppress(MessageHubDeliveryError):
            call_next()
        bench.send()

    bench = Bench(PublishResult.CONFIRMED, step, middleware=[nest, *(Noting(name, notes) for name in names[1:])])
    for _ in range(2):
        with contextlib.suppress(MessageHubDeliveryError):
            bench.send()
        assert notes == ["a", *names[1:] * 3]
        assert len(bench.transport.published) == 3
        # The next call passes all of them again.
        notes.clear()
        nested.clear()
        bench.transport.published.clear()


def test_a_message_that_the_transport_logs_into_the_hub_passes_all_middleware() -> None:
    notes: list[str] = []
    bench = Bench(middleware=[Noting("a", notes), Noting("b", notes)])
    publish = bench.transport.publish

    def logging(outgoing: Outgoing, deadline: float, *, own_channel: bool = False, together: bool = False) -> Receipt:
        if not bench.transport.published:
            receipt = publish(outgoing, deadline)
            bench.send()  # what a logging handler does that publishes each record
            return receipt
        return publish(outgoing, deadline)

    bench.transport.publish = logging  # type: ignore[method-assign]
    bench.send()

    assert notes == ["a", "b"] * 2


def test_the_middleware_of_two_clients_do_not_disturb_each_other() -> None:
    notes: list[str] = []
    outer = Noting("one a", notes)
    inner = Noting("two a", notes)
    one = Bench(middleware=[outer, Noting("one b", notes)])
    two = Bench(middleware=[inner, Noting("two b", notes)])
    outer.after = two.send
    inner.after = one.send

    one.send()

    # The call of the other client passes all of its middleware. The last one is made inside "one a", so it passes only
    # what comes after it.
    assert notes == ["one a", "one b", "two a", "two b", "one b"]
    notes.clear()
    one.send()
    assert notes == ["one a", "one b", "two a", "two b", "one b"]


def test_a_context_that_was_copied_inside_send_passes_all_middleware_once_send_has_ended() -> None:
    notes: list[str] = []
    copied: list[contextvars.Context] = []

    def copy(batch: Sequence[Sending], call_next: CallNext) -> None:
        notes.append("a")
        copied.append(contextvars.copy_context())
        call_next()
        if len(copied) == 1:
            copied[0].run(bench.send)

    bench = Bench(middleware=[copy, Noting("b", notes)])
    bench.send()
    assert notes == ["a", "b", "b"], "inside send, the copy passes those after it"

    notes.clear()
    thread = threading.Thread(target=copied[0].run, args=(bench.send,))
    thread.start()
    thread.join(30)
    assert notes == ["a", "b"]


def test_an_empty_bulk_call_passes_no_middleware() -> None:
    notes: list[str] = []
    bench = Bench(middleware=[Noting("a", notes)])
    assert bench.publisher.publish_many([], 5) == []
    assert (notes, bench.transport.log) == ([], [])


def test_a_bulk_call_is_one_batch_and_returns_the_ids_in_order() -> None:
    batches: list[list[str | None]] = []

    def note(batch: Sequence[Sending], call_next: CallNext) -> None:
        batches.append([sending.destination for sending in batch])
        call_next()

    bench = Bench(middleware=[note])
    messages = [bench.message(destination) for destination in ("image-service", "llm-service")]
    ids = bench.publisher.publish_many(messages, 5)

    assert batches == [["image-service", "llm-service"]]
    assert [str(one) for one in ids] == [message.properties.message_id for message in messages]


def test_a_reply_passes_no_circuit_breaker() -> None:
    kinds: list[str] = []

    def note(batch: Sequence[Sending], call_next: CallNext) -> None:
        kinds.extend(sending.kind for sending in batch)
        call_next()

    bench = Bench(middleware=[note], threshold=1)
    bench.open_circuit()
    with pytest.raises(MessageHubCircuitBreakerError):
        bench.send()

    bench.publisher.hand_over(bench.reply(), 5)

    assert bench.transport.asked() == ["publish"]
    assert kinds == ["message", "message", "reply"]


# --- outcomes --------------------------------------------------------------------------------------

OUTCOMES: list[tuple[Step, type[BaseException], str]] = [
    (NO_CONNECTION, MessageHubConnectionError, "not_sent"),
    (PublishResult.INVALID, MessageValidationError, "invalid"),
    (MessageValidationError("no such property"), MessageValidationError, "invalid"),
    (PublishResult.RETURNED, MessageHubDeliveryError, "rejected"),
    (PublishResult.NACKED, MessageHubDeliveryError, "rejected"),
    (REFUSED_406, MessageHubDeliveryError, "rejected"),
    (REFUSED_403, MessageHubAuthorizationError, "rejected"),
    (MessageHubConfigurationError("no such thing"), MessageHubConfigurationError, "rejected"),
    (None, MessageHubDeliveryError, "unknown"),
    (ValueError("a bug"), MessageHubDeliveryError, "unknown"),
    (KeyboardInterrupt(), KeyboardInterrupt, "unknown"),
    (GeneratorExit(), GeneratorExit, "unknown"),
]


@pytest.mark.parametrize(("step", "error", "outcome"), OUTCOMES)
@pytest.mark.parametrize("reply", [False, True], ids=["message", "reply"])
def test_the_outcome_of_one_message(step: Step, error: type[BaseException], outcome: str, reply: bool) -> None:
    outcomes = Outcomes()
    bench = Bench(step, middleware=[outcomes])
    with pytest.raises(error):
        bench.publisher.hand_over(bench.reply(), LATE) if reply else bench.send(LATE)
    assert outcomes.of == [[outcome]]
    bench.send()
    assert outcomes.of[1] == ["confirmed"]


def test_the_outcome_of_a_message_whose_circuit_is_open() -> None:
    outcomes = Outcomes()
    bench = Bench(middleware=[outcomes], threshold=1)
    bench.open_circuit()
    with pytest.raises(MessageHubCircuitBreakerError):
        bench.send()
    assert outcomes.of == [["rejected"], ["circuit_open"]]


@pytest.mark.parametrize(
    ("step", "outcome"),
    [
        (PublishResult.INVALID, "invalid"),
        (PublishResult.RETURNED, "rejected"),
        (PublishResult.NACKED, "rejected"),
        (REFUSED_403, "rejected"),
        (REFUSED_406, "rejected"),
        (None, "unknown"),
    ],
)
def test_of_a_bulk_call_each_message_has_its_own_outcome(step: Step, outcome: str) -> None:
    outcomes = Outcomes()
    confirmed = PublishResult.CONFIRMED
    bench = Bench(confirmed, step, confirmed, step, middleware=[outcomes])
    with pytest.raises(MessageHubDeliveryError) as caught:
        bench.send_many(*["image-service"] * 4, timeout=0.5)
    assert outcomes.of == [["confirmed", outcome, "confirmed", outcome]]
    assert [failure.index for failure in caught.value.failures] == [1, 3]


def test_of_a_bulk_call_the_messages_that_were_not_written_are_not_sent() -> None:
    outcomes = Outcomes()
    confirmed, not_written = PublishResult.CONFIRMED, PublishResult.NOT_WRITTEN
    bench = Bench(confirmed, not_written, not_written, confirmed, NO_CONNECTION, middleware=[outcomes])
    with pytest.raises(MessageHubDeliveryError):
        bench.send_many(*["image-service"] * 4)
    assert outcomes.of == [["confirmed", "not_sent", "not_sent", "confirmed"]]


def test_of_a_bulk_call_the_messages_of_an_open_circuit_are_told_apart_from_the_others() -> None:
    outcomes = Outcomes()
    bench = Bench(middleware=[outcomes], threshold=1)
    bench.open_circuit()
    bench.transport.steps = [PublishResult.CONFIRMED, PublishResult.RETURNED]
    with pytest.raises(MessageHubDeliveryError) as caught:
        bench.send_many("image-service", "llm-service", "image-service", "nobody")
    assert outcomes.of[1] == ["circuit_open", "confirmed", "circuit_open", "rejected"]
    assert [failure.outcome for failure in caught.value.failures] == ["rejected"] * 3


@pytest.mark.parametrize(
    ("steps", "error", "outcome"),
    [
        ([NO_CONNECTION], MessageHubConnectionError, "not_sent"),
        ([PublishResult.INVALID] * 2, MessageValidationError, "invalid"),
        ([REFUSED_403] * 2, MessageHubAuthorizationError, "rejected"),
        ([PublishResult.NACKED] * 2, MessageHubDeliveryError, "rejected"),
        ([None] * 2, MessageHubDeliveryError, "unknown"),
        ([KeyboardInterrupt()], KeyboardInterrupt, "unknown"),
        ([PublishResult.CONFIRMED, KeyboardInterrupt()], KeyboardInterrupt, "unknown"),
    ],
)
def test_of_a_bulk_call_that_failed_as_a_whole_all_messages_have_one_outcome(
    steps: list[Step], error: type[BaseException], outcome: str
) -> None:
    outcomes = Outcomes()
    bench = Bench(*steps, middleware=[outcomes])
    with pytest.raises(error):
        bench.send_many(*["image-service"] * 2, timeout=0.5)
    assert outcomes.of == [[outcome] * 2]


def test_a_bulk_call_of_which_all_circuits_are_open_sends_nothing() -> None:
    outcomes = Outcomes()
    bench = Bench(middleware=[outcomes], threshold=1)
    bench.open_circuit()
    with pytest.raises(MessageHubCircuitBreakerError):
        bench.send_many(*["image-service"] * 2)
    assert outcomes.of[1] == ["circuit_open"] * 2


# --- errors of a middleware ------------------------------------------------------------------------


def hide(batch: Sequence[Sending], call_next: CallNext) -> None:
    with contextlib.suppress(BaseException):
        call_next()


@pytest.mark.parametrize("error", [LookupError("no"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_an_outer_middleware_cannot_hide_the_error_of_an_inner_one(error: BaseException, before: bool) -> None:
    def fail(batch: Sequence[Sending], call_next: CallNext) -> None:
        if not before:
            call_next()
        raise error

    outcomes = Outcomes()
    bench = Bench(middleware=[hide, outcomes, hide, fail])
    with pytest.raises(type(error)) as caught:
        bench.send()

    assert caught.value is error
    assert outcomes.of == [["not_sent" if before else "confirmed"]]
    assert len(bench.transport.published) == (0 if before else 1)


@each_call
def test_an_outer_middleware_cannot_hide_that_an_inner_one_did_not_call_on(call: Callable[[Bench], Any]) -> None:
    outcomes = Outcomes()
    bench = Bench(middleware=[hide, outcomes, lambda batch, call_next: None])
    with pytest.raises(MessageHubConfigurationError, match=r"Around\.send must call call_next once, not never"):
        call(bench)
    assert set(outcomes.of[0]) == {"not_sent"}
    assert bench.transport.log == []


@pytest.mark.parametrize("raises", [True, False])
def test_call_next_after_the_end_of_its_send_sends_nothing(raises: bool) -> None:
    kept: list[CallNext] = []

    def keep(batch: Sequence[Sending], call_next: CallNext) -> None:
        kept.append(call_next)
        if raises:
            raise LookupError

    bench = Bench(middleware=[keep])
    with pytest.raises((LookupError, MessageHubConfigurationError)):
        bench.send()
    with pytest.raises(MessageHubConfigurationError, match="not after it"):
        kept[0]()
    assert bench.transport.log == []


def test_an_outer_middleware_can_replace_the_error_of_an_inner_one() -> None:
    def replace(batch: Sequence[Sending], call_next: CallNext) -> None:
        try:
            call_next()
        except MessageHubDeliveryError as error:
            raise LookupError("nobody is there") from error

    outcomes = Outcomes()
    bench = Bench(PublishResult.RETURNED, middleware=[hide, replace, outcomes])
    with pytest.raises(LookupError):
        bench.send()
    assert outcomes.of == [["rejected"]], "nor is it noted as not sent"


def test_call_next_in_a_thread_that_send_waits_for_sends_and_its_error_cannot_be_hidden() -> None:
    def in_a_thread(batch: Sequence[Sending], call_next: CallNext) -> None:
        thread = threading.Thread(target=hide, args=(batch, call_next))
        thread.start()
        thread.join(30)

    outcomes = Outcomes()
    bench = Bench(PublishResult.CONFIRMED, PublishResult.RETURNED, middleware=[in_a_thread, outcomes])
    bench.send()
    with pytest.raises(MessageHubDeliveryError, match="has no inbox"):
        bench.send()
    assert outcomes.of == [["confirmed"], ["rejected"]]


def test_call_next_in_a_thread_that_send_does_not_wait_for_is_an_error_and_not_called_unsent() -> None:
    inside, go_on, ended = threading.Event(), threading.Event(), Collector()

    def waiting(batch: Sequence[Sending], call_next: CallNext) -> None:
        inside.set()
        assert go_on.wait(30)
        call_next()

    def do_not_wait(batch: Sequence[Sending], call_next: CallNext) -> None:
        def run() -> None:
            call_next()
            ended([sending.outcome for sending in batch])

        threading.Thread(target=run).start()
        assert inside.wait(30)

    bench = Bench(middleware=[do_not_wait, waiting])
    with pytest.raises(
        MessageHubConfigurationError, match=r"Around\.send must return after its call_next, .* it is not known whether"
    ):
        bench.send()

    go_on.set()
    assert ended.wait() == [["confirmed"]]


async def coroutine() -> None: ...


def generator() -> Iterator[None]:
    yield


async def async_generator() -> AsyncIterator[None]:
    yield


@each_call
@pytest.mark.parametrize("result", [coroutine, generator, async_generator])
def test_a_send_whose_result_has_not_run_is_an_error_and_nothing_is_sent(
    result: Callable[[], Any], call: Callable[[Bench], Any]
) -> None:
    outcomes = Outcomes()
    bench = Bench(middleware=[outcomes, lambda batch, call_next: result()])
    with pytest.raises(MessageHubConfigurationError, match="must do its work before it returns"):
        call(bench)
    assert set(outcomes.of[0]) == {"not_sent"}
    assert bench.transport.log == []


# --- memory ----------------------------------------------------------------------------------------


def pass_on(batch: Sequence[Sending], call_next: CallNext) -> None:
    call_next()


def replace(batch: Sequence[Sending], call_next: CallNext) -> None:
    with contextlib.suppress(MessageHubError):
        call_next()
    raise LookupError


def raise_before(batch: Sequence[Sending], call_next: CallNext) -> None:
    raise LookupError


def never(batch: Sequence[Sending], call_next: CallNext) -> None: ...


def messages_alive() -> list[Any]:
    return [one for one in gc.get_objects() if type(one) in (Outgoing, Sending)]


@pytest.mark.parametrize("second", [pass_on, hide, replace, raise_before, never])
@pytest.mark.parametrize("first", [pass_on, hide, replace])
@pytest.mark.parametrize("bulk", [False, True], ids=["single", "bulk"])
def test_a_call_that_failed_keeps_no_message_until_the_garbage_is_collected(
    first: Send, second: Send, bulk: bool
) -> None:
    bench = Bench(*[PublishResult.RETURNED] * 100, middleware=[first, second])
    gc.collect()
    # The errors of other tests, which are parameters, keep theirs.
    others = set(map(id, messages_alive()))
    gc.disable()
    try:
        failed = 0
        for _ in range(50):
            try:
                bench.send_many("image-service") if bulk else bench.send()
            except Exception:
                failed += 1
            bench.transport.published.clear()
            bench.transport.receipts.clear()
        kept = [one for one in messages_alive() if id(one) not in others]
    finally:
        gc.enable()
    assert failed == 50
    assert kept == []
