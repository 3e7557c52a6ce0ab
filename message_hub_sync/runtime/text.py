"""Texts that come from elsewhere: whether they can go on, and how they are shown."""

from __future__ import annotations

__all__ = ["cut", "encodable", "error_text", "printable"]


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
