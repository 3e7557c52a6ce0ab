"""How many bytes headers take in the table that AMQP 0-9-1 makes of them. Estimated from above, never below. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["field_size", "table_size"]


def table_size(headers: Mapping[str, Any]) -> int:
    """An upper bound of the bytes of all headers together. Names and texts must be valid UTF-8."""
    return sum(field_size(name, value) for name, value in headers.items())


def field_size(name: str, value: Any) -> int:
    """An upper bound of the bytes of one header: the length of its name, the name, and the value with its type."""
    return 1 + len(name.encode()) + _value_size(value)


def _value_size(value: Any) -> int:
    if value is None:
        return 1
    if isinstance(value, bool):
        return 2
    if isinstance(value, str):
        return 5 + len(value.encode())
    if isinstance(value, bytes):
        return 5 + len(value)
    if isinstance(value, Mapping):
        return 5 + table_size(value)
    if isinstance(value, (list, tuple)):
        return 5 + sum(map(_value_size, value))
    return 9  # numbers and dates have a type and at most eight bytes
