"""Timeouts given to calls, as deadlines on the monotonic clock."""

from __future__ import annotations

import math
import time
from queue import SimpleQueue
from typing import Any, TypeVar

from message_hub_sync.errors import MessageValidationError

__all__ = ["deadline_after", "earliest_now", "remaining", "take", "timeout_seconds"]

T = TypeVar("T")

#: Shorter waits on a queue than this, in seconds, are not begun (see :func:`take`).
SHORTEST_WAIT = 0.05

#: Above this a wait would overflow ``threading.TIMEOUT_MAX`` on some platforms: about 49 days.
MAX_TIMEOUT = 4_294_967


#: What the wall clock showed when the monotonic one was at zero, as both were when this process began.
_EPOCH = time.time() - time.monotonic()


def earliest_now() -> float:
    """A moment that is over though somebody sets the wall clock, in seconds since the epoch.

    The earlier of what the wall clock says and of what it would say had nobody touched it in this process's time.
    """
    return min(time.time(), _EPOCH + time.monotonic())


def timeout_seconds(value: Any, default: float) -> float:
    """A call's own ``timeout`` in seconds, or ``default`` where it gave ``None``.

    :raises MessageValidationError: it is not a number of seconds above 0.
    """
    if value is None:
        return default
    if (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
        and 0 < value <= MAX_TIMEOUT
    ):
        return float(value)
    raise MessageValidationError(
        f"timeout {str(value)[:40]!r} is not usable: seconds greater than 0 and at most {MAX_TIMEOUT}, or None"
    )


def deadline_after(value: Any, default: float) -> float:
    """The same as a reading of ``time.monotonic()``."""
    return time.monotonic() + timeout_seconds(value, default)


def remaining(deadline: float) -> float:
    """Seconds until ``deadline``, never negative."""
    return max(0.0, deadline - time.monotonic())


def take(queue: SimpleQueue[T], timeout: float) -> T:
    """``queue.get(timeout=timeout)``, but a wait that begins always ends.

    Before Python 3.13 ``SimpleQueue.get`` looks at the clock twice; when its timeout passes in between, what
    is left is negative, and it sleeps for ever. A wait too short for that not to happen is made a little longer.

    :raises Empty: nothing came in time.
    """
    if timeout <= 0 or queue.qsize():
        return queue.get_nowait()
    return queue.get(timeout=max(timeout, SHORTEST_WAIT))
