"""The settings of a client, as checked values: addresses, timeouts, limits. ``broker_url`` parses the addresses."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from message_hub_sync.config.tls_files import TLSFiles
from message_hub_sync.envelope.json_forms import json_fallback
from message_hub_sync.envelope.names import validate_service_name
from message_hub_sync.errors import MessageHubConfigurationError
from message_hub_sync.runtime.deadlines import MAX_TIMEOUT
from message_hub_sync.runtime.text import shown

__all__ = [
    "BrokerAddress",
    "CircuitBreakerConfig",
    "ClientConfig",
    "Login",
    "MemoryAddress",
    "QueueType",
    "positive_seconds",
]

QueueType = Literal["classic", "quorum"]
#: A user name and its password.
Login = tuple[str, str]


@dataclass(frozen=True)
class CircuitBreakerConfig:
    """When the circuit of a destination, an event type or the connection opens, and when it closes again.

    :param failure_threshold: number of consecutive failures that open it: nacks and missing confirms of a destination
        or event type, or failures of the connection.
    :param reset_timeout: seconds until an open circuit admits one trial call.
    :param half_open_timeout: seconds that the trial call may take (never more than the delivery timeout).
    :raises MessageHubConfigurationError: a value is not allowed.
    """

    failure_threshold: int = 5
    reset_timeout: float = 60
    half_open_timeout: float = 30

    def __post_init__(self) -> None:
        threshold: Any = self.failure_threshold
        if not isinstance(threshold, int) or isinstance(threshold, bool) or threshold < 1:
            raise MessageHubConfigurationError(
                f"failure_threshold must be a whole number of at least 1, not {shown(threshold)}"
            )
        positive_seconds(self.reset_timeout, "reset_timeout")
        positive_seconds(self.half_open_timeout, "half_open_timeout")


@dataclass(frozen=True)
class MemoryAddress:
    """The name of an embedded hub inside this process."""

    name: str

    def __str__(self) -> str:
        return f"memory://{self.name}"


@dataclass(frozen=True)
class BrokerAddress:
    """One RabbitMQ host. Its ``str`` and ``repr`` contain no password."""

    host: str
    port: int
    virtual_host: str = "/"
    username: str = "guest"
    password: str = field(default="guest", repr=False)
    tls: bool = False
    ssl_context: ssl.SSLContext | None = field(default=None, repr=False, compare=False)
    server_hostname: str | None = None
    """The name in the certificate, with TLS; ``None`` if it is not checked."""
    tls_files: TLSFiles | None = None
    credentials: Callable[[], Login] | None = field(default=None, repr=False, compare=False)
    """Called for each connection, instead of ``username`` and ``password``."""

    def login(self) -> Login:
        """The user name and the password for one connection.

        :raises MessageHubConfigurationError: they cannot be had.
        """
        return (self.username, self.password) if self.credentials is None else self.credentials()

    @property
    def user_text(self) -> str:
        """The user, for the text of an error."""
        return shown(self.username) if self.username else "that credentials= names"

    def tls_context(self) -> ssl.SSLContext:
        """The context for one TLS connection: the given one, or a new one, so that renewed files are used.

        :raises MessageHubConfigurationError: it cannot be made or used.
        """
        if self.ssl_context is None:
            return (self.tls_files or TLSFiles()).context()
        if not isinstance(self.ssl_context, ssl.SSLContext):
            raise MessageHubConfigurationError(
                "ssl_context must be made after gevent's monkey.patch_all(), which has replaced the class of contexts"
            )
        return self.ssl_context

    def __str__(self) -> str:
        host = f"[{self.host.replace('%', '%25')}]" if ":" in self.host else self.host
        return f"{'amqps' if self.tls else 'amqp'}://{host}:{self.port}"


def positive_seconds(value: Any, name: str, most: float = MAX_TIMEOUT) -> float:
    """Check a duration.

    :param value: seconds.
    :param name: name of the setting, for the error's text.
    :param most: the largest duration allowed, in seconds.
    :returns: the duration in seconds.
    :raises MessageHubConfigurationError: ``value`` is not a number above 0 and at most ``most``.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= most:
        return float(value)
    raise MessageHubConfigurationError(
        f"{name} must be a number of seconds greater than 0 and at most {most}, not {shown(value)}"
    )


@dataclass(frozen=True)
class ClientConfig:
    """All settings of a client. They are checked at construction and cannot be changed.

    Durations are in seconds. ``auth_key`` is never sent, logged or shown. The parameters are documented at
    :class:`~message_hub_sync.client.client.MessageHubClient`.

    :raises MessageHubConfigurationError: a value is not allowed.
    """

    service_name: str
    address: MemoryAddress | tuple[BrokerAddress, ...]
    auth_key: str | None = field(default=None, repr=False)
    circuit_breaker: CircuitBreakerConfig = CircuitBreakerConfig()
    connect_timeout: float = 5.0
    delivery_timeout: float = 5.0
    close_timeout: float = 5.0
    heartbeat: int = 10
    message_priorities: bool = False
    queue_type: QueueType = "classic"
    max_message_bytes: int = 16 * 1024 * 1024
    strict_catalogue: bool = False
    settle_each: bool = False
    hosts_in_order: bool = False
    json_encoder: Callable[[Any], Any] | None = field(default=None, repr=False)
    #: Made of ``json_encoder`` here, once: choosing it for each message would cost every message.
    json_fallback: Callable[[Any], Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        validate_service_name(self.service_name, configuring=True)
        for name in ("connect_timeout", "delivery_timeout", "close_timeout"):
            positive_seconds(getattr(self, name), name)
        if self.auth_key is not None and not (isinstance(self.auth_key, str) and self.auth_key):
            raise MessageHubConfigurationError("auth_key must be a str that is not empty, or None")
        if not isinstance(self.circuit_breaker, CircuitBreakerConfig):
            raise MessageHubConfigurationError(
                f"circuit_breaker_config must be a CircuitBreakerConfig, not {shown(self.circuit_breaker)}"
            )
        if self.queue_type not in ("classic", "quorum"):
            raise MessageHubConfigurationError(
                f"queue_type must be 'classic' or 'quorum', not {shown(self.queue_type)}"
            )
        if not (self.json_encoder is None or callable(self.json_encoder)):
            raise MessageHubConfigurationError(
                f"json_encoder must be a function of one value, not {shown(self.json_encoder)}"
            )
        object.__setattr__(self, "json_fallback", json_fallback(self.json_encoder))
        for name in ("message_priorities", "strict_catalogue", "settle_each", "hosts_in_order"):
            if not isinstance(getattr(self, name), bool):
                raise MessageHubConfigurationError(f"{name} must be True or False, not {shown(getattr(self, name))}")
        # AMQP's fields: 16 bits for the heartbeat, 64 bits for the size of a body.
        for name, most in (("heartbeat", 2**16 - 1), ("max_message_bytes", 2**63 - 1)):
            value: Any = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
                raise MessageHubConfigurationError(
                    f"{name} must be a whole number from 1 to {most}, not {shown(value)}"
                )
