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
    from message_hub_sync.client.health import HealthStatus
    from message_hub_sync.config import CircuitBreakerConfig
    from message_hub_sync.consuming.deduplication import DeduplicationStore, MemoryDeduplication
    from message_hub_sync.consuming.handler_group import HandlerGroup
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
        MessageHubReentryError,
        MessageHubRejectError,
        MessageHubRemoteError,
        MessageHubRetryError,
        MessageHubTimeoutError,
        MessageValidationError,
    )
    from message_hub_sync.metrics import MESSAGE_COUNTER, MESSAGE_LATENCY
    from message_hub_sync.middleware import Middleware, Received, Sending

    __version__: str
else:
    #: The module that each promised name comes from; every name in ``errors`` that ends in Error is one, too.
    _MODULES = {
        "MESSAGE_COUNTER": "metrics",
        "MESSAGE_LATENCY": "metrics",
        "ActionPayload": "catalogue",
        "CircuitBreakerConfig": "config",
        "CorrelationFilter": "envelope.correlation",
        "DeduplicationStore": "consuming.deduplication",
        "DeliveryFailure": "errors",
        "Event": "envelope.values",
        "EventType": "catalogue",
        "HandlerGroup": "consuming.handler_group",
        "HealthStatus": "client.health",
        "MemoryDeduplication": "consuming.deduplication",
        "Message": "envelope.values",
        "MessageHubClient": "client",
        "Middleware": "middleware",
        "Received": "middleware",
        "RetryPolicy": "consuming.retry_policy",
        "Sending": "middleware",
        "Subscription": "consuming.subscription",
        "bound_correlation": "envelope.correlation",
        "current_correlation_id": "envelope.correlation",
    }

    def __getattr__(name: str) -> Any:
        # A name is imported when it is first asked for (PEP 562). So a program that needs one module does not wait for
        # all of them and for pydantic. Threads that come here at the same time are put in order by Python's import
        # locks.
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        if name == "__version__":
            found = _version()
        elif name == "catalogue":
            found = import_module(f"{__name__}.catalogue")
        else:
            found = getattr(import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
        globals()[name] = found
        return found

    # There is no __dir__. Some tools, as freezegun, ask every module for each name in dir(). They would import the
    # whole package, at a time that nobody chose. The names are in __all__.


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
    "HandlerGroup",
    "HealthStatus",
    "MemoryDeduplication",
    "Message",
    "MessageHubAuthorizationError",
    "MessageHubCircuitBreakerError",
    "MessageHubClient",
    "MessageHubConfigurationError",
    "MessageHubConnectionError",
    "MessageHubDeliveryError",
    "MessageHubError",
    "MessageHubReentryError",
    "MessageHubRejectError",
    "MessageHubRemoteError",
    "MessageHubRetryError",
    "MessageHubTimeoutError",
    "MessageValidationError",
    "Middleware",
    "Received",
    "RetryPolicy",
    "Sending",
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
