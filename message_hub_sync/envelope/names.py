"""How services and events may be called (the wire's names; every queue name is made of them)."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from message_hub_sync.errors import MessageHubConfigurationError, MessageValidationError

__all__ = [
    "MAX_NAME_BYTES",
    "event_name",
    "validate_event_pattern",
    "validate_event_type",
    "validate_queue_parts",
    "validate_service_name",
]

#: Service plus event type in bytes, so that ``{service}.{event_type}.retry.3600000`` stays within AMQP's 255.
MAX_NAME_BYTES = 200

_SERVICE = re.compile(r"[a-z0-9][a-z0-9_-]*")
_EVENT = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)+")
_PATTERN = re.compile(r"([a-z0-9_]+|\*|#)(\.([a-z0-9_]+|\*|#))*")


def validate_service_name(value: Any, *, what: str = "service_name", configuring: bool = False) -> str:
    """Return ``value`` when it names a service.

    :raises MessageValidationError: it does not (:class:`MessageHubConfigurationError` when ``configuring``).
    """
    if isinstance(value, str) and len(value) <= MAX_NAME_BYTES and _is_service_name(value):
        return value
    text = (
        f"{what} {_shown(value)} is not a service name: lower-case letters, digits, '_' and '-', "
        f"starting with a letter or digit, at most {MAX_NAME_BYTES} bytes (for example 'character-service')"
    )
    raise MessageHubConfigurationError(text) if configuring else MessageValidationError(text)


# Remembered: every message names one of a few.
@lru_cache(maxsize=1024)
def _is_service_name(text: str) -> bool:
    return _SERVICE.fullmatch(text) is not None


@lru_cache(maxsize=1024)
def _is_event_type(text: str) -> bool:
    return _EVENT.fullmatch(text) is not None


def event_name(value: Any) -> Any:
    """The plain text of an event type that is more than a text (an ``EventType``, an enum's member); else ``value``."""
    return str.__str__(value) if isinstance(value, str) else value


def validate_event_type(value: Any) -> str:
    """Return ``value`` when it names one event type that can be published (no wildcard)."""
    value = event_name(value)
    if isinstance(value, str) and len(value) <= MAX_NAME_BYTES and _is_event_type(value):
        return value
    raise MessageValidationError(
        f"event_type {_shown(value)} is not an event type: words of lower-case letters, digits and '_' "
        f"joined by dots, at least two, no wildcard, at most {MAX_NAME_BYTES} bytes (for example 'character.created')"
    )


def validate_event_pattern(value: Any) -> str:
    """Return ``value`` when it is an event type or a topic pattern (``*`` one word, ``#`` any number)."""
    value = event_name(value)
    if isinstance(value, str) and len(value) <= MAX_NAME_BYTES and _PATTERN.fullmatch(value):
        if "*" in value or "#" in value:
            return value
        return validate_event_type(value)
    raise MessageValidationError(
        f"event type {_shown(value)} cannot be subscribed to: words of lower-case letters, digits and '_' "
        "joined by dots, where a word may be '*' (one word) or '#' (any number of words), "
        f"at most {MAX_NAME_BYTES} bytes"
    )


def validate_queue_parts(service: str, event_type: str) -> None:
    """Refuse a pair whose queue name, or a name derived from it, would not fit into AMQP's 255 bytes."""
    size = len(service) + len(event_type)
    if size > MAX_NAME_BYTES:
        raise MessageValidationError(
            f"service name and event type together are {size} bytes long; at most {MAX_NAME_BYTES} are allowed, "
            f"so that the names of their queues fit (service {service!r}, event type {event_type!r})"
        )


def _shown(value: Any) -> str:
    text = repr(value)
    if "://" in text:  # a URL in the wrong place; it may hold a password
        return "(a URL)"
    return text if len(text) <= 80 else text[:77] + "..."
