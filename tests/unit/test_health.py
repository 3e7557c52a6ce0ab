"""Health in plain words."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import pytest
from scripted_transport import ScriptedTransport

from message_hub_sync.circuit_breaker import CircuitBreakers
from message_hub_sync.config import CircuitBreakerConfig
from message_hub_sync.health import health_status, queue_stats
from message_hub_sync.subscription import Subscriptions
from message_hub_sync.transport.base import ConnectionState, ConnectionStatus


class Connected(ScriptedTransport):
    def __init__(self, *connections: ConnectionStatus) -> None:
        super().__init__()
        self.connections = connections

    def status(self) -> Sequence[ConnectionStatus]:
        return self.connections


def connection(state: ConnectionState, role: str = "publish", error: str | None = None) -> ConnectionStatus:
    return ConnectionStatus(role, state, "amqp://127.0.0.1:5672", error)


def status(*connections: ConnectionStatus, breakers: CircuitBreakers | None = None) -> dict[str, Any]:
    found = health_status(
        "image-service",
        Connected(*connections),
        breakers or CircuitBreakers(CircuitBreakerConfig()),
        Subscriptions(None),  # type: ignore[arg-type]
    )
    decoded: dict[str, Any] = json.loads(json.dumps(found))
    assert decoded == found
    return decoded


@pytest.mark.parametrize(
    ("states", "connected", "word"),
    [
        ([], False, "disconnected"),
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


def test_an_open_circuit_is_the_worst_and_degrades() -> None:
    breakers = CircuitBreakers(CircuitBreakerConfig(failure_threshold=1))
    breakers.admit("image-service").failed()
    breakers.admit("llm-service").succeeded()

    found = status(connection(ConnectionState.OPEN), breakers=breakers)

    assert found["circuit_breaker_state"] == "open"
    assert found["circuit_breakers"] == {"image-service": "open", "llm-service": "closed"}
    assert found["status"] == "degraded"


def test_each_connection_is_told_with_its_last_error() -> None:
    found = status(
        connection(ConnectionState.OPEN),
        connection(ConnectionState.RECOVERING, "consume", "the broker closed the connection"),
    )

    assert found["connections"][1] == {
        "role": "consume",
        "state": "recovering",
        "address": "amqp://127.0.0.1:5672",
        "last_error": "the broker closed the connection",
    }
    assert found["last_error"] == "the broker closed the connection"


def test_without_subscriptions_nobody_is_asked_for_stats() -> None:
    transport = Connected()

    assert queue_stats(transport, Subscriptions(None), time.monotonic()) == {}  # type: ignore[arg-type]
