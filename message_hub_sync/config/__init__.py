"""The settings of a client, and the parsing of its URL. Nothing here connects."""

from message_hub_sync.config.broker_url import parse_addresses
from message_hub_sync.config.settings import (
    BrokerAddress,
    CircuitBreakerConfig,
    ClientConfig,
    MemoryAddress,
    QueueType,
    positive_seconds,
)

__all__ = [
    "BrokerAddress",
    "CircuitBreakerConfig",
    "ClientConfig",
    "MemoryAddress",
    "QueueType",
    "parse_addresses",
    "positive_seconds",
]
