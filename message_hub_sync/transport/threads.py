"""Waiting threads, each on a lock of its own; and I/O threads, which must not wait for a connection."""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable
from typing import TypeVar

from message_hub_sync.runtime.locks import Lock, refuse_where_it_cannot_wait, serve_on_this_thread
from message_hub_sync.runtime.real_time import time

__all__ = ["Condition", "IOThread", "Waiter", "Waiters", "on_io_thread"]

T = TypeVar("T")


class IOThread(threading.Thread):
    """A thread that serves a connection of this package. The class distinguishes it from a user's threads."""

    def run(self) -> None:
        serve_on_this_thread()
        super().run()


def on_io_thread() -> bool:
    """Whether the calling thread serves a connection."""
    return isinstance(threading.current_thread(), IOThread)


class Waiter:
    """Lets one thread wait until another thread wakes it."""

    def __init__(self) -> None:
        # Not a Condition: it acquires its shared lock again after each wait. If a signal handler raises there, `with`
        # releases that lock although another thread holds it.
        self._lock = _thread.allocate_lock()
        self._lock.acquire()

    def wait(self, seconds: float) -> None:
        """Wait until :meth:`wake`, at most ``seconds``. The caller holds no lock, and checks its condition then."""
        self._lock.acquire(timeout=max(0.0, seconds))

    def wake(self) -> None:
        """End the current wait, or the next one. Two threads must not call this at the same time."""
        if self._lock.locked():
            self._lock.release()


class Waiters:
    """The waiters for one condition. The caller of each method holds the lock that guards this condition."""

    def __init__(self) -> None:
        self._waiting: set[Waiter] = set()  # guarded by the caller's lock

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, waiter: Waiter) -> None:
        """Wake ``waiter`` from now on. Adding it again changes nothing."""
        self._waiting.add(waiter)

    def remove(self, waiter: Waiter) -> None:
        """Wake ``waiter`` no longer. One that was not added is ignored."""
        self._waiting.discard(waiter)

    def wake_all(self) -> None:
        """Wake every waiter, so that it checks its condition."""
        for waiter in self._waiting:
            waiter.wake()


class Condition:
    """Lets threads wait for a change of what a :class:`Lock` guards. No thread waits for the lock of a sleeping one.

    :param lock: guards what changes.
    """

    def __init__(self, lock: Lock) -> None:
        self._lock = lock
        self._waiters = Waiters()  # guarded by _lock

    def wait_for(self, wanted: Callable[[], T], deadline: float) -> T:
        """Wait until ``wanted`` returns something true. The caller does not hold the lock.

        :param wanted: called with the lock held, now and after each :meth:`wake_all`.
        :param deadline: monotonic seconds.
        :returns: the last value of ``wanted``; one that is not true if the deadline passed first.
        :raises MessageHubReentryError: the calling thread holds a lock of this library, or serves a connection.
        """
        refuse_where_it_cannot_wait()
        waiter = Waiter()
        try:
            while True:
                found = self._lock.run(self._look, waiter, wanted)
                left = deadline - time.monotonic()
                if found or left <= 0:
                    return found
                waiter.wait(left)
        finally:
            self._lock.run(self._waiters.remove, waiter)

    def _look(self, waiter: Waiter, wanted: Callable[[], T]) -> T:
        self._waiters.add(waiter)
        return wanted()

    def wake_all(self) -> None:
        """Let all threads that wait look again. The caller holds the lock."""
        self._waiters.wake_all()
