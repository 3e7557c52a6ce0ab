"""What middleware makes of each delivery, played by hand: what is counted, logged, moved and acknowledged."""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from collector import Collector
from prometheus_client import REGISTRY
from scripted_transport import ScriptedConsumer, ScriptedTransport

from message_hub_sync.config import CircuitBreakerConfig, ClientConfig, MemoryAddress
from message_hub_sync.consuming.consumed_queue import ConsumeOptions, ConsumerContext, event_queues
from message_hub_sync.consuming.decoded_delivery import DecodedDelivery
from message_hub_sync.consuming.deduplication import MemoryDeduplication
from message_hub_sync.consuming.handler_middleware import HandlerMiddleware
from message_hub_sync.consuming.handlers import handler_for
from message_hub_sync.consuming.retry_policy import RetryPolicy
from message_hub_sync.consuming.subscription import Subscription, SubscriptionRegistry
from message_hub_sync.consuming.suspects import Suspects
from message_hub_sync.envelope.correlation import current_correlation_id
from message_hub_sync.envelope.values import Message, Properties
from message_hub_sync.errors import MessageHubConfigurationError, MessageHubRejectError, MessageHubRetryError
from message_hub_sync.metrics import ServiceMetrics
from message_hub_sync.middleware import Middleware, Received
from message_hub_sync.publishing.circuit_breaker import CircuitBreakers
from message_hub_sync.publishing.outgoing import outgoing_message
from message_hub_sync.publishing.publisher import Publisher
from message_hub_sync.requests.reply_sender import ReplySender
from message_hub_sync.requests.request_caller import RequestCaller
from message_hub_sync.transport.base import Delivery, Outgoing, Receipt
from message_hub_sync.transport.topology import Topology

ID = "4fa0c3ad-5f9c-4e2e-a0fc-6b6bd8e2000{}"
RETRY = "quest.started.retry.1000"

Handle = Callable[[Received, Callable[[], Any]], Any]

_numbers = itertools.count()


class Around(Middleware):
    """Does what a test gives it."""

    def __init__(self, arrived: Callable[[Received], Any] | None = None, handle: Handle | None = None) -> None:
        self._arrived, self._handle = arrived, handle

    def arrived(self, received: Received) -> None:
        return None if self._arrived is None else self._arrived(received)

    def handle(self, received: Received, call_next: Callable[[], Any]) -> Any:
        return call_next() if self._handle is None else self._handle(received, call_next)


class OneConsumer(ScriptedTransport):
    """Hands out one consumer, and tells each settlement."""

    def __init__(self) -> None:
        super().__init__()
        self.settled = Collector()
        self.consumers = Collector()
        self.written = Collector()

    def publish(
        self, outgoing: Outgoing, deadline: float, *, own_channel: bool = False, together: bool = False
    ) -> Receipt:
        receipt = super().publish(outgoing, deadline, own_channel=own_channel)
        self.written(outgoing)
        return receipt

    def consume(self, topology: Topology, *, prefetch: int, deadline: float) -> ScriptedConsumer:
        consumer = ScriptedConsumer(topology.queue.name)
        consumer.ack = lambda delivery: self.settled(delivery.delivery_tag)  # type: ignore[method-assign]
        self.consumers(consumer)
        return consumer


class Bench:
    """One subscription, or one request, of a service with middleware. :meth:`deliver` plays the broker."""

    def __init__(self, *middleware: Middleware) -> None:
        # A service of its own, because the metrics are those of the process.
        self.service = f"handling-{next(_numbers)}"
        self.transport = OneConsumer()
        self.config = ClientConfig(self.service, MemoryAddress("unused"))
        metrics = ServiceMetrics(self.service)
        publisher = Publisher(
            self.transport, self.config, CircuitBreakers(CircuitBreakerConfig(), self.service), metrics
        )
        self.requests = RequestCaller(self.transport, self.config, publisher, metrics, middleware)
        replies = ReplySender(self.config, publisher)
        self.subscriptions = SubscriptionRegistry(
            ConsumerContext(
                self.transport,
                self.config,
                metrics,
                RetryPolicy(),
                claim_reply=self.requests.claim_reply,
                send_reply=replies.answer,
                send_error=replies.fail,
                suspects=Suspects(self.transport, "image-service"),
                middleware=middleware,
            )
        )
        self.answers = Collector()
        self.tag = 0

    def subscribe(
        self, callback: Callable[..., Any], *, durable: bool = True, options: ConsumeOptions | None = None
    ) -> None:
        queues = event_queues(self.config, ["quest.started"], durable=durable)
        handler = handler_for(callback, "event")
        Subscription(lambda: self.subscriptions, self.config, queues, handler, options or ConsumeOptions()).start()

    def ask(self) -> None:
        """Send a request on a thread of its own. Its reply, or its error, goes to ``answers``."""
        outgoing = outgoing_message(self.config, "responder", {}, correlation_id="journey-1")

        def asking() -> None:
            try:
                self.answers(self.requests.request(outgoing, 5))
            except Exception as error:
                self.answers(error)

        threading.Thread(target=asking).start()
        self.transport.written.wait()  # from now on its caller waits

    def deliver(self, *, body: bytes = b"{}", redelivered: bool = False, **properties: Any) -> int:
        self.tag += 1
        fields = {"message_id": ID.format(self.tag), "headers": {}, "type": "event", **properties}
        consumer = self.transport.consumers.items[-1]
        consumer.sink.put(
            Delivery(
                body=body,
                properties=Properties(**fields),
                exchange="events",
                routing_key="quest.started",
                queue=consumer.queue,
                redelivered=redelivered,
                delivery_tag=self.tag,
                channel_generation=1,
                origin=None,
            )
        )
        return self.tag

    def deliver_reply(self, **options: Any) -> int:
        options = {"type": "service_message", "correlation_id": "journey-1", "app_id": "responder", **options}
        return self.deliver(**options)

    def moved_to(self) -> list[str]:
        return [outgoing.routing_key.removeprefix(f"{self.service}.") for outgoing in self.transport.published]

    def received(self, status: str) -> float:
        return self._sample("messages", type="receive", status=status)

    def counted(self, metric: str, queue: str = "quest.started") -> float:
        return self._sample(metric, queue=f"{self.service}.{queue}")

    def _sample(self, metric: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(f"message_hub_{metric}_total", {"service": self.service, **labels}) or 0.0


@pytest.fixture(autouse=True)
def _no_thread_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    made: list[Bench] = []
    init = Bench.__init__

    def remembered(self: Bench, *middleware: Middleware) -> None:
        init(self, *middleware)
        made.append(self)

    monkeypatch.setattr(Bench, "__init__", remembered)
    yield
    for bench in made:
        bench.requests.close(time.monotonic() + 5)
        bench.subscriptions.stop(time.monotonic() + 5)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("message-hub-handling")]


def records(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "message_hub_sync.subscription"]


# --- before the middleware -------------------------------------------------------------------------


# --- what is counted -------------------------------------------------------------------------------


def test_a_delivery_that_a_middleware_skips_is_counted_as_skipped_and_not_as_received() -> None:
    bench = Bench(Around(handle=lambda received, call_next: call_next() if received.headers else None))
    handled = Collector()
    bench.subscribe(lambda event: handled(event))
    skipped, run = bench.deliver(), bench.deliver(headers={"run": 1})

    assert bench.transport.settled.wait(2) == [skipped, run]
    assert len(handled.items) == 1
    assert bench.counted("skipped") == 1
    assert (bench.received("success"), bench.received("error")) == (1, 0)
    assert bench.transport.published == []


@pytest.mark.parametrize("middleware", [(), (Around(),)], ids=["without", "with"])
def test_a_duplicate_is_counted_as_such_and_neither_as_received_nor_as_skipped(
    middleware: tuple[Middleware, ...],
) -> None:
    bench = Bench(*middleware)
    handled = Collector()
    bench.subscribe(lambda event: handled(event), options=ConsumeOptions(deduplicate=MemoryDeduplication()))
    for _ in range(3):
        bench.deliver(message_id=ID.format(9))

    assert bench.transport.settled.wait(3) == [1, 2, 3]
    assert len(handled.items) == 1
    assert (bench.counted("duplicates"), bench.counted("skipped")) == (2, 0)
    assert (bench.received("success"), bench.received("error")) == (1, 0)


def test_a_delivery_that_a_middleware_skipped_is_no_duplicate_when_it_comes_again() -> None:
    bench = Bench(Around(handle=lambda received, call_next: call_next() if received.headers else None))
    handled = Collector()
    bench.subscribe(lambda event: handled(event), options=ConsumeOptions(deduplicate=MemoryDeduplication()))
    bench.deliver(message_id=ID.format(9))
    bench.deliver(message_id=ID.format(9), headers={"run": 1})

    bench.transport.settled.wait(2)
    assert len(handled.items) == 1
    assert bench.counted("duplicates") == 0


def test_a_delivery_whose_middleware_failed_after_its_handler_is_no_duplicate_when_it_comes_again() -> None:
    def fail_first(received: Received, call_next: Callable[[], Any]) -> Any:
        call_next()
        if received.attempt == 1:
            raise LookupError("the transaction failed")

    bench = Bench(Around(handle=fail_first))
    handled = Collector()
    bench.subscribe(lambda event: handled(event), options=ConsumeOptions(deduplicate=MemoryDeduplication()))
    bench.deliver(message_id=ID.format(9))
    bench.deliver(message_id=ID.format(9), headers={"x-attempts": 1})
    bench.deliver(message_id=ID.format(9), headers={"x-attempts": 1})

    bench.transport.settled.wait(3)
    assert len(handled.items) == 2
    assert bench.moved_to() == [RETRY]
    assert bench.counted("duplicates") == 1


def test_an_event_that_is_rejected_on_arrival_is_counted_also_if_there_is_no_dead_letter_queue() -> None:
    def reject(received: Received) -> None:
        raise MessageHubRejectError("no")

    bench = Bench(Around(reject))
    handled = Collector()
    bench.subscribe(lambda event: handled(event), durable=False)
    tag = bench.deliver()

    assert bench.transport.settled.wait() == [tag]
    bench.subscriptions.stop(time.monotonic() + 5)
    (queue,) = [consumed.name for consumed in event_queues(bench.config, ["quest.started"], durable=False)]
    assert bench.counted("dead_lettered", queue.removeprefix(f"{bench.service}.")) == 1
    assert (handled.items, bench.transport.published) == ([], [])


def test_a_bug_on_arrival_is_counted_as_a_failed_handler_which_is_not_run() -> None:
    def fail(received: Received) -> None:
        raise LookupError("a bug")

    bench = Bench(Around(fail))
    handled = Collector()
    bench.subscribe(lambda event: handled(event))
    bench.deliver()

    bench.transport.settled.wait()
    assert bench.moved_to() == [RETRY]
    assert bench.transport.published[0].properties.headers["x-attempts"] == 1
    assert (bench.received("success"), bench.received("error")) == (0, 1)
    assert handled.items == []


# --- what is logged --------------------------------------------------------------------------------


def test_a_decided_rejection_on_arrival_is_logged_once_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    def reject(received: Received) -> None:
        raise MessageHubRejectError("the tenant\nis not known")

    bench = Bench(Around(reject))
    bench.subscribe(lambda event: None)
    bench.deliver()
    bench.transport.settled.wait()

    (record,) = records(caplog)
    assert (record.levelno, record.exc_info) == (logging.ERROR, None)
    assert f"message {ID.format(1)} of {bench.service}.quest.started was rejected on arrival" in record.getMessage()
    assert f"moved to {bench.service}.quest.started.dead" in record.getMessage()
    assert record.getMessage().isprintable()


def test_a_bug_on_arrival_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    def fail(received: Received) -> None:
        raise LookupError("a bug")

    bench = Bench(Around(fail))
    bench.subscribe(lambda event: None)
    bench.deliver()
    bench.transport.settled.wait()

    (record,) = records(caplog)
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], LookupError)
    assert record.getMessage().startswith("a middleware")
    assert f"failed on message {ID.format(1)} of {bench.service}.quest.started" in record.getMessage()


def fail_before(received: Received, call_next: Callable[[], Any]) -> Any:
    raise LookupError("before")


def fail_after(received: Received, call_next: Callable[[], Any]) -> Any:
    call_next()
    raise LookupError("after")


def pass_on(received: Received, call_next: Callable[[], Any]) -> Any:
    return call_next()


@pytest.mark.parametrize(
    ("handle", "named"),
    [
        (fail_before, "a middleware"),
        (fail_after, "a middleware"),
        (pass_on, "handler failing"),
    ],
    ids=["before", "after", "handler"],
)
def test_the_log_names_what_has_failed(caplog: pytest.LogCaptureFixture, handle: Handle, named: str) -> None:
    def failing(event: str) -> None:
        if handle is pass_on:
            raise ValueError("no")

    failing.__qualname__ = "failing"
    bench = Bench(Around(handle=handle))
    bench.subscribe(failing)
    bench.deliver()
    bench.transport.settled.wait()

    (record,) = records(caplog)
    assert record.getMessage().startswith(named)
    assert ("middleware" in record.getMessage()) == (handle is not pass_on)
    assert record.exc_info is not None


@pytest.mark.parametrize("decision", [MessageHubRejectError("not for us"), MessageHubRetryError("busy", delay=1)])
def test_what_a_handle_decides_is_logged_without_a_traceback(
    caplog: pytest.LogCaptureFixture, decision: Exception
) -> None:
    def decide(received: Received, call_next: Callable[[], Any]) -> Any:
        call_next()
        raise decision

    bench = Bench(Around(handle=decide))
    bench.subscribe(lambda event: None)
    bench.deliver()
    bench.transport.settled.wait()

    (record,) = records(caplog)
    assert record.exc_info is None
    assert str(decision.args[0]) in record.getMessage()


# --- methods that do not wait ----------------------------------------------------------------------


async def coroutine() -> None: ...


def generator() -> Iterator[None]:
    yield


async def async_generator() -> AsyncIterator[None]:
    yield


def call_and_return(result: Callable[[], Any]) -> Handle:
    def handle(received: Received, call_next: Callable[[], Any]) -> Any:
        call_next()
        return result()

    return handle


@pytest.mark.parametrize("result", [coroutine, generator, async_generator])
@pytest.mark.parametrize(
    ("around", "runs"),
    [
        (lambda result: Around(lambda received: result()), 0),
        (lambda result: Around(handle=lambda received, call_next: result()), 0),
        (lambda result: Around(handle=call_and_return(result)), 1),
    ],
    ids=["arrived", "handle", "handle after call_next"],
)
def test_a_method_whose_result_has_not_run_loses_no_message(
    result: Callable[[], Any], around: Callable[[Callable[[], Any]], Middleware], runs: int
) -> None:
    bench = Bench(around(result))
    handled = Collector()
    bench.subscribe(lambda event: handled(event))
    bench.deliver()
    bench.deliver(headers={"x-attempts": 3})
    bench.transport.settled.wait(2)

    assert bench.moved_to() == [RETRY, "quest.started.dead"]
    assert {one.properties.headers["x-error-type"] for one in bench.transport.published} == {
        "MessageHubConfigurationError"
    }
    assert all(
        "must do its work before it returns" in one.properties.headers["x-error-message"]
        for one in bench.transport.published
    )
    assert len(handled.items) == 2 * runs
    assert (bench.received("success"), bench.counted("skipped")) == (0, 0)


@pytest.mark.parametrize("result", [False, True, 0, "no"])
def test_an_arrived_that_returns_a_decision_instead_of_raising_it_has_no_message_handled(result: Any) -> None:
    bench = Bench(Around(lambda received: result))
    handled = Collector()
    bench.subscribe(lambda event: handled(event))
    bench.deliver(headers={"x-attempts": 3})
    bench.transport.settled.wait()

    assert bench.moved_to() == ["quest.started.dead"]
    assert "Around.arrived must return None, not" in bench.transport.published[0].properties.headers["x-error-message"]
    assert handled.items == []


def test_call_next_in_a_thread_that_handle_does_not_wait_for_has_the_message_retried() -> None:
    inside, go_on, ended = threading.Event(), threading.Event(), Collector()

    def do_not_wait(received: Received, call_next: Callable[[], Any]) -> Any:
        def run() -> None:
            call_next()
            ended("ended")

        threading.Thread(target=run).start()
        assert inside.wait(30)

    def slow(event: str) -> None:
        inside.set()
        assert go_on.wait(30)

    bench = Bench(Around(handle=do_not_wait))
    bench.subscribe(slow)
    bench.deliver()
    bench.transport.settled.wait()

    assert bench.moved_to() == [RETRY]
    assert "must return after its call_next" in bench.transport.published[0].properties.headers["x-error-message"]
    assert bench.received("success") == 0
    go_on.set()
    ended.wait()


def test_call_next_in_a_thread_that_handle_waits_for_handles_the_message() -> None:
    def wait(received: Received, call_next: Callable[[], Any]) -> Any:
        thread = threading.Thread(target=call_next)
        thread.start()
        thread.join(30)

    bench = Bench(Around(handle=wait))
    handled = Collector()
    bench.subscribe(lambda event: handled(event))
    tag = bench.deliver()
    assert bench.transport.settled.wait() == [tag]
    assert len(handled.items) == 1
    assert bench.moved_to() == []


def test_a_handle_that_hides_the_error_of_the_handler_has_handled_the_message() -> None:
    def hide(received: Received, call_next: Callable[[], Any]) -> Any:
        with contextlib.suppress(ValueError):
            call_next()

    def fail(event: str) -> None:
        raise ValueError("no")

    bench = Bench(Around(handle=hide))
    bench.subscribe(fail)
    tag = bench.deliver()
    assert bench.transport.settled.wait() == [tag]
    assert bench.moved_to() == []
    assert bench.counted("skipped") == 0


def hide_and_raise(received: Received, call_next: Callable[[], Any]) -> Any:
    with contextlib.suppress(ValueError):
        call_next()
    raise LookupError


def deliveries_alive() -> list[Any]:
    return [one for one in gc.get_objects() if isinstance(one, (DecodedDelivery, Received))]


@pytest.mark.parametrize("handle", [pass_on, hide_and_raise])
def test_a_handler_that_failed_keeps_no_delivery_until_the_garbage_is_collected(handle: Handle) -> None:
    def run() -> None:
        raise ValueError("no")

    middleware = HandlerMiddleware([Around(handle=handle), Around(handle=pass_on)])
    gc.collect()
    # The errors of other tests, which are parameters, keep theirs.
    others = set(map(id, deliveries_alive()))
    gc.disable()
    try:
        for _ in range(50):
            properties = Properties(message_id=ID.format(1))
            delivery = Delivery(b"{}", properties, "", "", "image-service.messages", False, 1, 1, None)
            with contextlib.suppress(ValueError, LookupError):
                middleware.handle(DecodedDelivery(delivery, "message", "image-service", 100), run)
        kept = [one for one in deliveries_alive() if id(one) not in others]
    finally:
        gc.enable()
    assert kept == []


# --- replies ---------------------------------------------------------------------------------------


def test_inside_arrived_of_a_reply_the_correlation_id_is_that_of_the_reply() -> None:
    seen = Collector()
    bench = Bench(Around(lambda received: seen((received.kind, current_correlation_id()))))
    bench.ask()
    bench.deliver_reply()
    bench.transport.settled.wait()

    assert seen.items == [("reply", "journey-1")]
    assert isinstance(bench.answers.wait()[0], Message)


@pytest.mark.parametrize(
    ("error", "traceback"),
    [
        (MessageHubRejectError("forged\nforged"), False),
        (LookupError("a bug"), True),
        (SystemExit(3), True),
        (KeyboardInterrupt(), True),
    ],
    ids=["decided", "bug", "exit", "interrupt"],
)
def test_a_reply_that_is_rejected_on_arrival_is_counted_and_the_next_one_is_taken(
    caplog: pytest.LogCaptureFixture, error: BaseException, traceback: bool
) -> None:
    def reject(received: Received) -> None:
        if received.body != b"{}":
            raise error

    bench = Bench(Around(reject))
    bench.ask()
    rejected = bench.deliver_reply(body=b'{"forged":1}')
    answered = bench.deliver_reply()

    assert bench.transport.settled.wait(2) == [rejected, answered]
    assert bench.answers.wait()[0].payload == {}
    assert bench.counted("dead_lettered", "replies") == 1
    (record,) = [record for record in caplog.records if "was rejected on arrival" in record.getMessage()]
    assert record.getMessage().startswith(f"reply {ID.format(1)} was rejected on arrival and is dropped: ")
    assert record.getMessage().isprintable()
    assert record.levelno == logging.ERROR
    assert (record.exc_info is not None) is traceback


@pytest.mark.parametrize("result", [coroutine, generator, async_generator])
def test_an_arrived_whose_result_has_not_run_lets_no_reply_through(
    caplog: pytest.LogCaptureFixture, result: Callable[[], Any]
) -> None:
    bench = Bench(Around(lambda received: result() if received.body != b"{}" else None))
    bench.ask()
    bench.deliver_reply(body=b'{"unchecked":1}')
    bench.deliver_reply()

    assert bench.answers.wait()[0].payload == {}
    (record,) = [record for record in caplog.records if "was rejected on arrival" in record.getMessage()]
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], MessageHubConfigurationError)
