"""Which headers go along when a message is moved to another queue, in a form that the broker takes. Pure.

Left out:

* ``x-death``, ``x-first-death-*``, ``x-last-death-*``: the broker writes them when a retry queue hands back,
  and reads them to find dead-lettering cycles, which it ends by dropping the message. A retry must not look
  like one.
* ``x-delivery-count``: a quorum queue's count of its own, wrong in any other queue.
* ``CC`` and ``BCC``: the broker would route the move to those queues once more.
* what an AMQP encoder cannot write: objects, whole numbers above 64 bits, texts that are not UTF-8, tables nested
  deeper than 16. Decimals of more digits than AMQP has go along as text, and so do NaN and the infinities, for
  which RabbitMQ ends the connection.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

from message_hub_sync.text import encodable

__all__ = ["MAX_HEADER_BYTES", "UNDECODABLE", "decimal_fits", "headers_to_move"]

#: The header that replaces all headers of a message when they cannot be decoded; its value says why.
UNDECODABLE = "x-undecodable"

#: Half of what makes the broker end the connection (about 129 KiB), with room for the properties.
MAX_HEADER_BYTES = 60 * 1024
_INT64 = 2**63
_MAX_DEPTH = 16
_LEFT_OUT = frozenset({"x-death", "x-delivery-count", "CC", "BCC"})
_LEFT_OUT_PREFIXES = ("x-first-death-", "x-last-death-")
_DROPPED = object()


def headers_to_move(headers: Mapping[str, Any], ours: dict[str, Any], most: int = MAX_HEADER_BYTES) -> dict[str, Any]:
    """The headers that go along: ours, then the message's own; where they are too large, its small ones.

    :param most: bytes for all of them.
    """
    room = most - sum(_size(name) + _size(value) for name, value in ours.items())
    others: list[tuple[int, str, Any]] = []
    for name, value in headers.items():
        if name in ours or not _goes_along(name):
            continue
        kept = _carried(value, _MAX_DEPTH)
        if kept is not _DROPPED:
            others.append((_size(name) + _size(kept), name, kept))
    if sum(size for size, _, _ in others) > room:
        others.sort(key=lambda item: item[0])
    found: dict[str, Any] = {}
    for size, name, kept in others:
        room -= size
        if room < 0:
            break
        found[name] = kept
    return {**found, **ours}


def _goes_along(name: Any) -> bool:
    return _is_key(name) and name not in _LEFT_OUT and not name.startswith(_LEFT_OUT_PREFIXES)


def _carried(value: Any, depth: int) -> Any:
    """``value`` as every AMQP encoder takes it, or ``_DROPPED``."""
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
        pairs = ((key, _carried(item, depth - 1)) for key, item in value.items() if _is_key(key))
        return {key: item for key, item in pairs if item is not _DROPPED}
    if isinstance(value, (list, tuple)):
        items = (_carried(item, depth - 1) for item in value)
        return [item for item in items if item is not _DROPPED]
    return _DROPPED


def decimal_fits(value: Decimal) -> bool:
    """Whether AMQP has it: a 32-bit number, and how many of its digits are decimals."""
    if not value.is_finite():
        return False
    sign, digits, exponent = value.normalize().as_tuple()
    raw = int("".join(map(str, digits))) * (10 ** max(0, int(exponent)) if int(exponent) < 10 else 2**31)
    return -int(exponent) <= 255 and (raw < 2**31 or (sign == 1 and raw == 2**31))


def _is_key(key: Any) -> bool:
    return isinstance(key, str) and encodable(key) and len(key.encode()) <= 255


def _size(value: Any) -> int:
    """Bytes in a header table, at most: a kind, a length, the content."""
    if isinstance(value, str):
        return 5 + len(value.encode())
    if isinstance(value, bytes):
        return 5 + len(value)
    if isinstance(value, Mapping):
        return 5 + sum(_size(key) + _size(item) for key, item in value.items())
    if isinstance(value, list):
        return 5 + sum(_size(item) for item in value)
    return 9
