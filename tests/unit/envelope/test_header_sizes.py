"""Sizes are never below what AMQP's encoder writes, and not much above."""

from __future__ import annotations

from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

import pytest
from pika.data import encode_table

from message_hub_sync.envelope.header_sizes import table_size


@pytest.mark.parametrize(
    ("value", "spare"),
    [
        (None, 0),
        (True, 0),
        ("", 0),
        ("é" * 100, 0),
        (b"x" * 9, 0),
        (7, 4),
        (2**62, 0),
        (Decimal("1.5"), 3),
        (datetime(2025, 1, 1, tzinfo=timezone.utc), 0),
        ([1, "two", None], 4),
        ({"deep": {"er": "x"}}, 0),
    ],
    ids=str,
)
def test_a_header_takes_at_most_what_is_estimated(value: Any, spare: int) -> None:
    headers = {"näme": value, "n": "other"}
    written = encode_table([], headers) - 4  # without the length of the whole table
    assert table_size(headers) - spare == written
