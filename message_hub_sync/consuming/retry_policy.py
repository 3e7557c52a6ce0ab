"""Decides what happens to a message whose handler failed: a retry later, or the dead-letter queue. Pure."""

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
from message_hub_sync.runtime.text import error_text, shown

__all__ = ["RETRY_DELAYS_MS", "GiveUp", "RetryLater", "RetryPolicy", "decide", "retry_delay_ms"]

#: The possible delays in milliseconds. Each one is a retry queue in the broker.
RETRY_DELAYS_MS = (1_000, 5_000, 30_000, 60_000, 300_000, 3_600_000)

_MAX_COUNT = 2**31 - 1


@dataclass(frozen=True)
class RetryPolicy:
    """How often a handler is run for one message, and how long the message waits in between.

    :param attempts: runs in all, the first included.
    :param delays: seconds to wait before the second run, the third run and so on; the last delay repeats. Each is
        rounded up to 1, 5, 30, 60, 300 or 3600 s; 3600 s is the longest.
    :param never: classes of exceptions after which a retry is of no use: the message is dead-lettered at once.
    :raises MessageHubConfigurationError: a value is invalid.
    """

    attempts: int = 4
    delays: tuple[float, ...] = (1, 5, 30)
    never: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        attempts: Any = self.attempts
        if not isinstance(attempts, int) or isinstance(attempts, bool) or not 1 <= attempts <= _MAX_COUNT:
            raise MessageHubConfigurationError(
                f"attempts must be a whole number from 1 to {_MAX_COUNT} (1 never retries), not {shown(attempts)}"
            )
        delays = _items(self.delays, "delays", "seconds, for example (1, 5, 30)")
        if not delays:
            raise MessageHubConfigurationError(
                "delays must hold at least one delay, not none: attempts=1 never retries"
            )
        for delay in delays:
            positive_seconds(delay, "each of delays", LONGEST_DELAY)
        never = _items(self.never, "never", "exception classes, for example (ValueError,)")
        for kind in never:
            if not isinstance(kind, type) or not issubclass(kind, BaseException):
                raise MessageHubConfigurationError(f"never must hold exception classes, not {_class_or_value(kind)}")
        object.__setattr__(self, "delays", delays)
        object.__setattr__(self, "never", never)

    @classmethod
    def none(cls) -> RetryPolicy:
        """A policy without retries: a message whose handler fails once is dead-lettered."""
        return cls(attempts=1)


def _items(values: Any, name: str, allowed: str) -> tuple[Any, ...]:
    if isinstance(values, Iterable) and not isinstance(values, (str, bytes, type)):
        return tuple(values)
    raise MessageHubConfigurationError(f"{name} must be a tuple of {allowed}, not {_class_or_value(values)}")


@dataclass(frozen=True)
class RetryLater:
    """Deliver the message again after ``delay_ms``, one of :data:`RETRY_DELAYS_MS`."""

    delay_ms: int


@dataclass(frozen=True)
class GiveUp:
    """Dead-letter the message, because of ``reason``."""

    reason: str


def retry_delay_ms(delay: float) -> int:
    """``delay`` (seconds) rounded up to one of :data:`RETRY_DELAYS_MS`; the longest one if it is longer still."""
    return next((step for step in RETRY_DELAYS_MS if delay * 1000 <= step), RETRY_DELAYS_MS[-1])


def decide(policy: RetryPolicy, attempt: int, error: BaseException) -> RetryLater | GiveUp:
    """Decide what happens to a message whose handler raised ``error``.

    A :class:`MessageHubRetryError` may name its own delay. It is retried even if ``policy.never`` contains its class,
    but ``policy.attempts`` limits it, too.

    :param attempt: the number of the run that failed, 1 for the first.
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


def _class_or_value(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else shown(value)
