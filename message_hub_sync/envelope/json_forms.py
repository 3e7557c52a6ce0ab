"""The JSON form of values that pydantic does not know, as their framework gives it. No framework is imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

__all__ = ["JSONEncoder", "json_fallback", "json_form"]

#: Returns something that can be serialised instead of a value, or raises ``TypeError``.
JSONEncoder = Callable[[Any], Any]


def json_form(value: Any) -> Any:
    """What is sent instead of a value that pydantic cannot serialise.

    :raises TypeError: the value has no such form. The text names its type only.
    """
    kind = type(value)
    if callable(getattr(kind, "__json__", None)):  # Pyramid, TurboGears and others
        return value.__json__()
    if isinstance(value, Mapping):
        return dict(value)
    # A text that is made when it is needed (Django's gettext_lazy, Flask-Babel's lazy_gettext), and UserString: they
    # have all methods of str.
    if hasattr(value, "casefold") and hasattr(value, "splitlines"):
        return str(value)
    if hasattr(kind, "tolist") and hasattr(kind, "dtype"):  # numpy's scalars and arrays
        return value.tolist()
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"Unable to serialize unknown type: {kind.__name__}")


def json_fallback(encoder: JSONEncoder | None) -> JSONEncoder:
    """What gives the JSON form of a value that pydantic does not know: ``encoder`` first, then :func:`json_form`."""
    return json_form if encoder is None else partial(_form_by, encoder)


def _form_by(encoder: JSONEncoder, value: Any) -> Any:
    """What ``encoder`` makes of a value, or :func:`json_form` if it raises ``TypeError``."""
    try:
        return encoder(value)
    except TypeError:
        return json_form(value)
