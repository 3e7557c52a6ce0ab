"""How a client is, as plain values that JSON can hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from message_hub_sync.circuit_breaker import CircuitBreakers
from message_hub_sync.subscription import Subscriptions
from message_hub_sync.topology import DEAD_LETTER_SUFFIX
from message_hub_sync.transport.base import ConnectionState, ConnectionStatus, Transport

__all__ = ["health_status", "is_connected", "queue_stats"]

_USABLE = (ConnectionState.OPEN, ConnectionState.BLOCKED)


def is_connected(connections: Sequence[ConnectionStatus]) -> bool:
    """Whether something was needed so far, and all of it is open."""
    return bool(connections) and all(connection.state in _USABLE for connection in connections)


def health_status(
    service: str, transport: Transport, breakers: CircuitBreakers, subscriptions: Subscriptions
) -> dict[str, Any]:
    """The guide's keys, and beside them what makes them understood. Asks nobody: it returns at once."""
    connections = list(transport.status())
    known = subscriptions.known()
    circuits = breakers.states()
    queues = {
        queue: {"active": subscription.active, "event_types": list(subscription.event_types)}
        for subscription in known
        for queue in subscription.queues
    }
    errors = [connection.last_error for connection in connections if connection.last_error]
    return {
        "service_name": service,
        "connected": is_connected(connections),
        "subscriptions": list(dict.fromkeys(name for one in known for name in one.event_types)),
        "circuit_breaker_state": breakers.worst(),
        "status": _status(connections, circuits, [subscription.active for subscription in known]),
        "circuit_breakers": circuits,
        "connections": [
            {
                "role": connection.role,
                "state": connection.state.value,
                "address": connection.address,
                "last_error": connection.last_error,
            }
            for connection in connections
        ],
        "queues": queues,
        "last_error": errors[-1] if errors else None,
    }


def _status(connections: Sequence[ConnectionStatus], circuits: dict[str, str], active: Sequence[bool]) -> str:
    """One word: ``disconnected``, ``blocked``, ``degraded`` (a circuit or a queue is not as it should be), ``ok``."""
    if not is_connected(connections):
        return "disconnected"
    if any(connection.state is ConnectionState.BLOCKED for connection in connections):
        return "blocked"
    if any(state != "closed" for state in circuits.values()) or not all(active):
        return "degraded"
    return "ok"


def queue_stats(transport: Transport, subscriptions: Subscriptions, deadline: float) -> dict[str, dict[str, int]]:
    """Depth and consumers of each queue consumed here, and of its dead-letter queue where there is one.

    :raises MessageHubError: the hub did not answer in time.
    """
    names: list[str] = []
    for consumer in subscriptions.consumers():
        names.append(consumer.queue)
        if consumer.source.topology.queue.durable:
            names.append(consumer.queue + DEAD_LETTER_SUFFIX)
    found = transport.queue_stats(names, deadline) if names else {}
    return {
        name: {"depth": stats.depth, "consumers": stats.consumers} for name, stats in found.items() if stats is not None
    }
