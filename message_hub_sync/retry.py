"""What becomes of a message whose handler failed: later, or the dead-letter queue. Pure decisions.

Moving a message is publishing it anew, so that here is also decided what a moved message bears.

Ours, in headers: ``x-attempts`` (handler runs that failed), ``x-crashes`` (times its process may have died
of it), ``x-service`` (who moved it), ``x-error-type``, ``x-error-message``; on a dead letter also
``x-error-traceback`` and ``x-reason``; and from the first move on ``x-first-failed-at`` (ISO 8601, UTC),
``x-original-exchange``, ``x-original-routing-key``, ``x-original-expiration`` (ms), ``x-ttl-left`` (ms, when it comes
back from the retry queue), ``x-original-user-id``.
``x-left-out``: why the message bears less than it did.

Left out of a move are ``expiration`` (a dead letter that kept it would vanish), ``user_id`` (the broker refuses
a foreign one) and the headers that :mod:`message_hub_sync.headers` names.
"""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Protocol

from message_hub_sync.config import positive_seconds
from message_hub_sync.envelope import PERSISTENT, InvalidMessage, Properties
from message_hub_sync.errors import (
    LONGEST_DELAY,
    MessageHubConfigurationError,
    MessageHubRejectError,
    MessageHubRetryError,
)
from message_hub_sync.headers import headers_to_move
from message_hub_sync.text import cut, printable

__all__ = [
    "LADDER_MS",
    "DeadLetter",
    "Moved",
    "RetryLater",
    "RetryPolicy",
    "attempts_made",
    "crash_properties",
    "crashes",
    "dead_letter_properties",
    "decide",
    "error_text",
    "expired",
    "reduced_properties",
    "retry_properties",
    "rung",
]

#: The delays that exist, each a queue in the broker, in milliseconds.
LADDER_MS = (1_000, 5_000, 30_000, 60_000, 300_000, 3_600_000)

ATTEMPTS = "x-attempts"
CRASHES = "x-crashes"
ERROR_MESSAGE = "x-error-message"
ERROR_TRACEBACK = "x-error-traceback"
ERROR_TYPE = "x-error-type"
FIRST_FAILED_AT = "x-first-failed-at"
LEFT_OUT = "x-left-out"
ORIGINAL_EXCHANGE = "x-original-exchange"
ORIGINAL_EXPIRATION = "x-original-expiration"
ORIGINAL_ROUTING_KEY = "x-original-routing-key"
ORIGINAL_USER_ID = "x-original-user-id"
REASON = "x-reason"
SERVICE = "x-service"
TTL_LEFT = "x-ttl-left"

MAX_TRACEBACK_BYTES = 4 * 1024
#: Bytes of each text, of where it was published, and of all headers in what fits into the smallest frame there is.
_REDUCED_TEXT, _REDUCED_ORIGIN, _REDUCED_HEADERS = 128, 255, 2_560
_MAX_TEXT = 500
_MAX_COUNT = 2**31 - 1


class Moved(Protocol):
    """What is asked of a delivery in order to move it."""

    properties: Properties
    exchange: str
    routing_key: str


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
class DeadLetter:
    """Give it up, because of ``reason``."""

    reason: str


def rung(delay: float) -> int:
    """A delay in seconds as a rung of the ladder in milliseconds: rounded up, the top for all above it."""
    return next((step for step in LADDER_MS if delay * 1000 <= step), LADDER_MS[-1])


def decide(policy: RetryPolicy, attempt: int, error: BaseException) -> RetryLater | DeadLetter:
    """What becomes of a message whose handler raised ``error`` in run number ``attempt`` (1 for the first).

    A :class:`MessageHubRetryError` names its own delay; it overrules ``policy.never``, not ``policy.attempts``.
    """
    if isinstance(error, (InvalidMessage, MessageHubRejectError)):
        return DeadLetter(error_text(error))
    asked = isinstance(error, MessageHubRetryError)
    if isinstance(error, policy.never) and not asked:
        return DeadLetter(f"{type(error).__name__} is never retried here")
    if attempt >= policy.attempts:
        times = "once" if attempt == 1 else f"{attempt} times"
        return DeadLetter(f"failed {times}, at last with {type(error).__name__}")
    delay = error.delay if isinstance(error, MessageHubRetryError) else None
    if delay is None:
        delay = policy.delays[min(attempt, len(policy.delays)) - 1]
    return RetryLater(rung(delay))


def attempts_made(headers: Mapping[str, Any]) -> int:
    """How many handler runs this message has failed so far; 0 where the header is absent or no count."""
    return _count(headers, ATTEMPTS)


def crashes(headers: Mapping[str, Any]) -> int:
    """How often this message was moved because its last consumer may have died of it."""
    return _count(headers, CRASHES)


def _count(headers: Mapping[str, Any], name: str) -> int:
    value = headers.get(name)
    return min(max(value, 0), _MAX_COUNT) if isinstance(value, int) and not isinstance(value, bool) else 0


def retry_properties(
    delivery: Moved,
    *,
    attempts: int,
    error: BaseException | None,
    service: str,
    now: float,
    delay_ms: int,
    past: float | None = None,
) -> Properties:
    """What a message bears on its way to a retry queue.

    :param attempts: handler runs that failed, this one included.
    :param now: wall clock, seconds since the epoch.
    :param delay_ms: how long it will wait there.
    :param past: as :func:`expired` has it; the wall clock where it is left out.
    """
    ours = {ATTEMPTS: attempts, SERVICE: service, **_first_failed(delivery, now), **_error(error)}
    return _moved(delivery, {**ours, **_ttl_after(delivery, now if past is None else past, delay_ms)})


def crash_properties(delivery: Moved, *, crashes: int, past: float, delay_ms: int) -> Properties:
    """What a message bears that is set aside unhandled, because its last consumer may have died of it.

    :param crashes: this one included; at least one more than the message bears already is written.
        Its ``x-attempts`` stays as it is.
    """
    ours = {CRASHES: max(crashes, _count(delivery.properties.headers, CRASHES) + 1)}
    return _moved(delivery, {**ours, **_ttl_after(delivery, past, delay_ms)})


def dead_letter_properties(
    delivery: Moved, *, error: BaseException | None, reason: str, attempts: int, service: str, now: float
) -> Properties:
    """What a message bears that is given up.

    :param error: what the handler raised, ``None`` where none did: type, text and traceback's tail go along.
    :param attempts: handler runs that failed.
    :param now: wall clock, seconds since the epoch.
    """
    ours = {ATTEMPTS: attempts, SERVICE: service, REASON: printable(reason, _MAX_TEXT)}
    if error is not None:
        ours[ERROR_TRACEBACK] = _traceback_tail(error)
    return _moved(delivery, {**ours, **_first_failed(delivery, now), **_error(error)})


def reduced_properties(properties: Properties, why: str) -> Properties:
    """What a message bears that cannot be moved as it is: short ids, our headers shortened, its own small ones.

    They fit into 4096 bytes, the least that a frame may be limited to. Its message id is whole where it is a UUID.

    :param properties: those that it was to bear.
    :param why: what AMQP cannot carry.
    """
    headers = {REASON: "it cannot be moved as it is", **properties.headers, LEFT_OUT: why}
    sizes = {**dict.fromkeys(_OURS, _REDUCED_TEXT), ORIGINAL_EXCHANGE: _REDUCED_ORIGIN}
    sizes[ORIGINAL_ROUTING_KEY] = _REDUCED_ORIGIN
    ours = {}
    for name, size in sizes.items():
        value = headers.pop(name, None)
        if isinstance(value, (int, str)):  # whoever may publish can write anything there
            ours[name] = cut(value, size) if isinstance(value, str) else value
    texts = {name: getattr(properties, name) for name in _SHORT_TEXTS}
    return Properties(
        **{name: None if text is None else cut(text, _REDUCED_TEXT) for name, text in texts.items()},
        delivery_mode=PERSISTENT,
        priority=properties.priority,
        timestamp=properties.timestamp,
        headers=headers_to_move(headers, ours, _REDUCED_HEADERS),
    )


_OURS = (
    *(ATTEMPTS, CRASHES, SERVICE, FIRST_FAILED_AT, REASON, LEFT_OUT),
    *(ERROR_TYPE, ERROR_MESSAGE, ORIGINAL_EXPIRATION, TTL_LEFT, ORIGINAL_USER_ID),
)
_SHORT_TEXTS = ("message_id", "correlation_id", "type", "app_id", "content_type", "content_encoding", "reply_to")


def expired(properties: Properties, past: float) -> bool:
    """Whether a message back from a retry queue is past its ttl, which the broker no longer watches.

    What is left of the ttl is carried along and shortened by each delay, for which the broker answers. Clocks are asked
    only for how long the message waited before it failed first and since it came back: whoever sets one must not
    have messages given up.

    :param past: seconds since the epoch, or fewer: the reading of a clock that nobody has set forward
        (:func:`~message_hub_sync.deadlines.certainly_past`).
    """
    left = _ttl_left(properties, past) if TTL_LEFT in properties.headers else None
    return left is not None and left <= 0


def _ttl_left(properties: Properties, past: float) -> int | None:
    """Milliseconds, ``None``: it has none."""
    headers = properties.headers
    total = properties.expiration if properties.expiration is not None else headers.get(ORIGINAL_EXPIRATION)
    if not isinstance(total, str) or not (total.isascii() and total.isdigit()):
        return None
    # Ten digits are more than the broker takes; more than 4,300 would make int() raise.
    ttl = int(total[:10])
    left = headers.get(TTL_LEFT)
    if properties.expiration is None and isinstance(left, int) and not isinstance(left, bool):
        back = _came_back(headers)
        # The broker writes whole seconds.
        waited = 0.0 if back is None else max(0.0, past - back - 1)
        return min(max(left, -ttl), ttl) - int(waited * 1000)
    sent = _epoch(headers.get("timestamp"))
    sent = properties.timestamp if sent is None else sent
    waited = 0.0 if sent is None else past - sent
    # The broker would not have handed out one that is past its ttl: where the clocks say so, somebody has set one.
    return ttl - int(waited * 1000) if 0 <= waited * 1000 < ttl else ttl


def _ttl_after(delivery: Moved, past: float, delay_ms: int) -> dict[str, Any]:
    left = _ttl_left(delivery.properties, past)
    return {} if left is None else {TTL_LEFT: left - delay_ms}


def _came_back(headers: Mapping[str, Any]) -> float | None:
    """When the broker moved it from its retry queue to where it was delivered from."""
    deaths = headers.get("x-death")
    latest = deaths[0] if isinstance(deaths, list) and deaths else None
    return _epoch(latest.get("time")) if isinstance(latest, Mapping) else None


def _epoch(iso: Any) -> float | None:
    try:
        moment = iso if isinstance(iso, datetime) else datetime.fromisoformat(iso.replace("Z", "+00:00"))
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, TypeError, AttributeError, OverflowError):
        return None


# --- what a moved message bears ------------------------------------------------------------------


def _moved(delivery: Moved, ours: dict[str, Any]) -> Properties:
    properties = delivery.properties
    ours = {
        ORIGINAL_EXCHANGE: _earlier(properties, ORIGINAL_EXCHANGE, delivery.exchange),
        ORIGINAL_ROUTING_KEY: _earlier(properties, ORIGINAL_ROUTING_KEY, delivery.routing_key),
        **ours,
    }
    for name, value in ((ORIGINAL_EXPIRATION, properties.expiration), (ORIGINAL_USER_ID, properties.user_id)):
        if value is not None:
            ours[name] = value
    stamp = properties.timestamp
    return dataclasses.replace(
        properties,
        headers=headers_to_move(properties.headers, ours),
        delivery_mode=PERSISTENT,
        expiration=None,
        user_id=None,
        timestamp=stamp if stamp is not None and 0 <= stamp < 2**63 else None,
    )


def _earlier(properties: Properties, name: str, otherwise: str) -> str:
    """What an earlier move wrote there; anything that no move of ours writes is replaced."""
    value = properties.headers.get(name)
    return value if isinstance(value, str) and len(value.encode("utf-8", "replace")) <= 255 else otherwise


def _first_failed(delivery: Moved, now: float) -> dict[str, Any]:
    earlier = delivery.properties.headers.get(FIRST_FAILED_AT)
    if _epoch(earlier) is not None and isinstance(earlier, str):
        return {FIRST_FAILED_AT: earlier}
    return {FIRST_FAILED_AT: datetime.fromtimestamp(now, timezone.utc).isoformat()}


def _error(error: BaseException | None) -> dict[str, Any]:
    if error is None:
        return {}
    return {
        ERROR_TYPE: printable(type(error).__name__),
        ERROR_MESSAGE: printable(error_text(error), _MAX_TEXT),
    }


def error_text(error: BaseException) -> str:
    """What an exception says, in whatever state it is."""
    try:
        return str(error) or type(error).__name__
    except Exception:
        return f"{type(error).__name__} (its text cannot be made)"


def _traceback_tail(error: BaseException) -> str:
    # The innermost frames say most; a deep recursion has thousands.
    try:
        formatted = "".join(traceback.TracebackException.from_exception(error, limit=-64).format())
    except Exception:
        # An exception that cannot be shown must not keep its message from being moved.
        return ""
    lines = "\n".join(printable(line, 2 * _MAX_TEXT) for line in formatted.rstrip("\n").split("\n"))
    return lines.encode()[-MAX_TRACEBACK_BYTES:].decode("utf-8", "ignore")


def _shown(value: Any) -> str:
    return printable(repr(value), 80)
