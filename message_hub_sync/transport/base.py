"""The interface between the client and a transport.

Two transports implement it: RabbitMQ and the embedded hub. The code above it works with either, and the contract
suite runs over both. Deadlines are absolute readings of ``time.monotonic()``. A transport raises only errors of this
package.
"""

from __future__ import annotations

import _thread
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from queue import Empty, SimpleQueue
from typing import Protocol

from message_hub_sync.envelope.values import Properties
from message_hub_sync.runtime.real_time import time
from message_hub_sync.transport.topology import ExchangeSpec, QueueSpec, Topology

__all__ = [
    "LARGEST_BODY",
    "ConnectionState",
    "ConnectionStatus",
    "Consumer",
    "Delivery",
    "DeliverySink",
    "Outgoing",
    "PublishResult",
    "QueueStats",
    "Receipt",
    "Transport",
    "take_untaken",
]


#: RabbitMQ takes no larger body, whatever its ``max_message_size``.
LARGEST_BODY = 512 * 1024 * 1024


class ConnectionState(Enum):
    """The state of one connection.

    One method of its transport changes it. The log shows each change except those to CLOSING and CLOSED.
    """

    CLOSED = "closed"
    CONNECTING = "connecting"
    OPEN = "open"
    BLOCKED = "blocked"
    RECOVERING = "recovering"
    CLOSING = "closing"


@dataclass(frozen=True)
class ConnectionStatus:
    """The status of one connection, for health checks."""

    role: str
    """``publish`` or ``consume``."""
    state: ConnectionState
    address: str
    """The broker's address, without credentials."""
    last_error: str | None = None
    """Why the connection was lost, or why the latest attempt failed, whichever came last. A reconnect keeps it."""
    last_error_at: float | None = None
    """When that was: wall clock, seconds since the epoch."""
    silent: bool = False
    """Whether it is open, and a heartbeat of the broker is overdue: the broker may be frozen or cut off."""
    login_refused: bool = False
    """Whether it is not open because the broker refuses the login, or the virtual host to this user."""


@dataclass(frozen=True)
class QueueStats:
    """``depth`` is the number of ready messages in a queue, ``consumers`` the number of its consumers."""

    depth: int
    consumers: int


@dataclass(slots=True)
class Outgoing:
    """One message to publish, with all that ``basic.publish`` needs. Its ``repr`` shows neither body nor headers."""

    exchange: str
    routing_key: str
    body: bytes = field(repr=False)
    properties: Properties = field(repr=False)
    mandatory: bool = False


class PublishResult(Enum):
    """The result of one attempt to publish."""

    CONFIRMED = "confirmed"
    """The broker confirmed it (``basic.ack``)."""
    NACKED = "nacked"
    """The broker rejected it (``basic.nack``): a queue is full, or its home node is down."""
    BLOCKED = "blocked"
    """The broker accepts no messages (memory or disk alarm). It was not written."""
    RETURNED = "returned"
    """It is mandatory, and no queue matched its routing key (``basic.return``)."""
    CHANNEL_ERROR_SHARED = "channel error, shared"
    """The broker closed the channel while several publishes were in flight. This one or another caused it."""
    CHANNEL_ERROR = "channel error"
    """This publish made the broker close the channel. The broker did not accept it."""
    INVALID = "invalid"
    """AMQP cannot carry one of its values. It was not written, and another attempt would fail too."""
    NOT_WRITTEN = "not written"
    """It was not written. Another attempt cannot make a duplicate."""
    LOST = "lost"
    """It was written, and the connection ended before the confirm: the broker may have accepted it."""


class Receipt:
    """The result of one attempt to publish. The transport resolves it once; the publisher waits for it."""

    __slots__ = ("_resolved", "abandoned", "code", "read_until_resolved", "reason", "result")

    def __init__(self) -> None:
        self.result: PublishResult | None = None  # written last, before _resolved is released
        self.reason = ""  # written before result
        self.code = 0  # written before result
        #: The caller stopped waiting. If a confirm still arrives, a connection that was silent answers again.
        self.abandoned = False
        #: Called by the first waiter instead of sleeping: reads the socket until the result or the deadline.
        self.read_until_resolved: Callable[[Receipt, float], None] | None = None  # the first waiter clears it
        # A raw lock, held until the result is there: a threading.Event costs ten times as much.
        self._resolved: _thread.LockType | _AnnouncingLock = _thread.allocate_lock()
        self._resolved.acquire()

    def resolve(self, result: PublishResult, reason: str = "", code: int = 0) -> None:
        """Record the result and wake the waiter. A later call changes nothing.

        Two threads may call this at the same time: the reply to a request may come together with its confirm.

        :param reason: the broker's text, or why nothing was written; for the caller's error.
        :param code: the broker's reply code; 0 if it sent none.
        """
        if self.result is None:
            self.reason = reason
            self.code = code
            self.result = result
            try:  # noqa: SIM105  # contextlib.suppress would cost more, at every publish
                self._resolved.release()
            except RuntimeError:
                pass  # another thread has resolved it between the check and here

    def on_resolved(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` when the result is there. If it is there already, ``listener`` may not be called.

        :param listener: must return at once and not raise: it runs on the thread that reads the broker's answer, which
            may hold a lock of the transport. It may be called twice.
        """
        # Not a field that resolve() checks: that would cost every publish, and only few need it.
        self._resolved = _AnnouncingLock(self._resolved, listener)

    def wait(self, deadline: float) -> PublishResult | None:
        """Wait for the result.

        :param deadline: monotonic seconds.
        :returns: the result, or ``None`` if the deadline passes first.
        """
        read = self.read_until_resolved  # taken before it is tested: another waiter may clear it meanwhile
        if read is not None and self.result is None:
            self.read_until_resolved = None
            read(self, deadline)
        if self.result is not None:
            return self.result
        if self._resolved.acquire(timeout=max(0.0, deadline - time.monotonic())):
            try:  # noqa: SIM105
                self._resolved.release()  # for another waiter
            except RuntimeError:
                pass  # a second resolve() has released it
        return self.result


class _AnnouncingLock:
    """The lock of a receipt that also calls a listener when it is released."""

    def __init__(self, lock: _thread.LockType | _AnnouncingLock, listener: Callable[[], None]) -> None:
        self._lock = lock
        self._listener = listener

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        return self._lock.acquire(blocking, timeout)

    def release(self) -> None:
        self._lock.release()
        self._listener()


class Delivery:
    """One delivered message. Acknowledge or requeue it through the consumer that received it.

    A body of more than ``max_message_bytes`` is not kept: ``body`` is empty, and the header ``x-body-bytes`` tells its
    size.

    ``channel_generation`` numbers the channels of that consumer, from 1. If a message is redelivered on the second or
    a later channel, this process may have received it before.
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
        #: For the transport only: the channel it came on. An ack of a delivery from a closed channel is ignored.
        self.origin = origin


class DeliverySink(Protocol):
    """Takes the deliveries of one consumer, in order. A :class:`~queue.SimpleQueue` is one.

    The transport calls it with its locks held, so no method may wait. ``None`` is no delivery.
    """

    def put(self, delivery: Delivery | None) -> None:
        """Append a delivery."""

    def get_nowait(self) -> Delivery | None:
        """The next one that no worker has taken, taken out.

        :raises queue.Empty: there is none.
        """

    def empty(self) -> bool:
        """Whether all were taken."""


def take_untaken(sink: DeliverySink) -> list[Delivery]:
    """Take the deliveries that no worker has taken out of a sink. The wake-ups stay in it."""
    taken = []
    try:
        while True:
            taken.append(sink.get_nowait())
    except Empty:
        untaken = [delivery for delivery in taken if delivery is not None]
        for _ in range(len(taken) - len(untaken)):
            sink.put(None)
        return untaken


class Consumer(Protocol):
    """A consumer of one queue. All methods may be called from any thread; none runs user code.

    A delivery is stale once its channel is closed: the broker requeues its message and delivers it again.
    """

    @property
    def deliveries(self) -> SimpleQueue[Delivery | None]:
        """The deliveries, in order, if no other sink was given. ``None`` only wakes who takes them."""

    @property
    def queue(self) -> str:
        """The queue's current name. If the queue has a random suffix, the name changes at each connection."""

    @property
    def active(self) -> bool:
        """Whether the broker delivers to this consumer now."""

    @property
    def error(self) -> str | None:
        """Why the queue is not consumed now, if that is known."""

    @property
    def other_limit(self) -> bool:
        """Whether the queue was found to be a quorum queue with another delivery limit than declared."""

    def ack(self, delivery: Delivery) -> None:
        """Acknowledge a delivery. Sent together with others, within 50 ms. A stale delivery is ignored."""

    def ack_all(self, deliveries: Sequence[Delivery]) -> None:
        """Acknowledge deliveries at once. A stale delivery is ignored."""

    def requeue(self, delivery: Delivery) -> None:
        """Reject a delivery with ``requeue``: the broker delivers it again. A stale delivery is ignored."""

    def holds(self, delivery: Delivery) -> bool:
        """Whether the delivery can still be acknowledged. A stale one cannot."""

    def waited(self, delivery: Delivery) -> float | None:
        """Seconds since the message came into this queue, by the clock of the hub; ``None`` if it is not known."""

    def flush(self) -> None:
        """Send the pending acks now."""

    def cancel(self, deadline: float) -> None:
        """Stop receiving: no delivery is added afterwards. The unacked ones are requeued by :meth:`close`.

        :param deadline: how long to wait, in monotonic seconds. Nothing waits for the broker.
        """

    def give_back(self) -> None:
        """Requeue the deliveries that nobody took from the sink. After :meth:`cancel`; does not wait."""

    def close(self, deadline: float) -> None:
        """Send the pending acks, then requeue every unacked delivery, in order. Idempotent.

        :param deadline: how long to wait for the broker, in monotonic seconds.
        """


class Transport(Protocol):
    """Publishes and consumes for one client. Every method may be called from any thread.

    Every ``deadline`` is in monotonic seconds; a method waits for the connection and for the broker until then.
    Every method that has a deadline may raise, except :meth:`close`:

    * :class:`MessageHubConnectionError`: no connection, or no answer of the broker, before the deadline; or the
      transport is closed.
    * :class:`MessageHubAuthorizationError`: the broker does not accept the credentials, or the user lacks a
      permission.
    * :class:`MessageHubConfigurationError`: an exchange or a queue cannot be declared or used as it is asked for.
    """

    def connect(self, deadline: float) -> None:
        """Open the publish connection. Returns at once if it is open."""

    def publish(
        self, outgoing: Outgoing, deadline: float, *, own_channel: bool = False, together: bool = False
    ) -> Receipt:
        """Write one message. Waits for the connection, not for the confirm.

        :param own_channel: publish on a channel without any other publish in flight, so that a channel error has one
            possible cause.
        :param together: for a caller that does not wait for the confirm: the message may be written a few milliseconds
            later, together with others.
        :returns: a receipt, which is resolved when the broker answers or the connection ends.
        :raises MessageValidationError: AMQP cannot carry a value of the message.
        :raises MessageHubConnectionError: nothing was written before the deadline.
        """

    def publish_many(self, batch: Sequence[Outgoing], deadline: float) -> list[Receipt]:
        """Write messages in order, without waiting for their confirms.

        :returns: one receipt for each message, in the same order. A message that could not be written before the
            deadline has the result ``NOT_WRITTEN``; one with a value that AMQP cannot carry has ``INVALID``. The
            others are published.
        """

    def declare(self, topology: Topology, deadline: float) -> None:
        """Declare a queue, its exchange and its bindings.

        A queue or exchange that exists with other arguments is used as it is, with one warning in the log.
        """

    def declare_exchange(self, exchange: ExchangeSpec, deadline: float) -> None:
        """Declare one exchange. One that exists with other arguments is used as it is."""

    def declare_queue(self, queue: QueueSpec, deadline: float) -> None:
        """Declare one queue. One that exists with other arguments is used as it is."""

    def consume(self, topology: Topology, *, prefetch: int, deadline: float) -> Consumer:
        """Declare a topology and consume its queue. After a reconnect the transport does both again.

        :param prefetch: how many deliveries may be unacked at once.
        :returns: the consumer, which lasts until its :meth:`Consumer.close`.
        """

    def consume_many(
        self, wanted: Sequence[tuple[Topology, int]], deadline: float, sinks: Sequence[DeliverySink] = ()
    ) -> Sequence[Consumer]:
        """The same for several queues at once, each with its prefetch. If one of them fails, none is consumed.

        The number of round trips to the broker does not depend on the number of queues.

        :param sinks: where the deliveries of each queue go; by default to :attr:`Consumer.deliveries`.
        """

    def queue_stats(self, names: Sequence[str], deadline: float) -> Mapping[str, QueueStats | None]:
        """The number of ready messages and of consumers of each queue; ``None`` for a queue that does not exist."""

    def delivery_limit(self, queue: str, deadline: float) -> int | None:
        """How often an unacked message of a queue may return before the broker drops it; ``None``: without limit.

        0: the queue may have a limit, and the broker does not tell. A limit that a policy sets is not known.
        """

    def delete(self, topology: Topology, queue: str, deadline: float) -> None:
        """Delete a queue with its bindings and messages. A queue that does not exist is no error."""

    def delete_many(self, queues: Sequence[str], deadline: float) -> None:
        """Delete several queues at once. If that fails, some may be deleted."""

    def status(self) -> Sequence[ConnectionStatus]:
        """The status of each connection that was used so far."""

    def on_connected(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` each time the publish connection opens, and when a silent broker confirms again.

        :param listener: must return soon and not raise. It may run on an I/O thread.
        """

    def interrupt(self) -> None:
        """Drop the connections as a network failure does. They reconnect as after any loss. For fault injection."""

    def close(self, deadline: float) -> None:
        """Close the connections, in an orderly way until the deadline. Waiting callers fail. Idempotent."""

    def after_fork_in_child(self) -> None:
        """In a forked child: close the parent's sockets without sending a byte. The transport is unusable then."""
