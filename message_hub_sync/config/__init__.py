"""The settings of a client, and the parsing of its URL. Nothing here connects."""

from message_hub_sync.config.addresses import hub_addresses
from message_hub_sync.config.broker_url import parse_addresses
from message_hub_sync.config.environment import EnvironmentSettings
from message_hub_sync.config.settings import (
    BrokerAddress,
    CircuitBreakerConfig,
    ClientConfig,
    Login,
    MemoryAddress,
    QueueType,
    positive_seconds,
)

__all__ = [
    "BrokerAddress",
    "CircuitBreakerConfig",
    "ClientConfig",
    "EnvironmentSettings",
    "Login",
    "MemoryAddress",
    "QueueType",
    "hub_addresses",
    "parse_addresses",
    "positive_seconds",
]
