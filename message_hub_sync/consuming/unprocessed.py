"""Deliveries whose processing failed where nothing is expected to fail. They are given back after a pause."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.real_time import time
from message_hub_sync.transport.base import Consumer, Delivery

__all__ = ["UnprocessedDeliveries"]

logger = SafeLogger("message_hub_sync.subscription")

#: Seconds until a delivery is given back: at first, and at most. The pause doubles until a delivery is processed.
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 10.0


class UnprocessedDeliveries:
    """The deliveries of one queue that could not be processed. Any thread may use it; no lock: single operations only.

    The broker delivers them again. So none stays unacked for good, and one that always fails takes little time.

    :param attend_at: has a worker call :meth:`give_back` at a time in monotonic seconds.
    """

    def __init__(self, consumer: Consumer, attend_at: Callable[[float], None]) -> None:
        self._consumer = consumer
        self._attend_at = attend_at
        self._waiting: deque[tuple[float, Delivery]] = deque()
        self._pause = FIRST_PAUSE
        self._why = ""
        #: Whether a delivery could not be processed, and none was processed since then.
        self.failing = False

    def add(self, delivery: Delivery, error: BaseException) -> None:
        """Give a delivery back after a pause."""
        self._why = type(error).__name__
        self.failing = True
        due = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        self._waiting.append((due, delivery))
        self._attend_at(due)
        logger.error(
            "a delivery of %s could not be processed; it stays unacked, and is given back to its queue soon",
            delivery.queue,
            exc_info=error,
        )

    def processed(self) -> None:
        """A delivery was processed: the next failure begins anew."""
        if not self._waiting:
            self.failing, self._pause = False, FIRST_PAUSE

    def give_back(self, now: float = math.inf) -> None:
        """Give back those that are due.

        :param now: monotonic seconds; by default all of them.
        """
        for _ in range(len(self._waiting)):
            try:
                due, delivery = self._waiting.popleft()
            except IndexError:  # another thread has taken it
                return
            if due <= now:
                self._consumer.requeue(delivery)
            else:
                self._waiting.append((due, delivery))
                self._attend_at(due)

    @property
    def error(self) -> str | None:
        """What health shows; ``None`` if the last delivery was processed."""
        if not self.failing:
            return None
        return f"deliveries cannot be processed ({self._why}), and are given back: the log has the traceback"
