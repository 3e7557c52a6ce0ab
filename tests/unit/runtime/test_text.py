"""Texts and values from outside the library: in errors, in log lines and in UTF-8."""

from __future__ import annotations

import enum
from typing import Any

import pytest

from message_hub_sync.runtime.text import encodable, printable, shown


def test_text_for_a_log_is_on_one_line_and_of_bounded_length() -> None:
    assert printable("plain ü") == "plain ü"
    assert printable("a\nb\x1b[0m\u2028\x85\ud800") == r"a\nb\x1b[0m\u2028\x85\ud800"
    assert printable("x" * 300) == "x" * 199 + "…"


def test_a_text_that_utf_8_cannot_write_is_known() -> None:
    assert encodable("plain ü 🐉")
    assert not encodable("half of a pair: \ud83d")


class Colour(str, enum.Enum):
    RED = "red"


class Silent:
    def __repr__(self) -> str:
        raise RuntimeError("no text can be made of me")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"),
        ("1", "'1'"),
        (True, "True"),
        (None, "None"),
        (float("nan"), "nan"),
        ("a\nb", "'a\\nb'"),
        ("amqp://user:secret@host", "a URL"),
        (b"bytes", "bytes"),
        ({"password": "secret"}, "dict"),
        (Colour.RED, "Colour"),
        (Silent(), "Silent"),
        (Silent, "the class Silent"),
        (10**5_000, "an int of many digits"),
    ],
    ids=range(13),
)
def test_an_error_shows_plain_values_as_python_writes_them_and_others_by_their_type(value: Any, text: str) -> None:
    assert shown(value) == text


def test_an_error_shows_the_beginning_of_a_long_text() -> None:
    assert shown("x" * 100_000) == "'" + "x" * 78 + "…"
