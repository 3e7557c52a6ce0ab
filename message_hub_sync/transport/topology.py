"""The names of queues and exchanges, and what to declare before they are used. Pure functions and values."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from message_hub_sync.config import QueueType

__all__ = [
    "DEAD_LETTER_SUFFIX",
    "DEFAULT_EXCHANGE",
    "DELIVERY_LIMIT",
    "DIRECT_REPLY_TO",
    "EVENTS",
    "Binding",
    "ExchangeSpec",
    "QueueSpec",
    "Topology",
    "crash_mark_queue",
    "dead_letter_queue",
    "declared_name",
    "event_queue_name",
    "event_subscription",
    "inbox_name",
    "inbox_subscription",
    "may_receive_replies",
    "raise_limit_command",
    "reply_topology",
    "retry_queue",
]

DEFAULT_EXCHANGE = ""
EVENTS = "events"
DEAD_LETTER_SUFFIX = ".dead"


@dataclass(frozen=True)
class ExchangeSpec:
    """How to declare an exchange if it does not exist yet. ``kind`` is its exchange type."""

    name: str
    kind: str = "topic"
    durable: bool = True


@dataclass(frozen=True)
class QueueSpec:
    """How to declare a queue if it does not exist yet.

    ``random_suffix`` appends a random part to the name, new at each connection: the broker may still hold the
    exclusive queue of a connection that was lost. ``passive``: the queue must exist, and it is not declared.
    """

    name: str
    durable: bool = True
    exclusive: bool = False
    auto_delete: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    random_suffix: bool = False
    passive: bool = False


def declared_name(spec: QueueSpec) -> str:
    """The name to declare a queue with. If it has ``random_suffix``, each call returns another name."""
    return f"{spec.name}.{uuid4().hex[:12]}" if spec.random_suffix else spec.name


@dataclass(frozen=True)
class Binding:
    """The binding of a queue to an exchange. ``routing_key`` may be a pattern of a topic exchange."""

    exchange: str
    routing_key: str


@dataclass(frozen=True)
class Topology:
    """One queue, with the exchange and the bindings that must exist for it to receive."""

    queue: QueueSpec
    exchange: ExchangeSpec | None = None
    bindings: tuple[Binding, ...] = ()


EVENT_EXCHANGE = ExchangeSpec(EVENTS)
#: A quorum queue drops a message that came back so often, and a lost connection returns all that was prefetched.
#: RabbitMQ 4 has a limit of 20 by default. There is no value for "no limit": with -1 RabbitMQ 3.10 drops at once.
DELIVERY_LIMIT = 100_000


def _quorum_arguments() -> dict[str, Any]:
    """The arguments of a quorum queue that is consumed or looked at."""
    # No dead-letter exchange: expired messages would go there, and async replicas would get 406.
    return {"x-queue-type": "quorum", "x-delivery-limit": DELIVERY_LIMIT}


def raise_limit_command(queue: str) -> str:
    """The command of RabbitMQ that raises the delivery limit of a queue which exists."""
    pattern = re.escape(queue)
    return (
        f"rabbitmqctl set_policy message-hub-limit '^{pattern}$' '{{\"delivery-limit\": {DELIVERY_LIMIT}}}' "
        "--apply-to queues"
    )


def inbox_name(service: str) -> str:
    """The inbox queue of a service. It is also the routing key of its messages on the default exchange."""
    return f"{service}.messages"


def event_queue_name(service: str, event_type: str) -> str:
    """The queue in which a service receives the events of one type or pattern."""
    return f"{service}.{event_type}"


def inbox_subscription(service: str, *, priorities: bool = False, queue_type: QueueType = "classic") -> Topology:
    """The inbox of a service.

    :param priorities: declare ``x-max-priority`` 9. Ignored for a quorum queue, which has no priorities.
    """
    # No arguments by default: a replica of the service with the async client declares the same queue without any.
    arguments: dict[str, Any] = {}
    if queue_type == "quorum":
        arguments = _quorum_arguments()
    elif priorities:
        arguments["x-max-priority"] = 9
    return Topology(QueueSpec(inbox_name(service), arguments=arguments))


def event_subscription(
    service: str, event_type: str, *, durable: bool = True, queue_type: QueueType = "classic"
) -> Topology:
    """The queue of one event type, bound to the event exchange.

    :param durable: if false, an exclusive auto-delete queue with a random suffix: it ends with its connection.
    """
    name = event_queue_name(service, event_type)
    if durable:
        arguments = _quorum_arguments() if queue_type == "quorum" else {}
        queue = QueueSpec(name, arguments=arguments)
    else:
        queue = QueueSpec(name, durable=False, exclusive=True, auto_delete=True, random_suffix=True)
    return Topology(queue, EVENT_EXCHANGE, (Binding(EVENTS, event_type),))


#: The queues that a broker names itself: those declared without a name, and those of RabbitMQ's direct reply-to.
DIRECT_REPLY_TO = "amq.rabbitmq.reply-to."
_NAMED_BY_THE_BROKER = ("amq.gen-", DIRECT_REPLY_TO)
#: aio-pika's robust connections name such a queue themselves. No queue of a service has a name without a dot.
_NAMED_BY_AIO_PIKA = re.compile(r"amq_[0-9a-f]{32}")


def may_receive_replies(queue: str, source: str | None) -> bool:
    """Whether the reply to a request of ``source`` may go to ``queue``, the ``reply_to`` of the request.

    Any other queue is refused: by its name somebody would make this service write into the queues of a third one.
    """
    if queue.startswith(_NAMED_BY_THE_BROKER) or _NAMED_BY_AIO_PIKA.fullmatch(queue):
        return True
    return source is not None and (queue == inbox_name(source) or queue.startswith(f"{source}.replies."))


def reply_topology(service: str, client_id: str) -> Topology:
    """The exclusive queue in which one client receives the replies to its requests."""
    name = f"{service}.replies.{client_id}"
    return Topology(QueueSpec(name, durable=False, exclusive=True, auto_delete=True, random_suffix=True))


@functools.lru_cache(maxsize=256)  # asked for with each message that fails
def retry_queue(queue: str, delay_ms: int) -> QueueSpec:
    """The queue in which a message waits ``delay_ms`` milliseconds; then the broker dead-letters it to ``queue``."""
    # A quorum queue with at-least-once dead-lettering: classic queues lost confirmed messages if the broker was
    # killed while it dead-lettered them. At-least-once requires reject-publish.
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


@functools.lru_cache(maxsize=256)
def dead_letter_queue(queue: str, queue_type: QueueType = "classic") -> QueueSpec:
    """The dead-letter queue of ``queue``: durable, and of the same queue type."""
    arguments = _quorum_arguments() if queue_type == "quorum" else {}
    return QueueSpec(f"{queue}{DEAD_LETTER_SUFFIX}", arguments=arguments)


#: Milliseconds after which the broker deletes a queue of marks that nobody has used: a day.
_MARKS_EXPIRE_MS = 86_400_000


def crash_mark_queue(service: str, message: UUID) -> QueueSpec:
    """The queue that counts how often a process of ``service`` has ended while a handler ran for one message.

    :param message: identifies the message. Its hyphens keep the name from being the queue of an event type.
    """
    # Classic whatever the virtual host's default type is: it lives for the time of one handler.
    return QueueSpec(
        f"{service}.started.{message}", arguments={"x-queue-type": "classic", "x-expires": _MARKS_EXPIRE_MS}
    )
