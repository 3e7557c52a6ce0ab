"""Consuming, played by hand: what is settled when, and what a failed move leaves behind."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from collector import Collector
from consuming_bench import ID, Bench
from mailing import mailing
from scripted_transport import ScriptedConsumer, Step
from waiting import eventually

from message_hub_sync.client.health import health_status
from message_hub_sync.config import CircuitBreakerConfig
from message_hub_sync.consuming import republishing, unprocessed
from message_hub_sync.consuming.consumed_queue import ConsumeOptions, event_queues
from message_hub_sync.consuming.delivery_in_progress import DeliveryInProgress
from message_hub_sync.consuming.delivery_processor import DeliveryProcessor
from message_hub_sync.consuming.handlers import handler_for
from message_hub_sync.consuming.queue_consumer import QueueConsumer
from message_hub_sync.consuming.republishing import FIRST_PAUSE
from message_hub_sync.consuming.subscription import Subscription
from message_hub_sync.errors import (
    MessageHubAuthorizationError,
    MessageHubConnectionError,
    MessageHubError,
    MessageHubRejectError,
    MessageHubRetryError,
    MessageValidationError,
)
from message_hub_sync.metrics import ServiceMetrics
from message_hub_sync.publishing.circuit_breaker import CircuitBreakers
from message_hub_sync.runtime import process_kind
from message_hub_sync.transport.base import Delivery, Outgoing, PublishResult, Receipt
from message_hub_sync.transport.topology import QueueSpec, Topology


def fail(event: str) -> None:
    raise ValueError("always")


def _broken(metrics: ServiceMetrics, queue: str) -> None:
    raise OSError("no space left on device")


def moved_to(bench: Bench) -> list[str]:
    return [outgoing.routing_key for outgoing in bench.transport.published]


def test_a_delivery_is_settled_after_its_handler_not_before() -> None:
    bench = Bench()
    inside, go_on = threading.Event(), threading.Event()

    def handle(event: str) -> None:
        inside.set()
        go_on.wait(30)

    bench.subscribe(handle)
    tag = bench.deliver()
    assert inside.wait(30)
    assert bench.transport.settled.items == []

    go_on.set()

    assert bench.transport.settled.wait() == [tag]


def test_a_failed_message_is_settled_only_when_the_broker_has_its_retry() -> None:
    bench = Bench(None)
    bench.subscribe(fail)
    tag = bench.deliver()
    assert eventually(lambda: moved_to(bench) == ["image-service.quest.started.retry.1000"])
    assert bench.transport.settled.stays(0) == []

    bench.transport.receipts[0].resolve(PublishResult.CONFIRMED)

    assert bench.transport.settled.wait() == [tag]
    assert len(bench.transport.published) == 1


@pytest.mark.parametrize(
    "step",
    [
        PublishResult.NACKED,
        PublishResult.LOST,
        PublishResult.NOT_WRITTEN,
        MessageHubConnectionError("down"),
        OSError("a bug"),
    ],
)
def test_a_move_that_fails_is_repeated_without_running_the_handler_again(step: Step) -> None:
    bench = Bench(step, step)
    ran = Collector()

    def handle(event: str) -> None:
        ran(event)
        raise ValueError("always")

    bench.subscribe(handle)
    tag = bench.deliver()

    assert bench.transport.settled.wait() == [tag]
    assert len(ran.items) == 1
    assert len(bench.transport.published) == 3


def test_a_missing_retry_queue_is_declared_and_the_move_repeated_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(republishing, "FIRST_PAUSE", 600)
    bench = Bench(PublishResult.RETURNED)
    bench.subscribe(fail)
    bench.deliver()

    bench.transport.settled.wait()

    assert ("declare_queue", "image-service.quest.started.retry.1000") in bench.transport.log
    assert all(outgoing.mandatory for outgoing in bench.transport.published)


@pytest.mark.parametrize("result", [PublishResult.CHANNEL_ERROR_SHARED, PublishResult.CHANNEL_ERROR])
def test_a_channel_closed_under_a_move_has_it_repeated_alone(result: PublishResult) -> None:
    bench = Bench((result, "404", 404))
    bench.subscribe(fail)
    bench.deliver()

    bench.transport.settled.wait()

    assert [name for name in bench.transport.asked() if name != "on_connected"] == ["publish", "own channel"]


def test_a_move_that_cannot_be_encoded_ends_in_the_dead_letters_with_what_can_be() -> None:
    bench = Bench(MessageValidationError("properties and headers do not fit into a frame"))
    bench.subscribe(fail)
    tag = bench.deliver(
        headers={"source": "elsewhere", "note": "n" * 3_000}, correlation_id="c" * 256, app_id="\u00e9" * 200
    )

    assert bench.transport.settled.wait() == [tag]

    retried, given_up = bench.transport.published
    assert retried.routing_key == "image-service.quest.started.retry.1000"
    assert given_up.routing_key == "image-service.quest.started.dead"
    properties = given_up.properties
    assert properties.message_id == ID.format(tag)
    assert properties.correlation_id == "c" * 128
    assert properties.app_id == "\u00e9" * 64
    assert properties.headers["source"] == "elsewhere"
    assert properties.headers["x-error-type"] == "ValueError"
    assert properties.headers["x-reason"] == "it cannot be moved as it is"
    assert properties.headers["x-left-out"] == "properties and headers do not fit into a frame"
    assert "note" not in properties.headers


def test_a_move_that_cannot_be_encoded_even_so_is_tried_again_later() -> None:
    bench = Bench(*[MessageValidationError("no")] * 3)
    bench.subscribe(fail)
    tag = bench.deliver()

    assert bench.transport.settled.wait() == [tag]

    assert len(bench.transport.published) == 4


def test_a_move_whose_channel_has_gone_is_not_repeated_for_its_message_comes_again() -> None:
    bench = Bench(PublishResult.NACKED, PublishResult.NACKED)
    bench.subscribe(fail)
    gone, stays = bench.deliver(), bench.deliver()
    assert eventually(lambda: len(bench.transport.published) == 2)

    bench.transport.consumers[-1].lost.add(gone)

    assert bench.transport.settled.stays(1, seconds=2 * FIRST_PAUSE) == [stays]
    assert [outgoing.properties.message_id for outgoing in bench.transport.published[2:]] == [ID.format(stays)]


class Undeclarable(Bench):
    """Nothing can be moved until somebody grants the permission to declare where to."""

    def __init__(self) -> None:
        super().__init__()
        self.granted = False
        self.there: set[str] = set()
        self.declared: list[float] = []
        self.transport.declare_queue = self._declare_queue  # type: ignore[method-assign]
        self.transport.publish = self._publish  # type: ignore[method-assign]

    def _declare_queue(self, queue: QueueSpec, deadline: float) -> None:
        self.declared.append(time.monotonic())
        if not self.granted:
            raise MessageHubAuthorizationError(f"declaring the queue {queue.name!r}: 403")
        self.there.add(queue.name)

    def _publish(
        self, outgoing: Outgoing, deadline: float, *, own_channel: bool = False, together: bool = False
    ) -> Receipt:
        receipt = Receipt()
        receipt.resolve(PublishResult.CONFIRMED if outgoing.routing_key in self.there else PublishResult.RETURNED)
        return receipt


def test_a_queue_that_cannot_be_declared_is_tried_ever_more_rarely_however_many_messages_wait_for_it() -> None:
    bench = Undeclarable()
    subscription = bench.subscribe(fail)
    tags = [bench.deliver(message_id=str(uuid4())) for _ in range(20)]
    assert eventually(lambda: len(bench.declared) == 3)
    assert bench.declared[1] - bench.declared[0] >= FIRST_PAUSE
    assert bench.declared[2] - bench.declared[1] >= 2 * FIRST_PAUSE

    health = health_status("me", bench.transport, _breakers(), bench.subscriptions, closed=False)
    (queue,) = subscription.queues
    assert health["queues"][queue]["error"] == (
        f"20 messages cannot be moved to {queue}.retry.1000: declaring the queue '{queue}.retry.1000': 403"
    )
    assert health["status"] == "degraded"

    bench.granted = True
    assert bench.transport.settled.wait(20) == tags
    assert len(bench.declared) == 4, "once for all of them"
    health = health_status("me", bench.transport, _breakers(), bench.subscriptions, closed=False)
    assert health["queues"][queue]["error"] is None


def _breakers() -> CircuitBreakers:
    return CircuitBreakers(CircuitBreakerConfig(), "me")


def test_others_are_handled_while_moves_are_stuck_and_the_log_names_each_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench()
    handled, up, publish = Collector(), threading.Event(), bench.transport.publish

    def not_yet(outgoing: Outgoing, deadline: float, *, own_channel: bool = False, together: bool = False) -> Receipt:
        if not up.is_set():
            raise MessageHubConnectionError("down")
        return publish(outgoing, deadline, own_channel=own_channel)

    bench.transport.publish = not_yet  # type: ignore[method-assign]

    def handle(event: str, envelope: Any) -> None:
        if "fails" in envelope.headers:
            raise ValueError("always")
        handled(envelope.id)

    bench.subscribe(handle)
    for _ in range(2):
        bench.deliver(headers={"fails": 1})
    for _ in range(3):
        bench.deliver()

    handled.wait(3)
    assert len(bench.transport.settled.wait(3)) == 3
    up.set()
    bench.transport.settled.wait(5)
    moves = [record for record in caplog.records if "could not be moved" in record.getMessage()]
    assert [record.levelno for record in moves if record.levelno >= logging.WARNING] == [logging.WARNING] * 2


def test_a_delivery_taken_while_its_subscription_is_cancelled_is_not_settled_unhandled() -> None:
    bench = Bench()
    handled = Collector()
    subscription = bench.subscribe(handled)
    (consumer,) = bench.subscriptions.consumers()
    refuse = consumer.refuse

    def late() -> None:
        refuse()
        bench.deliver()

    consumer.refuse = late  # type: ignore[method-assign]

    subscription.cancel()

    assert handled.items == bench.transport.settled.items == []


def test_a_delivery_that_waits_when_its_subscription_is_cancelled_is_not_handled() -> None:
    bench = Bench()
    inside, go_on = threading.Event(), threading.Event()
    handled = Collector()

    def handle(event: str, envelope: Any) -> None:
        handled(envelope.id)
        inside.set()
        go_on.wait(20)

    subscription = bench.subscribe(handle)
    bench.deliver()
    bench.deliver()
    assert inside.wait(20)
    threading.Timer(0.2, go_on.set).start()

    subscription.cancel(20)

    assert len(handled.items) == len(bench.transport.settled.items) == 1


class TwoQueues(Bench):
    """One subscription to two queues; the broker does not answer the cancel of the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.told, self.answer = threading.Event(), threading.Event()
        self.handled = Collector()
        consumed = event_queues(self.config, ["quest.started", "quest.ended"], durable=True)
        handler = handler_for(self.handled, "event")
        self.subscription = Subscription(lambda: self.subscriptions, self.config, consumed, handler, ConsumeOptions())
        self.subscription.start()
        self.transport.consumers[0].cancel = self._silent  # type: ignore[method-assign]

    def _silent(self, deadline: float) -> None:
        self.told.set()
        self.answer.wait(20)


@pytest.mark.parametrize("close", [True, False])
def test_no_handler_begins_while_another_queue_does_not_answer_the_cancel(close: bool) -> None:
    bench = TwoQueues()
    stop = (
        (lambda: bench.subscriptions.stop(time.monotonic() + 20)) if close else (lambda: bench.subscription.cancel(20))
    )
    stopping = threading.Thread(target=stop)
    stopping.start()
    assert bench.told.wait(20)

    bench.deliver()

    bench.handled.stays(0, 0.3)
    bench.answer.set()
    stopping.join(20)
    assert not stopping.is_alive()


def test_a_second_start_at_the_same_time_waits_for_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    subscription = bench.subscribe(lambda event: None)
    subscription.cancel()
    inside, go_on = threading.Event(), threading.Event()
    whole = bench.transport.consume

    def slow(topology: Topology, *, prefetch: int, deadline: float) -> ScriptedConsumer:
        inside.set()
        go_on.wait(20)
        return whole(topology, prefetch=prefetch, deadline=deadline)

    monkeypatch.setattr(bench.transport, "consume", slow)
    active = Collector()

    def start() -> None:
        subscription.start()
        active(subscription.active)

    threads = [threading.Thread(target=start) for _ in range(2)]
    threads[0].start()
    assert inside.wait(20)
    threads[1].start()
    active.stays(0, 0.2)
    go_on.set()

    assert active.wait(2, 20) == [True, True]


def test_a_stop_that_begins_after_the_last_handler_names_none_as_running(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.subscribe(lambda event: None)
    bench.deliver()
    bench.transport.settled.wait()

    bench.subscriptions.stop(time.monotonic() + 20)

    assert "still ran" not in caplog.text


def test_a_queue_is_active_in_health_although_another_one_of_its_subscription_is_not() -> None:
    bench = TwoQueues()
    bench.answer.set()
    bench.transport.consumers[1].closed = True

    health = health_status("me", bench.transport, _breakers(), bench.subscriptions, closed=False)

    active = {queue: state["active"] for queue, state in health["queues"].items()}
    assert active == {"image-service.quest.started": True, "image-service.quest.ended": False}
    assert not bench.subscription.active


def test_a_confirm_that_only_takes_long_is_no_warning_and_leaves_health_as_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(None)
    bench.subscribe(fail)
    tag = bench.deliver()
    bench.transport.settled.stays(0, 1.2)

    assert "could not be moved" not in caplog.text
    (consumer,) = bench.subscriptions.consumers()
    assert consumer.error is None
    bench.transport.receipts[0].resolve(PublishResult.CONFIRMED)
    assert bench.transport.settled.wait(1, 20) == [tag]


def test_a_move_whose_message_went_back_to_its_queue_is_given_up() -> None:
    bench = Bench(MessageHubConnectionError("down"))
    handled = Collector()

    def handle(event: str, envelope: Any) -> None:
        handled(envelope.redelivered)
        if not envelope.redelivered:
            raise ValueError("once")

    bench.subscribe(handle)
    first = bench.deliver(origin="the first channel")
    handled.wait()

    bench.transport.consumers[-1].lost.add(first)
    last = bench.deliver(redelivered=True, origin="the second channel")

    assert bench.transport.settled.wait() == [last]
    bench.transport.settled.stays(1, 2 * FIRST_PAUSE)
    assert [name for name in moved_to(bench) if ".retry." in name] == ["image-service.quest.started.retry.1000"]


def test_a_message_that_cannot_be_moved_yet_forges_no_log_line(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(MessageHubConnectionError("down"))
    bench.subscribe(fail)

    bench.deliver(message_id="x\r\nERROR all is lost \x1b[31m")

    bench.transport.settled.wait()
    assert any("could not be moved" in record.getMessage() for record in caplog.records)
    assert all(record.getMessage().isprintable() for record in caplog.records)


def test_a_moved_message_whose_count_fails_is_not_moved_again(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(MessageHubConnectionError("down"))
    monkeypatch.setattr(ServiceMetrics, "retried", _broken)
    handled = Collector()

    def handle(event: str, envelope: Any) -> None:
        handled(envelope.id)
        if "fails" in envelope.headers:
            raise ValueError("always")

    bench.subscribe(handle)
    bench.deliver(headers={"fails": 1})
    bench.transport.settled.wait()

    bench.deliver()

    handled.wait(2)
    assert len(bench.transport.published) == 2


def test_a_second_worker_that_cannot_start_takes_the_first_one_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    start = threading.Thread.start

    def only_one(thread: threading.Thread) -> None:
        if thread.name.endswith("-2"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", only_one)
    with pytest.raises(MessageHubConnectionError, match="can't start new thread"):
        bench.subscribe(fail, options=ConsumeOptions(workers=2))

    assert bench.subscriptions.consumers() == []
    assert bench.transport.consumers[-1].closed


def test_a_start_that_is_interrupted_leaves_the_queue_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    inside, go_on = threading.Event(), threading.Event()
    whole, start = bench.transport.consume, QueueConsumer.start_all
    starts, ended = Collector(), Collector()

    def interrupted(topology: Topology, *, prefetch: int, deadline: float) -> ScriptedConsumer:
        monkeypatch.setattr(bench.transport, "consume", whole)
        inside.set()
        go_on.wait(30)
        raise KeyboardInterrupt

    def subscribe() -> None:
        try:
            bench.subscribe(fail)
            ended(None)
        except BaseException as error:
            ended(type(error))

    def announced(consumers: list[QueueConsumer], deadline: float) -> None:
        starts(consumers)
        start(consumers, deadline)

    monkeypatch.setattr(bench.transport, "consume", interrupted)
    monkeypatch.setattr(QueueConsumer, "start_all", staticmethod(announced))
    threading.Thread(target=subscribe).start()
    assert inside.wait(30)
    threading.Thread(target=subscribe).start()
    starts.wait(2)

    go_on.set()

    assert set(ended.wait(2)) == {None, KeyboardInterrupt}
    assert [consumer.active for consumer in bench.subscriptions.consumers()] == [True]


def test_a_redelivered_event_of_a_passing_subscription_is_handled() -> None:
    bench = Bench()
    handled = Collector()
    bench.subscribe(handled, durable=False)

    bench.deliver(redelivered=True)

    handled.wait()


def test_a_store_that_raises_has_the_message_retried_not_dropped() -> None:
    class Broken:
        def __contains__(self, key: str) -> bool:
            raise ConnectionError("the store is down")

        def add(self, key: str) -> None: ...

    bench = Bench()
    handled = Collector()
    bench.subscribe(handled, options=ConsumeOptions(deduplicate=Broken()))

    bench.deliver()

    bench.transport.settled.wait()
    assert moved_to(bench) == ["image-service.quest.started.retry.1000"]
    assert handled.items == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError, RecursionError])
def test_no_exception_ends_a_worker(error: type[BaseException]) -> None:
    bench = Bench()

    def handle(event: str, envelope: Any) -> None:
        if "fails" in envelope.headers:
            raise error

    bench.subscribe(handle)
    bench.deliver(headers={"fails": 1})
    last = bench.deliver()

    assert last in bench.transport.settled.wait(2)


def test_a_fault_of_the_transport_does_not_end_a_worker_either(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.subscribe(lambda event: None)
    settled = Collector()

    def ack(delivery: Delivery) -> None:
        settled(delivery.delivery_tag)
        if delivery.delivery_tag == 1:
            raise RuntimeError("a bug")

    bench.transport.consumers[-1].ack = ack  # type: ignore[method-assign]
    bench.deliver()
    bench.deliver()

    assert settled.wait(2) == [1, 2]
    assert "stays unacked" in caplog.text


def test_a_logging_handler_that_raises_keeps_no_message_unsettled() -> None:
    bench = Bench(PublishResult.NACKED)
    bench.subscribe(fail)
    with mailing():
        tags = [bench.deliver(), bench.deliver(message_id="no UUID"), bench.deliver(redelivered=True)]
        last = bench.deliver(redelivered=True)

        assert sorted(bench.transport.settled.wait(4)) == [*tags, last]


def test_a_logging_handler_that_raises_ends_no_worker_whose_move_fails() -> None:
    bench = Bench(RuntimeError("a bug"), RuntimeError("a bug"))
    bench.subscribe(fail)
    with mailing():
        first = bench.deliver()

        assert bench.transport.settled.wait() == [first]  # the worker's third try, with no delivery to wake it


@pytest.mark.parametrize(
    ("decision", "text"),
    [
        (MessageHubRetryError("the press is busy", delay=5), "again in 5 s: the press is busy"),
        (MessageHubRejectError("not for us"), "moved to image-service.quest.started.dead, not for us"),
    ],
)
def test_what_a_handler_decides_is_logged_with_its_reason_and_without_a_traceback(
    caplog: pytest.LogCaptureFixture, decision: MessageHubError, text: str
) -> None:
    def decide(event: Any) -> None:
        raise decision

    bench = Bench()
    bench.subscribe(decide)
    bench.deliver()
    bench.transport.settled.wait()

    (record,) = [record for record in caplog.records if record.name == "message_hub_sync.subscription"]
    assert record.exc_info is None
    assert text in record.getMessage()


def test_a_failure_is_logged_once_with_its_traceback_and_correlation(caplog: pytest.LogCaptureFixture) -> None:
    from message_hub_sync.envelope.correlation import CorrelationFilter

    bench = Bench()
    caplog.handler.addFilter(CorrelationFilter())
    bench.subscribe(fail)
    bench.deliver(correlation_id="journey-1")
    bench.transport.settled.wait()

    (record,) = [record for record in caplog.records if record.name == "message_hub_sync.subscription"]
    assert record.levelno == logging.WARNING
    assert record.exc_info is not None
    assert record.correlation_id == "journey-1"  # type: ignore[attr-defined]
    assert "attempt 1 of 4, again in 1 s" in record.getMessage()


def test_only_the_first_and_the_last_failure_of_a_message_bear_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.subscribe(fail)
    for attempts in range(4):
        bench.deliver(headers={"x-attempts": attempts})
    bench.transport.settled.wait(4)

    records = [record for record in caplog.records if record.name == "message_hub_sync.subscription"]
    assert [record.exc_info is not None for record in records] == [True, False, False, True]
    assert records[1].getMessage().endswith("attempt 2 of 4, again in 5 s: ValueError: always")


class UnreadableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("it has no text")


def test_an_error_without_a_text_is_retried_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    def handle(event: str) -> None:
        raise UnreadableError

    bench = Bench()
    bench.subscribe(handle)
    bench.deliver(headers={"x-attempts": 1})
    bench.transport.settled.wait()

    assert "again in 5 s: UnreadableError" in caplog.text


def test_the_parent_of_a_reloader_stays_inactive(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("message_hub_sync.consuming.subscription.reloader_parent", lambda: "django")
    bench = Bench()

    with caplog.at_level(logging.INFO):
        subscription = bench.subscribe(lambda event: None)

    assert not subscription.active
    assert bench.transport.consumers == []
    assert "parent of the django reloader" in caplog.text


def test_a_process_that_becomes_a_reloaders_parent_consumes_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    handled = Collector()
    subscription = bench.subscribe(handled)
    (worker,) = [t for t in threading.enumerate() if t.name.startswith("message-hub-image-service")]
    monkeypatch.setattr("message_hub_sync.consuming.queue_consumer.became_reloader_parent", lambda: True)

    bench.deliver()

    worker.join(30)
    assert bench.transport.consumers[-1].closed
    assert handled.items == []
    assert bench.transport.settled.items == []
    assert not subscription.active


def test_concurrent_subscriptions_to_one_queue_share_one_consumer() -> None:
    bench = Bench()
    together = threading.Barrier(8)

    def subscribe() -> None:
        together.wait(30)
        bench.subscribe(lambda event: None)

    threads = [threading.Thread(target=subscribe) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert len(bench.transport.consumers) == 1
    assert len(bench.subscriptions.running()) == 8


def test_a_failed_start_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    works = bench.transport.consume
    monkeypatch.setattr(bench.transport, "consume", _down)
    with pytest.raises(MessageHubConnectionError):
        bench.subscribe(lambda event: None)
    assert bench.subscriptions.known() == []

    monkeypatch.setattr(bench.transport, "consume", works)

    assert bench.subscribe(lambda event: None).active


def _down(topology: Topology, *, prefetch: int, deadline: float) -> ScriptedConsumer:
    raise MessageHubConnectionError("no connection to the hub in time")


def test_cancelling_leaves_no_thread_and_nothing_to_remember() -> None:
    bench = Bench()
    for _ in range(20):
        bench.subscribe(lambda event: None).cancel()

    assert bench.subscriptions.known() == []
    assert bench.subscriptions.consumers() == []
    assert all(consumer.closed for consumer in bench.transport.consumers)
    assert not [t for t in threading.enumerate() if t.name.startswith("message-hub-image-service")]


# --- which process is a reloader's parent ---------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "environ", "modules", "expected"),
    [
        (["manage.py", "runserver"], {}, ["django"], "django"),
        (["manage.py", "runserver", "8001"], {"RUN_MAIN": "true"}, ["django"], None),
        (["manage.py", "runserver", "--noreload"], {}, ["django"], None),
        (["manage.py", "migrate"], {}, ["django"], None),
        (["worker.py", "runserver"], {}, [], None),
        (["flask", "run", "--debug"], {"FLASK_RUN_FROM_CLI": "true"}, [], "flask"),
        (["flask", "--debug", "run"], {"FLASK_RUN_FROM_CLI": "true"}, [], "flask"),
        (["flask", "run"], {"FLASK_RUN_FROM_CLI": "true", "FLASK_DEBUG": "1"}, [], "flask"),
        (["flask", "run", "--reload"], {"FLASK_RUN_FROM_CLI": "true"}, [], "flask"),
        (["flask", "run", "--debug", "--no-reload"], {"FLASK_RUN_FROM_CLI": "true"}, [], None),
        (["flask", "run"], {"FLASK_RUN_FROM_CLI": "true"}, [], None),
        (["flask", "run"], {"FLASK_RUN_FROM_CLI": "true", "FLASK_RUN_RELOAD": "1"}, [], "flask"),
        (["flask", "shell"], {"FLASK_RUN_FROM_CLI": "true", "FLASK_DEBUG": "1"}, [], None),
        (["flask", "run", "--debug"], {"FLASK_RUN_FROM_CLI": "true", "WERKZEUG_RUN_MAIN": "true"}, [], None),
        (["app.py"], {}, ["werkzeug._reloader"], "werkzeug"),
        (["app.py"], {"WERKZEUG_RUN_MAIN": "true"}, ["werkzeug._reloader"], None),
        (["gunicorn", "app:app"], {"FLASK_DEBUG": "1"}, ["django"], None),
    ],
)
def test_a_reloaders_parent_is_recognised(
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
    environ: dict[str, str],
    modules: list[str],
    expected: str | None,
) -> None:
    import sys
    import types

    for name in ("FLASK_RUN_FROM_CLI", "FLASK_DEBUG", "FLASK_RUN_RELOAD", "RUN_MAIN", "WERKZEUG_RUN_MAIN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    for name in ("django", "werkzeug._reloader"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in modules:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(sys, "argv", argv)

    assert process_kind.reloader_parent() == expected


def test_refusing_takes_no_new_subscription() -> None:
    bench = Bench()
    bench.subscriptions.stop_accepting()

    with pytest.raises(MessageHubError, match="closed"):
        bench.subscribe(lambda event: None)


# --- what cannot be processed ----------------------------------------------------------------------


class Unprocessable(Bench):
    """Something fails where nothing is expected to fail, for the first deliveries."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, failures: int) -> None:
        super().__init__()
        self.given_back, self.ran = Collector(), Collector()
        self.left = failures
        if name == "metrics":
            self._replace(monkeypatch, ServiceMetrics, "count")
        elif name == "decoding":
            self._replace(monkeypatch, DeliveryInProgress, "__init__")
        elif name == "acknowledging":
            self._replace(monkeypatch, DeliveryInProgress, "ack")
        else:
            self._replace(monkeypatch, DeliveryProcessor, "_retry_or_dead_letter")

    def _replace(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        whole = getattr(owner, name)

        def broken(*arguments: Any, **named: Any) -> Any:
            if self.left:
                self.left -= 1
                raise OSError("no space left on device")
            return whole(*arguments, **named)

        monkeypatch.setattr(owner, name, broken)

    def handle(self, event: str, envelope: Any) -> None:
        self.ran(envelope.id)
        if "fails" in envelope.headers:
            raise ValueError("always")

    def begin(self, workers: int = 1) -> Subscription:
        subscription = self.subscribe(self.handle, options=ConsumeOptions(workers=workers))
        self.transport.consumers[-1].requeue = lambda delivery: self.given_back(  # type: ignore[method-assign]
            delivery.delivery_tag
        )
        return subscription


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("name", ["metrics", "decoding", "acknowledging", "moving"])
def test_a_delivery_that_cannot_be_processed_is_given_back_and_health_shows_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, workers: int
) -> None:
    monkeypatch.setattr(unprocessed, "FIRST_PAUSE", 0.2)
    bench = Unprocessable(monkeypatch, name, failures=1)
    subscription = bench.begin(workers)
    (queue,) = subscription.queues

    tag = bench.deliver(headers={"fails": 1} if name == "moving" else {})

    assert eventually(lambda: "could not be processed" in caplog.text, 60)
    health = health_status("me", bench.transport, _breakers(), bench.subscriptions, closed=False)
    assert "cannot be processed (OSError)" in health["queues"][queue]["error"]
    assert health["status"] == "degraded"
    assert bench.given_back.wait(1, 60) == [tag]
    # What comes next is processed, and health is well again.
    last = bench.deliver()
    assert last in bench.transport.settled.wait(1, 60)
    (consumer,) = bench.subscriptions.consumers()
    assert eventually(lambda: consumer.error is None, 60)


def test_what_never_can_be_processed_is_given_back_ever_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unprocessed, "FIRST_PAUSE", 0.1)
    bench = Unprocessable(monkeypatch, "decoding", failures=4)
    bench.begin()
    began = time.monotonic()
    for number in range(1, 4):
        bench.deliver(message_id=ID.format(1))
        bench.given_back.wait(number, 60)

    assert time.monotonic() - began >= 0.1 + 0.2 + 0.4


def test_what_waits_to_be_given_back_does_not_hold_up_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unprocessed, "FIRST_PAUSE", 600.0)
    bench = Unprocessable(monkeypatch, "decoding", failures=1)
    subscription = bench.begin()
    bench.deliver()
    (consumer,) = bench.subscriptions.consumers()
    assert eventually(lambda: consumer.error is not None, 60)

    subscription.cancel(600)

    assert bench.transport.consumers[-1].closed


# --- the same function twice -----------------------------------------------------------------------


def _cell() -> Callable[[str], None]:
    """What a notebook defines each time its cell runs."""

    def on_quest(event: str) -> None: ...

    return on_quest


def _twins(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "by a function named" in record.getMessage()]


def test_the_same_function_subscribed_again_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.subscribe(_cell(), "quest.started", "quest.ended")
    assert _twins(caplog) == []

    bench.subscribe(_cell(), "quest.started", "quest.ended")

    (line,) = _twins(caplog)
    assert "image-service.quest.started is consumed by a function named" in line
    assert "cancel() of the earlier subscription" in line


def test_a_decorated_function_is_told_too(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    for _ in range(2):
        cell = _cell()
        bench.subscribe(functools.wraps(cell)(lambda event, cell=cell: cell(event)))

    assert len(_twins(caplog)) == 1


def test_a_lambda_is_told_if_it_is_the_same_one(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    for _ in range(2):
        bench.subscribe(lambda event: None)

    assert len(_twins(caplog)) == 1


def test_other_functions_and_an_earlier_one_that_was_cancelled_are_no_news(caplog: pytest.LogCaptureFixture) -> None:
    class Service:
        def on_quest(self, event: str) -> None: ...

    bench = Bench()
    first = bench.subscribe(_cell())
    bench.subscribe(lambda event: None)
    bench.subscribe(Service().on_quest)
    bench.subscribe(Service().on_quest)
    bench.subscribe(functools.partial(print, end=""))
    bench.subscribe(functools.partial(print, end="\n\n"))
    bench.subscribe(lambda event: len(event))
    bench.subscribe(_cell(), "quest.ended")
    first.cancel()
    bench.subscribe(_cell())

    assert _twins(caplog) == []
