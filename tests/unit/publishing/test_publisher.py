"""What the publisher makes of each course of events, played by a scripted transport."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from prometheus_client import REGISTRY
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
from message_hub_sync.metrics import MESSAGE_LATENCY, ServiceMetrics
from message_hub_sync.publishing.circuit_breaker import CONNECTION, CircuitBreakers
from message_hub_sync.publishing.outgoing import outgoing_event, outgoing_message
from message_hub_sync.publishing.publisher import BULK_SLICE, SLICES_UNDER_WAY, Publisher
from message_hub_sync.transport.base import ConnectionState, ConnectionStatus, Outgoing, PublishResult, Receipt

CLOSED_404 = (PublishResult.CHANNEL_ERROR_SHARED, "404 NOT_FOUND - no exchange 'events'", 404)
CLOSED_403 = (PublishResult.CHANNEL_ERROR_SHARED, "403 ACCESS_REFUSED", 403)
CLOSED_406 = (PublishResult.CHANNEL_ERROR_SHARED, "406 PRECONDITION_FAILED", 406)
REFUSED_403, REFUSED_404, REFUSED_406 = (
    (PublishResult.CHANNEL_ERROR, *closed[1:]) for closed in (CLOSED_403, CLOSED_404, CLOSED_406)
)
NO_CONNECTION = MessageHubConnectionError("no connection to the hub in time")


class Bench:
    """A publisher over a script."""

    def __init__(self, *steps: Step, service: str = "character-service", threshold: int = 5) -> None:
        self.transport = ScriptedTransport(*steps)
        self.config = ClientConfig(
            service, MemoryAddress("unused"), circuit_breaker=CircuitBreakerConfig(threshold, 60, 0.2)
        )
        self.now = 1000.0
        self.breakers = CircuitBreakers(self.config.circuit_breaker, self.config.service_name, clock=lambda: self.now)
        self.publisher = Publisher(self.transport, self.config, self.breakers, ServiceMetrics(service))

    def message(self, destination: str = "image-service") -> Outgoing:
        return outgoing_message(self.config, destination, {"n": 1})

    def event(self) -> Outgoing:
        return outgoing_event(self.config, "quest.started", {"n": 1})

    def send(self, timeout: float = 0.5) -> UUID:
        return self.publisher.publish(self.message(), timeout)

    def publish(self, timeout: float = 0.5) -> UUID:
        return self.publisher.publish(self.event(), timeout)


def test_a_confirmed_message_returns_its_id() -> None:
    bench = Bench()
    outgoing = bench.message()

    assert bench.publisher.publish(outgoing, 100) == UUID(outgoing.properties.message_id)
    assert bench.transport.asked() == ["publish"]
    assert bench.transport.log[0][1] == pytest.approx(100, abs=30)


def test_of_a_bulk_call_each_message_takes_its_share_of_the_time() -> None:
    bench = Bench(service="timed-service")
    began = time.monotonic()
    bench.publisher.publish_many([bench.message() for _ in range(200)], 5)
    took = time.monotonic() - began

    samples = [sample for metric in MESSAGE_LATENCY.collect() for sample in metric.samples]
    (total,) = [
        sample.value
        for sample in samples
        if sample.name.endswith("_sum") and {"timed-service", "send"} <= set(sample.labels.values())
    ]
    assert 0 < total <= took


def test_a_message_lost_with_its_connection_is_published_again_with_the_same_id() -> None:
    bench = Bench(PublishResult.LOST, PublishResult.LOST, PublishResult.CONFIRMED)

    message_id = bench.send()

    assert [outgoing.properties.message_id for outgoing in bench.transport.published] == [str(message_id)] * 3


@pytest.mark.parametrize(
    ("steps", "outcome", "text"),
    [
        (
            [PublishResult.RETURNED],
            "rejected",
            "image-service has no inbox: it has never called subscribe_messages(), or",
        ),
        ([PublishResult.NACKED], "rejected", "nack"),
        ([(PublishResult.NACKED, "overflow", 0)], "rejected", "overflow"),
        ([None], "unknown", "no confirm came before the deadline"),
        ([REFUSED_406], "rejected", "406 PRECONDITION_FAILED"),
        ([CLOSED_406, REFUSED_406], "rejected", "406 PRECONDITION_FAILED"),
        ([PublishResult.NOT_WRITTEN, PublishResult.NACKED], "rejected", "nack"),
        # Once an attempt was written and not answered, nothing is certain any more.
        ([PublishResult.LOST, PublishResult.RETURNED], "unknown", "has no inbox"),
        ([PublishResult.LOST, PublishResult.NACKED], "unknown", "nack"),
        ([PublishResult.LOST, NO_CONNECTION], "unknown", "no connection"),
        ([PublishResult.LOST, MessageHubAuthorizationError("password changed")], "unknown", "password changed"),
        ([PublishResult.LOST, REFUSED_403], "unknown", "403"),
        # Accepted, and the channel closed over another one; the permission was taken away, the exchange deleted since.
        ([CLOSED_403, REFUSED_403], "unknown", "403"),
        ([CLOSED_404, REFUSED_404], "unknown", "404"),
        ([CLOSED_404, PublishResult.RETURNED], "unknown", "has no inbox"),
        ([CLOSED_404, REFUSED_406], "unknown", "406"),
        ([CLOSED_404, None], "unknown", "no confirm"),
        ([ValueError("a bug")], "unknown", "unexpected"),
    ],
)
def test_outcomes(steps: list[Step], outcome: str, text: str) -> None:
    bench = Bench(*steps)
    outgoing = bench.message()

    with pytest.raises(MessageHubDeliveryError) as caught:
        bench.publisher.publish(outgoing, 0.05)

    assert caught.value.outcome == outcome
    assert text in str(caught.value)
    assert caught.value.message_id == UUID(outgoing.properties.message_id)
    assert bench.transport.steps == []


def test_an_event_that_is_nacked_is_unknown_for_other_queues_may_have_it() -> None:
    bench = Bench(PublishResult.NACKED, (PublishResult.BLOCKED, "an alarm", 0), threshold=5)
    with pytest.raises(MessageHubDeliveryError, match="nack") as caught:
        bench.publish()
    assert caught.value.outcome == "unknown"

    with pytest.raises(MessageHubDeliveryError, match="an alarm") as caught:
        bench.publish()
    assert caught.value.outcome == "rejected", "it was never written"


def test_a_circuit_opened_by_nacked_events_does_not_wait_for_a_connection() -> None:
    bench = Bench(PublishResult.NACKED, threshold=1)
    with pytest.raises(MessageHubDeliveryError):
        bench.publish()

    bench.breakers.connection_restored()

    assert bench.breakers.worst() == "open", "it was no connection that failed"


def test_nothing_written_before_the_deadline_is_a_connection_error() -> None:
    with pytest.raises(MessageHubConnectionError, match="was not sent: no connection"):
        Bench(NO_CONNECTION).send()
    with pytest.raises(MessageHubConnectionError, match="was not sent"):
        Bench(*[PublishResult.NOT_WRITTEN] * 100_000).send(timeout=0.02)


def test_a_refused_user_is_an_authorization_error() -> None:
    with pytest.raises(MessageHubAuthorizationError) as caught:
        Bench(MessageHubAuthorizationError("the broker refused the user")).send()
    assert "permissions" not in str(caught.value), "a wrong password is no matter of permissions"
    with pytest.raises(MessageHubAuthorizationError, match="permissions"):
        Bench(REFUSED_403).send()


def test_a_setting_that_does_not_fit_is_a_configuration_error() -> None:
    with pytest.raises(MessageHubConfigurationError):
        Bench(MessageHubConfigurationError("no such thing")).send()


def test_the_innocent_go_through_alone_after_their_channel_was_closed() -> None:
    bench = Bench(CLOSED_404, PublishResult.CONFIRMED)

    bench.send()

    assert bench.transport.asked() == ["publish", "own channel"]


@pytest.mark.parametrize("among_others", [True, False])
def test_a_missing_event_exchange_is_declared_and_the_event_published_again(among_others: bool) -> None:
    bench = Bench(*[CLOSED_404] * among_others, REFUSED_404, PublishResult.CONFIRMED)

    bench.publish()

    found = ["publish", "own channel"] if among_others else ["publish"]
    assert bench.transport.asked() == [*found, "declare_exchange", "own channel"]
    assert bench.transport.log[len(found)] == ("declare_exchange", "events")


def test_an_event_exchange_that_stays_away_is_declared_only_once() -> None:
    bench = Bench(*[REFUSED_404] * 2)

    with pytest.raises(MessageHubDeliveryError) as caught:
        bench.publish()

    assert caught.value.outcome == "rejected"
    assert bench.transport.asked().count("declare_exchange") == 1


@pytest.mark.parametrize(
    ("steps", "opens"),
    [
        ([None], "image-service"),
        ([PublishResult.NACKED], "image-service"),
        ([PublishResult.NOT_WRITTEN, PublishResult.NACKED], "image-service"),
        ([ValueError("a bug")], "image-service"),
        ([PublishResult.BLOCKED], CONNECTION),
        ([NO_CONNECTION], CONNECTION),
        ([PublishResult.LOST, NO_CONNECTION], CONNECTION),
        ([PublishResult.RETURNED], None),
        ([REFUSED_406], None),
        ([REFUSED_403], None),
        ([CLOSED_403, REFUSED_403], None),
        ([MessageHubAuthorizationError("refused")], None),
        ([MessageHubConfigurationError("contradiction")], None),
    ],
)
@pytest.mark.parametrize("bulk", [False, True], ids=["single", "bulk"])
def test_which_failures_open_which_circuit(steps: list[Step], opens: str | None, bulk: bool) -> None:
    bench = Bench(*steps, threshold=1)
    call = partial(bench.publisher.publish_many, [bench.message()]) if bulk else bench.send
    with pytest.raises(MessageHubError):
        call(timeout=0.2)

    assert {key for key, state in bench.breakers.states().items() if state == "open"} == ({opens} if opens else set())
    if opens is not None:
        with pytest.raises(MessageHubCircuitBreakerError):
            bench.send()
    if opens != CONNECTION:
        bench.publisher.publish(bench.message("llm-service"), 5)


def test_a_bulk_call_to_many_destinations_is_one_failure_and_one_trial_of_the_connection() -> None:
    bench = Bench(NO_CONNECTION, threshold=2)
    batch = [bench.message(f"service-{number}") for number in range(5)]
    with pytest.raises(MessageHubError):
        bench.publisher.publish_many(batch, 0.05)
    assert bench.breakers.states()[CONNECTION] == "closed"
    bench.breakers.admit("image-service").failed(connection=True)
    with pytest.raises(MessageHubCircuitBreakerError, match="the circuit of the connection is open"):
        bench.publisher.publish_many(batch, 0.05)
    bench.breakers.connection_restored()

    assert len(bench.publisher.publish_many(batch, 5)) == 5

    assert set(bench.breakers.states().values()) == {"closed"}


def test_a_circuit_opened_by_an_alarm_tries_again_once_messages_are_accepted_again() -> None:
    bench = Bench(PublishResult.BLOCKED, threshold=1)
    with pytest.raises(MessageHubDeliveryError) as caught:
        bench.send()
    assert caught.value.outcome == "rejected"
    with pytest.raises(MessageHubCircuitBreakerError):
        bench.send()

    bench.breakers.connection_restored()

    bench.send()


def test_a_missing_confirm_during_an_alarm_is_a_failure_of_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(None, (PublishResult.BLOCKED, "an alarm", 0), threshold=2)
    blocked = ConnectionStatus("publish", ConnectionState.BLOCKED, "amqp://localhost")
    monkeypatch.setattr(bench.transport, "status", lambda: [blocked])
    with pytest.raises(MessageHubDeliveryError):
        bench.send()
    with pytest.raises(MessageHubDeliveryError):
        bench.publish()

    with pytest.raises(MessageHubCircuitBreakerError, match="the circuit of the connection is open"):
        bench.send()


def test_messages_and_events_have_circuits_of_their_own() -> None:
    bench = Bench(PublishResult.NACKED, threshold=1)
    with pytest.raises(MessageHubDeliveryError):
        bench.publish()

    bench.send()

    assert bench.breakers.states() == {"quest.started": "open", "image-service": "closed"}


def test_a_trial_ends_in_its_own_time_and_is_resolved() -> None:
    bench = Bench(PublishResult.NACKED, None, PublishResult.RETURNED, threshold=1)
    with pytest.raises(MessageHubDeliveryError):
        bench.send()
    bench.now += 61

    began = time.monotonic()
    with pytest.raises(MessageHubDeliveryError):
        bench.send(timeout=120)
    assert time.monotonic() - began < 60
    assert bench.breakers.worst() == "open"

    bench.now += 61
    with pytest.raises(MessageHubDeliveryError, match="has no inbox"):
        bench.send()
    assert bench.breakers.worst() == "closed"


def test_an_interrupted_call_leaves_its_circuit_as_it_was_and_shifts_nothing() -> None:
    class Interrupt(BaseException):
        pass

    bench = Bench(Interrupt(), None, (PublishResult.NACKED, "the second one's own", 0), threshold=1)
    with pytest.raises(Interrupt):
        bench.send()
    assert bench.breakers.worst() == "closed"
    with pytest.raises(MessageHubDeliveryError):
        bench.send(timeout=0.01)
    bench.now += 61

    late = bench.transport.receipts[0]
    with pytest.raises(MessageHubDeliveryError, match="the second one's own"):
        bench.send(timeout=5)
    late.resolve(PublishResult.CONFIRMED)


def test_each_call_is_counted_once() -> None:
    bench = Bench(
        PublishResult.LOST, PublishResult.CONFIRMED, PublishResult.RETURNED, service="calls-counted-once-service"
    )

    def counted(kind: str, status: str) -> float:
        labels = {"service": "calls-counted-once-service", "type": kind, "status": status}
        return REGISTRY.get_sample_value("message_hub_messages_total", labels) or 0.0

    bench.send()
    with pytest.raises(MessageHubDeliveryError):
        bench.send()
    bench.publish()

    assert counted("send", "success") == 1
    assert counted("send", "error") == 1
    assert counted("publish", "success") == 1


# --- bulk ----------------------------------------------------------------------------------------


def many(bench: Bench, count: int, timeout: float = 0.5) -> Any:
    return bench.publisher.publish_many([bench.message() for _ in range(count)], timeout)


def test_a_bulk_is_written_before_it_is_awaited() -> None:
    bench = Bench()

    assert len(many(bench, 3)) == 3
    assert bench.transport.log == [("many", 3)]


def test_a_large_bulk_goes_out_in_slices() -> None:
    bench = Bench()

    many(bench, BULK_SLICE + 5, timeout=5)

    assert bench.transport.log == [("many", BULK_SLICE), ("many", 5)]


def test_only_so_many_slices_of_a_bulk_are_unconfirmed_at_a_time() -> None:
    slices: list[list[Receipt]] = []
    settled = unconfirmed = 0
    handed_over = threading.Semaphore(0)

    class Slow(ScriptedTransport):
        def publish_many(self, batch: Sequence[Outgoing], deadline: float) -> list[Receipt]:
            nonlocal unconfirmed
            slices.append([Receipt() for _ in batch])
            unconfirmed = max(unconfirmed, len(slices) - settled)
            handed_over.release()
            return slices[-1]

    total = SLICES_UNDER_WAY + 4

    def confirm() -> None:
        nonlocal settled
        for number in range(total):
            if number == 0:
                for _ in range(SLICES_UNDER_WAY + 1):
                    assert handed_over.acquire(timeout=5)
            elif number < total - SLICES_UNDER_WAY:
                assert handed_over.acquire(timeout=5)
            settled += 1
            for receipt in slices[number]:
                receipt.resolve(PublishResult.CONFIRMED)

    bench = Bench()
    bench.publisher._transport = Slow()
    confirming = threading.Thread(target=confirm)
    confirming.start()
    assert len(many(bench, total * BULK_SLICE, timeout=20)) == total * BULK_SLICE
    confirming.join(30)
    assert unconfirmed == SLICES_UNDER_WAY + 1


def test_only_the_lost_ones_of_a_bulk_are_repeated_and_the_suspects_alone() -> None:
    bench = Bench(PublishResult.CONFIRMED, PublishResult.LOST, CLOSED_404, PublishResult.CONFIRMED)

    many(bench, 4)

    assert bench.transport.log[0] == ("many", 4)
    assert bench.transport.asked() == ["many", "own channel", "publish"]
    first, lost, suspect, last, alone, again = bench.transport.published
    assert (alone, again) == (suspect, lost)
    assert first is not last


@pytest.mark.parametrize(
    "others", [[PublishResult.CONFIRMED], [PublishResult.LOST, MessageValidationError("too large")]]
)
def test_what_cannot_be_encoded_is_named_and_no_failure_of_its_destination(others: list[Step]) -> None:
    bench = Bench((PublishResult.INVALID, "a header is too large", 0), *others, threshold=1)

    with pytest.raises(MessageHubDeliveryError, match="a header is too large") as caught:
        many(bench, 2)

    assert caught.value.failures[0].outcome == "rejected"
    assert caught.value.failures[0].reason == "a header is too large"
    # Written once, so that it may have been accepted; on the next connection it did not fit any more.
    assert [failure.outcome for failure in caught.value.failures[1:]] == ["unknown"] * (
        others != [PublishResult.CONFIRMED]
    )
    assert bench.breakers.states() == {"image-service": "closed"}


def test_a_bulk_of_which_nothing_can_be_encoded_is_a_validation_error() -> None:
    bench = Bench(*[(PublishResult.INVALID, "a header is too large", 0)] * 2)

    with pytest.raises(MessageValidationError, match="a header is too large"):
        many(bench, 2)


def test_a_message_that_is_found_invalid_after_it_was_written_is_unknown() -> None:
    with pytest.raises(MessageHubDeliveryError) as caught:
        Bench(PublishResult.LOST, MessageValidationError("too large")).send()
    assert caught.value.outcome == "unknown"

    with pytest.raises(MessageValidationError, match="too large"):
        Bench(MessageValidationError("too large")).send()


def test_failures_of_a_bulk_are_named() -> None:
    bench = Bench(PublishResult.CONFIRMED, PublishResult.NACKED, None)

    with pytest.raises(MessageHubDeliveryError) as caught:
        many(bench, 3)

    assert [(failure.index, failure.outcome) for failure in caught.value.failures] == [(1, "rejected"), (2, "unknown")]
    assert caught.value.outcome == "unknown"


def test_nacked_events_of_a_bulk_are_unknown() -> None:
    bench = Bench(PublishResult.CONFIRMED, PublishResult.NACKED)

    with pytest.raises(MessageHubDeliveryError) as caught:
        bench.publisher.publish_many([bench.event(), bench.event()], 1)

    assert [(failure.index, failure.outcome) for failure in caught.value.failures] == [(1, "unknown")]


def test_a_bulk_of_which_nothing_is_permitted_is_an_authorization_error() -> None:
    bench = Bench(REFUSED_403, REFUSED_403)

    with pytest.raises(MessageHubAuthorizationError):
        bench.publisher.publish_many([bench.event(), bench.event()], 1)


def test_a_bulk_without_a_connection_is_a_connection_error_and_gives_up_at_once_for_all() -> None:
    bench = Bench(*[PublishResult.NOT_WRITTEN] * 50, NO_CONNECTION)

    with pytest.raises(MessageHubConnectionError):
        many(bench, 50, timeout=30)

    assert bench.transport.asked() == ["many", "publish"]


def test_the_messages_to_an_open_circuit_are_not_sent() -> None:
    bench = Bench(PublishResult.NACKED, threshold=1)
    with pytest.raises(MessageHubDeliveryError):
        bench.send()
    batch = [bench.message(), bench.message("llm-service")]

    with pytest.raises(MessageHubDeliveryError) as caught:
        bench.publisher.publish_many(batch, 0.1)
    assert [(failure.index, failure.outcome) for failure in caught.value.failures] == [(0, "rejected")]
    assert bench.transport.published[1:] == [batch[1]]

    with pytest.raises(MessageHubCircuitBreakerError):
        many(bench, 2)


def test_nobody_waits_for_the_receipts_of_an_interrupted_call() -> None:
    class Interrupt(BaseException):
        pass

    class Interrupted(Receipt):
        __slots__ = ()

        def wait(self, deadline: float) -> PublishResult | None:
            raise Interrupt

    bench, receipts = Bench(), [Interrupted() for _ in range(BULK_SLICE * 3 + 1)]
    left = iter(receipts)
    bench.transport.publish_many = lambda batch, deadline: [next(left) for _ in batch]  # type: ignore[method-assign]
    with pytest.raises(Interrupt):
        many(bench, BULK_SLICE * 3)
    bench.transport.publish = lambda outgoing, deadline, own_channel=False: next(left)  # type: ignore[method-assign,misc]
    with pytest.raises(Interrupt):
        bench.send(5)
    assert all(receipt.abandoned for receipt in receipts)
