"""Redelivered messages: who is marked, who runs beside whom, and which marks are taken back."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest

from message_hub_sync.config import ClientConfig, MemoryAddress
from message_hub_sync.consuming import crash_marks, suspects
from message_hub_sync.consuming.decoded_delivery import DecodedDelivery
from message_hub_sync.consuming.suspects import Suspects
from message_hub_sync.envelope.values import Properties
from message_hub_sync.errors import MessageHubAuthorizationError
from message_hub_sync.transport.base import Delivery
from message_hub_sync.transport.memory import MemoryTransport, drop_hub
from message_hub_sync.transport.topology import QueueSpec


class Work:
    """A delivery whose end the test decides."""

    def __init__(self, message_id: str | None = None, *, source: str = "campaign-service", body: bytes = b"{}") -> None:
        properties = Properties(message_id=message_id, headers={"source": source})
        queue = "image-service.quest.begun"
        delivery = Delivery(body, properties, "events", "quest.begun", queue, True, 1, 1, None)
        self.decoded = DecodedDelivery(delivery, "event", "image-service", 1_000)
        self.held = True
        self.crashes = 0
        self.flushed = False
        self.settled: Callable[[], None] = lambda: None

    def flush(self) -> None:
        self.flushed = True

    def dead_letter_crashed(self, crashes: int, settled: Callable[[], None]) -> None:
        self.crashes = crashes
        self.settled = settled


class Process:
    """What one process has: its connection and its suspects."""

    def __init__(self, hub: str) -> None:
        self.transport = MemoryTransport(ClientConfig("image-service", MemoryAddress(hub)))
        self.suspects = Suspects(self.transport, "image-service")
        self.queues: set[str] = set()
        declare = self.transport.declare_queue

        def noted(queue: QueueSpec, deadline: float) -> None:
            self.queues.add(queue.name)
            declare(queue, deadline)

        self.transport.declare_queue = noted  # type: ignore[method-assign]

    def handle(self, work: Work, handler: Callable[[Any], None] = lambda work: None, *, attempts: int = 4) -> None:
        self.suspects.handle(work, attempts, handler, lambda: False)

    def crash(self, work: Work, *, attempts: int = 4) -> None:
        """Handle it with a handler that never ends, as if the process had ended."""
        with pytest.raises(Crash):
            self.handle(work, crash, attempts=attempts)

    def marks(self) -> dict[str, int]:
        """The number of marks in each queue that exists."""
        found = self.transport.queue_stats(sorted(self.queues), time.monotonic() + 5)
        return {name: stats.depth for name, stats in found.items() if stats is not None}


class Crash(BaseException):
    """Stands for the end of the process."""


def crash(work: Any) -> None:
    raise Crash


@pytest.fixture
def new_process() -> Iterator[Callable[[], Process]]:
    hub = uuid4().hex
    made: list[Process] = []

    def new() -> Process:
        made.append(Process(hub))
        return made[-1]

    yield new
    for process in made:
        process.transport.close(time.monotonic() + 5)
    drop_hub(hub)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspects, "LAST_LOOK", 0.01)


@pytest.mark.parametrize(("attempts", "runs"), [(1, 1), (2, 1), (3, 2), (4, 3), (10, 9)])
def test_a_message_is_dead_lettered_after_as_many_crashes_as_attempts(
    new_process: Callable[[], Process], attempts: int, runs: int
) -> None:
    message = str(uuid4())
    for _ in range(runs):
        new_process().crash(Work(message), attempts=attempts)

    last, work = new_process(), Work(message)
    last.handle(work, crash, attempts=attempts)

    assert work.crashes == runs
    assert list(last.marks().values()) == [runs]
    work.settled()
    assert last.marks() == {}


def test_a_handler_that_ends_leaves_no_mark_and_is_acknowledged_before_its_marks_are_removed(
    new_process: Callable[[], Process],
) -> None:
    process, message = new_process(), str(uuid4())
    process.crash(Work(message))
    again = new_process()
    seen: list[dict[str, int]] = []
    work = Work(message)

    again.handle(work, lambda work: seen.append(again.marks()))

    assert [list(marks.values()) for marks in seen] == [[2]]
    assert work.flushed
    assert again.marks() == {}


def test_messages_are_told_apart_by_source_and_id_and_without_an_id_by_their_body(
    new_process: Callable[[], Process],
) -> None:
    process, message = new_process(), str(uuid4())
    for work in (
        Work(message),
        Work(message, source="other-service"),
        Work(str(uuid4())),
        Work(None, body=b"1"),
        Work(None, body=b"2"),
        Work(message),
    ):
        new = new_process()
        new.queues = process.queues
        new.crash(work)

    assert sorted(process.marks().values()) == [1, 1, 1, 1, 2]


def test_marks_of_handlers_that_still_run_are_taken_back_at_an_orderly_end(new_process: Callable[[], Process]) -> None:
    message = str(uuid4())
    new_process().crash(Work(message))
    process = new_process()
    inside, go_on = threading.Event(), threading.Event()

    def hang(work: Any) -> None:
        inside.set()
        go_on.wait(30)

    thread = threading.Thread(target=process.handle, args=(Work(message), hang))
    thread.start()
    assert inside.wait(30)
    assert list(process.marks().values()) == [2]

    process.suspects.close(time.monotonic())

    assert list(process.marks().values()) == [1]  # the one that was left by a crash stays
    go_on.set()
    thread.join(30)


def test_a_process_that_lost_its_connection_takes_its_mark_back_while_its_handler_runs(
    new_process: Callable[[], Process],
) -> None:
    process, work = new_process(), Work(str(uuid4()))
    inside, go_on = threading.Event(), threading.Event()

    def hang(work: Any) -> None:
        inside.set()
        go_on.wait(30)

    thread = threading.Thread(target=process.handle, args=(work, hang))
    thread.start()
    assert inside.wait(30)
    work.held = False

    process.transport.interrupt()

    deadline = time.monotonic() + 30
    pause = threading.Event()
    while list(process.marks().values()) != [0]:
        assert time.monotonic() < deadline
        pause.wait(0.02)
    go_on.set()
    thread.join(30)


def test_a_suspect_with_a_mark_runs_alone_and_others_run_beside_each_other(
    new_process: Callable[[], Process],
) -> None:
    guilty = str(uuid4())
    new_process().crash(Work(guilty))
    process = new_process()
    together = threading.Barrier(2, timeout=30)
    running: list[str] = []
    most: list[int] = []

    def run(work: Any) -> None:
        running.append(work.decoded.message_id)
        most.append(len(running) if guilty in running else 0)
        if work.decoded.message_id != guilty:
            together.wait()  # so two of them run at once
        running.remove(work.decoded.message_id)

    threads = [threading.Thread(target=process.handle, args=(Work(message), run)) for message in (guilty, "one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert max(most) == 1
    assert process.marks() == {}


@contextlib.contextmanager
def one_that_hangs(process: Process) -> Iterator[None]:
    """A suspect whose handler runs until the end of the block."""
    inside, go_on = threading.Event(), threading.Event()

    def hang(work: Any) -> None:
        inside.set()
        go_on.wait(30)

    first = threading.Thread(target=process.handle, args=(Work("one"), hang), kwargs={"attempts": 1})
    first.start()
    assert inside.wait(30)
    yield
    go_on.set()
    first.join(30)


def test_a_suspect_that_waits_for_its_turn_is_given_back_when_its_consumer_stops(
    new_process: Callable[[], Process],
) -> None:
    process, stop = new_process(), threading.Event()
    handled: list[Any] = []
    with one_that_hangs(process):
        second = threading.Thread(
            target=process.suspects.handle, args=(Work("two"), 1, handled.append, stop.is_set), daemon=True
        )
        second.start()

        stop.set()
        process.suspects.wake()

        second.join(30)
        assert not second.is_alive()
        assert handled == []


def test_a_suspect_waits_for_one_that_hangs_no_longer_than_its_turn_may_take(
    new_process: Callable[[], Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suspects, "TURN_TIMEOUT", 0.05)
    process = new_process()
    handled: list[Any] = []
    with one_that_hangs(process):
        process.handle(Work("two"), handled.append, attempts=1)

        assert len(handled) == 1


def test_where_marks_are_refused_messages_are_handled_and_it_is_told_once(
    new_process: Callable[[], Process], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    process = new_process()
    asked: list[str] = []

    def refuse(queue: QueueSpec, deadline: float) -> None:
        asked.append(queue.name)
        raise MessageHubAuthorizationError("403 ACCESS_REFUSED")

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(process.transport, "declare_queue", refuse)
        handled: list[Any] = []
        for number in range(3):
            process.handle(Work(str(number)), handled.append, attempts=1)

    assert len(handled) == 3
    assert len(asked) == 1  # not once for each message
    assert process.suspects.problem == "403 ACCESS_REFUSED"
    assert [record.getMessage().split(",")[0] for record in caplog.records] == ["crashes cannot be counted now"]

    monkeypatch.setattr(crash_marks, "PAUSE", 0.0)
    process.suspects._marks._paused_until = 0.0
    process.handle(Work("later"), handled.append)
    assert process.suspects.problem is None


def test_marks_that_could_not_be_removed_are_removed_later(
    new_process: Callable[[], Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crash_marks, "PAUSE", 0.0)
    process, message = new_process(), str(uuid4())

    def down(*arguments: Any) -> None:
        raise MessageHubAuthorizationError("down")

    with monkeypatch.context() as patched:
        patched.setattr(process.transport, "delete", down)
        process.handle(Work(message))
    assert list(process.marks().values()) == [1]

    process.handle(Work("another"))

    assert process.marks() == {}
