"""An event that is set once."""

from __future__ import annotations

import signal
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


def test_a_signal_handler_that_takes_longer_than_the_wait_does_not_make_it_wait_for_ever() -> None:
    event = FinalEvent()
    pause = threading.Event()
    earlier = signal.signal(signal.SIGALRM, lambda *_: pause.wait(0.2))
    try:
        for seconds in (0.01, 0.06, 0.1):
            signal.setitimer(signal.ITIMER_REAL, seconds / 2)
            assert not event.wait(seconds)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)
