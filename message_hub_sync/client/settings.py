"""The keywords of the client, as a type: for what passes them on."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypedDict

from message_hub_sync.config import CircuitBreakerConfig, Login, QueueType
from message_hub_sync.consuming.retry_policy import RetryPolicy
from message_hub_sync.middleware import Middleware

__all__ = ["ClientSettings"]


class ClientSettings(TypedDict, total=False):
    """The parameters of ``MessageHubClient``, which documents them."""

    service_name: str
    rabbitmq_url: str | Path | Iterable[str]
    auth_key: str | None
    circuit_breaker_config: CircuitBreakerConfig | None
    credentials: Callable[[], Login] | Path | None
    connect_timeout: float
    delivery_timeout: float
    close_timeout: float
    heartbeat: int
    message_priorities: bool
    queue_type: QueueType
    max_message_bytes: int
    strict_catalogue: bool
    settle_each: bool
    retry: RetryPolicy | None
    ssl_context: ssl.SSLContext | None
    hosts_in_order: bool
    middleware: Iterable[Middleware]
    json_encoder: Callable[[Any], Any] | None
