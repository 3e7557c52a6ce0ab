"""Properties and headers of a message that is republished to a retry queue or a dead-letter queue. Pure.

These properties are left out: ``expiration``, because the broker would drop the message after that time, and
``user_id``, because the broker accepts only that of the publishing user. These headers are left out, too:

* ``x-death``, ``x-first-death-*``, ``x-last-death-*``: the broker writes them when a message leaves a retry queue, and
  reads them to find cycles of dead-lettering. It drops a message that is in a cycle, so a retry must not look like one.
* ``x-delivery-count``: a quorum queue counts its own deliveries there. The count is wrong in any other queue.
* ``CC`` and ``BCC``: the broker would route the message to those queues again.
* Values that AMQP cannot encode: other objects, whole numbers of more than 64 bits, texts that are not UTF-8, tables
  nested deeper than 16. Decimals with more digits than AMQP has are written as text. So are NaN and the infinities,
  for which RabbitMQ closes the connection.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any, Protocol

from message_hub_sync.consuming.error_headers import error_headers, traceback_header
from message_hub_sync.envelope.header_names import (
    ATTEMPTS,
    CRASHES,
    DELIVERY_COUNT,
    ERROR_MESSAGE,
    ERROR_TYPE,
    FIRST_FAILED_AT,
    LEFT_OUT,
    ORIGINAL_EXCHANGE,
    ORIGINAL_EXPIRATION,
    ORIGINAL_ROUTING_KEY,
    ORIGINAL_USER_ID,
    REASON,
    SERVICE,
    TIMESTAMP,
    TTL_LEFT,
    X_DEATH,
)
from message_hub_sync.envelope.header_sizes import field_size, table_size
from message_hub_sync.envelope.values import PERSISTENT, Properties
from message_hub_sync.runtime.text import cut, encodable, printable
from message_hub_sync.transport.amqp_values import decimal_fits
from message_hub_sync.transport.topology import DEFAULT_EXCHANGE

__all__ = [
    "MAX_HEADER_BYTES",
    "FailedDelivery",
    "attempts_made",
    "dead_letter_properties",
    "epoch_seconds",
    "expired",
    "headers_to_republish",
    "reduced_properties",
    "retry_properties",
    "senders_headers",
]

#: Limits in bytes for :func:`reduced_properties`: of each text, of exchange and routing key, of all headers together.
_REDUCED_TEXT, _REDUCED_ORIGIN, _REDUCED_HEADERS = 128, 255, 2_560
_MAX_TEXT = 500
_MAX_COUNT = 2**31 - 1
#: RabbitMQ closes the connection for headers of about 129 KiB. This is half of that, minus room for the properties.
MAX_HEADER_BYTES = 60 * 1024
_INT64 = 2**63
_MAX_DEPTH = 16
_DROPPED_HEADERS = frozenset({X_DEATH, DELIVERY_COUNT, "CC", "BCC"})
_DROPPED_PREFIXES = ("x-first-death-", "x-last-death-")
_DROPPED = object()


class FailedDelivery(Protocol):
    """The part of a delivery that is needed to republish it."""

    properties: Properties
    exchange: str
    routing_key: str


def attempts_made(headers: Mapping[str, Any]) -> int:
    """The number of handler runs that failed for this message so far; 0 if the header is absent or invalid."""
    value = headers.get(ATTEMPTS)
    return min(max(value, 0), _MAX_COUNT) if isinstance(value, int) and not isinstance(value, bool) else 0


def retry_properties(
    delivery: FailedDelivery,
    *,
    attempts: int,
    error: BaseException | None,
    service: str,
    now: float,
    delay_ms: int,
    earliest_now: float | None = None,
    waited: float | None = None,
) -> Properties:
    """Properties of a message that is republished to a retry queue.

    :param attempts: handler runs that failed, this one included.
    :param error: what the handler raised, ``None`` if no handler raised: its type becomes a header.
    :param service: the name of this service.
    :param now: the wall clock, in seconds since the epoch.
    :param delay_ms: how long the message will wait in the retry queue, in milliseconds.
    :param earliest_now: a lower bound of now, in seconds since the epoch; by default ``now``.
    :param waited: seconds since it came into its queue, if the transport knows it.
    """
    ours = {ATTEMPTS: attempts, SERVICE: service, **_first_failed(delivery, now)}
    if error is not None:
        ours.update(error_headers(error))
    left = _ttl_left(delivery.properties, now if earliest_now is None else earliest_now, waited)
    return _moved(delivery, {**ours, **({} if left is None else {TTL_LEFT: left - delay_ms})})


def dead_letter_properties(
    delivery: FailedDelivery,
    *,
    error: BaseException | None,
    reason: str,
    attempts: int,
    service: str,
    now: float,
    crashes: int = 0,
) -> Properties:
    """Properties of a dead-lettered message.

    :param error: what the handler raised, ``None`` if no handler raised: its type, and where it was raised,
        become headers.
    :param reason: why it is dead-lettered.
    :param attempts: handler runs that failed.
    :param service: the name of this service.
    :param now: the wall clock, in seconds since the epoch.
    :param crashes: how many processes its handler has ended, as far as they were counted.
    """
    ours = {ATTEMPTS: attempts, SERVICE: service, REASON: printable(reason, _MAX_TEXT)}
    if crashes:
        ours[CRASHES] = crashes
    if error is not None:
        ours.update(error_headers(error) | traceback_header(error))
    return _moved(delivery, {**ours, **_first_failed(delivery, now)})


def reduced_properties(properties: Properties, why: str) -> Properties:
    """Properties for a message that cannot be republished with ``properties``: shorter ones.

    They fit into 4,096 bytes, the smallest limit that a frame may have. Texts are cut to 128 bytes, exchange and
    routing key to 255. So a message id that is a UUID stays whole. Small headers of the message itself are kept.

    :param properties: the properties that AMQP cannot carry.
    :param why: the reason, which becomes a header.
    """
    headers = {REASON: "it cannot be moved as it is", **properties.headers, LEFT_OUT: why}
    sizes = {**dict.fromkeys(_OURS, _REDUCED_TEXT), ORIGINAL_EXCHANGE: _REDUCED_ORIGIN}
    sizes[ORIGINAL_ROUTING_KEY] = _REDUCED_ORIGIN
    ours = {}
    for name, size in sizes.items():
        value = headers.pop(name, None)
        if isinstance(value, (int, str)):  # any publisher can write anything there
            ours[name] = cut(value, size) if isinstance(value, str) else value
    texts = {name: getattr(properties, name) for name in _SHORT_TEXTS}
    return Properties(
        **{name: None if text is None else cut(text, _REDUCED_TEXT) for name, text in texts.items()},
        delivery_mode=PERSISTENT,
        priority=properties.priority,
        timestamp=properties.timestamp,
        headers=headers_to_republish(headers, ours, _REDUCED_HEADERS),
    )


_OURS = (
    *(ATTEMPTS, CRASHES, SERVICE, FIRST_FAILED_AT, REASON, LEFT_OUT),
    *(ERROR_TYPE, ERROR_MESSAGE, ORIGINAL_EXPIRATION, TTL_LEFT, ORIGINAL_USER_ID),
)
_SHORT_TEXTS = ("message_id", "correlation_id", "type", "app_id", "content_type", "content_encoding", "reply_to")


def expired(properties: Properties, earliest_now: float, waited: float | None = None) -> bool:
    """Whether the ttl of a message that was in a retry queue has passed. The broker no longer checks it.

    A header has the rest of the ttl, shortened by each delay, which the broker's retry queue measures. A clock is read
    only for (1) how long the message waited before its handler failed first, and (2) how long it has waited since it
    left the retry queue. So a clock that is set forward does not expire a message.

    :param earliest_now: a lower bound of now, in seconds since the epoch
        (:func:`~message_hub_sync.runtime.deadlines.earliest_now`).
    :param waited: seconds since it came into its queue, if the transport knows it. No clock is read then.
    """
    left = _ttl_left(properties, earliest_now, waited) if TTL_LEFT in properties.headers else None
    return left is not None and left <= 0


def _ttl_left(properties: Properties, earliest_now: float, waited: float | None) -> int | None:
    """The rest of the ttl in milliseconds; ``None`` if the message has no ttl."""
    headers = properties.headers
    total = properties.expiration if properties.expiration is not None else headers.get(ORIGINAL_EXPIRATION)
    if not isinstance(total, str) or not (total.isascii() and total.isdigit()):
        return None
    # Ten digits can write more than the broker accepts; for more than 4,300 digits int() would raise.
    ttl = int(total[:10])
    left = headers.get(TTL_LEFT)
    if properties.expiration is None and isinstance(left, int) and not isinstance(left, bool):
        if waited is None:
            back = _left_retry_queue_at(headers)
            # Minus 1: the broker writes whole seconds.
            waited = 0.0 if back is None else max(0.0, earliest_now - back - 1)
        return min(max(left, -ttl), ttl) - int(waited * 1000)
    if waited is None:
        sent = epoch_seconds(headers.get(TIMESTAMP))
        sent = properties.timestamp if sent is None else sent
        waited = 0.0 if sent is None else earliest_now - sent
    # The broker delivers no expired message. If the clocks say expired, one of them is wrong: keep the full ttl.
    return ttl - int(waited * 1000) if 0 <= waited * 1000 < ttl else ttl


def _left_retry_queue_at(headers: Mapping[str, Any]) -> float | None:
    """When the broker moved it from the retry queue back to its queue: seconds since the epoch, ``None`` if unknown."""
    deaths = headers.get(X_DEATH)
    latest = deaths[0] if isinstance(deaths, list) and deaths else None
    return epoch_seconds(latest.get("time")) if isinstance(latest, Mapping) else None


def epoch_seconds(iso: Any) -> float | None:
    """A ``datetime`` or an ISO 8601 text as seconds since the epoch; ``None`` if it is neither."""
    try:
        moment = iso if isinstance(iso, datetime) else datetime.fromisoformat(iso.replace("Z", "+00:00"))
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, TypeError, AttributeError, OverflowError):
        return None


# --- properties ----------------------------------------------------------------------------------


def _moved(delivery: FailedDelivery, ours: dict[str, Any]) -> Properties:
    """The properties of the delivery, persistent, with the headers ``ours`` and those of where it was published."""
    properties = delivery.properties
    ours = {
        ORIGINAL_EXCHANGE: _earlier(delivery, ORIGINAL_EXCHANGE, delivery.exchange),
        ORIGINAL_ROUTING_KEY: _earlier(delivery, ORIGINAL_ROUTING_KEY, delivery.routing_key),
        **ours,
    }
    for name, value in ((ORIGINAL_EXPIRATION, properties.expiration), (ORIGINAL_USER_ID, properties.user_id)):
        if value is not None:
            ours[name] = value
    stamp = properties.timestamp
    # Not dataclasses.replace(), which takes five times as long. Without expiration and user_id.
    return Properties(
        message_id=properties.message_id,
        correlation_id=properties.correlation_id,
        type=properties.type,
        app_id=properties.app_id,
        content_type=properties.content_type,
        content_encoding=properties.content_encoding,
        delivery_mode=PERSISTENT,
        priority=properties.priority,
        timestamp=stamp if stamp is not None and 0 <= stamp < 2**63 else None,
        reply_to=properties.reply_to,
        headers=headers_to_republish(properties.headers, ours),
    )


def _earlier(delivery: FailedDelivery, name: str, otherwise: str) -> str:
    """The header ``name`` if an earlier retry can have written it, else ``otherwise``."""
    if delivery.exchange != DEFAULT_EXCHANGE:
        return otherwise  # retries come through the default exchange, so its sender wrote the header
    value = delivery.properties.headers.get(name)
    return value if isinstance(value, str) and len(value.encode("utf-8", "replace")) <= 255 else otherwise


def _first_failed(delivery: FailedDelivery, now: float) -> dict[str, Any]:
    earlier = delivery.properties.headers.get(FIRST_FAILED_AT)
    if isinstance(earlier, str) and epoch_seconds(earlier) is not None:
        return {FIRST_FAILED_AT: earlier}
    # Whole seconds: the encoder then has the same bytes for all messages that fail within one second.
    return {FIRST_FAILED_AT: _iso(int(now))}


@functools.lru_cache(maxsize=1)
def _iso(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()


# --- headers -------------------------------------------------------------------------------------


def headers_to_republish(
    headers: Mapping[str, Any], ours: dict[str, Any], most: int = MAX_HEADER_BYTES
) -> dict[str, Any]:
    """The headers of the republished message: ``ours`` and the message's own. If not all fit, its smallest ones.

    :param most: bytes for all of them together.
    """
    kept = {
        name: encodable_value
        for name, value in headers.items()
        if name not in ours
        and _is_kept(name)
        and (encodable_value := _encodable_value(value, _MAX_DEPTH)) is not _DROPPED
    }
    if _surely_fit({**kept, **ours}, most):  # nearly always; adding up the exact sizes costs five times as much
        return {**kept, **ours}
    sizes = {name: field_size(name, value) for name, value in kept.items()}
    room = most - table_size(ours)
    names = list(kept) if sum(sizes.values()) <= room else sorted(kept, key=sizes.__getitem__)
    found: dict[str, Any] = {}
    for name in names:
        room -= sizes[name]
        if room < 0:
            break
        found[name] = kept[name]
    return {**found, **ours}


def _surely_fit(headers: dict[str, Any], most: int) -> bool:
    """Whether headers that are texts and numbers certainly fit into ``most`` bytes."""
    characters = 0
    for name, value in headers.items():
        if type(value) is str:
            characters += len(name) + len(value)
        elif type(value) is int:
            characters += len(name)
        else:
            return False
    # UTF-8 has at most four bytes a character, and a field at most ten bytes more.
    return 4 * characters + 10 * len(headers) <= most


def senders_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """The headers without those that the broker writes, and without ``CC`` and ``BCC``."""
    return {name: value for name, value in headers.items() if _is_kept(name)}


def _is_kept(name: Any) -> bool:
    return _is_key(name) and name not in _DROPPED_HEADERS and not name.startswith(_DROPPED_PREFIXES)


def _encodable_value(value: Any, depth: int) -> Any:
    """``value`` in a form that every AMQP encoder accepts, or ``_DROPPED``.

    :param depth: how many levels of tables and lists are allowed below.
    """
    if value is None or isinstance(value, (bool, bytes)):
        return value
    if isinstance(value, str):
        return value if encodable(value) else _DROPPED
    if isinstance(value, int):
        return value if -_INT64 <= value < _INT64 else _DROPPED
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Decimal):
        return value if decimal_fits(value) else str(value)
    if isinstance(value, datetime):
        aware = value if value.tzinfo is not None else value.replace(tzinfo=timezone.utc)
        return value if aware.timestamp() >= 0 else _DROPPED
    if depth <= 0:
        return _DROPPED
    if isinstance(value, Mapping):
        pairs = ((key, _encodable_value(item, depth - 1)) for key, item in value.items() if _is_key(key))
        return {key: item for key, item in pairs if item is not _DROPPED}
    if isinstance(value, (list, tuple)):
        items = (_encodable_value(item, depth - 1) for item in value)
        return [item for item in items if item is not _DROPPED]
    return _DROPPED


def _is_key(key: Any) -> bool:
    return isinstance(key, str) and encodable(key) and len(key.encode()) <= 255
