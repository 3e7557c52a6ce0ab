"""Threads that wait for a change of what a lock guards."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from message_hub_sync.errors import MessageHubReentryError
from message_hub_sync.runtime.locks import Lock
from message_hub_sync.transport.threads import Condition, IOThread, Waiter


@pytest.fixture
def lock() -> Lock:
    """The lock that guards what the tests wait for."""
    return Lock()


def test_all_that_wait_for_a_change_see_it(lock: Lock) -> None:
    condition, items, found = Condition(lock), [], threading.Semaphore(0)
    waiting = threading.Semaphore(0)

    def wanted() -> list[int]:
        waiting.release()
        return list(items)

    def wait() -> None:
        assert condition.wait_for(wanted, time.monotonic() + 60) == [1]
        found.release()

    for _ in range(3):
        threading.Thread(target=wait, daemon=True).start()
    for _ in range(3):
        assert waiting.acquire(timeout=60)

    def change() -> None:
        items.append(1)
        condition.wake_all()

    lock.run(change)
    for _ in range(3):
        assert found.acquire(timeout=60)
    assert len(condition._waiters) == 0


def test_a_wait_ends_at_its_deadline_with_the_last_value(lock: Lock) -> None:
    condition = Condition(lock)
    assert condition.wait_for(lambda: 0, time.monotonic() + 0.01) == 0
    assert condition.wait_for(lambda: "", time.monotonic() - 1) == ""
    assert len(condition._waiters) == 0


def test_an_exception_in_the_wait_leaves_no_waiter_and_no_lock_held(
    lock: Lock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Waiter, seconds: float) -> None:
        raise KeyboardInterrupt

    condition = Condition(lock)
    monkeypatch.setattr(Waiter, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        condition.wait_for(lambda: False, time.monotonic() + 60)
    assert len(condition._waiters) == 0
    assert condition.wait_for(lambda: True, time.monotonic() + 60)


def test_a_wait_with_a_lock_held_or_on_an_io_thread_is_refused_at_once(lock: Lock) -> None:
    condition, outcomes = Condition(lock), []

    def wait() -> Any:
        with pytest.raises(MessageHubReentryError):
            condition.wait_for(lambda: False, time.monotonic() + 60)
        outcomes.append("refused")

    Lock().run(wait)
    lock.run(wait)
    thread = IOThread(target=wait, daemon=True)
    thread.start()
    thread.join(60)
    assert outcomes == ["refused"] * 3
