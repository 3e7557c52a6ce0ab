"""The state of a client, as plain values that JSON can represent."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from message_hub_sync.consuming.subscription import SubscriptionRegistry
from message_hub_sync.publishing.circuit_breaker import CircuitBreakers
from message_hub_sync.transport.base import ConnectionState, ConnectionStatus, Transport
from message_hub_sync.transport.topology import DEAD_LETTER_SUFFIX

__all__ = ["health_status", "queue_stats"]

_USABLE = (ConnectionState.OPEN, ConnectionState.BLOCKED)


def health_status(
    service: str,
    transport: Transport,
    breakers: CircuitBreakers,
    subscriptions: SubscriptionRegistry,
    *,
    closed: bool,
    crash_loops_bounded: bool = True,
) -> dict[str, Any]:
    """The state of a client: the keys of the integration guide, and more detailed ones. It asks the broker nothing.

    :param service: the name of the service.
    :param closed: whether the client is closed.
    :param crash_loops_bounded: whether crashes of handlers can be counted.
    """
    connections = list(transport.status())
    known = subscriptions.known()
    circuits = breakers.states()
    errors = {consumer.queue: consumer.error for consumer in subscriptions.consumers()}
    limited = {consumer.queue for consumer in subscriptions.consumers() if consumer.possibly_limited}
    queues = {
        queue: {
            "active": active,
            "event_types": list(subscription.event_types),
            "error": errors.get(queue),
            "possibly_limited": queue in limited,
        }
        for subscription in known
        for queue, active in subscriptions.activity(subscription).items()
    }
    connected = not closed and all(connection.state in _USABLE for connection in connections)
    failed = [connection for connection in connections if connection.last_error]
    latest = max(failed, key=lambda connection: connection.last_error_at or 0, default=None)
    return {
        "service_name": service,
        "connected": connected,
        "subscriptions": list(dict.fromkeys(name for one in known for name in one.event_types)),
        "circuit_breaker_state": breakers.worst(),
        "status": _status(connections, circuits, all(subscription.active for subscription in known), errors, connected),
        "circuit_breakers": circuits,
        "connections": [
            {
                "role": connection.role,
                "state": connection.state.value,
                "address": connection.address,
                "last_error": connection.last_error,
                "last_error_at": _time(connection.last_error_at),
                "silent": connection.silent,
            }
            for connection in connections
        ],
        "queues": queues,
        "crash_loops_bounded": crash_loops_bounded,
        "last_error": None if latest is None else latest.last_error,
        "last_error_at": None if latest is None else _time(latest.last_error_at),
    }


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


def _status(
    connections: Sequence[ConnectionStatus],
    circuits: dict[str, str],
    active: bool,
    errors: dict[str, str | None],
    connected: bool,
) -> str:
    # First match wins.
    if not connected:
        return "disconnected"
    if any(connection.state is ConnectionState.BLOCKED for connection in connections):
        return "blocked"
    silent = any(connection.silent for connection in connections)
    if silent or any(state != "closed" for state in circuits.values()) or not active or any(errors.values()):
        return "degraded"
    return "ok" if connections else "idle"


def queue_stats(
    transport: Transport, subscriptions: SubscriptionRegistry, deadline: float
) -> dict[str, dict[str, int]]:
    """Depth and consumers of each queue consumed here, and of its dead-letter queue if it is durable.

    A dead-letter queue is created with its first dead letter. Until then it has zeros here, so that a monitor finds it.

    :param deadline: how long to wait for the broker, in monotonic seconds.
    :raises MessageHubError: the broker did not answer in time.
    """
    names: list[str] = []
    dead_letter_queues = set()
    for consumer in subscriptions.consumers():
        names.append(consumer.queue)
        if consumer.consumed.topology.queue.durable:
            names.append(consumer.queue + DEAD_LETTER_SUFFIX)
            dead_letter_queues.add(names[-1])
    found = transport.queue_stats(names, deadline) if names else {}
    return {
        name: {"depth": stats.depth, "consumers": stats.consumers}
        if stats is not None
        else {"depth": 0, "consumers": 0}
        for name, stats in found.items()
        if stats is not None or name in dead_letter_queues
    }
