"""The state of a client, as plain values that JSON can represent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from typing import Literal, TypedDict

from message_hub_sync.consuming.subscription import SubscriptionRegistry
from message_hub_sync.publishing.circuit_breaker import CircuitBreakers
from message_hub_sync.transport.base import ConnectionState, ConnectionStatus, Transport
from message_hub_sync.transport.topology import DEAD_LETTER_SUFFIX

__all__ = ["HealthStatus", "health_status", "queue_stats"]

_USABLE = (ConnectionState.OPEN, ConnectionState.BLOCKED)
#: The statuses in which a client can do its work, or connects when it is used.
_READY = ("ok", "idle", "degraded")

HealthWord = Literal["ok", "idle", "degraded", "blocked", "disconnected"]


class HealthReason(TypedDict):
    """Why the status is not ``ok``: a code for programs, a text for people."""

    code: Literal[
        "closed",
        "login_refused",
        "disconnected",
        "blocked",
        "silent",
        "circuit_open",
        "subscription_inactive",
        "queue_stuck",
    ]
    text: str


class ConnectionHealth(TypedDict):
    """One connection to the broker."""

    role: str
    state: str
    address: str
    last_error: str | None
    last_error_at: str | None
    silent: bool


class QueueHealth(TypedDict):
    """One queue that is consumed."""

    active: bool
    event_types: list[str]
    error: str | None
    possibly_limited: bool


class HealthStatus(TypedDict):
    """What ``MessageHubClient.get_health_status()`` returns, and documents."""

    service_name: str
    connected: bool
    subscriptions: list[str]
    circuit_breaker_state: str
    status: HealthWord
    live: bool
    ready: bool
    reasons: list[HealthReason]
    circuit_breakers: dict[str, str]
    connections: list[ConnectionHealth]
    queues: dict[str, QueueHealth]
    crash_loops_bounded: bool
    last_error: str | None
    last_error_at: str | None


def health_status(
    service: str,
    transport: Transport,
    breakers: CircuitBreakers,
    subscriptions: SubscriptionRegistry,
    *,
    closed: bool,
    crash_loops_bounded: bool = True,
) -> HealthStatus:
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
    queues: dict[str, QueueHealth] = {
        queue: {
            "active": active,
            "event_types": list(subscription.event_types),
            "error": errors.get(queue),
            "possibly_limited": queue in limited,
        }
        for subscription in known
        for queue, active in subscriptions.activity(subscription).items()
    }
    failed = [connection for connection in connections if connection.last_error]
    latest = max(failed, key=lambda connection: connection.last_error_at or 0, default=None)
    reasons = [*_of_connections(connections, closed), *_of_circuits(circuits), *_of_queues(queues, errors)]
    inactive = not all(subscription.active for subscription in known)
    if inactive and not any(reason["code"] == "subscription_inactive" for reason in reasons):
        reasons.append({"code": "subscription_inactive", "text": "a subscription is not consuming"})
    status = _status(connections, reasons)
    return {
        "service_name": service,
        "connected": not closed and all(connection.state in _USABLE for connection in connections),
        "subscriptions": list(dict.fromkeys(name for one in known for name in one.event_types)),
        "circuit_breaker_state": breakers.worst(),
        "status": status,
        "live": not closed,
        "ready": status in _READY,
        "reasons": reasons,
        "circuit_breakers": circuits,
        "connections": [_connection(connection) for connection in connections],
        "queues": queues,
        "crash_loops_bounded": crash_loops_bounded,
        "last_error": None if latest is None else latest.last_error,
        "last_error_at": None if latest is None else _time(latest.last_error_at),
    }


def _connection(connection: ConnectionStatus) -> ConnectionHealth:
    return {
        "role": connection.role,
        "state": connection.state.value,
        "address": connection.address,
        "last_error": connection.last_error,
        "last_error_at": _time(connection.last_error_at),
        "silent": connection.silent,
    }


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


def _of_connections(connections: Sequence[ConnectionStatus], closed: bool) -> Iterator[HealthReason]:
    if closed:
        yield {"code": "closed", "text": "the client is closed, and stays so: create a new one"}
        return
    for connection in connections:
        if connection.state not in _USABLE:
            error = connection.last_error or "it was not open so far"
            if connection.login_refused:
                text = f"the broker does not accept the login of the {connection.role} connection: {error}"
                yield {"code": "login_refused", "text": text}
            else:
                text = f"the {connection.role} connection is {connection.state.value}: {error}"
                yield {"code": "disconnected", "text": text}
        elif connection.state is ConnectionState.BLOCKED:
            yield {"code": "blocked", "text": "the broker accepts no messages: it has a memory or disk alarm"}
        elif connection.silent:
            text = f"a heartbeat of the broker is overdue on the {connection.role} connection"
            yield {"code": "silent", "text": text}


def _of_circuits(circuits: dict[str, str]) -> Iterator[HealthReason]:
    for name, state in circuits.items():
        if state != "closed":
            of = "the connection" if name == "*" else name
            yield {"code": "circuit_open", "text": f"the circuit of {of} is {state}"}


def _of_queues(queues: dict[str, QueueHealth], errors: dict[str, str | None]) -> Iterator[HealthReason]:
    for name, queue in queues.items():
        if not queue["active"]:
            yield {"code": "subscription_inactive", "text": f"{name} is not consumed"}
    for name, error in errors.items():
        if error is not None:
            yield {"code": "queue_stuck", "text": f"{name}: {error}"}


def _status(connections: Sequence[ConnectionStatus], reasons: Sequence[HealthReason]) -> HealthWord:
    codes = {reason["code"] for reason in reasons}
    # First match wins.
    if codes & {"closed", "login_refused", "disconnected"}:
        return "disconnected"
    if "blocked" in codes:
        return "blocked"
    if codes:
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
