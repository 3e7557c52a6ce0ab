"""Who gets which reply, played by hand."""

from __future__ import annotations

import gc
import threading
import time
from typing import Any
from uuid import UUID

import pytest
from collector import Collector
from mailing import mailing
from prometheus_client import REGISTRY
from scripted_transport import ScriptedConsumer, ScriptedTransport

from message_hub_sync.config import CircuitBreakerConfig, ClientConfig, MemoryAddress
from message_hub_sync.envelope.values import Properties
from message_hub_sync.errors import (
    MessageHubConnectionError,
    MessageHubDeliveryError,
    MessageHubRemoteError,
    MessageHubTimeoutError,
    MessageValidationError,
)
from message_hub_sync.metrics import ServiceMetrics
from message_hub_sync.publishing.acceptance import Acceptance
from message_hub_sync.publishing.circuit_breaker import CircuitBreakers
from message_hub_sync.publishing.outgoing import outgoing_message
from message_hub_sync.publishing.publisher import Publisher
from message_hub_sync.requests.request_caller import RequestCaller
from message_hub_sync.transport.base import Delivery, Outgoing, PublishResult, Receipt
from message_hub_sync.transport.topology import Topology


class Asked(ScriptedTransport):
    """Tells each request that was sent; the test answers it."""

    def __init__(self) -> None:
        super().__init__()
        self.requests = Collector()
        self.consumer = ScriptedConsumer("asker.replies.1.r4nd0m")
        self.consumed = 0
        self.available = True

    def consume(self, topology: Topology, *, prefetch: int, deadline: float) -> ScriptedConsumer:
        if not self.available:
            raise MessageHubConnectionError("no connection to the hub in time")
        self.consumed += 1
        return self.consumer

    def publish(
        self, outgoing: Outgoing, deadline: float, *, own_channel: bool = False, together: bool = False
    ) -> Receipt:
        receipt = super().publish(outgoing, deadline, own_channel=own_channel)
        self.requests(outgoing)
        return receipt


class Bench:
    """The calling side over a script."""

    def __init__(self, service: str = "asker") -> None:
        self.transport = Asked()
        self.config = ClientConfig(service, MemoryAddress("unused"), connect_timeout=30)
        self.metrics = ServiceMetrics(service)
        publisher = Publisher(
            self.transport, self.config, CircuitBreakers(CircuitBreakerConfig(), self.config.service_name), self.metrics
        )
        self.requests = RequestCaller(self.transport, self.config, publisher, self.metrics)
        self.results = Collector()

    def ask(self, destination: str = "responder", timeout: float = 5, **options: Any) -> threading.Thread:
        def asking() -> None:
            outgoing = outgoing_message(self.config, destination, {"n": 1}, **options)
            try:
                self.results((outgoing.properties.message_id, self.requests.request(outgoing, timeout)))
            except Exception as error:
                self.results((outgoing.properties.message_id, error))

        thread = threading.Thread(target=asking)
        thread.start()
        return thread

    def close(self) -> None:
        self.requests.close(time.monotonic() + 5)


@pytest.fixture
def bench() -> Any:
    bench = Bench()
    yield bench
    bench.close()
    assert not [t for t in threading.enumerate() if t.name == "message-hub-asker-replies"]


def reply(
    request: Outgoing | None = None, *, source: str = "responder", body: bytes = b"{}", **properties: Any
) -> Delivery:
    headers: dict[str, Any] = {"source": source, **properties.pop("headers", {})}
    if request is not None:
        headers["x-in-reply-to"] = request.properties.message_id
        properties.setdefault("correlation_id", request.properties.correlation_id)
    fields = {"message_id": "4fa0c3ad-5f9c-4e2e-a0fc-6b6bd8e20001", "type": "service_message", **properties}
    return Delivery(
        body=body,
        properties=Properties(headers=headers, **fields),
        exchange="",
        routing_key="",
        queue="",
        redelivered=False,
        delivery_tag=1,
        channel_generation=1,
        origin=None,
    )


def test_a_request_names_the_present_reply_queue_and_gets_its_own_reply(bench: Bench) -> None:
    for _ in range(3):
        bench.ask(correlation_id="the same for all")
    requests = bench.transport.requests.wait(3)
    assert {request.properties.reply_to for request in requests} == {"asker.replies.1.r4nd0m"}
    assert bench.transport.consumed == 1

    for number, request in reversed(list(enumerate(requests))):
        bench.transport.consumer.deliveries.put(reply(request, body=b'{"n": %d}' % number))

    by_id = {message_id: message.payload["n"] for message_id, message in bench.results.wait(3)}
    assert by_id == {request.properties.message_id: number for number, request in enumerate(requests)}


def test_by_correlation_id_alone_the_oldest_waiting_for_that_service_gets_it(bench: Bench) -> None:
    bench.ask("other", correlation_id="journey-1")
    bench.transport.requests.wait(1)
    bench.ask(correlation_id="journey-1")
    (_, oldest) = bench.transport.requests.wait(2)
    bench.ask(correlation_id="journey-1")
    bench.transport.requests.wait(3)

    assert bench.requests.claim_reply(reply(correlation_id="journey-1"))
    (message_id, _) = bench.results.stays(1)[0]
    assert message_id == oldest.properties.message_id

    assert bench.requests.claim_reply(reply(correlation_id="journey-1"))
    assert not bench.requests.claim_reply(reply(correlation_id="journey-1"))
    assert bench.requests.claim_reply(reply(correlation_id="journey-1", source="other"))


@pytest.mark.parametrize(
    "delivery",
    [
        reply(correlation_id="journey-2"),
        reply(correlation_id="journey-1", source="stranger"),
        reply(correlation_id="journey-1", reply_to="a.request.of.its.own"),
        reply(correlation_id="journey-1", headers={"x-in-reply-to": "something else"}),
        reply(correlation_id="journey-1", headers={"x-in-reply-to": 7}),
        reply(),
    ],
)
def test_what_is_no_reply_is_left_to_the_handlers(bench: Bench, delivery: Delivery) -> None:
    bench.ask(correlation_id="journey-1", timeout=60)
    bench.transport.requests.wait()

    assert not bench.requests.claim_reply(delivery)

    assert bench.requests.waiting == 1
    bench.close()
    bench.results.wait()


def test_an_error_reply_is_raised_with_type_and_text(bench: Bench) -> None:
    bench.ask()
    (request,) = bench.transport.requests.wait()
    bench.transport.consumer.deliveries.put(
        reply(request, headers={"x-error-type": "KeyError", "x-error-message": "'gone'"})
    )

    (_, error) = bench.results.wait()[0]
    assert isinstance(error, MessageHubRemoteError)
    assert (error.error_type, error.error_message) == ("KeyError", "'gone'")
    assert str(error) == "responder failed: KeyError: 'gone'"


def test_a_reply_that_cannot_be_read_is_a_remote_error(bench: Bench) -> None:
    bench.ask()
    (request,) = bench.transport.requests.wait()
    bench.transport.consumer.deliveries.put(reply(request, body=b"[1]"))

    (_, error) = bench.results.wait()[0]
    assert isinstance(error, MessageHubRemoteError)
    assert error.error_type == "InvalidMessage"


def test_ten_thousand_timeouts_leave_nothing_behind() -> None:
    bench = Bench("leaky-service")
    try:
        outgoing = outgoing_message(bench.config, "responder", {"n": 1})
        with pytest.raises(MessageHubTimeoutError, match="its handler may have returned None"):
            bench.requests.request(outgoing, 0.001)
        gc.collect()
        before = len(gc.get_objects())
        for _ in range(10_000):
            with pytest.raises(MessageHubTimeoutError):
                bench.requests.request(outgoing_message(bench.config, "responder", {"n": 1}), 0.00001)
            bench.transport.published.clear()
            bench.transport.receipts.clear()
            bench.transport.log.clear()
            bench.transport.requests._items.clear()
        gc.collect()

        assert bench.requests.waiting == 0
        assert len(gc.get_objects()) - before < 1_000
        assert len([t for t in threading.enumerate() if "leaky-service" in t.name]) == 1
    finally:
        bench.close()


def test_late_replies_are_settled_and_counted() -> None:
    bench = Bench("late-service")
    try:
        bench.ask(timeout=0.5).join(30)
        (request,) = bench.transport.requests.wait()
        settled = Collector()
        bench.transport.consumer.ack = lambda delivery: settled(delivery)  # type: ignore[method-assign]

        bench.transport.consumer.deliveries.put(reply(request))

        settled.wait()
        counted = REGISTRY.get_sample_value("message_hub_late_replies_total", {"service": "late-service"})
        assert counted == 1
    finally:
        bench.close()


def test_callers_do_not_wait_for_a_closed_client(bench: Bench) -> None:
    thread = bench.ask(timeout=30)
    bench.transport.requests.wait()

    bench.close()

    thread.join(30)
    (_, error) = bench.results.wait()[0]
    assert isinstance(error, MessageHubTimeoutError)


def test_a_reply_queue_that_could_not_be_made_is_made_for_the_next_request(bench: Bench) -> None:
    bench.transport.available = False
    bench.ask().join(30)
    assert isinstance(bench.results.wait()[0][1], MessageHubConnectionError)

    bench.transport.available = True
    bench.ask(timeout=0.5).join(30)

    assert isinstance(bench.results.wait(2)[1][1], MessageHubTimeoutError)


class Interrupted(BaseException):
    """What a signal handler, or a gevent timeout, raises in one thread."""


def test_a_caller_who_is_interrupted_while_opening_the_queue_leaves_it_to_the_others(bench: Bench) -> None:
    inside, go_on = threading.Event(), threading.Event()
    whole = bench.transport.consume

    def interrupted(topology: Topology, *, prefetch: int, deadline: float) -> ScriptedConsumer:
        bench.transport.consume = whole  # type: ignore[method-assign]
        inside.set()
        go_on.wait(30)
        raise Interrupted

    bench.transport.consume = interrupted  # type: ignore[method-assign]
    first = Collector()

    def asking() -> None:
        try:
            bench.requests.request(outgoing_message(bench.config, "responder", {}), 5)
        except BaseException as error:
            first(error)

    threading.Thread(target=asking).start()
    assert inside.wait(30)
    bench.ask(timeout=5)
    assert bench.transport.requests.items == []

    go_on.set()

    assert isinstance(first.wait()[0], Interrupted)
    (request,) = bench.transport.requests.wait()
    bench.transport.consumer.deliveries.put(reply(request))
    assert not isinstance(bench.results.wait()[0][1], BaseException)


def test_a_reply_queue_that_is_lost_is_made_anew_for_the_next_request(bench: Bench) -> None:
    bench.ask(timeout=0.5).join(30)
    lost = bench.transport.consumer
    lost.closed = True
    bench.transport.consumer = ScriptedConsumer("asker.replies.2.an0ther")

    bench.ask()

    request = bench.transport.requests.wait(2)[1]
    assert request.properties.reply_to == "asker.replies.2.an0ther"
    bench.transport.consumer.deliveries.put(reply(request))
    assert not isinstance(bench.results.wait(2)[1][1], BaseException)


def test_a_logging_handler_that_raises_ends_no_thread_of_replies(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def ack(delivery: Delivery) -> None:
        raise RuntimeError("a bug")

    bench.ask(timeout=0.5).join(30)
    monkeypatch.setattr(bench.transport.consumer, "ack", ack)
    with mailing():
        bench.transport.consumer.deliveries.put(reply(message_id="late"))
        bench.ask()
        request = bench.transport.requests.wait(2)[1]
        bench.transport.consumer.deliveries.put(reply(request))
        assert not isinstance(bench.results.wait(2)[1][1], BaseException)
    assert bench.transport.consumed == 1


def test_a_reply_queue_whose_thread_has_ended_is_made_anew_for_the_next_request(bench: Bench) -> None:
    bench.ask(timeout=0.5).join(30)
    bench.transport.consumer.deliveries.put(None)  # its thread ends, for whatever reason
    thread = bench.requests._thread
    assert thread is not None
    thread.join(30)
    bench.transport.consumer = ScriptedConsumer("asker.replies.2.an0ther")

    bench.ask()

    request = bench.transport.requests.wait(2)[1]
    assert request.properties.reply_to == "asker.replies.2.an0ther"
    bench.transport.consumer.deliveries.put(reply(request))
    assert not isinstance(bench.results.wait(2)[1][1], BaseException)


def test_a_reply_queue_without_a_thread_is_given_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr("message_hub_sync.requests.request_caller.threading.Thread.start", refuse)
        with pytest.raises(MessageHubConnectionError, match="thread"):
            bench.requests.request(outgoing_message(bench.config, "responder", {}), 5)

    assert bench.transport.consumer.closed


def test_a_reply_queue_opened_while_the_client_closes_is_closed_too(bench: Bench) -> None:
    inside, go_on = threading.Event(), threading.Event()
    whole = bench.transport.consume

    def slow(topology: Topology, *, prefetch: int, deadline: float) -> ScriptedConsumer:
        inside.set()
        go_on.wait(30)
        return whole(topology, prefetch=prefetch, deadline=deadline)

    bench.transport.consume = slow  # type: ignore[method-assign]
    bench.ask(timeout=30)
    assert inside.wait(30)
    bench.close()

    go_on.set()

    assert isinstance(bench.results.wait()[0][1], MessageHubConnectionError)
    assert bench.transport.consumer.closed
    assert bench.transport.requests.items == []


def test_a_second_request_with_the_id_of_one_that_waits_is_refused(bench: Bench) -> None:
    identity = UUID("4fa0c3ad-5f9c-4e2e-a0fc-6b6bd8e20009")
    bench.ask(message_id=identity)
    (request,) = bench.transport.requests.wait()

    bench.ask(message_id=identity).join(30)

    assert isinstance(bench.results.wait()[0][1], MessageValidationError)
    bench.transport.consumer.deliveries.put(reply(request))
    assert not isinstance(bench.results.wait(2)[1][1], BaseException)


# --- the reply and the confirm -------------------------------------------------------------------


def test_a_request_returns_with_its_reply_although_its_confirm_never_comes(bench: Bench) -> None:
    bench.transport.steps = [None]
    bench.ask(timeout=30)
    (request,) = bench.transport.requests.wait()

    bench.transport.consumer.deliveries.put(reply(request, body=b'{"n": 2}'))

    (_, message) = bench.results.wait()[0]
    assert message.payload == {"n": 2}
    assert bench.transport.receipts[0].result is PublishResult.CONFIRMED


def test_a_reply_that_comes_while_the_connection_is_lost_ends_the_request(bench: Bench) -> None:
    bench.transport.steps = [(PublishResult.LOST, "the connection was lost", 0)]
    publish = bench.transport.publish

    def answered_meanwhile(
        outgoing: Outgoing, deadline: float, *, own_channel: bool = False, together: bool = False
    ) -> Receipt:
        receipt = publish(outgoing, deadline, own_channel=own_channel)
        assert bench.requests.claim_reply(reply(outgoing))
        return receipt

    bench.transport.publish = answered_meanwhile  # type: ignore[method-assign]
    bench.ask(timeout=30)

    assert not isinstance(bench.results.wait()[0][1], BaseException)
    assert len(bench.transport.published) == 1


def test_without_a_reply_a_lost_confirm_is_as_uncertain_as_before(bench: Bench) -> None:
    bench.transport.steps = [None]
    bench.ask(timeout=0.5).join(30)

    error = bench.results.wait()[0][1]
    assert isinstance(error, MessageHubDeliveryError)
    assert error.outcome == "unknown"


def test_an_unroutable_request_is_an_error_before_its_timeout(bench: Bench) -> None:
    bench.transport.steps = [PublishResult.RETURNED]
    bench.ask(timeout=30)

    error = bench.results.wait()[0][1]
    assert isinstance(error, MessageHubDeliveryError)
    assert error.outcome == "rejected"
    assert bench.requests.waiting == 0


def test_a_reply_that_comes_together_with_the_confirm_resolves_the_receipt_once() -> None:
    for _ in range(2_000):
        receipt, acceptance = Receipt(), Acceptance()
        acceptance.watch(receipt)
        together = threading.Barrier(3)
        threads = [
            threading.Thread(target=lambda act: (together.wait() and act()) or act(), args=(act,))  # noqa: B023
            for act in (acceptance.prove, lambda: receipt.resolve(PublishResult.CONFIRMED))  # noqa: B023
        ]
        for thread in threads:
            thread.start()
        together.wait()
        assert receipt.wait(time.monotonic() + 20) is PublishResult.CONFIRMED
        for thread in threads:
            thread.join(20)
        assert receipt.wait(time.monotonic() + 20) is PublishResult.CONFIRMED


def test_a_reply_before_the_receipt_is_known_is_not_missed() -> None:
    receipt, acceptance = Receipt(), Acceptance()
    acceptance.prove()

    acceptance.watch(receipt)

    assert receipt.wait(time.monotonic()) is PublishResult.CONFIRMED


def test_a_request_that_ends_leaves_a_later_one_with_its_id_alone(bench: Bench) -> None:
    identity = UUID("4fa0c3ad-5f9c-4e2e-a0fc-6b6bd8e20009")
    publish = bench.transport.publish

    def repeated_at_once(
        outgoing: Outgoing, deadline: float, *, own_channel: bool = False, together: bool = False
    ) -> Receipt:
        bench.transport.publish = publish  # type: ignore[method-assign]
        receipt = publish(outgoing, deadline, own_channel=own_channel)
        # Its reply comes, and the same request begins again, before the first caller has run on.
        assert bench.requests.claim_reply(reply(outgoing))
        bench.ask(message_id=identity, timeout=30)
        bench.transport.requests.wait(2)
        return receipt

    bench.transport.publish = repeated_at_once  # type: ignore[method-assign]
    bench.ask(message_id=identity, timeout=30)

    assert not isinstance(bench.results.wait()[0][1], BaseException)
    assert bench.requests.waiting == 1
    bench.transport.consumer.deliveries.put(reply(bench.transport.published[1]))
    assert not isinstance(bench.results.wait(2)[1][1], BaseException)
