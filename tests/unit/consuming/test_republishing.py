"""Messages that are moved to a retry or dead-letter queue: when each is acknowledged, and what a stop leaves."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from collector import Collector
from consuming_bench import ID, Bench
from scripted_transport import Step
from waiting import eventually

from message_hub_sync.consuming import republishing
from message_hub_sync.consuming.consumed_queue import ConsumeOptions
from message_hub_sync.errors import MessageHubConnectionError, MessageHubRejectError
from message_hub_sync.transport.base import PublishResult

DEADLINE = 30.0


def fail(event: str) -> None:
    raise ValueError("always")


def reject(event: str) -> None:
    raise MessageHubRejectError("not for us")


def connected(bench: Bench) -> None:
    """What the transport does when it accepts messages again."""
    for name, listener in bench.transport.log:
        if name == "on_connected":
            listener()


class Stopping:
    """Stops in another thread, and waits until the broker is told."""

    def __init__(self, bench: Bench, stop: Callable[[], Any]) -> None:
        self.told = threading.Event()
        consumer = bench.transport.consumers[-1]
        consumer.cancel = lambda deadline: self.told.set()  # type: ignore[method-assign]
        self._thread = threading.Thread(target=stop, daemon=True)
        self._thread.start()
        assert self.told.wait(DEADLINE)

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def wait(self) -> None:
        self._thread.join(DEADLINE)
        assert self.ended


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No second attempt comes by itself."""
    monkeypatch.setattr(republishing, "FIRST_PAUSE", 600.0)
    monkeypatch.setattr(republishing, "LONGEST_PAUSE", 600.0)


# --- stopping --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_a_stop_awaits_the_confirms_of_what_was_moved_and_acknowledges_it(how: str) -> None:
    bench = Bench(*[None] * 3)
    subscription = bench.subscribe(fail)
    tags = [bench.deliver() for _ in range(3)]
    assert eventually(lambda: len(bench.transport.published) == 3)

    stopping = Stopping(
        bench,
        lambda: (
            subscription.cancel(DEADLINE) if how == "cancel" else bench.subscriptions.stop(time.monotonic() + DEADLINE)
        ),
    )
    consumer = bench.transport.consumers[-1]
    for number, receipt in enumerate(bench.transport.receipts, 1):
        assert not stopping.ended
        assert not consumer.closed
        receipt.resolve(PublishResult.CONFIRMED)
        bench.transport.settled.wait(number, DEADLINE)
    stopping.wait()

    assert bench.transport.settled.items == tags
    assert len(bench.transport.published) == 3
    assert consumer.closed


@pytest.mark.parametrize("answer", [PublishResult.NACKED, PublishResult.RETURNED, PublishResult.LOST])
def test_a_stop_publishes_nothing_again_whatever_the_broker_answers(answer: PublishResult) -> None:
    bench = Bench(None, None)
    subscription = bench.subscribe(fail)
    _, confirmed = bench.deliver(), bench.deliver()
    assert eventually(lambda: len(bench.transport.published) == 2)

    stopping = Stopping(bench, lambda: subscription.cancel(DEADLINE))
    bench.transport.receipts[0].resolve(answer)
    bench.transport.receipts[1].resolve(PublishResult.CONFIRMED)
    stopping.wait()

    assert bench.transport.settled.items == [confirmed]
    assert len(bench.transport.published) == 2
    assert "declare_queue" not in bench.transport.asked()


def test_a_stop_does_not_await_a_confirm_beyond_its_deadline() -> None:
    bench = Bench(None)
    subscription = bench.subscribe(fail)
    bench.deliver()
    assert eventually(lambda: len(bench.transport.published) == 1)

    subscription.cancel(0.2)

    assert eventually(lambda: bench.transport.consumers[-1].closed)
    assert bench.transport.settled.items == []


def test_what_waits_for_its_next_attempt_does_not_hold_up_a_stop(patient: None) -> None:
    bench = Bench(MessageHubConnectionError("down"))
    subscription = bench.subscribe(fail)
    bench.deliver()
    assert eventually(lambda: len(bench.transport.published) == 1)

    Stopping(bench, lambda: subscription.cancel(600)).wait()

    assert bench.transport.consumers[-1].closed
    assert bench.transport.settled.items == []


def test_a_second_worker_that_ends_later_awaits_the_confirm() -> None:
    bench = Bench(None)
    go_on = threading.Event()
    inside = threading.Event()

    def handle(event: str, envelope: Any) -> None:
        if "slow" in envelope.headers:
            inside.set()
            go_on.wait(DEADLINE)
        else:
            raise ValueError("always")

    subscription = bench.subscribe(handle, options=ConsumeOptions(workers=2))
    slow, moved = bench.deliver(headers={"slow": 1}), bench.deliver()
    assert inside.wait(DEADLINE)
    assert eventually(lambda: len(bench.transport.published) == 1)

    stopping = Stopping(bench, lambda: subscription.cancel(DEADLINE))
    go_on.set()
    assert bench.transport.settled.wait(1, DEADLINE) == [slow]
    bench.transport.receipts[0].resolve(PublishResult.CONFIRMED)
    stopping.wait()

    assert bench.transport.settled.items == [slow, moved]


def test_a_cancel_that_gives_up_waiting_gives_back_what_no_handler_has_begun() -> None:
    bench = Bench()
    inside, go_on = threading.Event(), threading.Event()

    def handle(event: str) -> None:
        inside.set()
        go_on.wait(DEADLINE)

    subscription = bench.subscribe(handle)
    bench.deliver()
    assert inside.wait(DEADLINE)

    subscription.cancel(0.1)
    given_back = bench.transport.consumers[-1].given_back
    go_on.set()

    assert given_back
    bench.transport.settled.wait(1, DEADLINE)


# --- confirms --------------------------------------------------------------------------------------


def test_each_confirm_acknowledges_its_message_at_once_in_any_order(patient: None) -> None:
    bench = Bench(*[None] * 5)
    bench.subscribe(fail)
    tags = [bench.deliver() for _ in range(5)]
    assert eventually(lambda: len(bench.transport.published) == 5)
    assert bench.transport.settled.items == []

    for number, receipt in enumerate(reversed(bench.transport.receipts), 1):
        receipt.resolve(PublishResult.CONFIRMED)
        bench.transport.settled.wait(number, DEADLINE)

    assert bench.transport.settled.items == tags[::-1]


def test_an_idle_worker_acknowledges_what_a_busy_one_has_moved() -> None:
    bench = Bench(None)
    inside, go_on = threading.Event(), threading.Event()
    threads = Collector()

    def handle(event: str, envelope: Any) -> None:
        threads(threading.current_thread())
        if "slow" not in envelope.headers:
            raise ValueError("always")
        inside.set()
        go_on.wait(DEADLINE)

    bench.subscribe(handle, options=ConsumeOptions(workers=2))
    moved = bench.deliver()
    assert eventually(lambda: len(bench.transport.published) == 1)
    slow = bench.deliver(headers={"slow": 1})
    assert inside.wait(DEADLINE)

    bench.transport.receipts[0].resolve(PublishResult.CONFIRMED)

    assert bench.transport.settled.wait(1, DEADLINE) == [moved]
    go_on.set()
    assert bench.transport.settled.wait(2, DEADLINE) == [moved, slow]


def test_a_burst_into_a_missing_queue_declares_it_once() -> None:
    bench = Bench(*[None] * 4)
    bench.subscribe(fail)
    tags = [bench.deliver() for _ in range(4)]
    assert eventually(lambda: len(bench.transport.published) == 4)

    for receipt in list(bench.transport.receipts):
        receipt.resolve(PublishResult.RETURNED)

    assert sorted(bench.transport.settled.wait(4, DEADLINE)) == tags
    assert bench.transport.asked().count("declare_queue") == 1
    assert len(bench.transport.published) == 8


@pytest.mark.parametrize(
    "step", [(PublishResult.BLOCKED, "alarm", 0), MessageHubConnectionError("down"), PublishResult.LOST]
)
def test_all_that_waits_is_tried_at_once_when_the_broker_accepts_again(patient: None, step: Step) -> None:
    bench = Bench(*[step] * 3)
    bench.subscribe(fail)
    tags = [bench.deliver() for _ in range(3)]
    assert eventually(lambda: len(bench.transport.published) == 3)
    (consumer,) = bench.subscriptions.consumers()
    assert eventually(lambda: len(consumer._moves._waiting) == 3)

    connected(bench)

    assert sorted(bench.transport.settled.wait(3, DEADLINE)) == tags
    assert len(bench.transport.published) == 6


def test_a_queue_that_could_not_be_declared_is_tried_at_once_after_a_reconnect(patient: None) -> None:
    bench = Bench(PublishResult.RETURNED)
    bench.subscribe(fail)
    declare_queue = bench.transport.declare_queue
    refused = threading.Event()

    def refuse(queue: Any, deadline: float) -> None:
        bench.transport.declare_queue = declare_queue  # type: ignore[method-assign]
        refused.set()
        raise MessageHubConnectionError("down")

    bench.transport.declare_queue = refuse  # type: ignore[method-assign]
    tag = bench.deliver()
    assert refused.wait(DEADLINE)
    (consumer,) = bench.subscriptions.consumers()
    assert eventually(lambda: consumer.error is not None)

    connected(bench)

    assert bench.transport.settled.wait(1, DEADLINE) == [tag]
    assert eventually(lambda: consumer.error is None)


def test_a_message_without_a_confirm_for_long_is_told_of_once_and_in_health(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(republishing, "SLOW", 0.1)
    bench = Bench(None)
    bench.subscribe(fail)
    tag = bench.deliver()
    (consumer,) = bench.subscriptions.consumers()

    assert eventually(lambda: consumer.error is not None)

    warnings = [record for record in caplog.records if "could not be moved" in record.getMessage()]
    assert [record.levelno for record in warnings if record.levelno >= logging.WARNING] == [logging.WARNING]
    assert len(bench.transport.published) == 1, "it may be in the queue already"
    bench.transport.receipts[0].resolve(PublishResult.CONFIRMED)
    assert bench.transport.settled.wait(1, DEADLINE) == [tag]
    assert eventually(lambda: consumer.error is None)


# --- the log ---------------------------------------------------------------------------------------


def test_the_log_says_moved_only_when_the_broker_has_it(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(None)
    bench.subscribe(reject)
    bench.deliver(correlation_id="the-correlation")
    assert eventually(lambda: len(bench.transport.published) == 1)
    assert "moved to" not in caplog.text

    bench.transport.receipts[0].resolve(PublishResult.CONFIRMED)
    bench.transport.settled.wait(1, DEADLINE)

    (line,) = [record.getMessage() for record in caplog.records if "moved to" in record.getMessage()]
    assert line.endswith(
        f"failed on message {ID.format(1)} of image-service.quest.started: "
        "moved to image-service.quest.started.dead, not for us"
    )


@pytest.mark.parametrize("end", ["confirmed", "stopped"])
def test_a_failure_is_logged_although_its_message_cannot_be_moved(
    caplog: pytest.LogCaptureFixture, patient: None, end: str
) -> None:
    caplog.set_level(logging.INFO)
    bench = Bench(MessageHubConnectionError("down") if end == "confirmed" else None)
    subscription = bench.subscribe(reject)
    bench.deliver()
    assert eventually(lambda: len(bench.transport.published) == 1)
    if end == "stopped":
        subscription.cancel(0.1)
    assert eventually(lambda: "not moved to image-service.quest.started.dead yet, not for us" in caplog.text)

    if end == "confirmed":
        connected(bench)
        bench.transport.settled.wait(1, DEADLINE)
        assert "was moved to image-service.quest.started.dead" in caplog.text
    assert caplog.text.count("not for us") == 1
