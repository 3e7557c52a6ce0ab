"""Room in a connection's out-buffer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from message_hub_sync.transport.threads import Waiter, Waiters, refuse_on_io_thread

__all__ = ["SendRoom"]


class SendRoom:
    """Lets publishers wait while a connection's out-buffer is full.

    :param lock: the connection's lock.
    :param has_room: whether a publisher may go on; called with the lock held.
    """

    def __init__(self, lock: threading.Lock, has_room: Callable[[], bool]) -> None:
        self._lock = lock
        self._has_room = has_room
        self._waiters = Waiters()  # guarded by _lock

    def wait(self, deadline: float) -> bool:
        """Wait until there is room. The caller does not hold the lock.

        :param deadline: monotonic seconds.
        :returns: ``False`` if the deadline passes first.
        :raises MessageHubConnectionError: on an I/O thread, which would wait for itself.
        """
        refuse_on_io_thread()
        waiter = Waiter()
        try:
            while True:
                with self._lock:
                    self._waiters.add(waiter)
                    if self._has_room():
                        return True
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return False
                waiter.wait(remaining)
        finally:
            with self._lock:
                self._waiters.remove(waiter)

    def wake_all(self) -> None:
        """Wake all waiting publishers, so that they check again. The caller holds the lock."""
        self._waiters.wake_all()
