"""Rules for the names of services and events. Routing keys and queue names are made of them."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from message_hub_sync.errors import MessageHubConfigurationError, MessageValidationError
from message_hub_sync.runtime.text import shown

__all__ = [
    "MAX_NAME_BYTES",
    "event_name",
    "validate_event_pattern",
    "validate_event_type",
    "validate_queue_parts",
    "validate_service_name",
]

#: Limit for service name plus event type, in bytes: ``{service}.{event_type}.retry.3600000`` must fit into the 255
#: bytes of an AMQP name.
MAX_NAME_BYTES = 200

_SERVICE = re.compile(r"[a-z0-9][a-z0-9_-]*")
_EVENT = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)+")
#: Event types and patterns whose queue would have the name of another queue of the hub: ``{queue}.dead``,
#: ``{queue}.retry.{ms}``, ``{service}.replies.{client}``, ``{service}.started.{message}``.
#: ``{service}.messages`` needs no rule: a service name has no dot, and an event type has one.
_QUEUES_OF_THE_HUB = re.compile(r"(?:replies|started)\..*|(?:.*\.)?(?:dead|retry\.[0-9]+)")
_PATTERN = re.compile(r"([a-z0-9_]+|\*|#)(\.([a-z0-9_]+|\*|#))*")


def validate_service_name(value: Any, *, what: str = "service_name", configuring: bool = False) -> str:
    """Check a service name.

    :param what: the parameter's name, for the error's text.
    :param configuring: raise :class:`MessageHubConfigurationError` instead of :class:`MessageValidationError`.
    :returns: ``value``.
    :raises MessageValidationError: ``value`` is not a service name.
    """
    if isinstance(value, str) and len(value) <= MAX_NAME_BYTES and _is_service_name(value):
        return value
    if value == "amq":
        text = f"{what} must not be 'amq': RabbitMQ reserves queue names that begin with 'amq.'. Choose another name"
        raise MessageHubConfigurationError(text) if configuring else MessageValidationError(text)
    text = (
        f"{what} must be a service name (lower-case letters, digits, '_' and '-', starting with a letter or digit, "
        f"at most {MAX_NAME_BYTES} bytes; for example 'character-service'), not {shown(event_name(value))}"
    )
    raise MessageHubConfigurationError(text) if configuring else MessageValidationError(text)


# Cached: each message contains a service name, and a process uses few of them.
@lru_cache(maxsize=1024)
def _is_service_name(text: str) -> bool:
    return _SERVICE.fullmatch(text) is not None and text != "amq"


@lru_cache(maxsize=1024)
def _is_event_type(text: str) -> bool:
    return _EVENT.fullmatch(text) is not None and not _QUEUES_OF_THE_HUB.fullmatch(text)


def _check_queue_of_the_hub(value: Any) -> None:
    if isinstance(value, str) and _QUEUES_OF_THE_HUB.fullmatch(value):
        raise MessageValidationError(
            "event type must not begin with 'replies.' or 'started.' and not end in '.dead' or '.retry.NUMBER', "
            f"because the hub has queues of such names, not {shown(value)}: choose another word"
        )


def event_name(value: Any) -> Any:
    """``value`` as a plain ``str`` if its class derives from ``str`` (``EventType``, an enum); else ``value``."""
    return str.__str__(value) if isinstance(value, str) else value


def validate_event_type(value: Any) -> str:
    """Check the name of an event type to publish (no wildcard).

    :returns: ``value`` as a plain ``str``.
    :raises MessageValidationError: ``value`` is not the name of an event type.
    """
    value = event_name(value)
    if isinstance(value, str) and len(value) <= MAX_NAME_BYTES and _is_event_type(value):
        return value
    if isinstance(value, str) and len(value) <= MAX_NAME_BYTES and _EVENT.fullmatch(value):
        _check_queue_of_the_hub(value)
    raise MessageValidationError(
        "event_type must be an event type (words of lower-case letters, digits and '_' joined by dots, at least two, "
        f"no wildcard, at most {MAX_NAME_BYTES} bytes; for example 'character.created'), not {shown(value)}"
    )


def validate_event_pattern(value: Any) -> str:
    """Check an event type or a topic pattern (``*``: one word, ``#``: any number of words) to subscribe to.

    :returns: ``value`` as a plain ``str``.
    :raises MessageValidationError: ``value`` is neither.
    """
    value = event_name(value)
    if isinstance(value, str) and len(value) <= MAX_NAME_BYTES and _PATTERN.fullmatch(value):
        if "*" in value or "#" in value:
            _check_queue_of_the_hub(value)
            return value
        return validate_event_type(value)
    raise MessageValidationError(
        "event type must be a topic pattern (words of lower-case letters, digits and '_' joined by dots; a word may be "
        f"'*' for one word or '#' for any number of words; at most {MAX_NAME_BYTES} bytes), not {shown(value)}"
    )


def validate_queue_parts(service: str, event_type: str) -> None:
    """Check that the queue name of a service and an event type, and the names derived from it, fit into 255 bytes.

    :raises MessageValidationError: the two names together are longer than :data:`MAX_NAME_BYTES`.
    """
    size = len(service) + len(event_type)
    if size > MAX_NAME_BYTES:
        raise MessageValidationError(
            f"service name and event type together must be at most {MAX_NAME_BYTES} bytes long, not {size}: "
            f"choose shorter names for service {service!r} or event type {event_type!r}"
        )
