"""The synchronous, threaded client of the Message Hub.

::

    from message_hub_sync import MessageHubClient

    with MessageHubClient("character-service", "amqp://localhost:5672") as client:
        client.publish_event("character.created", {"character_id": "42"})
"""

from __future__ import annotations

from typing import Any

from message_hub_sync import catalogue
from message_hub_sync.catalogue import ActionPayload, EventType
from message_hub_sync.client import MessageHubClient
from message_hub_sync.config import CircuitBreakerConfig
from message_hub_sync.correlation import CorrelationFilter, bound_correlation, current_correlation_id
from message_hub_sync.deduplication import DeduplicationStore, MemoryDeduplication
from message_hub_sync.envelope import Event, Message
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
from message_hub_sync.retry import RetryPolicy
from message_hub_sync.subscription import Subscription

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

__version__: str


def __getattr__(name: str) -> Any:
    # Reading the metadata takes longer than the rest of this module, and next to nobody asks.
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("message-hub-sync")
        except PackageNotFoundError:  # a source tree on the path, not installed
            return "0+source"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
