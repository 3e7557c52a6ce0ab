"""A stop that is interrupted at any moment, once or twice: it is completed, or another call completes it."""

from __future__ import annotations

import functools
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from collector import Collector
from consuming_bench import Bench
from interrupting import interrupted
from waiting import eventually

from message_hub_sync.consuming.consumed_queue import ConsumeOptions
from message_hub_sync.consuming.retry_policy import RetryPolicy
from message_hub_sync.consuming.subscription import Subscription
from message_hub_sync.consuming.suspects import TURN_TIMEOUT

DEADLINE = 60.0


def _threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("message-hub-image-service")]


class Waiting:
    """Waits for the end of a subscription in another thread."""

    def __init__(self, subscription: Subscription) -> None:
        self.ended = Collector()
        self._thread = threading.Thread(target=lambda: self.ended(subscription.wait(DEADLINE)))
        self._thread.start()


@pytest.mark.parametrize("interruptions", [1, 2])
def test_a_cancel_that_is_interrupted_at_any_moment_is_completed_by_itself_or_by_another_one(
    interruptions: int,
) -> None:
    moment = 0
    came_so_far = True
    while came_so_far:
        bench = Bench()
        subscription = bench.subscribe(lambda event: None)
        waiting = Waiting(subscription)
        for _ in range(interruptions):
            came_so_far = interrupted(functools.partial(subscription.cancel, DEADLINE), moment)
        # Nothing is left halfway: it consumes and another call ends it, or it has ended.
        subscription.cancel(DEADLINE)
        assert not subscription.active
        assert waiting.ended.wait(1, DEADLINE) == [True]
        assert bench.transport.consumers[-1].closed
        assert bench.subscriptions.consumers() == []
        assert eventually(lambda: not _threads(), DEADLINE)
        moment += 1
    assert moment > 20


@pytest.fixture
def alarm() -> Iterator[Callable[[float], object]]:
    """Has a signal handler raise KeyboardInterrupt after some seconds."""
    earlier = signal.signal(signal.SIGALRM, signal.default_int_handler)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, earlier)


# The signal may come while a callback of a weak reference runs: Python then drops the exception, with a warning.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_in_a_cancel_leaves_nothing_halfway(alarm: Callable[[float], object]) -> None:
    interruptions = 0
    for number in range(200):
        bench = Bench()
        subscription = bench.subscribe(lambda event: None)
        waiting = Waiting(subscription)
        for _ in range(2):
            try:
                alarm(0.00002 + number % 40 * 0.00002)
                subscription.cancel(DEADLINE)
                alarm(0)
            except KeyboardInterrupt:
                interruptions += 1
        subscription.cancel(DEADLINE)
        assert not subscription.active
        assert waiting.ended.wait(1, DEADLINE) == [True]
        assert bench.transport.consumers[-1].closed
    assert interruptions > 20
    _forget_threads_that_never_ran()
    assert eventually(lambda: not _threads(), DEADLINE)


def _forget_threads_that_never_ran() -> None:
    """Those whose ``start()`` was interrupted before they ran. Python lists them for ever."""
    starting = threading._limbo  # type: ignore[attr-defined]
    # Not thread._started.wait(): the interrupted start() may have left the lock of that event held.
    eventually(lambda: all(thread._started.is_set() for thread in list(starting)), 1)
    for thread in list(starting):
        if not thread._started.is_set():
            starting.pop(thread, None)


def test_an_interrupted_cancel_needs_no_other_call_once_its_thread_runs() -> None:
    bench = Bench()
    inside, go_on = threading.Event(), threading.Event()

    def handle(event: str) -> None:
        inside.set()
        go_on.wait(DEADLINE)

    subscription = bench.subscribe(handle)
    waiting = Waiting(subscription)
    tag = bench.deliver()
    assert inside.wait(DEADLINE)
    moment = 0
    while subscription.active:
        assert interrupted(functools.partial(subscription.cancel, DEADLINE), moment)
        moment += 1
        time.sleep(0)  # the thread of the cancel may begin

    go_on.set()

    assert waiting.ended.wait(1, DEADLINE) == [True]
    assert bench.transport.settled.wait(1, DEADLINE) == [tag]
    assert eventually(lambda: not _threads(), DEADLINE)


def test_the_channels_of_all_queues_are_closed_before_the_answer_of_one_is_awaited() -> None:
    bench = Bench()
    subscription = bench.subscribe(lambda event: None, "quest.started", "quest.ended")
    silent, other = bench.transport.consumers
    answer, closed = threading.Event(), threading.Event()

    def close_silent(deadline: float) -> None:
        answer.wait(max(0.0, deadline - time.monotonic()))

    silent.close = close_silent  # type: ignore[method-assign]
    other.close = lambda deadline: closed.set()  # type: ignore[method-assign]
    stopping = threading.Thread(target=lambda: subscription.cancel(DEADLINE))
    stopping.start()

    assert closed.wait(DEADLINE)
    assert stopping.is_alive()
    answer.set()
    stopping.join(DEADLINE)
    assert not stopping.is_alive()


def test_a_cancel_while_the_queue_is_being_opened_leaves_no_consumer_open(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    opened, go_on = threading.Event(), threading.Event()
    consume_many = bench.transport.consume_many
    errors = Collector()

    def slow(*arguments: object) -> object:
        consumers = consume_many(*arguments)  # type: ignore[arg-type]
        opened.set()
        go_on.wait(DEADLINE)
        return consumers

    monkeypatch.setattr(bench.transport, "consume_many", slow)
    subscription = bench.subscribe(lambda event: None, start=False)

    def start() -> None:
        try:
            subscription.start()
        except Exception as error:
            errors(str(error))

    starting = threading.Thread(target=start)
    starting.start()
    assert opened.wait(DEADLINE)

    subscription.cancel(DEADLINE)
    go_on.set()
    starting.join(DEADLINE)

    (error,) = errors.items
    assert "cancelled meanwhile" in error
    assert bench.transport.consumers[-1].closed
    assert not subscription.active
    assert eventually(lambda: not _threads(), DEADLINE)


def test_a_handler_that_outlives_two_stops_settles_its_message_and_ends_its_consumer() -> None:
    bench = Bench()
    inside, go_on = threading.Event(), threading.Event()

    def handle(event: str) -> None:
        inside.set()
        go_on.wait(DEADLINE)

    subscription = bench.subscribe(handle)
    tag = bench.deliver()
    assert inside.wait(DEADLINE)
    subscription.cancel(0.05)
    bench.subscriptions.stop(time.monotonic() + 0.05)
    consumer = bench.transport.consumers[-1]
    assert not consumer.closed, "its handler has not acknowledged yet"
    assert not bench.subscriptions.drained

    go_on.set()

    assert bench.transport.settled.wait(1, DEADLINE) == [tag]
    assert eventually(lambda: not _threads(), DEADLINE)
    assert consumer.closed


def test_a_redelivered_message_that_waits_for_its_turn_does_not_hold_up_a_stop() -> None:
    bench = Bench(retry=RetryPolicy(attempts=2))
    inside, go_on = Collector(), threading.Event()

    def handle(event: str) -> None:
        inside(event)
        go_on.wait(DEADLINE)

    subscription = bench.subscribe(handle, options=ConsumeOptions(workers=2))
    (consumer,) = bench.subscriptions.consumers()
    for _ in range(2):
        bench.deliver(redelivered=True)
    inside.wait(1, DEADLINE)
    assert eventually(lambda: len(consumer.workers) == 2, DEADLINE)

    subscription.cancel(0.1)

    left = eventually(lambda: len(consumer.workers) != 2, TURN_TIMEOUT / 2)
    assert left, "it waits for its turn, although it will not be handled"
    assert len(inside.items) == 1
    go_on.set()
