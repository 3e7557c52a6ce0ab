"""Translation of errors of pika, ssl and sockets to errors of this package, by a table."""

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
from message_hub_sync.runtime.text import printable, shown

__all__ = [
    "FIRST_FRAMES_BYTES",
    "ChannelClosed",
    "ConnectionEnded",
    "LoginTooLargeError",
    "NoConfirmsError",
    "Refusal",
    "RpcTimedOut",
    "connect_failure",
    "describe",
    "entity_error",
    "no_channel",
]


class ConnectionEnded(Exception):
    """The connection ended before the answer. Never leaves this package."""


#: The largest frame that every broker takes before frame sizes are negotiated (``frame-min-size`` of AMQP 0-9-1).
FIRST_FRAMES_BYTES = 4096


class LoginTooLargeError(Exception):
    """The broker ended the connection at a login larger than :data:`FIRST_FRAMES_BYTES`. Never leaves this package."""

    def __init__(self, size: int) -> None:
        super().__init__(f"a login of {size} bytes")


class NoConfirmsError(Exception):
    """The broker has no publisher confirms. Never leaves this package."""


class ChannelClosed(Exception):
    """The broker closed the channel. Never leaves this package.

    :param method: class and method of the method that failed, as in ``pika.spec.Queue.Declare.INDEX``.
    """

    def __init__(self, code: int, text: str, method: int = 0) -> None:
        super().__init__(f"{code} {text}")
        self.code = code
        self.text = text
        self.method = method


class RpcTimedOut(Exception):
    """The broker did not answer an RPC in time. Never leaves this package."""


@dataclass(frozen=True)
class Refusal:
    """Why an attempt to connect failed."""

    kind: type[MessageHubError]
    text: str
    final: bool
    """Whether another attempt can only succeed after a setting was changed, here or on the broker."""

    def error(self) -> MessageHubError:
        """Create the exception for one waiting caller. Threads must not share one: raising adds a traceback to it."""
        return self.kind(self.text)


def connect_failure(error: BaseException, address: BrokerAddress) -> Refusal:
    """Translate the error of a failed attempt to connect."""
    # Only a reply code means that the login failed. A stream that ended during the handshake does not: a broker may be
    # killed at any moment.
    if isinstance(error, MessageHubConfigurationError):  # of ours: TLS files that were right when the client was made
        return Refusal(MessageHubConnectionError, f"cannot connect to {address}: {error}", True)
    kind, text, final = _meaning(error)
    described = text.format(
        address=address, user=address.user_text, vhost=shown(address.virtual_host), error=describe(error)
    )
    return Refusal(kind, described, final)


def _meaning(error: BaseException) -> tuple[type[MessageHubError], str, bool]:
    if isinstance(error, amqp.ConnectionClosedByBroker) and error.reply_code in _REFUSED_BY_CODE:
        return (*_REFUSED_BY_CODE[error.reply_code], True)
    if isinstance(error, ssl.SSLError):
        for reasons, text in _TLS_ALERTS:
            if "ALERT" in _reason(error) and any(reason in _reason(error) for reason in reasons):
                return MessageHubConnectionError, text, True
    for types, kind, text, final in _CONNECT_FAILURES:
        if isinstance(error, types):
            return kind, text, final
    return MessageHubConnectionError, "cannot connect to {address}: {error}", False


_REFUSED_BY_CODE: dict[int, tuple[type[MessageHubError], str]] = {
    403: (
        MessageHubAuthorizationError,
        "{address} did not accept the login of user {user}: check the user's name and password in rabbitmq_url or "
        "credentials",
    ),
    530: (
        MessageHubAuthorizationError,
        "{address} did not let user {user} open the virtual host {vhost}: check that the vhost exists, "
        "that the user may access it and that no connection limit is reached",
    ),
}

#: Parts of the names of alerts that the broker sends.
_TLS_ALERTS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("CERTIFICATE_REQUIRED",),
        "{address} asks for a client certificate: add certfile and keyfile to rabbitmq_url, or load one into the "
        "ssl_context",
    ),
    (
        ("CERTIFICATE", "UNKNOWN_CA"),
        "{address} does not accept the client's certificate ({error}): check certfile, its dates, and that the broker "
        "trusts its authority",
    ),
)

_CONNECT_FAILURES: tuple[tuple[tuple[type[BaseException], ...], type[MessageHubError], str, bool], ...] = (
    (
        (LoginTooLargeError,),
        MessageHubAuthorizationError,
        "{address} did not answer {error} (user's name and password): a broker takes 4 to 8 kB there. Use a "
        "shorter password or token, or set initial_frame_max on the broker",
        True,
    ),
    (
        (NoConfirmsError,),
        MessageHubConnectionError,
        "{address} offers no publisher confirms: the hub must be RabbitMQ",
        True,
    ),
    (
        (amqp.AuthenticationError,),
        MessageHubAuthorizationError,
        "{address} offers no login with a user's name and password: enable PLAIN on the broker",
        True,
    ),
    (
        (amqp.IncompatibleProtocolError, amqp.ProtocolVersionMismatch),
        MessageHubConnectionError,
        "{address} does not speak AMQP 0-9-1: check host and port, and whether it must be amqp:// or amqps://",
        True,
    ),
    (
        (amqp.ProtocolSyntaxError,),
        MessageHubConnectionError,
        "{address} sent a handshake that is not AMQP 0-9-1: check host and port, and what stands between",
        True,
    ),
    (
        (amqp.StreamLostError, ConnectionResetError),
        MessageHubConnectionError,
        "{address} closed the connection before it was open: check whether the broker is starting or stopping, "
        "and whether a proxy in front of it can reach it",
        False,
    ),
    (
        (ssl.SSLCertVerificationError,),
        MessageHubConnectionError,
        "the TLS certificate of {address} is not valid here: check the authority (cacertfile) and the host's name",
        True,
    ),
    (
        (ssl.SSLError,),
        MessageHubConnectionError,
        "TLS with {address} failed ({error}): check that the port speaks TLS, that both sides allow a common TLS "
        "version, and whether the broker asks for a client certificate",
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
        "{address} refuses connections: check that the broker runs, and its host and port in rabbitmq_url",
        False,
    ),
    (
        (TimeoutError,),
        MessageHubConnectionError,
        "{address} did not answer in time",
        False,
    ),
)


def entity_error(closed: ChannelClosed, what: str) -> MessageHubError:
    """Translate a channel error to the error of the call that used the channel.

    :param what: what the call did, as the beginning of the error text.
    """
    text = f"{what}: the broker replied {closed.code} {printable(closed.text)}"
    if closed.code == 403:
        return MessageHubAuthorizationError(f"{text}. Grant the user this permission on the broker")
    if closed.code == 405:
        return MessageHubConfigurationError(
            f"{text}. It is exclusive and belongs to another connection: use another name"
        )
    return MessageHubConfigurationError(text)


def no_channel(why: str) -> MessageHubError:
    """The broker does not open another channel.

    :param why: what it said.
    """
    return MessageHubConnectionError(
        f"the broker allows no more channels on this connection: {printable(why)}. Raise the limit (max-channels of "
        "the user, channel_max of the broker), or consume fewer queues"
    )


def _reason(error: ssl.SSLError) -> str:
    reason = getattr(error, "reason", None)  # only OpenSSL's errors have it
    return reason if isinstance(reason, str) else ""


def describe(error: BaseException | None) -> str:
    """Describe any error in one line, without an address or a credential."""
    if error is None:
        return "the connection ended"
    if isinstance(error, MessageHubError):
        return printable(str(error), 500)
    if isinstance(error, amqp.ConnectionClosed):
        return f"the broker closed the connection: {error.reply_code} {printable(error.reply_text)}"
    if isinstance(error, amqp.AMQPHeartbeatTimeout):
        return "the broker sent nothing for too long (heartbeat timeout)"
    if isinstance(error, amqp.StreamLostError):
        return "the connection was lost"
    if isinstance(error, (amqp.ProtocolSyntaxError, amqp.IncompatibleProtocolError)):
        return "the broker sent a frame that cannot be parsed"
    if isinstance(error, LoginTooLargeError):
        return str(error)
    if isinstance(error, ssl.SSLError) and _reason(error):
        return printable(_reason(error).replace("_", " ").lower())
    if isinstance(error, OSError):
        return printable(error.strerror or type(error).__name__)
    return printable(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
