"""The threads of one subscription: how many there are, in which order they serve the queues, and how they end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from collector import Collector

from message_hub_sync.consuming.worker_group import WorkerGroup, WorkerThread

DEADLINE = 60.0


class Served:
    """A queue that notes when it is attended to."""

    def __init__(self) -> None:
        self.attended = Collector()

    def attend(self, worker: WorkerThread) -> None:
        self.attended(time.monotonic())


@pytest.fixture
def make() -> Iterator[Callable[..., tuple[WorkerGroup, Served]]]:
    made: list[tuple[WorkerGroup, Served]] = []

    def new(workers: int = 1, *, start: bool = True) -> tuple[WorkerGroup, Served]:
        group, served = WorkerGroup(object(), f"group-under-test-{len(made)}", workers), Served()
        assert group.add(served)
        if start:
            group.start()
        made.append((group, served))
        return group, served

    yield new
    for group, served in made:
        group.remove(served)
        group.join(time.monotonic() + DEADLINE)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("group-under-test")]


def test_a_second_start_starts_no_more_threads(make: Callable[..., tuple[WorkerGroup, Served]]) -> None:
    group, _ = make(2)
    group.start()
    inside, go_on = Collector(), threading.Event()

    def work(worker: WorkerThread) -> None:
        inside(worker)
        go_on.wait(DEADLINE)

    for _ in range(4):
        group.put(work)
    inside.stays(2)
    go_on.set()

    inside.wait(4, DEADLINE)
    assert len({worker.name for worker in inside.items}) == 2


def test_a_group_ends_with_its_last_queue_and_serves_no_other(
    make: Callable[..., tuple[WorkerGroup, Served]],
) -> None:
    group, served = make(3)
    other = Served()
    assert group.add(other)

    group.remove(served)
    assert group.running
    group.remove(other)

    assert group.ended
    assert not group.add(Served())
    group.start()
    group.join(time.monotonic() + DEADLINE)
    assert group.threads == []


def test_a_queue_is_attended_to_at_its_time_also_while_another_thread_is_busy(
    make: Callable[..., tuple[WorkerGroup, Served]],
) -> None:
    group, served = make(2)
    inside, go_on = threading.Event(), threading.Event()

    def busy(worker: WorkerThread) -> None:
        inside.set()
        go_on.wait(DEADLINE)

    due = time.monotonic() + 0.2
    group.attend_at(served, due)
    served.attended.wait(1, DEADLINE)  # at once: the thread now waits for the time
    group.put(busy)
    assert inside.wait(DEADLINE)

    attended = served.attended.until(lambda times: bool(times) and times[-1] >= due, DEADLINE)
    assert attended[-1] >= due
    go_on.set()


def test_an_earlier_time_is_not_put_off_by_a_later_one(make: Callable[..., tuple[WorkerGroup, Served]]) -> None:
    group, served = make()
    due = time.monotonic() + 0.2

    group.attend_at(served, due)
    group.attend_at(served, due + 600)

    served.attended.until(lambda times: bool(times) and times[-1] >= due, DEADLINE)


def test_work_that_raises_ends_no_thread(
    make: Callable[..., tuple[WorkerGroup, Served]], caplog: pytest.LogCaptureFixture
) -> None:
    group, _ = make()
    ran = Collector()

    def fail(worker: WorkerThread) -> None:
        raise SystemExit(3)

    group.put(fail)
    group.put(ran)

    ran.wait(1, DEADLINE)
    assert "it goes on" in caplog.text


def test_what_a_handler_asked_for_afterwards_runs_on_its_thread_after_the_work(
    make: Callable[..., tuple[WorkerGroup, Served]],
) -> None:
    group, _ = make()
    order = Collector()

    def work(worker: WorkerThread) -> None:
        worker.afterwards.append(lambda: order(threading.current_thread() is worker))
        order("work")

    group.put(work)
    group.put(lambda worker: order("the next work"))

    assert order.wait(3, DEADLINE) == ["work", True, "the next work"]
