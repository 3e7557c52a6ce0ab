"""Timeouts and deadlines."""

from __future__ import annotations

import threading
from queue import Empty, SimpleQueue

import pytest

from message_hub_sync.errors import MessageValidationError
from message_hub_sync.runtime.deadlines import MAX_TIMEOUT, remaining, take, timeout_seconds


@pytest.mark.parametrize("timeout", [0.0, 1e-9, 1e-6, 1e-5])
def test_a_wait_on_a_queue_that_has_just_been_made_ends(timeout: float) -> None:
    ended = threading.Event()

    def wait_again_and_again() -> None:
        for _ in range(20):
            with pytest.raises(Empty):
                take(SimpleQueue(), timeout)
        ended.set()

    threading.Thread(target=wait_again_and_again, daemon=True).start()
    assert ended.wait(20)


def test_what_is_there_is_taken_whatever_the_timeout() -> None:
    queue: SimpleQueue[int] = SimpleQueue()
    for number in range(3):
        queue.put(number)
    assert [take(queue, timeout) for timeout in (0.0, 1e-9, 5.0)] == [0, 1, 2]


def test_nothing_remains_of_a_deadline_that_passed() -> None:
    assert remaining(0.0) == 0.0


@pytest.mark.parametrize("value", [0, -1, True, "5", float("nan"), MAX_TIMEOUT + 1])
def test_a_timeout_that_cannot_be_waited_for_is_refused(value: object) -> None:
    with pytest.raises(MessageValidationError, match=r"^timeout must be a number of seconds .* at most 2147000"):
        timeout_seconds(value, 5.0)


def test_without_a_timeout_the_default_holds() -> None:
    assert timeout_seconds(None, 5.0) == 5.0
