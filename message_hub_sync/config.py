"""The settings of a client, as checked values: addresses, timeouts, limits. Nothing here connects."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from message_hub_sync.envelope.names import validate_service_name
from message_hub_sync.errors import MessageHubConfigurationError
from message_hub_sync.runtime.text import shown

__all__ = [
    "BrokerAddress",
    "CircuitBreakerConfig",
    "ClientConfig",
    "MemoryAddress",
    "QueueType",
    "parse_addresses",
    "positive_seconds",
]

QueueType = Literal["classic", "quorum"]

_URL_HELP = (
    "allowed are amqp://user:password@host:port/vhost, amqps://…, a list of them, "
    "several hosts separated by commas, or memory://name"
)
#: 49 days: the longest wait for a lock that every platform allows (``threading.TIMEOUT_MAX`` on Windows).
_MAX_SECONDS = 4_294_967
_QUERY_HELP = "cacertfile, certfile, keyfile, server_name_indication, verify (verify_peer or verify_none)"


@dataclass(frozen=True)
class CircuitBreakerConfig:
    """When the circuit of a destination opens, and when it closes again.

    :param failure_threshold: number of consecutive failures (deadlines, nacks, lost connections) that open it.
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

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'amqps' if self.tls else 'amqp'}://{host}:{self.port}"


def parse_addresses(
    rabbitmq_url: str | Iterable[str], *, ssl_context: ssl.SSLContext | None = None
) -> MemoryAddress | tuple[BrokerAddress, ...]:
    """Parse a ``rabbitmq_url``.

    :param rabbitmq_url: one URL, a list of them, or one URL with several hosts separated by commas.
    :param ssl_context: used for ``amqps://`` instead of the system's trust store.
    :returns: the hosts to try, in this order; or the embedded hub, if the URL is ``memory://``.
    :raises MessageHubConfigurationError: a URL is not valid. The text names the invalid part, without the password.
    """
    if ssl_context is not None and not isinstance(ssl_context, ssl.SSLContext):
        raise MessageHubConfigurationError(f"ssl_context must be an ssl.SSLContext, not {shown(ssl_context)}")
    urls = [rabbitmq_url] if isinstance(rabbitmq_url, str) else list(_strings(rabbitmq_url))
    if not urls:
        raise MessageHubConfigurationError(f"rabbitmq_url must not be an empty list: {_URL_HELP}")
    addresses: list[BrokerAddress] = []
    for url in urls:
        if url.startswith("memory:"):
            if len(urls) > 1:
                raise MessageHubConfigurationError("rabbitmq_url must not mix memory:// with other URLs: give it alone")
            return _memory_address(url)
        addresses.extend(_broker_addresses(url, ssl_context))
    return tuple(addresses)


def _strings(values: Any) -> Iterable[str]:
    try:
        items = list(values)
    except TypeError:
        raise MessageHubConfigurationError(
            f"rabbitmq_url must be a str or a list of str, not {shown(values)}: {_URL_HELP}"
        ) from None
    for item in items:
        if not isinstance(item, str):
            raise MessageHubConfigurationError(
                f"rabbitmq_url must be a str or a list of str, not a list with {shown(item)}: {_URL_HELP}"
            )
        yield item


def _memory_address(url: str) -> MemoryAddress:
    name = url.removeprefix("memory:").removeprefix("//").strip("/")
    if not url.startswith("memory://") or not all(c.isalnum() or c in "-_." for c in name):
        raise MessageHubConfigurationError(
            "rabbitmq_url must be memory://name (the name is optional: letters, digits, '-', '_' and '.')"
        )
    return MemoryAddress(name or "default")


def _broker_addresses(url: str, ssl_context: ssl.SSLContext | None) -> list[BrokerAddress]:
    # No error text here quotes the URL: it may contain a password, and in an invalid URL the password may be anywhere.
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("amqp", "amqps"):
        raise MessageHubConfigurationError(f"rabbitmq_url must start with amqp://, amqps:// or memory://: {_URL_HELP}")
    authority, slash, tail = rest.partition("/")
    if "?" in (authority.rpartition("@")[2] if slash else authority):
        # There is no vhost: a slash after the '?' is part of a file name.
        authority, _, query = rest.partition("?")
        path = ""
    else:
        path, _, query = tail.partition("?")
    userinfo, at, hosts = authority.rpartition("@")
    username, colon, password = userinfo.partition(":")
    if "/" in path or not hosts:
        raise MessageHubConfigurationError(
            "rabbitmq_url must have a host, and no bare '/' in its vhost: write '/' as %2F, and percent-encode "
            f"'@', ':' and '/' in a password: {_URL_HELP}"
        )
    tls = scheme == "amqps"
    context, server_name = _tls_options(query, ssl_context) if tls else _no_options(query)
    found = []
    for host_port in hosts.split(","):
        host, port = _host_and_port(scheme, host_port.strip())
        found.append(
            BrokerAddress(
                host=host,
                port=port,
                virtual_host=unquote(path) if path else "/",
                username=unquote(username) if at else "guest",
                password=unquote(password) if colon else "guest",
                tls=tls,
                ssl_context=context,
                server_hostname=(server_name or host) if tls else None,
            )
        )
    return found


def _host_and_port(scheme: str, text: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or any(c.isspace() or c in "#?" for c in text) or port == 0 or text.endswith(":"):
        raise MessageHubConfigurationError(
            f"rabbitmq_url must name each host, with a port from 1 to 65535 or without one: {_URL_HELP}"
        )
    return host, port or (5671 if scheme == "amqps" else 5672)


def _no_options(query: str) -> tuple[None, None]:
    if query:
        raise MessageHubConfigurationError(
            f"rabbitmq_url must not have options after '?' with amqp://; amqps:// takes {_QUERY_HELP}"
        )
    return None, None


def _tls_options(query: str, given: ssl.SSLContext | None) -> tuple[ssl.SSLContext, str | None]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = set(options) - {"cacertfile", "certfile", "keyfile", "server_name_indication", "verify"}
    if unknown or options.get("verify", "verify_peer") not in ("verify_peer", "verify_none"):
        raise MessageHubConfigurationError(
            f"rabbitmq_url must have only these options after '?', with these values: {_QUERY_HELP}"
        )
    if given is not None:
        return given, options.get("server_name_indication")
    try:
        context = ssl.create_default_context(cafile=options.get("cacertfile"))
        if options.get("verify") == "verify_none":
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if "certfile" in options:
            context.load_cert_chain(options["certfile"], options.get("keyfile"))
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the file name
        raise MessageHubConfigurationError(
            "rabbitmq_url must name readable PEM files in cacertfile, certfile and keyfile: "
            f"loading them failed ({type(error).__name__})"
        ) from None
    return context, options.get("server_name_indication")


def positive_seconds(value: Any, name: str, most: float = _MAX_SECONDS) -> float:
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
