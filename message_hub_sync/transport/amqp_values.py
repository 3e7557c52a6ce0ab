"""The values that an AMQP 0-9-1 header table can carry. Pure functions."""

from __future__ import annotations

from decimal import Decimal

__all__ = ["decimal_fits"]


def decimal_fits(value: Decimal) -> bool:
    """Whether AMQP can carry ``value``: as a signed 32-bit number with a scale of 0 to 255 decimal places."""
    if not value.is_finite():
        return False
    sign, digits, exponent = value.normalize().as_tuple()
    raw = int("".join(map(str, digits))) * (10 ** max(0, int(exponent)) if int(exponent) < 10 else 2**31)
    return -int(exponent) <= 255 and (raw < 2**31 or (sign == 1 and raw == 2**31))
