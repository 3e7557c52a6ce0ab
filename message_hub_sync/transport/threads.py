"""Threads that wait until something has changed, each on a lock of its own; and those that must not."""

from __future__ import annotations

import _thread
import threading

from message_hub_sync.errors import MessageHubConnectionError

__all__ = ["IOThread", "Waiter", "Waiters", "on_io_thread", "refuse_on_io_thread"]


class IOThread(threading.Thread):
    """Tells our threads from a user's."""


def on_io_thread() -> bool:
    """Whether the calling thread carries a connection: what waits here waits for itself."""
    return isinstance(threading.current_thread(), IOThread)


def refuse_on_io_thread() -> None:
    """For where somebody is about to wait for a connection. No user's code runs there but logging handlers.

    :raises MessageHubConnectionError: this thread carries one.
    """
    if on_io_thread():
        raise MessageHubConnectionError(
            "a logging handler called this on an I/O thread of the client, which would wait for itself: nothing was "
            "sent; a logging.handlers.QueueHandler takes such a handler to a thread of its own"
        )


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
