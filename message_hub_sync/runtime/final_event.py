"""An event that is set once, and that an interrupted waiter leaves usable for the others."""

from __future__ import annotations

from queue import Empty, SimpleQueue

from message_hub_sync.runtime.deadlines import take

__all__ = ["FinalEvent"]


class FinalEvent:
    """Like :class:`threading.Event`, but it cannot be cleared. Any thread may use it.

    A ``threading.Event`` has a lock that all its waiters share. If a signal handler raises while one of them waits,
    Python 3.14 may leave that lock held: then nobody can set the event. Here each waiter has a queue of its own.
    """

    def __init__(self, *, is_set: bool = False) -> None:
        self._set = is_set  # any thread sets it to True, and it stays so
        self._waiting: list[SimpleQueue[None]] = []  # each waiter adds and removes its own

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._set

    def set(self) -> None:
        """Set it, and wake all who wait."""
        self._set = True
        for waiting in list(self._waiting):
            waiting.put(None)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set.

        :param timeout: seconds; ``None`` waits without limit.
        :returns: whether it is set.
        """
        mine: SimpleQueue[None] = SimpleQueue()
        self._waiting.append(mine)
        try:
            if not self._set:  # after mine was added: set() wakes it, or was called before
                if timeout is None:
                    mine.get()
                else:
                    take(mine, timeout)
        except Empty:
            pass
        finally:
            self._waiting.remove(mine)
        return self._set
