"""Calls that become due at a time: a connection's timers."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Any

__all__ = ["Timers"]


class Timers:
    """A heap of due calls. All methods are called with the connection's lock held.

    :param on_error: called with the exception of a call that failed; the calls after it still run.
    """

    def __init__(self, on_error: Callable[[Exception], None]) -> None:
        #: Entries of due time (monotonic seconds), number and call: the first entry is the next one due.
        self.heap: list[tuple[float, int, Callable[[], Any]]] = []  # guarded by the lock; the I/O thread peeks without
        self._cancelled: set[int] = set()  # guarded by the lock
        self._numbers = itertools.count(1)  # guarded by the lock
        self._on_error = on_error

    def add(self, due: float, call: Callable[[], Any]) -> int:
        """Add a call.

        :param due: monotonic seconds.
        :returns: the number with which it can be cancelled.
        """
        number = next(self._numbers)
        heapq.heappush(self.heap, (due, number, call))
        return number

    def cancel(self, number: int) -> None:
        """Cancel a call. A call that has run or was never added is ignored."""
        if any(entry[1] == number for entry in self.heap):
            self._cancelled.add(number)

    def run_due(self, now: float) -> None:
        """Run every call that is due at ``now`` (monotonic seconds), those that such a call adds included."""
        heap = self.heap
        while heap and heap[0][0] <= now:
            _, number, call = heapq.heappop(heap)
            if number in self._cancelled:
                self._cancelled.discard(number)
                continue
            try:
                call()
            except Exception as error:
                self._on_error(error)
