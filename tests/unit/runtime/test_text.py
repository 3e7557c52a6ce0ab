"""Texts from elsewhere, shown and sent on."""

from __future__ import annotations

from message_hub_sync.runtime.text import encodable, printable


def test_text_for_a_log_is_on_one_line_and_of_bounded_length() -> None:
    assert printable("plain ü") == "plain ü"
    assert printable("a\nb\x1b[0m\u2028\x85\ud800") == r"a\nb\x1b[0m\u2028\x85\ud800"
    assert printable("x" * 300) == "x" * 199 + "…"


def test_a_text_that_utf_8_cannot_write_is_known() -> None:
    assert encodable("plain ü 🐉")
    assert not encodable("half of a pair: \ud83d")
