"""The seam: what the client asks of whatever carries its messages.

Above it nobody knows whether RabbitMQ or the embedded hub carries; the contract suite holds both to it.
Deadlines are absolute readings of ``time.monotonic()``. Errors that cross the seam are the package's own.
"""

from __future__ import annotations

import _thread
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from queue import SimpleQueue
from typing import Protocol

from message_hub_sync.envelope.values import Properties
from message_hub_sync.transport.topology import ExchangeSpec, QueueSpec, Topology

__all__ = [
    "ConnectionState",
    "ConnectionStatus",
    "Consumer",
    "Delivery",
    "Outgoing",
    "PublishResult",
    "QueueStats",
    "Receipt",
    "Transport",
]


class ConnectionState(Enum):
    """The life of one connection; changed in one place of its transport, which logs from, to and why."""

    CLOSED = "closed"
    CONNECTING = "connecting"
    OPEN = "open"
    BLOCKED = "blocked"
    RECOVERING = "recovering"
    CLOSING = "closing"


@dataclass(frozen=True)
class ConnectionStatus:
    """One connection, for health: its role, where it leads, how it is, and its latest error.

    ``last_error``: what ended it, or why it could not be made, whichever came last; it stays when the connection is
    back. ``last_error_at``: wall clock, seconds since the epoch.
    """

    role: str
    state: ConnectionState
    address: str
    last_error: str | None = None
    last_error_at: float | None = None


@dataclass(frozen=True)
class QueueStats:
    """Messages ready in a queue, and how many consumers it has."""

    depth: int
    consumers: int


@dataclass(slots=True)
class Outgoing:
    """One message on its way out, complete."""

    exchange: str
    routing_key: str
    body: bytes
    properties: Properties
    mandatory: bool = False


class PublishResult(Enum):
    """What became of one attempt to publish."""

    CONFIRMED = "confirmed"
    """The broker has it."""
    NACKED = "nacked"
    """The broker refused it (an overflowing queue, a dead home node)."""
    BLOCKED = "blocked"
    """The broker accepts no messages (an alarm), and this one was not written."""
    RETURNED = "returned"
    """Mandatory, and no queue took it."""
    CHANNEL_ERROR_SHARED = "channel error, shared"
    """The broker closed the channel while this was in flight with others: it, or another one, was poisonous."""
    CHANNEL_ERROR = "channel error"
    """The broker closed the channel over it, and certainly did not accept it."""
    INVALID = "invalid"
    """A value of it cannot be carried: it never left this process, and never will."""
    NOT_WRITTEN = "not written"
    """It never left this process."""
    LOST = "lost"
    """Written, and the connection ended before an answer."""


class Receipt:
    """What one attempt to publish comes to. Settled once by the transport, awaited by the publisher.

    Mutable: ``result``, ``reason``, ``code``, written before the lock is released and read after it was
    acquired, so the lock orders them. A raw lock costs a tenth of an Event. ``reader``: what a waiter may do
    instead of sleeping, until the result is there or the deadline has passed; the first waiter takes it.
    ``abandoned``: who waited has given up, so that an answer is news of a connection that was silent.
    """

    __slots__ = ("_resolved", "abandoned", "code", "read_until_resolved", "reason", "result")

    def __init__(self) -> None:
        self.result: PublishResult | None = None
        self.reason = ""
        self.code = 0
        self.abandoned = False
        self.read_until_resolved: Callable[[Receipt, float], None] | None = None
        self._resolved = _thread.allocate_lock()
        self._resolved.acquire()

    def resolve(self, result: PublishResult, reason: str = "", code: int = 0) -> None:
        """Record the result and wake the waiter. A second call changes nothing."""
        if self.result is None:
            self.reason = reason
            self.code = code
            self.result = result
            self._resolved.release()

    def wait(self, deadline: float) -> PublishResult | None:
        """The result, or ``None`` when the deadline (monotonic seconds) passes first."""
        if self.read_until_resolved is not None and self.result is None:
            read, self.read_until_resolved = self.read_until_resolved, None
            read(self, deadline)
        if self.result is not None:
            return self.result
        if self._resolved.acquire(timeout=max(0.0, deadline - time.monotonic())):
            self._resolved.release()
        return self.result


class Delivery:
    """One message handed to a consumer. Settle it through the consumer it came from.

    ``channel_generation`` counts the channels on which its consumer has received, from 1: what is redelivered on a
    later one was handed to this very process before.
    """

    __slots__ = (
        "body",
        "channel_generation",
        "delivery_tag",
        "exchange",
        "origin",
        "properties",
        "queue",
        "redelivered",
        "routing_key",
    )

    def __init__(
        self,
        body: bytes,
        properties: Properties,
        exchange: str,
        routing_key: str,
        queue: str,
        redelivered: bool,
        delivery_tag: int,
        channel_generation: int,
        origin: object,
    ) -> None:
        self.body = body
        self.properties = properties
        self.exchange = exchange
        self.routing_key = routing_key
        self.queue = queue
        self.redelivered = redelivered
        self.delivery_tag = delivery_tag
        self.channel_generation = channel_generation
        #: The transport's own: the channel this came on, so that a stale delivery settles nothing.
        self.origin = origin


class Consumer(Protocol):
    """One queue being consumed. All methods may be called from any thread; none runs user code."""

    @property
    def deliveries(self) -> SimpleQueue[Delivery | None]:
        """Where deliveries appear, in order. ``None`` is put there by whoever wants a worker to look up."""

    @property
    def queue(self) -> str:
        """The queue's present name (one with a random part changes at each connection)."""

    @property
    def active(self) -> bool:
        """Whether the broker is delivering from it now."""

    def ack(self, delivery: Delivery) -> None:
        """Acknowledge. Coalesced with others and sent within 50 ms; a stale delivery is ignored."""

    def requeue(self, delivery: Delivery) -> None:
        """Give it back to the queue, to be delivered again. A stale delivery is ignored."""

    def holds(self, delivery: Delivery) -> bool:
        """Whether it can still be settled. A stale one is, or will be, delivered again."""

    def flush(self) -> None:
        """Send the acknowledgements that wait."""

    def cancel(self, deadline: float) -> None:
        """Stop the intake: no delivery is added afterwards. Those not settled go back at :meth:`close`."""

    def close(self, deadline: float) -> None:
        """Flush, and give every unsettled delivery back to the queue, in order. Idempotent."""


class Transport(Protocol):
    """Carries messages for one client. Every method may be called from any thread.

    Raises :class:`MessageHubConnectionError` (no connection in time), :class:`MessageHubAuthorizationError`
    and :class:`MessageHubConfigurationError`, never a foreign error.
    """

    def connect(self, deadline: float) -> None:
        """Open the connection that publishes. Returns at once where it is open."""

    def publish(self, outgoing: Outgoing, deadline: float, *, own_channel: bool = False) -> Receipt:
        """Hand one message to the broker, waiting for a connection as long as the deadline allows.

        :param own_channel: on a channel where nothing else is in flight, to find out which message is poisonous.
        :returns: a receipt, settled when the broker answers or the connection ends.
        :raises MessageValidationError: a value of it cannot be carried.
        :raises MessageHubConnectionError: nothing was written before the deadline.
        """

    def publish_many(self, batch: Sequence[Outgoing], deadline: float) -> list[Receipt]:
        """Hand messages to the broker in order, without waiting for answers: a receipt each.

        Those that could not be written before the deadline have the result ``NOT_WRITTEN``, and those of which a
        value cannot be carried ``INVALID``, while the others go their way.
        """

    def declare(self, topology: Topology, deadline: float) -> None:
        """Make a queue, its exchange and its bindings exist, adopting what is there with other arguments."""

    def declare_exchange(self, exchange: ExchangeSpec, deadline: float) -> None:
        """Make one exchange exist, adopting what is there with other arguments."""

    def declare_queue(self, queue: QueueSpec, deadline: float) -> None:
        """Make one queue exist."""

    def consume(self, topology: Topology, *, prefetch: int, deadline: float) -> Consumer:
        """Declare and consume; the transport restores both for as long as the consumer is not closed."""

    def queue_stats(self, names: Sequence[str], deadline: float) -> Mapping[str, QueueStats | None]:
        """Depth and consumers of each queue, ``None`` for one that does not exist."""

    def delete(self, topology: Topology, queue: str, deadline: float) -> None:
        """Unbind and remove a queue, with what is in it. One that is not there is fine."""

    def status(self) -> Sequence[ConnectionStatus]:
        """Each connection that was needed so far."""

    def on_connected(self, listener: Callable[[], None]) -> None:
        """Have ``listener`` called each time the publish connection comes back, or answers again after a silence.

        It must be quick and not raise.
        """

    def interrupt(self) -> None:
        """Drop the connections as a failing network does; they come back as after any loss. For fault injection."""

    def close(self, deadline: float) -> None:
        """End the connections, gracefully as long as the deadline allows. Waiters are failed. Idempotent."""

    def after_fork_in_child(self) -> None:
        """In a forked child: drop the parent's sockets without a word on them. The transport is unusable then."""
