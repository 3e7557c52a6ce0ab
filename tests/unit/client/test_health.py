"""Health in plain words."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from scripted_transport import ScriptedTransport

from message_hub_sync.client.health import health_status, queue_stats
from message_hub_sync.config import CircuitBreakerConfig
from message_hub_sync.consuming.subscription import SubscriptionRegistry
from message_hub_sync.publishing.circuit_breaker import CircuitBreakers
from message_hub_sync.transport.base import ConnectionState, ConnectionStatus

#: A registry of nothing: it only asks its transport to tell of new connections.
CONTEXT: Any = SimpleNamespace(transport=SimpleNamespace(on_connected=lambda listener: None))


class Connected(ScriptedTransport):
    def __init__(self, *connections: ConnectionStatus) -> None:
        super().__init__()
        self.connections = connections

    def status(self) -> Sequence[ConnectionStatus]:
        return self.connections


def connection(
    state: ConnectionState, role: str = "publish", error: str | None = None, at: float | None = None
) -> ConnectionStatus:
    return ConnectionStatus(role, state, "amqp://127.0.0.1:5672", error, at)


def status(
    *connections: ConnectionStatus, breakers: CircuitBreakers | None = None, closed: bool = False
) -> dict[str, Any]:
    found = health_status(
        "image-service",
        Connected(*connections),
        breakers or CircuitBreakers(CircuitBreakerConfig(), "me"),
        SubscriptionRegistry(CONTEXT),
        closed=closed,
    )
    decoded: dict[str, Any] = json.loads(json.dumps(found))
    assert decoded == found
    return decoded


@pytest.mark.parametrize(
    ("states", "connected", "word"),
    [
        ([], True, "idle"),
        ([ConnectionState.OPEN], True, "ok"),
        ([ConnectionState.OPEN, ConnectionState.OPEN], True, "ok"),
        ([ConnectionState.OPEN, ConnectionState.RECOVERING], False, "disconnected"),
        ([ConnectionState.CONNECTING], False, "disconnected"),
        ([ConnectionState.BLOCKED, ConnectionState.OPEN], True, "blocked"),
        ([ConnectionState.CLOSED], False, "disconnected"),
    ],
)
def test_connected_means_every_connection_needed_so_far_is_open(
    states: list[ConnectionState], connected: bool, word: str
) -> None:
    found = status(*[connection(state) for state in states])

    assert (found["connected"], found["status"]) == (connected, word)


def test_a_closed_client_is_disconnected_even_if_it_never_connected() -> None:
    found = status(closed=True)

    assert (found["connected"], found["status"]) == (False, "disconnected")


def test_an_open_circuit_is_the_worst_and_degrades() -> None:
    breakers = CircuitBreakers(CircuitBreakerConfig(failure_threshold=1), "me")
    breakers.admit("image-service").failed()
    breakers.admit("llm-service").succeeded()

    found = status(connection(ConnectionState.OPEN), breakers=breakers)

    assert found["circuit_breaker_state"] == "open"
    assert found["circuit_breakers"] == {"image-service": "open", "llm-service": "closed"}
    assert found["status"] == "degraded"


def test_each_connection_is_told_with_its_last_error() -> None:
    found = status(
        connection(ConnectionState.OPEN),
        connection(ConnectionState.RECOVERING, "consume", "the broker closed the connection", 60.0),
    )

    assert found["connections"][1] == {
        "role": "consume",
        "state": "recovering",
        "address": "amqp://127.0.0.1:5672",
        "last_error": "the broker closed the connection",
        "last_error_at": "1970-01-01T00:01:00+00:00",
        "silent": False,
    }
    assert found["last_error"] == "the broker closed the connection"
    assert found["last_error_at"] == "1970-01-01T00:01:00+00:00"


def test_an_open_connection_whose_heartbeat_is_overdue_is_degraded() -> None:
    silent = dataclasses.replace(connection(ConnectionState.OPEN), silent=True)
    assert status(silent)["status"] == "degraded"
    assert status(silent)["connected"]


def test_the_latest_error_is_told_whichever_connection_it_was_of() -> None:
    found = status(
        connection(ConnectionState.OPEN, "publish", "later", 2.0),
        connection(ConnectionState.OPEN, "consume", "earlier", 1.0),
    )

    assert found["last_error"] == "later"


def test_without_subscriptions_nobody_is_asked_for_stats() -> None:
    transport = Connected()

    assert queue_stats(transport, SubscriptionRegistry(CONTEXT), time.monotonic()) == {}


def codes(found: dict[str, Any]) -> list[str]:
    return [reason["code"] for reason in found["reasons"]]


def test_what_is_well_has_no_reasons_and_is_live_and_ready() -> None:
    for found in (status(), status(connection(ConnectionState.OPEN))):
        assert (found["reasons"], found["live"], found["ready"]) == ([], True, True)


def test_a_refused_login_is_not_a_broker_that_is_down() -> None:
    down = connection(ConnectionState.RECOVERING, "publish", "the host did not answer", 1.0)
    refused = dataclasses.replace(connection(ConnectionState.CONNECTING, "consume", "bad login"), login_refused=True)

    found = status(down, refused)

    assert codes(found) == ["disconnected", "login_refused"]
    assert [reason["text"] for reason in found["reasons"]] == [
        "the publish connection is recovering: the host did not answer",
        "the broker does not accept the login of the consume connection: bad login",
    ]
    assert (found["live"], found["ready"]) == (True, False)


def test_a_login_that_was_refused_before_the_connection_opened_is_no_reason() -> None:
    assert codes(status(dataclasses.replace(connection(ConnectionState.OPEN), login_refused=True))) == []


def test_a_closed_client_is_neither_live_nor_ready_and_nothing_else_is_told() -> None:
    found = status(connection(ConnectionState.CLOSED), closed=True)
    assert (codes(found), found["live"], found["ready"]) == (["closed"], False, False)


def test_a_blocked_and_a_silent_connection_are_reasons() -> None:
    silent = dataclasses.replace(connection(ConnectionState.OPEN, "consume"), silent=True)
    found = status(connection(ConnectionState.BLOCKED), silent)
    assert (codes(found), found["ready"]) == (["blocked", "silent"], False)


def test_each_circuit_that_is_not_closed_is_named() -> None:
    breakers = CircuitBreakers(CircuitBreakerConfig(failure_threshold=1), "me")
    breakers.admit("image-service").failed()

    found = status(connection(ConnectionState.OPEN), breakers=breakers)

    assert found["reasons"] == [{"code": "circuit_open", "text": "the circuit of image-service is open"}]
    assert found["ready"] is True
