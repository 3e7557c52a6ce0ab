"""An event that is set once."""

from __future__ import annotations

import threading

from collector import Collector
from interrupting import interrupted

from message_hub_sync.runtime.final_event import FinalEvent


def test_a_wait_ends_when_the_event_is_set_or_at_its_timeout() -> None:
    event = FinalEvent()
    assert not event.wait(0.01)
    assert not event.is_set()
    ended = Collector()
    threads = [threading.Thread(target=lambda: ended(event.wait(60))) for _ in range(5)]
    for thread in threads:
        thread.start()

    event.set()

    assert ended.wait(5, 60) == [True] * 5
    assert event.wait()
    assert event.wait(0)


def test_it_can_be_set_from_the_start() -> None:
    assert FinalEvent(is_set=True).wait()


def _interrupted_wait(moment: int) -> bool:
    event = FinalEvent()
    came_so_far = interrupted(lambda: event.wait(0.01), moment)
    ended = Collector()
    threading.Thread(target=lambda: ended(event.wait(60))).start()
    event.set()
    assert ended.wait(1, 60) == [True]
    return came_so_far


def test_a_wait_that_is_interrupted_at_any_moment_keeps_no_other_one_waiting() -> None:
    moment = 0
    while _interrupted_wait(moment):
        moment += 1
    assert moment > 4
