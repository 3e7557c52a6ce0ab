"""Names of queues and exchanges, and what must be declared before they are used. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from message_hub_sync.config import QueueType

__all__ = [
    "DEAD_LETTER_SUFFIX",
    "DEFAULT_EXCHANGE",
    "EVENTS",
    "Binding",
    "ExchangeSpec",
    "QueueSpec",
    "Topology",
    "dead_letter_queue",
    "declared_name",
    "event_queue_name",
    "event_subscription",
    "inbox_name",
    "inbox_subscription",
    "reply_topology",
    "retry_queue",
]

DEFAULT_EXCHANGE = ""
EVENTS = "events"
DEAD_LETTER_SUFFIX = ".dead"


@dataclass(frozen=True)
class ExchangeSpec:
    """An exchange as it is declared where it does not exist yet."""

    name: str
    kind: str = "topic"
    durable: bool = True


@dataclass(frozen=True)
class QueueSpec:
    """A queue as it is declared where it does not exist yet.

    ``random_suffix``: the broker may still hold the queue of a connection that died, so that the
    name gets a random part, new at each connection.
    """

    name: str
    durable: bool = True
    exclusive: bool = False
    auto_delete: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    random_suffix: bool = False


def declared_name(spec: QueueSpec) -> str:
    """The name under which a queue is declared: with a new random part at each call if the queue is to have one."""
    return f"{spec.name}.{uuid4().hex[:12]}" if spec.random_suffix else spec.name


@dataclass(frozen=True)
class Binding:
    """A queue's interest in the routing keys of an exchange."""

    exchange: str
    routing_key: str


@dataclass(frozen=True)
class Topology:
    """One queue with all that must exist for it to receive."""

    queue: QueueSpec
    exchange: ExchangeSpec | None = None
    bindings: tuple[Binding, ...] = ()


EVENT_EXCHANGE = ExchangeSpec(EVENTS)


def inbox_name(service: str) -> str:
    """The queue of a service's own messages; on the default exchange also their routing key."""
    return f"{service}.messages"


def event_queue_name(service: str, event_type: str) -> str:
    """The queue in which a service receives one event type (or pattern)."""
    return f"{service}.{event_type}"


def inbox_subscription(service: str, *, priorities: bool = False, queue_type: QueueType = "classic") -> Topology:
    """A service's inbox. Without arguments, as an async replica declares it, unless settings ask for them."""
    arguments: dict[str, Any] = {}
    if queue_type == "quorum":
        arguments["x-queue-type"] = "quorum"
    elif priorities:
        arguments["x-max-priority"] = 9
    return Topology(QueueSpec(inbox_name(service), arguments=arguments))


def event_subscription(
    service: str, event_type: str, *, durable: bool = True, queue_type: QueueType = "classic"
) -> Topology:
    """The queue of one event type, bound to the event exchange."""
    name = event_queue_name(service, event_type)
    if durable:
        arguments = {"x-queue-type": "quorum"} if queue_type == "quorum" else {}
        queue = QueueSpec(name, arguments=arguments)
    else:
        queue = QueueSpec(name, durable=False, exclusive=True, auto_delete=True, random_suffix=True)
    return Topology(queue, EVENT_EXCHANGE, (Binding(EVENTS, event_type),))


def reply_topology(service: str, client_id: str) -> Topology:
    """The exclusive queue in which one client receives replies to its requests."""
    name = f"{service}.replies.{client_id}"
    return Topology(QueueSpec(name, durable=False, exclusive=True, auto_delete=True, random_suffix=True))


def retry_queue(queue: str, delay_ms: int) -> QueueSpec:
    """The queue in which a message waits ``delay_ms`` before the broker hands it back to ``queue``.

    Quorum with at-least-once dead-lettering: classic queues lost confirmed messages when the broker was
    killed while they were handing back. ``reject-publish`` is what at-least-once requires.
    """
    return QueueSpec(
        f"{queue}.retry.{delay_ms}",
        arguments={
            "x-queue-type": "quorum",
            "x-message-ttl": delay_ms,
            "x-dead-letter-exchange": DEFAULT_EXCHANGE,
            "x-dead-letter-routing-key": queue,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        },
    )


def dead_letter_queue(queue: str, queue_type: QueueType = "classic") -> QueueSpec:
    """Where the messages of ``queue`` end that are given up: durable, of its source's type."""
    arguments = {"x-queue-type": "quorum"} if queue_type == "quorum" else {}
    return QueueSpec(f"{queue}{DEAD_LETTER_SUFFIX}", arguments=arguments)
