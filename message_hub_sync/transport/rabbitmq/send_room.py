"""Room in a connection's out-buffer."""

from __future__ import annotations

from collections.abc import Callable

from message_hub_sync.runtime.locks import Lock, locked, refuse_where_it_cannot_wait
from message_hub_sync.runtime.real_time import time
from message_hub_sync.transport.threads import Waiter, Waiters

__all__ = ["SendRoom"]


class SendRoom:
    """Lets publishers wait while a connection's out-buffer is full.

    :param lock: the connection's lock.
    :param has_room: whether a publisher may go on; called with the lock held.
    """

    def __init__(self, lock: Lock, has_room: Callable[[], bool]) -> None:
        self._lock = lock
        self._has_room = has_room
        self._waiters = Waiters()  # guarded by _lock

    def wait(self, deadline: float) -> bool:
        """Wait until there is room. The caller does not hold the lock.

        :param deadline: monotonic seconds.
        :returns: ``False`` if the deadline passes first.
        :raises MessageHubReentryError: the calling thread would wait for itself.
        """
        refuse_where_it_cannot_wait()
        waiter = Waiter()
        try:
            while True:
                if self._enter(waiter):
                    return True
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return False
                waiter.wait(remaining)
        finally:
            self._lock.run(self._waiters.remove, waiter)

    @locked
    def _enter(self, waiter: Waiter) -> bool:
        self._waiters.add(waiter)
        return self._has_room()

    def wake_all(self) -> None:
        """Wake all waiting publishers, so that they check again. The caller holds the lock."""
        self._waiters.wake_all()
