"""The synchronous, threaded client of the Message Hub.

::

    from message_hub_sync import MessageHubClient

    with MessageHubClient("character-service", "amqp://localhost:5672") as client:
        client.publish_event("character.created", {"character_id": "42"})
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from message_hub_sync import catalogue
    from message_hub_sync.catalogue import ActionPayload, EventType
    from message_hub_sync.client import MessageHubClient
    from message_hub_sync.config import CircuitBreakerConfig
    from message_hub_sync.consuming.deduplication import DeduplicationStore, MemoryDeduplication
    from message_hub_sync.consuming.retry_policy import RetryPolicy
    from message_hub_sync.consuming.subscription import Subscription
    from message_hub_sync.envelope.correlation import CorrelationFilter, bound_correlation, current_correlation_id
    from message_hub_sync.envelope.values import Event, Message
    from message_hub_sync.errors import (
        DeliveryFailure,
        MessageHubAuthorizationError,
        MessageHubCircuitBreakerError,
        MessageHubConfigurationError,
        MessageHubConnectionError,
        MessageHubDeliveryError,
        MessageHubError,
        MessageHubRejectError,
        MessageHubRemoteError,
        MessageHubRetryError,
        MessageHubTimeoutError,
        MessageValidationError,
    )
    from message_hub_sync.metrics import MESSAGE_COUNTER, MESSAGE_LATENCY

    __version__: str
else:
    #: Where the names below are, those first that take the least time to import.
    _ROOMS = (
        "errors",
        "config",
        "envelope.correlation",
        "consuming.deduplication",
        "metrics",
        "consuming.retry_policy",
        "catalogue",
        "envelope.values",
        "consuming.subscription",
        "client",
    )

    def __getattr__(name: str) -> Any:
        # A name is imported when it is first asked for, so that who needs one room does not wait for all of them
        # and for pydantic. Python's import locks put threads in order that come here at once.
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        if name == "__version__":
            found = _version()
        elif name in _ROOMS:
            found = import_module(f"{__name__}.{name}")
        else:
            rooms = (import_module(f"{__name__}.{room}") for room in _ROOMS)
            found = next(getattr(room, name) for room in rooms if name in room.__all__)
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = [
    "MESSAGE_COUNTER",
    "MESSAGE_LATENCY",
    "ActionPayload",
    "CircuitBreakerConfig",
    "CorrelationFilter",
    "DeduplicationStore",
    "DeliveryFailure",
    "Event",
    "EventType",
    "MemoryDeduplication",
    "Message",
    "MessageHubAuthorizationError",
    "MessageHubCircuitBreakerError",
    "MessageHubClient",
    "MessageHubConfigurationError",
    "MessageHubConnectionError",
    "MessageHubDeliveryError",
    "MessageHubError",
    "MessageHubRejectError",
    "MessageHubRemoteError",
    "MessageHubRetryError",
    "MessageHubTimeoutError",
    "MessageValidationError",
    "RetryPolicy",
    "Subscription",
    "__version__",
    "bound_correlation",
    "catalogue",
    "current_correlation_id",
]


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("message-hub-sync")
    except PackageNotFoundError:  # a source tree on the path, not installed
        return "0+source"
