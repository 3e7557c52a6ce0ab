"""An event that is set once, and that an interrupted waiter leaves usable for the others."""

from __future__ import annotations

import _thread

__all__ = ["FinalEvent"]


class FinalEvent:
    """Like :class:`threading.Event`, but it cannot be cleared. Any thread may use it.

    A ``threading.Event`` has a lock that all its waiters share. If a signal handler raises while one of them waits,
    Python 3.14 may leave that lock held: then nobody can set the event. Here each waiter has a lock of its own.
    """

    def __init__(self, *, is_set: bool = False) -> None:
        self._set = is_set  # any thread sets it to True, and it stays so
        # Each waiter adds and removes its own, which is held until set(). Not a SimpleQueue: before Python 3.13 a
        # signal handler that takes longer than the rest of the timeout makes its get() wait for ever.
        self._waiting: list[_thread.LockType] = []

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._set

    def set(self) -> None:
        """Set it, and wake all who wait."""
        self._set = True
        for waiting in list(self._waiting):
            try:  # noqa: SIM105
                waiting.release()
            except RuntimeError:
                pass  # another set() has released it

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set.

        :param timeout: seconds; ``None`` waits without limit.
        :returns: whether it is set.
        """
        mine = _thread.allocate_lock()
        mine.acquire()
        self._waiting.append(mine)
        try:
            if not self._set:  # after mine was added: set() releases it, or was called before
                mine.acquire(timeout=-1 if timeout is None else max(0.0, timeout))
        finally:
            self._waiting.remove(mine)
        return self._set
