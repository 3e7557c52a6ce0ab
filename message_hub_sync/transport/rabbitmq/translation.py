"""The door at which errors of pika, ssl and sockets become the package's own, by a table."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass

from pika import exceptions as amqp

from message_hub_sync.config import BrokerAddress
from message_hub_sync.errors import (
    MessageHubAuthorizationError,
    MessageHubConfigurationError,
    MessageHubConnectionError,
    MessageHubError,
)
from message_hub_sync.runtime.text import printable

__all__ = [
    "ChannelClosed",
    "ConnectionEnded",
    "Refusal",
    "RpcTimedOut",
    "connect_failure",
    "describe",
    "entity_error",
]


class ConnectionEnded(Exception):
    """The connection ended while something waited on it. Stays inside this room."""


class ChannelClosed(Exception):
    """The broker closed a channel. Stays inside this room."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")
        self.code = code
        self.text = text


class RpcTimedOut(Exception):
    """The broker did not answer a method in time. Stays inside this room."""


@dataclass(frozen=True)
class Refusal:
    """Why a connection could not be made, and whether trying again at once is of any use."""

    kind: type[MessageHubError]
    text: str
    final: bool

    def error(self) -> MessageHubError:
        """A new exception for one waiter: exceptions are not shared between threads."""
        return self.kind(self.text)


def connect_failure(error: BaseException, address: BrokerAddress) -> Refusal:
    """What a failed attempt to connect means.

    A broker that refuses says so with a code. That the stream merely ended says nothing about passwords,
    whatever state the handshake was in: brokers are killed at any moment.
    """
    kind, text, final = _meaning(error)
    described = text.format(
        address=address, user=repr(address.username), vhost=repr(address.virtual_host), error=describe(error)
    )
    return Refusal(kind, described, final)


def _meaning(error: BaseException) -> tuple[type[MessageHubError], str, bool]:
    if isinstance(error, amqp.ConnectionClosedByBroker) and error.reply_code in _REFUSED_BY_CODE:
        return (*_REFUSED_BY_CODE[error.reply_code], True)
    for types, kind, text, final in _CONNECT_FAILURES:
        if isinstance(error, types):
            return kind, text, final
    return MessageHubConnectionError, "cannot connect to {address}: {error}", False


_REFUSED_BY_CODE: dict[int, tuple[type[MessageHubError], str]] = {
    403: (
        MessageHubAuthorizationError,
        "{address} refused the user {user}: check the user's name and password in rabbitmq_url",
    ),
    530: (
        MessageHubAuthorizationError,
        "{address} refused the virtual host {vhost} to the user {user}: check that the vhost exists, "
        "that the user may access it and that no connection limit is reached",
    ),
}

_CONNECT_FAILURES: tuple[tuple[tuple[type[BaseException], ...], type[MessageHubError], str, bool], ...] = (
    (
        (amqp.AuthenticationError,),
        MessageHubAuthorizationError,
        "{address} offers no way to log in with a user's name and password: enable PLAIN on the broker",
        True,
    ),
    (
        (amqp.IncompatibleProtocolError, amqp.ProtocolVersionMismatch),
        MessageHubConnectionError,
        "{address} does not speak AMQP 0-9-1 here: check host and port, and amqp:// against amqps://",
        True,
    ),
    (
        (amqp.StreamLostError, ConnectionResetError),
        MessageHubConnectionError,
        "{address} closed the connection before it was open: the broker starts or stops, "
        "or what stands before it does not reach it",
        False,
    ),
    (
        (ssl.SSLCertVerificationError,),
        MessageHubConnectionError,
        "the TLS certificate of {address} was not accepted: check the authority (cacertfile) and the host's name",
        True,
    ),
    (
        (ssl.SSLError,),
        MessageHubConnectionError,
        "TLS with {address} failed: check that the port speaks TLS and which versions both sides allow",
        True,
    ),
    (
        (socket.gaierror,),
        MessageHubConnectionError,
        "the host's name in {address} cannot be resolved: check rabbitmq_url and the resolver",
        False,
    ),
    (
        (ConnectionRefusedError,),
        MessageHubConnectionError,
        "{address} refuses connections: check that the broker is up and listens there",
        False,
    ),
    ((TimeoutError,), MessageHubConnectionError, "{address} did not answer in time", False),
)


def entity_error(closed: ChannelClosed, what: str) -> MessageHubError:
    """What a channel closed by the broker means for the call that used it."""
    text = f"{what}: the broker says {closed.code} {printable(closed.text)}"
    if closed.code == 403:
        return MessageHubAuthorizationError(f"{text}. Grant the user that permission on the broker")
    if closed.code == 405:
        return MessageHubConfigurationError(f"{text}. It belongs to another connection alone: choose another name")
    return MessageHubConfigurationError(text)


def describe(error: BaseException | None) -> str:
    """One line about any error, without an address or a credential in it."""
    if error is None:
        return "the connection ended"
    if isinstance(error, amqp.ConnectionClosed):
        return f"the broker closed the connection: {error.reply_code} {printable(error.reply_text)}"
    if isinstance(error, amqp.AMQPHeartbeatTimeout):
        return "the broker was silent for too long (heartbeat)"
    if isinstance(error, amqp.StreamLostError):
        return "the connection was lost"
    if isinstance(error, (amqp.ProtocolSyntaxError, amqp.IncompatibleProtocolError)):
        return "the broker sent what is not understood"
    if isinstance(error, OSError):
        return printable(error.strerror or type(error).__name__)
    return printable(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
