"""Timeouts given to calls, as deadlines on the monotonic clock."""

from __future__ import annotations

import math
import time
from typing import Any

from message_hub_sync.errors import MessageValidationError

__all__ = ["deadline_after", "remaining", "timeout_seconds"]

#: Above this a wait would overflow ``threading.TIMEOUT_MAX`` on some platforms: about 49 days.
MAX_TIMEOUT = 4_294_967


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
