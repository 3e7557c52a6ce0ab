"""The client, and the names that the integration guide imports from here."""

from __future__ import annotations

from message_hub_sync.client.client import MessageHubClient
from message_hub_sync.config import CircuitBreakerConfig
from message_hub_sync.errors import (
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

__all__ = [
    "MESSAGE_COUNTER",
    "MESSAGE_LATENCY",
    "CircuitBreakerConfig",
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
]
