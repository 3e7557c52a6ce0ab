"""Texts and values of others: whether they can be encoded, and how errors and log lines show them."""

from __future__ import annotations

from typing import Any

__all__ = ["cut", "encodable", "error_text", "printable", "shown"]

#: Characters of a value that an error text shows.
_SHOWN = 80


def printable(text: str, limit: int = 200) -> str:
    """``text`` on one line, its control characters escaped, cut to ``limit`` characters: fit for a log."""
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def cut(text: str, size: int) -> str:
    """As much of ``text`` as fits into ``size`` bytes of UTF-8."""
    return text if len(text) * 4 <= size else text.encode("utf-8", "replace")[:size].decode("utf-8", "ignore")


def encodable(text: str) -> bool:
    """Whether UTF-8 can write it: half of a surrogate pair cannot be."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def error_text(error: BaseException) -> str:
    """What an exception says, in whatever state it is."""
    try:
        return str(error) or type(error).__name__
    except Exception:
        return f"{type(error).__name__} (its text cannot be made)"


def shown(value: Any) -> str:
    """A value as an error text shows it: "NAME must be RULE, not VALUE".

    A text, a number, a bool and ``None`` are shown as Python writes them, so that ``1`` and ``'1'`` differ, cut to 80
    characters. Anything else is shown by its type alone: its own text may hold a secret, a message's body, or nothing
    that can be made. A text that holds ``://`` is shown as ``a URL``: it may hold a password.
    """
    kind = type(value)
    if value is not None and kind not in (bool, int, float, str):
        return kind.__name__
    if kind is str and "://" in value:
        return "a URL"
    if kind is int and value.bit_length() > 8 * _SHOWN:
        return "an int of many digits"  # Python makes no text of more than 4,300 digits
    # Cut before it is written: a text may be as long as a body.
    return printable(repr(value[: _SHOWN + 1] if kind is str else value), _SHOWN)
