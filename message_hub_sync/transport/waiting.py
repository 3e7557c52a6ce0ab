"""Threads that wait until something has changed, each on a lock of its own."""

from __future__ import annotations

import _thread

__all__ = ["Waiter", "Waiters"]


class Waiter:
    """One thread's wait.

    A ``Condition`` takes its shared lock back after each wait; a signal handler that raises there makes ``with``
    release that lock although somebody else holds it by now.
    """

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self._lock.acquire()

    def wait(self, seconds: float) -> None:
        """Until woken, or for so long. With no lock held; the caller looks afterwards at what there is."""
        self._lock.acquire(timeout=max(0.0, seconds))

    def wake(self) -> None:
        """End the present or the next wait. Not at the same time from two threads."""
        if self._lock.locked():
            self._lock.release()


class Waiters:
    """Who waits for one thing to change. Mutable; guarded by the lock that guards that thing."""

    def __init__(self) -> None:
        self._waiting: set[Waiter] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, waiter: Waiter) -> None:
        """From now on it is woken. Twice is once."""
        self._waiting.add(waiter)

    def remove(self, waiter: Waiter) -> None:
        """It waits no longer. It need not have."""
        self._waiting.discard(waiter)

    def wake_all(self) -> None:
        """It has changed."""
        for waiter in self._waiting:
            waiter.wake()
