"""The transport of the embedded hub, and its consumer: the connection of one client to a hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import repeat
from queue import SimpleQueue

from message_hub_sync.config import ClientConfig, MemoryAddress
from message_hub_sync.envelope.header_names import BODY_BYTES
from message_hub_sync.errors import (
    MessageHubConfigurationError,
    MessageHubConnectionError,
    MessageHubError,
    MessageValidationError,
)
from message_hub_sync.runtime.locks import Lock, locked
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.real_time import time
from message_hub_sync.transport.base import (
    ConnectionState,
    ConnectionStatus,
    Delivery,
    DeliverySink,
    Outgoing,
    PublishResult,
    QueueStats,
    Receipt,
    take_untaken,
)
from message_hub_sync.transport.memory.broker import Adopted, Hub
from message_hub_sync.transport.memory.lock_order import CONSUMER, TRANSPORT
from message_hub_sync.transport.memory.queues import Subscriber
from message_hub_sync.transport.memory.registry import open_hub
from message_hub_sync.transport.memory.validation import checked_copy
from message_hub_sync.transport.topology import ExchangeSpec, QueueSpec, Topology, declared_name

__all__ = ["MemoryConsumer", "MemoryTransport"]

logger = SafeLogger("message_hub_sync.memory")

_INTERRUPTED = "the connection was interrupted"


class MemoryTransport:
    """Publishes and consumes for one client over a hub inside this process. Methods: see :class:`Transport`.

    Only :meth:`close` waits, for the hub's timer thread. No other method can miss its deadline.
    """

    def __init__(self, config: ClientConfig) -> None:
        if not isinstance(config.address, MemoryAddress):
            raise MessageHubConfigurationError(
                "rabbitmq_url must be memory://name for the embedded hub, not the URL of a broker"
            )
        self._address = config.address
        self.max_message_bytes = config.max_message_bytes
        self._reset()

    def _reset(self) -> None:
        self._lock = Lock(TRANSPORT)
        self._closed = False  # guarded by _lock
        self._client = object()  # identifies this client in the hub
        self._hub: Hub | None = None  # guarded by _lock
        # The hub, once the publish connection is open. Written under _lock, read without it: a publish during close()
        # counts as one before it.
        self._publishing: Hub | None = None
        self._states: dict[str, ConnectionState] = {}  # by role; guarded by _lock
        self._interrupted_at: dict[str, float] = {}  # by role, in seconds since the epoch; guarded by _lock
        self._consumers: list[MemoryConsumer] = []  # guarded by _lock
        self._listeners: list[Callable[[], None]] = []  # guarded by _lock
        self._adopted: set[str] = set()  # entities that were warned about; guarded by _lock

    # --- connections -----------------------------------------------------------------------------

    def connect(self, deadline: float) -> None:
        self._open("publish")

    def _open(self, role: str) -> Hub:
        hub, opened, listeners = self._mark_open(role)
        if opened:
            logger.debug("%s: %s connection: closed -> open: first use", self._address, role)
        for listener in listeners:
            listener()
        return hub

    @locked
    def _mark_open(self, role: str) -> tuple[Hub, bool, list[Callable[[], None]]]:
        """The hub, whether this opened the connection, and the listeners to call then."""
        if self._closed:
            raise MessageHubConnectionError(f"the client of {self._address} is closed: create a new MessageHubClient")
        hub = self._hub
        if hub is None:
            hub = self._hub = open_hub(self._address.name)
            hub.attach(self._client)
        opened = self._states.get(role) is not ConnectionState.OPEN
        self._states[role] = ConnectionState.OPEN
        if role == "publish":
            self._publishing = hub
        return hub, opened, list(self._listeners) if opened and role == "publish" else []

    @locked
    def status(self) -> Sequence[ConnectionStatus]:
        return [
            ConnectionStatus(
                role,
                state,
                str(self._address),
                last_error=_INTERRUPTED if role in self._interrupted_at else None,
                last_error_at=self._interrupted_at.get(role),
            )
            for role, state in self._states.items()
        ]

    @locked
    def on_connected(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def close(self, deadline: float) -> None:
        hub, consumers = self._mark_closed()
        if hub is None:
            return
        # Cancel all consumers before closing the first one. Otherwise the hub delivers its requeued messages to a
        # consumer that is closed next. The hub, its durable queues and their messages stay.
        for consumer in consumers:
            consumer.cancel(deadline)
        for consumer in consumers:
            consumer.close(deadline)
        hub.detach(self._client, deadline)
        logger.debug("%s: open -> closed: closed by the client", self._address)

    @locked
    def _mark_closed(self) -> tuple[Hub | None, list[MemoryConsumer]]:
        self._closed = True
        hub, self._hub, self._publishing = self._hub, None, None
        consumers, self._consumers = self._consumers, []
        self._states = dict.fromkeys(self._states, ConnectionState.CLOSED)
        return hub, consumers

    def after_fork_in_child(self) -> None:
        # Drop the parent's hub and its locks: a lock may be held in the child for ever.
        for consumer in self._consumers:
            consumer._after_fork_in_child()
        self._reset()
        self._closed = True

    def interrupt(self) -> None:
        consumers = self._note_interrupted()
        listeners = self._lock.run(self._listeners.copy) if self._publishing is not None else []
        logger.debug("%s: open -> recovering -> open: interrupted", self._address)
        # The hub requeues the unacked messages and delivers them again. End all consumers before restarting the first
        # one. Otherwise its requeued messages are delivered to a consumer that is ended next.
        for consumer in consumers:
            consumer._lose()
        for consumer in consumers:
            consumer._consume_again()
        for listener in listeners:
            listener()

    @locked
    def _note_interrupted(self) -> list[MemoryConsumer]:
        """Note it as the last error of each open connection. Returns the consumers."""
        if not self._closed:
            self._interrupted_at = dict.fromkeys(self._states, time.time())
        return list(self._consumers)

    # --- publishing ------------------------------------------------------------------------------

    def publish(
        self, outgoing: Outgoing, deadline: float, *, own_channel: bool = False, together: bool = False
    ) -> Receipt:
        message = checked_copy(outgoing)
        hub = self._publishing or self._open("publish")
        receipt = Receipt()
        receipt.resolve(*hub.publish(message, outgoing.mandatory))
        return receipt

    def publish_many(self, batch: Sequence[Outgoing], deadline: float) -> list[Receipt]:
        hub = self._publishing or self._open("publish")
        receipts = []
        for outgoing in batch:
            receipt = Receipt()
            try:
                message = checked_copy(outgoing)
            except MessageValidationError as error:
                receipt.resolve(PublishResult.INVALID, str(error))
            else:
                receipt.resolve(*hub.publish(message, outgoing.mandatory))
            receipts.append(receipt)
        return receipts

    # --- queues ----------------------------------------------------------------------------------

    def declare(self, topology: Topology, deadline: float) -> None:
        self._warn(self._open_any().declare(topology, declared_name(topology.queue), self._client))

    def declare_exchange(self, exchange: ExchangeSpec, deadline: float) -> None:
        self._warn(self._open_any().declare_exchange(exchange))

    def declare_queue(self, queue: QueueSpec, deadline: float) -> None:
        self.declare(Topology(queue), deadline)

    def queue_stats(self, names: Sequence[str], deadline: float) -> Mapping[str, QueueStats | None]:
        hub = self._open_any()
        return {name: hub.stats(name, self._client) for name in names}

    def delivery_limit(self, queue: str, deadline: float) -> int | None:
        return self._open_any().delivery_limit(queue)

    def delete(self, topology: Topology, queue: str, deadline: float) -> None:
        self._open_any().delete(queue, self._client)

    def _open_any(self) -> Hub:
        """The hub by the consume connection if it is open, as over RabbitMQ; else by the publish connection."""
        return self._open("consume" if "consume" in self._states else "publish")

    def delete_many(self, queues: Sequence[str], deadline: float) -> None:
        hub = self._open("publish")
        for queue in queues:
            hub.delete(queue, self._client)

    def _warn(self, adopted: Sequence[Adopted]) -> None:
        """Warn once of each entity that exists with other arguments."""
        for entity, text in adopted:
            if self._note_adopted(entity):
                logger.warning("the %s exists with other arguments and is used as it is: %s", entity, text)

    @locked
    def _note_adopted(self, entity: str) -> bool:
        """Whether this entity was not noted before."""
        known = entity in self._adopted
        self._adopted.add(entity)
        return not known

    # --- consuming -------------------------------------------------------------------------------

    def consume(self, topology: Topology, *, prefetch: int, deadline: float) -> MemoryConsumer:
        return self._consume(topology, prefetch, deadline, None)

    def _consume(self, topology: Topology, prefetch: int, deadline: float, sink: DeliverySink | None) -> MemoryConsumer:
        consumer = MemoryConsumer(self, topology, prefetch, sink)
        consumer._start()
        if not self._add(consumer):
            consumer.close(deadline)
            raise MessageHubConnectionError(f"the client of {self._address} is closed: create a new MessageHubClient")
        return consumer

    @locked
    def _add(self, consumer: MemoryConsumer) -> bool:
        if not self._closed:
            self._consumers.append(consumer)
        return not self._closed

    def consume_many(
        self, wanted: Sequence[tuple[Topology, int]], deadline: float, sinks: Sequence[DeliverySink] = ()
    ) -> list[MemoryConsumer]:
        with ExitStack() as undo:
            consumers = []
            for (topology, prefetch), sink in zip(wanted, sinks or repeat(None), strict=False):
                consumers.append(self._consume(topology, prefetch, deadline, sink))
                undo.callback(consumers[-1].close, deadline)
            undo.pop_all()
        return consumers

    def _subscribe(
        self,
        topology: Topology,
        prefetch: int,
        put: Callable[[Delivery], None],
        channel_generation: int,
        lost: Callable[[], None],
    ) -> tuple[Hub, Subscriber]:
        hub = self._open("consume")
        subscriber, adopted = hub.subscribe(
            topology,
            declared_name(topology.queue),
            self._client,
            put,
            prefetch=prefetch,
            channel_generation=channel_generation,
            lost=lost,
        )
        self._warn(adopted)
        return hub, subscriber

    @locked
    def _forget(self, consumer: MemoryConsumer) -> None:
        if consumer in self._consumers:
            self._consumers.remove(consumer)


class MemoryConsumer:
    """A consumer of one queue. Methods: see :class:`Consumer`.

    If its queue is deleted, it is declared and consumed again.
    """

    def __init__(
        self, transport: MemoryTransport, topology: Topology, prefetch: int, sink: DeliverySink | None
    ) -> None:
        self._transport = transport
        self._topology = topology
        self._prefetch = prefetch
        self._deliveries: SimpleQueue[Delivery | None] = SimpleQueue()
        self._sink: DeliverySink = self._deliveries if sink is None else sink
        self._lock = Lock(CONSUMER)
        # The hub and its record of this consumer; None before the start and after the end.
        self._subscription: tuple[Hub, Subscriber] | None = None  # guarded by _lock, also read without it
        self._delivering = True  # not cancelled; guarded by _lock, also read without it
        self._channel_generation = 0  # the number of starts; guarded by _lock
        self._queue = topology.queue.name  # guarded by _lock, also read without it

    @property
    def deliveries(self) -> SimpleQueue[Delivery | None]:
        return self._deliveries

    @property
    def queue(self) -> str:
        return self._queue

    @property
    def active(self) -> bool:
        subscription = self._subscription
        return self._delivering and subscription is not None and not subscription[1].queue.gone

    @property
    def error(self) -> str | None:
        return None

    @property
    def other_limit(self) -> bool:
        subscription = self._subscription
        if subscription is None or not subscription[1].queue.arguments.quorum:
            return False
        limit = subscription[1].queue.arguments.delivery_limit
        return limit is not None and limit != self._topology.queue.arguments.get("x-delivery-limit")

    def ack(self, delivery: Delivery) -> None:
        subscription = self._subscription
        if subscription is not None and delivery.origin is subscription[1]:
            subscription[0].ack(subscription[1], delivery.delivery_tag)

    def ack_all(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self.ack(delivery)

    def requeue(self, delivery: Delivery) -> None:
        subscription = self._subscription
        if subscription is not None and delivery.origin is subscription[1]:
            subscription[0].requeue(subscription[1], delivery.delivery_tag)

    def holds(self, delivery: Delivery) -> bool:
        subscription = self._subscription
        return subscription is not None and delivery.origin is subscription[1]

    def waited(self, delivery: Delivery) -> float | None:
        subscription = self._subscription
        if subscription is None or delivery.origin is not subscription[1]:
            return None
        return subscription[0].waited(subscription[1], delivery.delivery_tag)

    def flush(self) -> None:
        """Do nothing: no ack is pending here, as :meth:`ack` reaches the hub at once."""

    @locked
    def cancel(self, deadline: float) -> None:
        self._delivering = False
        if self._subscription is not None:
            hub, subscriber = self._subscription
            hub.cancel(subscriber)

    def give_back(self) -> None:
        for delivery in take_untaken(self._sink):
            self.requeue(delivery)

    def close(self, deadline: float) -> None:
        self._delivering = False
        self._end()
        self._transport._forget(self)

    @locked
    def _end(self) -> None:
        """Requeue the unacked messages. Their deliveries are stale from now on."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            hub, subscriber = subscription
            hub.end(subscriber)

    @locked
    def _start(self) -> bool:
        """Declare the queue and consume it; false if the consumer was cancelled."""
        if not self._delivering:
            return False
        self._channel_generation += 1
        self._subscription = self._transport._subscribe(
            self._topology, self._prefetch, self._put, self._channel_generation, self._queue_deleted
        )
        self._queue = self._subscription[1].queue.name
        return True

    def _put(self, delivery: Delivery) -> None:
        if len(delivery.body) > self._transport.max_message_bytes:
            delivery.properties.headers[BODY_BYTES] = len(delivery.body)
            delivery.body = b""
        self._sink.put(delivery)

    def _queue_deleted(self) -> None:
        """Declare and consume the queue again, on the thread that deleted it."""
        self._lose()
        if self._consume_again():
            logger.warning("the queue %r was deleted; it is declared and consumed again", self._topology.queue.name)

    def _lose(self) -> None:
        """The connection or the queue ends: requeue the unacked messages. Their deliveries are stale from now on."""
        self._end()
        # Drop the queued deliveries: they are redelivered, and the handler would run twice, or gone with their queue.
        take_untaken(self._sink)

    def _consume_again(self) -> bool:
        """Declare and consume the queue after :meth:`_lose`; false if it was cancelled, or cannot be consumed."""
        try:
            return self._start()
        except MessageHubError as error:
            logger.error(
                "the queue %r cannot be consumed again: %s; no more deliveries until a reconnect", self._queue, error
            )
            return False

    def _after_fork_in_child(self) -> None:
        self._lock = Lock(CONSUMER)
        self._subscription = None
        self._delivering = False
