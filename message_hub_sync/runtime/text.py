"""Texts and values from outside this library: whether UTF-8 can encode them, how errors and log lines show them."""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic_core import ValidationError

__all__ = ["cut", "encodable", "error_text", "printable", "printable_json", "shown"]

#: Characters of a value that an error text shows.
_SHOWN = 80


def printable(text: str, limit: int = 200) -> str:
    """``text`` for a log line: cut to ``limit`` characters, with line ends and control characters escaped."""
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def printable_json(value: Any, *, indent: int | None = None, ascii_only: bool = False) -> str:
    """``value`` as JSON, in which everything that could control a terminal is written as an escape of JSON.

    So it can be shown, and a program reads the same value. It also can be encoded: a lone surrogate is an escape, too.

    :param indent: spaces per level; without it, one line.
    :param ascii_only: escape every character beyond ASCII.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only, default=str)
    return text if text.isprintable() else _NOT_ASCII.sub(_escaped, text.replace("\x7f", "\\u007f"))


#: JSON escapes control characters below U+0020. What else may be unprintable is beyond ASCII.
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")


def _escaped(found: re.Match[str]) -> str:
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in found[0])


def cut(text: str, size: int) -> str:
    """The longest beginning of ``text`` that fits into ``size`` bytes of UTF-8."""
    return text if len(text) * 4 <= size else text.encode("utf-8", "replace")[:size].decode("utf-8", "ignore")


def encodable(text: str) -> bool:
    """Whether UTF-8 can encode ``text``: it cannot encode a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def error_text(error: BaseException) -> str:
    """The text of an exception, or its class name if the text is empty. Raises nothing if ``str(error)`` raises.

    pydantic's text of a ``ValidationError`` shows values that were validated, so only the kinds of its errors are told.
    """
    if isinstance(error, ValidationError):
        kinds = sorted(
            {item["type"] for item in error.errors(include_url=False, include_context=False, include_input=False)}
        )
        return f"{error.error_count()} validation errors for {error.title}: {', '.join(kinds)}"
    try:
        return str(error) or type(error).__name__
    except Exception:
        return f"{type(error).__name__} (its str() failed)"


def shown(value: Any) -> str:
    """A value for an error text of the form "NAME must be RULE, not VALUE".

    A ``str``, a number, a ``bool`` and ``None`` are shown as Python writes them (``1`` and ``'1'`` differ), cut to 80
    characters. A class is shown by its name. Any other object is shown by the name of its type only: its ``repr`` may
    contain a secret or a message body, or may raise. A ``str`` that contains ``://`` is shown as ``a URL``: it may
    contain a password.
    """
    kind = type(value)
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is not None and kind not in (bool, int, float, str):
        return kind.__name__
    if kind is str and "://" in value:
        return "a URL"
    if kind is int and value.bit_length() > 8 * _SHOWN:
        return "an int of many digits"  # Python raises ValueError for str() of more than 4,300 digits
    # Cut before repr(): the text may be as long as a message body.
    return printable(repr(value[: _SHOWN + 1] if kind is str else value), _SHOWN)
