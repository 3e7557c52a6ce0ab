"""The timeouts of calls, converted to deadlines on the monotonic clock."""

from __future__ import annotations

import math
from queue import SimpleQueue
from typing import Any, TypeVar

from message_hub_sync.errors import MessageValidationError
from message_hub_sync.runtime.real_time import time
from message_hub_sync.runtime.text import shown

__all__ = ["MAX_TIMEOUT", "deadline_after", "earliest_now", "remaining", "take", "timeout_seconds"]

T = TypeVar("T")

#: The shortest wait that :func:`take` starts, in seconds.
SHORTEST_WAIT = 0.05

#: The longest timeout, in seconds (24 days). ``poll`` takes at most 2**31 - 1 milliseconds, ``threading`` more.
MAX_TIMEOUT = 2_147_000

#: The wall clock's value, in seconds since the epoch, at zero of the monotonic clock: computed at import.
_EPOCH = time.time() - time.monotonic()


def earliest_now() -> float:
    """A lower bound of the current time, in seconds since the epoch.

    It is the wall clock, or the wall clock's value at import plus the monotonic time since then, whichever is earlier.
    So it holds even if the wall clock is set while this process runs.
    """
    return min(time.time(), _EPOCH + time.monotonic())


def timeout_seconds(value: Any, default: float) -> float:
    """Check the ``timeout`` argument of a call.

    :param value: seconds, or ``None`` for ``default``.
    :param default: seconds.
    :returns: seconds.
    :raises MessageValidationError: ``value`` is neither ``None`` nor a number above 0 and at most :data:`MAX_TIMEOUT`.
    """
    if value is None:
        return min(default, MAX_TIMEOUT)
    if (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
        and 0 < value <= MAX_TIMEOUT
    ):
        return float(value)
    raise MessageValidationError(
        f"timeout must be a number of seconds greater than 0 and at most {MAX_TIMEOUT}, or None for the default, "
        f"not {shown(value)}"
    )


def deadline_after(value: Any, default: float) -> float:
    """The deadline of a call whose ``timeout`` argument is ``value``.

    :param value: seconds, or ``None`` for ``default``.
    :param default: seconds.
    :returns: a time on the clock of ``time.monotonic()``, in seconds.
    :raises MessageValidationError: ``value`` is neither ``None`` nor a number above 0 and at most :data:`MAX_TIMEOUT`.
    """
    return time.monotonic() + timeout_seconds(value, default)


def remaining(deadline: float) -> float:
    """Seconds until ``deadline``, never negative."""
    return max(0.0, deadline - time.monotonic())


def take(queue: SimpleQueue[T], timeout: float) -> T:
    """Take an item from ``queue``: ``queue.get(timeout=timeout)`` without a defect of ``SimpleQueue``.

    :param timeout: seconds; 0 or less does not wait. A shorter wait than :data:`SHORTEST_WAIT` is extended to it.
    :raises Empty: no item came in time.
    """
    # Before Python 3.13, SimpleQueue.get reads the clock twice. If a very short timeout passes between the two
    # readings, the remaining time is negative, and the call waits for ever. So no very short wait is started.
    if timeout <= 0 or queue.qsize():
        return queue.get_nowait()
    return queue.get(timeout=max(timeout, SHORTEST_WAIT))
