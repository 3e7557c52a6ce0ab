"""Each foreign error becomes one of the package's own, by a table."""

from __future__ import annotations

import socket
import ssl

import pytest
from pika import exceptions as amqp

from message_hub_sync.config import BrokerAddress
from message_hub_sync.errors import (
    MessageHubAuthorizationError,
    MessageHubConfigurationError,
    MessageHubConnectionError,
    MessageHubError,
)
from message_hub_sync.transport.rabbitmq.translation import ChannelClosed, connect_failure, describe, entity_error

ADDRESS = BrokerAddress("rabbit", 5672, "/game", "reader", "s3cret")


@pytest.mark.parametrize(
    ("error", "kind", "words", "final"),
    [
        (amqp.ConnectionClosedByBroker(403, "ACCESS_REFUSED"), MessageHubAuthorizationError, "user 'reader'", True),
        (amqp.ConnectionClosedByBroker(530, "NOT_ALLOWED"), MessageHubAuthorizationError, "host '/game'", True),
        (amqp.ConnectionClosedByBroker(320, "CONNECTION_FORCED"), MessageHubConnectionError, "320", False),
        (amqp.ConnectionClosedByBroker(541, "INTERNAL_ERROR"), MessageHubConnectionError, "541", False),
        (amqp.AuthenticationError("PLAIN"), MessageHubAuthorizationError, "enable PLAIN", True),
        (amqp.IncompatibleProtocolError("x"), MessageHubConnectionError, "does not speak AMQP", True),
        (amqp.StreamLostError("end of stream"), MessageHubConnectionError, "before it was open", False),
        (ConnectionResetError(104, "Connection reset"), MessageHubConnectionError, "before it was open", False),
        (ConnectionRefusedError(111, "refused"), MessageHubConnectionError, "refuses connections", False),
        (TimeoutError(), MessageHubConnectionError, "did not answer in time", False),
        (socket.gaierror(-2, "Name or service not known"), MessageHubConnectionError, "cannot be resolved", False),
        (ssl.SSLCertVerificationError(1, "bad"), MessageHubConnectionError, "certificate", True),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER]"), MessageHubConnectionError, "speaks TLS", True),
        (OSError(24, "Too many open files"), MessageHubConnectionError, "Too many open files", False),
        (ValueError("anything"), MessageHubConnectionError, "ValueError", False),
    ],
)
def test_a_failed_attempt_to_connect_is_explained(
    error: Exception, kind: type[MessageHubError], words: str, final: bool
) -> None:
    refusal = connect_failure(error, ADDRESS)
    assert (refusal.kind, refusal.final) == (kind, final)
    assert words in refusal.text
    assert "rabbit:5672" in refusal.text
    assert "s3cret" not in refusal.text


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (403, MessageHubAuthorizationError),
        (404, MessageHubConfigurationError),
        (405, MessageHubConfigurationError),
        (406, MessageHubConfigurationError),
    ],
)
def test_a_closed_channel_is_explained(code: int, kind: type[MessageHubError]) -> None:
    error = entity_error(ChannelClosed(code, "the broker's\nwords"), "declaring the queue 'x'")
    assert type(error) is kind
    assert "declaring the queue 'x'" in str(error)
    assert str(code) in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (None, "the connection ended"),
        (amqp.StreamLostError("reading failed"), "the connection was lost"),
        (amqp.ConnectionClosedByBroker(320, "CONNECTION_FORCED - x"), "320 CONNECTION_FORCED - x"),
        (amqp.AMQPHeartbeatTimeout("x"), "sent nothing for too long"),
        (amqp.InvalidFrameError("x"), "a frame that cannot be parsed"),
    ],
)
def test_any_end_is_described_in_one_line(error: Exception | None, text: str) -> None:
    assert text in describe(error)
