"""What AMQP 0-9-1 can carry in a header table. Pure."""

from __future__ import annotations

from decimal import Decimal

__all__ = ["decimal_fits"]


def decimal_fits(value: Decimal) -> bool:
    """Whether AMQP has it: a 32-bit number, and how many of its digits are decimals."""
    if not value.is_finite():
        return False
    sign, digits, exponent = value.normalize().as_tuple()
    raw = int("".join(map(str, digits))) * (10 ** max(0, int(exponent)) if int(exponent) < 10 else 2**31)
    return -int(exponent) <= 255 and (raw < 2**31 or (sign == 1 and raw == 2**31))
