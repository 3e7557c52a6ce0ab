"""What becomes of a message whose handler failed: a retry later, or the dead-letter queue. Pure decisions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from message_hub_sync.config import positive_seconds
from message_hub_sync.envelope.values import InvalidMessage
from message_hub_sync.errors import (
    LONGEST_DELAY,
    MessageHubConfigurationError,
    MessageHubRejectError,
    MessageHubRetryError,
)
from message_hub_sync.runtime.text import error_text, printable

__all__ = ["RETRY_DELAYS_MS", "GiveUp", "RetryLater", "RetryPolicy", "decide", "retry_delay_ms"]

#: The delays that exist, each a queue in the broker, in milliseconds.
RETRY_DELAYS_MS = (1_000, 5_000, 30_000, 60_000, 300_000, 3_600_000)

_MAX_COUNT = 2**31 - 1


@dataclass(frozen=True)
class RetryPolicy:
    """How often a handler is run for one message, and how long the message waits in between.

    :param attempts: runs in all, the first included.
    :param delays: seconds to wait before the second run, the third and so on; the last repeats. Each is
        rounded up to a rung of the ladder: 1, 5, 30, 60, 300 or 3600 s, which is the most.
    :param never: exceptions that no repetition mends; they dead-letter the message at once.
    :raises MessageHubConfigurationError: a value is not usable.
    """

    attempts: int = 4
    delays: tuple[float, ...] = (1, 5, 30)
    never: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        attempts: Any = self.attempts
        if not isinstance(attempts, int) or isinstance(attempts, bool) or not 1 <= attempts <= _MAX_COUNT:
            raise MessageHubConfigurationError(
                f"attempts {_shown(attempts)} is not usable: a whole number from 1 is (1 never repeats)"
            )
        delays = _items(self.delays, "delays", "seconds, for example (1, 5, 30)")
        if not delays:
            raise MessageHubConfigurationError("delays is empty: give at least one (attempts=1 never repeats)")
        for delay in delays:
            positive_seconds(delay, "delays:", LONGEST_DELAY)
        never = _items(self.never, "never", "exception classes, for example (ValueError,)")
        for kind in never:
            if not isinstance(kind, type) or not issubclass(kind, BaseException):
                raise MessageHubConfigurationError(f"never holds {_shown(kind)}: exception classes are usable")
        object.__setattr__(self, "delays", delays)
        object.__setattr__(self, "never", never)

    @classmethod
    def none(cls) -> RetryPolicy:
        """One run; a message that fails it is dead-lettered."""
        return cls(attempts=1)


def _items(values: Any, name: str, allowed: str) -> tuple[Any, ...]:
    if isinstance(values, Iterable) and not isinstance(values, (str, bytes, type)):
        return tuple(values)
    raise MessageHubConfigurationError(f"{name} {_shown(values)} is not usable: a tuple of {allowed}, is")


@dataclass(frozen=True)
class RetryLater:
    """Deliver it again after ``delay_ms``, a rung of the ladder."""

    delay_ms: int


@dataclass(frozen=True)
class GiveUp:
    """Give it up, because of ``reason``."""

    reason: str


def retry_delay_ms(delay: float) -> int:
    """A delay in seconds as a rung of the ladder in milliseconds: rounded up, the top for all above it."""
    return next((step for step in RETRY_DELAYS_MS if delay * 1000 <= step), RETRY_DELAYS_MS[-1])


def decide(policy: RetryPolicy, attempt: int, error: BaseException) -> RetryLater | GiveUp:
    """What becomes of a message whose handler raised ``error`` in run number ``attempt`` (1 for the first).

    A :class:`MessageHubRetryError` names its own delay; it overrules ``policy.never``, not ``policy.attempts``.
    """
    if isinstance(error, (InvalidMessage, MessageHubRejectError)):
        return GiveUp(error_text(error))
    asked = isinstance(error, MessageHubRetryError)
    if isinstance(error, policy.never) and not asked:
        return GiveUp(f"{type(error).__name__} is never retried here")
    if attempt >= policy.attempts:
        times = "once" if attempt == 1 else f"{attempt} times"
        return GiveUp(f"failed {times}, at last with {type(error).__name__}")
    delay = error.delay if isinstance(error, MessageHubRetryError) else None
    if delay is None:
        delay = policy.delays[min(attempt, len(policy.delays)) - 1]
    return RetryLater(retry_delay_ms(delay))


def _shown(value: Any) -> str:
    return printable(repr(value), 80)
