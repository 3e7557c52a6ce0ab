"""The values that describe a consumer:

its queue, the options of consuming, and what all consumers of a client share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from message_hub_sync.config import ClientConfig
from message_hub_sync.consuming.decoded_delivery import DecodedDelivery, Kind
from message_hub_sync.consuming.deduplication import DeduplicationStore
from message_hub_sync.consuming.retry_policy import RetryPolicy
from message_hub_sync.consuming.suspects import Suspects
from message_hub_sync.envelope.names import event_name, validate_event_pattern, validate_queue_parts
from message_hub_sync.errors import MessageValidationError
from message_hub_sync.metrics import ServiceMetrics
from message_hub_sync.middleware import Middleware
from message_hub_sync.runtime.text import shown
from message_hub_sync.transport.base import Delivery, Transport
from message_hub_sync.transport.topology import Topology, event_subscription, inbox_subscription

__all__ = [
    "ConsumeOptions",
    "ConsumedQueue",
    "ConsumerContext",
    "check_durable",
    "consume_options",
    "event_patterns",
    "event_queues",
    "inbox_queues",
]

#: AMQP carries the prefetch in 16 bits.
MAX_PREFETCH = 65_535
#: More threads than one queue can use.
MAX_WORKERS = 1_000


@dataclass(frozen=True)
class ConsumedQueue:
    """A queue to consume, and what arrives there."""

    topology: Topology
    kind: Kind
    event_type: str | None = None

    @property
    def name(self) -> str:
        """The queue's name, without the random part that one of its own connection may have."""
        return self.topology.queue.name

    @property
    def key(self) -> tuple[str, bool]:
        """Identifies the queue: a durable and a transient queue may have the same name."""
        return self.topology.queue.name, self.topology.queue.durable


@dataclass(frozen=True)
class ConsumeOptions:
    """How a queue is consumed. All subscriptions to one queue share one set of options.

    ``retry``: ``None`` means the policy of the client.
    """

    prefetch: int = 64
    workers: int = 1
    retry: RetryPolicy | None = None
    deduplicate: DeduplicationStore | None = None


@dataclass(frozen=True)
class ConsumerContext:
    """What the consumers of all queues of one client share."""

    transport: Transport
    config: ClientConfig
    metrics: ServiceMetrics
    retry: RetryPolicy
    #: Hands a message of the inbox to the caller that waits for it as a reply; returns whether there is one.
    claim_reply: Callable[[Delivery], bool]
    #: Answers a request with what its handler returned.
    send_reply: Callable[[DecodedDelivery, Any], None]
    #: Answers a request whose handler raised.
    send_error: Callable[[DecodedDelivery, BaseException], None]
    #: Handles redelivered messages.
    suspects: Suspects
    middleware: tuple[Middleware, ...] = ()


def event_patterns(event_types: Any) -> list[str]:
    """The names and patterns in ``event_types``, each one checked.

    :raises MessageValidationError: there is none, or one that cannot be subscribed to.
    """
    if isinstance(event_types, str):
        event_types = [event_types]
    try:
        patterns = [validate_event_pattern(event_name(item)) for item in event_types]
    except TypeError:
        raise MessageValidationError(f"event_types must be a list of event types, not {shown(event_types)}") from None
    if not patterns:
        raise MessageValidationError("event_types must name at least one event type, not none")
    return patterns


def event_queues(config: ClientConfig, event_types: Any, *, durable: bool) -> tuple[ConsumedQueue, ...]:
    """The queues of event types for one service; a type that is named twice has one queue.

    :raises MessageValidationError: an event type cannot be subscribed to, or ``durable`` is no bool.
    """
    check_durable(durable)
    found = {}
    for pattern in event_patterns(event_types):
        validate_queue_parts(config.service_name, pattern)
        topology = event_subscription(config.service_name, pattern, durable=durable, queue_type=config.queue_type)
        found[pattern] = ConsumedQueue(topology, "event", pattern)
    return tuple(found.values())


def check_durable(durable: Any) -> None:
    """Check that ``durable`` is a bool; else raise :class:`MessageValidationError`."""
    if not isinstance(durable, bool):
        raise MessageValidationError(f"durable must be True or False, not {shown(durable)}")


def inbox_queues(config: ClientConfig) -> tuple[ConsumedQueue, ...]:
    """The queue of a service's own messages."""
    topology = inbox_subscription(
        config.service_name, priorities=config.message_priorities, queue_type=config.queue_type
    )
    return (ConsumedQueue(topology, "message"),)


def consume_options(prefetch: Any, workers: Any, retry: Any, deduplicate: Any) -> ConsumeOptions:
    """How a queue is consumed, each value checked (:class:`MessageValidationError`)."""
    for name, value, most in (("prefetch", prefetch, MAX_PREFETCH), ("workers", workers, MAX_WORKERS)):
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise MessageValidationError(f"{name} must be a whole number from 1 to {most}, not {shown(value)}")
    if retry is not None and not isinstance(retry, RetryPolicy):
        raise MessageValidationError(f"retry must be a RetryPolicy, not {shown(retry)}")
    if deduplicate is not None and (isinstance(deduplicate, type) or not isinstance(deduplicate, DeduplicationStore)):
        raise MessageValidationError(
            "deduplicate must be a store with 'key in store' and add(key), for example MemoryDeduplication(), "
            f"not {shown(deduplicate)}"
        )
    return ConsumeOptions(prefetch, workers, retry, deduplicate)
