"""The client's side of the embedded hub: the seam's transport and consumer over it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from queue import Empty, SimpleQueue

from message_hub_sync.config import ClientConfig, MemoryAddress
from message_hub_sync.errors import (
    MessageHubConfigurationError,
    MessageHubConnectionError,
    MessageHubError,
    MessageValidationError,
)
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.transport.base import (
    ConnectionState,
    ConnectionStatus,
    Delivery,
    Outgoing,
    PublishResult,
    QueueStats,
    Receipt,
)
from message_hub_sync.transport.memory.broker import Adopted, Hub
from message_hub_sync.transport.memory.queues import Subscriber
from message_hub_sync.transport.memory.registry import open_hub
from message_hub_sync.transport.memory.validation import checked_copy
from message_hub_sync.transport.topology import ExchangeSpec, QueueSpec, Topology, declared_name

__all__ = ["MemoryConsumer", "MemoryTransport"]

logger = SafeLogger("message_hub_sync.memory")


class MemoryTransport:
    """Carries one client's messages over a hub inside this process. See :class:`Transport`.

    Deadlines are never reached: nothing here waits, save :meth:`close` for the hub's timer.

    Mutable, guarded by ``_lock``: ``_hub``, ``_states`` (by role), ``_consumers``, ``_listeners``, ``_adopted``,
    ``_client`` (what stands for this client in the hub). ``_publishing`` is the hub once the publish connection
    is open; it is read without the lock, and a publish that meets a close is one just before it.
    """

    def __init__(self, config: ClientConfig) -> None:
        if not isinstance(config.address, MemoryAddress):
            raise MessageHubConfigurationError("the embedded hub needs an address like memory://name")
        self._address = config.address
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._closed = False
        self._client = object()
        self._hub: Hub | None = None
        self._publishing: Hub | None = None
        self._states: dict[str, ConnectionState] = {}
        self._consumers: list[MemoryConsumer] = []
        self._listeners: list[Callable[[], None]] = []
        self._adopted: set[str] = set()

    # --- connections -----------------------------------------------------------------------------

    def connect(self, deadline: float) -> None:
        """See :class:`Transport`."""
        self._open("publish")

    def _open(self, role: str) -> Hub:
        with self._lock:
            if self._closed:
                raise MessageHubConnectionError(f"this client of {self._address} is closed: make a new one")
            hub = self._hub
            if hub is None:
                hub = self._hub = open_hub(self._address.name)
                hub.attach(self._client)
            came = self._states.get(role) is not ConnectionState.OPEN
            self._states[role] = ConnectionState.OPEN
            if role == "publish":
                self._publishing = hub
            listeners = list(self._listeners) if came and role == "publish" else []
        if came:
            logger.debug("%s %s: closed -> open: needed", self._address, role)
        for listener in listeners:
            listener()
        return hub

    def status(self) -> Sequence[ConnectionStatus]:
        """See :class:`Transport`."""
        with self._lock:
            return [ConnectionStatus(role, state, str(self._address)) for role, state in self._states.items()]

    def on_connected(self, listener: Callable[[], None]) -> None:
        """See :class:`Transport`."""
        with self._lock:
            self._listeners.append(listener)

    def close(self, deadline: float) -> None:
        """See :class:`Transport`. What is in the hub stays there."""
        with self._lock:
            self._closed = True
            hub, self._hub, self._publishing = self._hub, None, None
            consumers, self._consumers = self._consumers, []
            self._states = dict.fromkeys(self._states, ConnectionState.CLOSED)
        if hub is None:
            return
        # All are cancelled first: what one gives back must not go to another that is about to end.
        for consumer in consumers:
            consumer.cancel(deadline)
        for consumer in consumers:
            consumer.close(deadline)
        hub.detach(self._client, deadline)
        logger.debug("%s: open -> closed: closed by the client", self._address)

    def after_fork_in_child(self) -> None:
        """See :class:`Transport`. The parent's hub and its locks, which may be held for ever, are let go."""
        for consumer in self._consumers:
            consumer._after_fork_in_child()
        self._reset()
        self._closed = True

    def interrupt(self) -> None:
        """See :class:`Transport`. What was handed out and not settled goes back, and comes again."""
        with self._lock:
            consumers = list(self._consumers)
            listeners = list(self._listeners) if self._publishing is not None else []
        logger.debug("%s: open -> recovering -> open: interrupted", self._address)
        # All end before one begins anew: what one gives back is not for another that is about to end.
        for consumer in consumers:
            consumer._interrupt()
        for consumer in consumers:
            consumer._resume()
        for listener in listeners:
            listener()

    # --- publishing ------------------------------------------------------------------------------

    def publish(self, outgoing: Outgoing, deadline: float, *, own_channel: bool = False) -> Receipt:
        """See :class:`Transport`. The receipt is settled on return.

        :raises MessageValidationError: AMQP could not carry a value of it.
        """
        message = checked_copy(outgoing)
        hub = self._publishing or self._open("publish")
        receipt = Receipt()
        receipt.resolve(*hub.publish(message, outgoing.mandatory))
        return receipt

    def publish_many(self, batch: Sequence[Outgoing], deadline: float) -> list[Receipt]:
        """See :class:`Transport`."""
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
        """See :class:`Transport`."""
        self._warn(self._open("publish").declare(topology, declared_name(topology.queue), self._client))

    def declare_exchange(self, exchange: ExchangeSpec, deadline: float) -> None:
        """See :class:`Transport`."""
        self._warn(self._open("publish").declare_exchange(exchange))

    def declare_queue(self, queue: QueueSpec, deadline: float) -> None:
        """See :class:`Transport`."""
        self.declare(Topology(queue), deadline)

    def queue_stats(self, names: Sequence[str], deadline: float) -> Mapping[str, QueueStats | None]:
        """See :class:`Transport`."""
        hub = self._open("publish")
        return {name: hub.stats(name, self._client) for name in names}

    def delete(self, topology: Topology, queue: str, deadline: float) -> None:
        """See :class:`Transport`. Whoever consumes from the queue makes it anew."""
        self._open("publish").delete(queue, self._client)

    def _warn(self, adopted: Sequence[Adopted]) -> None:
        for entity, text in adopted:
            with self._lock:
                known = entity in self._adopted
                self._adopted.add(entity)
            if not known:
                logger.warning("the %s exists with other arguments and is used as it is: %s", entity, text)

    # --- consuming -------------------------------------------------------------------------------

    def consume(self, topology: Topology, *, prefetch: int, deadline: float) -> MemoryConsumer:
        """See :class:`Transport`."""
        consumer = MemoryConsumer(self, topology, prefetch)
        consumer._start()
        with self._lock:
            closed = self._closed
            if not closed:
                self._consumers.append(consumer)
        if closed:
            consumer.close(deadline)
            raise MessageHubConnectionError(f"this client of {self._address} is closed: make a new one")
        return consumer

    def _subscribe(
        self,
        topology: Topology,
        prefetch: int,
        deliveries: SimpleQueue[Delivery | None],
        channel_generation: int,
        lost: Callable[[], None],
    ) -> tuple[Hub, Subscriber]:
        hub = self._open("consume")
        subscriber, adopted = hub.subscribe(
            topology,
            declared_name(topology.queue),
            self._client,
            deliveries,
            prefetch=prefetch,
            channel_generation=channel_generation,
            lost=lost,
        )
        self._warn(adopted)
        return hub, subscriber

    def _forget(self, consumer: MemoryConsumer) -> None:
        with self._lock:
            if consumer in self._consumers:
                self._consumers.remove(consumer)


class MemoryConsumer:
    """One queue being consumed. See :class:`Consumer`. A queue deleted under it is declared and consumed again.

    Mutable, changed under ``_lock``: ``_subscription`` (the hub and its side of this consumer, ``None`` before the
    start and after the end), ``_delivering`` (nobody cancelled it), ``_channel_generation`` (how often it began),
    ``_queue``. ``_lock`` is taken before the hub's.
    """

    def __init__(self, transport: MemoryTransport, topology: Topology, prefetch: int) -> None:
        self._transport = transport
        self._topology = topology
        self._prefetch = prefetch
        self._deliveries: SimpleQueue[Delivery | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._subscription: tuple[Hub, Subscriber] | None = None
        self._delivering = True
        self._channel_generation = 0
        self._queue = topology.queue.name

    @property
    def deliveries(self) -> SimpleQueue[Delivery | None]:
        """See :class:`Consumer`."""
        return self._deliveries

    @property
    def queue(self) -> str:
        """See :class:`Consumer`."""
        return self._queue

    @property
    def active(self) -> bool:
        """See :class:`Consumer`."""
        subscription = self._subscription
        return self._delivering and subscription is not None and not subscription[1].queue.gone

    def ack(self, delivery: Delivery) -> None:
        """See :class:`Consumer`. The hub knows at once."""
        subscription = self._subscription
        if subscription is not None and delivery.origin is subscription[1]:
            subscription[0].ack(subscription[1], delivery.delivery_tag)

    def requeue(self, delivery: Delivery) -> None:
        """See :class:`Consumer`."""
        subscription = self._subscription
        if subscription is not None and delivery.origin is subscription[1]:
            subscription[0].requeue(subscription[1], delivery.delivery_tag)

    def holds(self, delivery: Delivery) -> bool:
        """See :class:`Consumer`."""
        subscription = self._subscription
        return subscription is not None and delivery.origin is subscription[1]

    def flush(self) -> None:
        """See :class:`Consumer`. Nothing waits here."""

    def cancel(self, deadline: float) -> None:
        """See :class:`Consumer`."""
        with self._lock:
            self._delivering = False
            if self._subscription is not None:
                hub, subscriber = self._subscription
                hub.cancel(subscriber)

    def close(self, deadline: float) -> None:
        """See :class:`Consumer`."""
        with self._lock:
            self._delivering = False
            subscription, self._subscription = self._subscription, None
            if subscription is not None:
                hub, subscriber = subscription
                hub.end(subscriber)
        self._transport._forget(self)

    def _start(self) -> bool:
        """Declare and consume, unless it was cancelled meanwhile."""
        with self._lock:
            if not self._delivering:
                return False
            self._channel_generation += 1
            self._subscription = self._transport._subscribe(
                self._topology, self._prefetch, self._deliveries, self._channel_generation, self._restart
            )
            self._queue = self._subscription[1].queue.name
            return True

    def _restart(self) -> None:
        """The queue was deleted: begin anew, in the thread that deleted it."""
        deleted = self._queue
        try:
            if self._start():
                logger.warning("the queue %r was deleted; it is declared and consumed again", deleted)
        except MessageHubError as error:
            logger.error("the queue %r was deleted and cannot be consumed again: %s", deleted, error)

    def _interrupt(self) -> None:
        """The connection ends: what was handed out goes back, and what is settled late is stale."""
        with self._lock:
            subscription, self._subscription = self._subscription, None
            if subscription is not None:
                hub, subscriber = subscription
                hub.end(subscriber)
        # What was handed over and not taken yet comes again; handled from here, it would be handled twice.
        calls_to_look_up = 0
        try:
            while True:
                calls_to_look_up += self._deliveries.get_nowait() is None
        except Empty:
            for _ in range(calls_to_look_up):
                self._deliveries.put(None)

    def _resume(self) -> None:
        try:
            self._start()
        except MessageHubError as error:
            logger.error("the queue %r cannot be consumed again: %s", self._queue, error)

    def _after_fork_in_child(self) -> None:
        self._lock = threading.Lock()
        self._subscription = None
        self._delivering = False
