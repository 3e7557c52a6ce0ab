"""Whether receivers can decode a body. JSON is written by pydantic and read by :mod:`json`, which refuses more.

Most bodies need only fast searches in C and a look at the types of the payload's values. If these leave a doubt, the
body is decoded as a receiver does it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import deque
from collections.abc import Iterable
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from message_hub_sync.envelope.decode import NotJSON, decode_payload, raise_not_json
from message_hub_sync.envelope.values import InvalidMessage
from message_hub_sync.errors import MessageValidationError

__all__ = ["MAX_DIGITS", "check_decodable"]

#: Python's default limit for the digits of a whole number in a text (sys.get_int_max_str_digits()).
MAX_DIGITS = 4300

#: First bytes of ``NaN`` and ``Infinity``. A search for one byte is ten times as fast as one for a word, and most small
#: bodies do not contain the byte.
_N, _I = b"NI"
# A constant follows ":", "," or "[" in compact JSON. The pattern begins with the word and looks back, because the
# interpreter searches for a literal beginning much faster than for a set of characters.
_NAN = re.compile(rb"NaN(?<=[:,\[]NaN)")
_INFINITY = re.compile(rb"Infinity(?:(?<=[:,\[]Infinity)|(?<=[:,\[]-Infinity))")

#: A run of more than MAX_DIGITS digits contains two neighbours of the bytes at the multiples of this, and all between.
_SAMPLED = MAX_DIGITS // 2
_TWO_DIGITS = re.compile(rb"[0-9](?=[0-9])")
_DIGITS = re.compile(rb"[0-9]*")
_TOO_MANY_DIGITS = re.compile(rb"[0-9]{%d}" % (MAX_DIGITS + 1))
_BEFORE_A_NUMBER = frozenset(b":,[-")

_TEXT = frozenset({str})
_SCALARS = frozenset({str, int, float, bool, type(None)})
_LEAVES = (str, bytes, bytearray, int, float, UUID, Decimal, Enum, date, time, timedelta, PurePath)
_SEQUENCES = (list, tuple, set, frozenset, deque)


def check_decodable(payload: Any, body: bytes, max_bytes: int) -> None:
    """Check that receivers can decode ``body``.

    :param payload: what ``body`` was encoded from.
    :param max_bytes: the largest body that receivers decode, in bytes.
    :raises MessageValidationError: the body contains NaN, an infinity, a whole number of too many digits, or a key
        twice.
    """
    if ((_N in body and _NAN.search(body)) or (_I in body and _INFINITY.search(body))) and _holds_constants(body):
        raise MessageValidationError("payload must not contain NaN or an infinity (JSON has none): use None or a str")
    doubtful = len(body) > MAX_DIGITS and _may_hold_long_number(body)
    # If the body has no second "{", the payload contains no other object: its values need not be inspected.
    if body.find(b"{", 1) > 0:
        doubtful = doubtful or _may_hold_duplicate_key(payload)
    elif type(payload) is dict or isinstance(payload, dict):
        doubtful = doubtful or not _TEXT.issuperset(map(type, payload))
    if doubtful:
        try:
            decode_payload(body, max_bytes)
        except InvalidMessage as error:
            raise MessageValidationError(
                f"payload must be decodable by receivers ({error}): use each key once, as a str, and send very long "
                "numbers as str"
            ) from None


def _holds_constants(body: bytes) -> bool:
    """Whether the JSON contains ``NaN`` or ``Infinity`` as a number (not inside a string)."""
    try:
        # Numbers are not converted: a whole number of too many digits would raise here, and is checked later.
        json.loads(body, parse_constant=raise_not_json, parse_int=str, parse_float=str)
    except NotJSON:
        return True
    return False


def _may_hold_long_number(body: bytes) -> bool:
    """Whether more than MAX_DIGITS digits follow what stands before a number. This may also be inside a string."""
    end = 0
    for found in _TWO_DIGITS.finditer(body[::_SAMPLED]):
        at = found.start() * _SAMPLED
        if not body[at : at + _SAMPLED].isdigit():
            continue
        begins, end = at != end, at + _SAMPLED
        if begins:  # else these digits continue a run that was looked at before
            # Matched backwards: that is five times as fast as rstrip() with ten characters.
            start = at - len(_DIGITS.match(body[at - _SAMPLED : at][::-1])[0])  # type: ignore[index]  # it always matches
            if body[start - 1] in _BEFORE_A_NUMBER and _TOO_MANY_DIGITS.match(body, start):
                return True
    return False


def _may_hold_duplicate_key(payload: Any) -> bool:
    """Whether a dict in the payload has keys that are not ``str``: the JSON of ``{1: …, "1": …}`` has a key twice."""
    inside = [payload]
    seen: set[int] = set()
    for value in inside:  # it grows: a loop is faster than calls, and cannot be too deep
        kind = type(value)
        if kind is dict:
            if not _TEXT.issuperset(map(type, value)):
                return True
            value = value.values()
        elif kind is not list:
            value = _values_of(value, seen)
            if value is None:
                return True
        for each in value:
            if type(each) not in _SCALARS:
                inside.append(each)
    return False


def _values_of(value: Any, seen: set[int]) -> Iterable[Any] | None:
    """The values inside a value; ``None`` if its JSON may have a key twice, or cannot be told from the value.

    :param seen: the ids of the models and dataclasses that have been looked at. A field that is excluded from the JSON
        may refer back to its owner.
    """
    if isinstance(value, dict):
        return value.values() if _TEXT.issuperset(map(type, value)) else None
    if isinstance(value, BaseModel) or dataclasses.is_dataclass(value):
        if id(value) in seen:
            return ()
        seen.add(id(value))
    if isinstance(value, BaseModel):
        return (*value.__dict__.values(), *(value.__pydantic_extra__ or {}).values())
    if dataclasses.is_dataclass(value):
        return [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    if isinstance(value, _SEQUENCES):
        return value
    return () if isinstance(value, _LEAVES) else None
