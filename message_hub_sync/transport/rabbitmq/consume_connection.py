"""The consume connection: a channel per consumer, restored for as long as the consumer is not closed."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

from message_hub_sync.config import ClientConfig
from message_hub_sync.errors import MessageHubError
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.transport.base import Delivery
from message_hub_sync.transport.rabbitmq.connection import ThreadedConnection
from message_hub_sync.transport.rabbitmq.consumer_channel import ConsumerChannel
from message_hub_sync.transport.rabbitmq.declaring import Declarations
from message_hub_sync.transport.rabbitmq.frames.encoding import encode_reject
from message_hub_sync.transport.rabbitmq.recovering_connection import RecoveringConnection
from message_hub_sync.transport.rabbitmq.rpc import open_channel
from message_hub_sync.transport.rabbitmq.translation import (
    ChannelClosed,
    ConnectionEnded,
    RpcTimedOut,
    describe,
    entity_error,
)
from message_hub_sync.transport.topology import Topology, declared_name

__all__ = ["ConsumeConnection", "RabbitMQConsumer"]

logger = SafeLogger("message_hub_sync.rabbitmq")

#: Seconds an acknowledgement may wait for others, and how many may wait at most.
_FLUSH_SECONDS, _FLUSH_COUNT = 0.05, 64
#: Seconds in which a consumer is to be restored, and after which it is given up for now because somebody else waits.
_RESTORE_SECONDS, _HURRIED_SECONDS = 10.0, 2.0
#: Seconds of restoring after which those who wait for the I/O thread have their turn.
_TURN_SECONDS = 0.5
#: Seconds after the end of a consumer in which those that failed are left alone: more ends may follow, as at a close.
_POSTPONE_SECONDS = 0.5
#: Seconds until a consumer that cannot be restored is tried again: soon at first, then rarely.
_FIRST_RETRY, _LONGEST_RETRY = 0.5, 10.0


class RabbitMQConsumer:
    """One queue being consumed (see :class:`~message_hub_sync.transport.base.Consumer`).

    Mutable: ``cancelled`` and ``_closed``, set once by the owner; ``_consumer_channel``, ``_channel_generation`` (how
    many there were), ``_queue``, ``_retry_at``, ``_failures`` and ``_tried_on``, the I/O thread's own. Each is one
    reference or flag, read without a lock.
    """

    def __init__(self, owner: ConsumeConnection, topology: Topology, prefetch: int) -> None:
        self._owner = owner
        self._topology = topology
        self._prefetch = prefetch
        self._flush_at = 1 if owner.settle_each else max(1, min(_FLUSH_COUNT, prefetch // 2))
        self._deliveries: SimpleQueue[Delivery | None] = SimpleQueue()
        self.tag_prefix = owner.tag_prefix
        self.cancelled = False
        self._closed = False
        self._consumer_channel: ConsumerChannel | None = None
        self._channel_generation = 0
        self._queue = topology.queue.name
        self._tried_on: ThreadedConnection | None = None
        self._failures = 0
        self._retry_at = 0.0

    @property
    def deliveries(self) -> SimpleQueue[Delivery | None]:
        """Where deliveries appear."""
        return self._deliveries

    @property
    def queue(self) -> str:
        """The queue's present name."""
        return self._queue

    @property
    def active(self) -> bool:
        """Whether the broker is delivering from it now."""
        consumer_channel = self._consumer_channel
        return (
            consumer_channel is not None
            and consumer_channel.consuming
            and not (consumer_channel.closed or self.cancelled)
            and consumer_channel.connection.usable
        )

    def ack(self, delivery: Delivery) -> None:
        """Acknowledge, together with others."""
        consumer_channel = delivery.origin
        assert isinstance(consumer_channel, ConsumerChannel)
        with consumer_channel.connection.lock:
            if consumer_channel.closed:
                return
            consumer_channel.pending_acks.mark_handled(delivery.delivery_tag)
            if consumer_channel.pending_acks.waiting >= self._flush_at or self._deliveries.empty():
                consumer_channel.flush()
            else:
                consumer_channel.flush_within(_FLUSH_SECONDS)

    def requeue(self, delivery: Delivery) -> None:
        """Give it back to its queue."""
        consumer_channel = delivery.origin
        assert isinstance(consumer_channel, ConsumerChannel)
        with consumer_channel.connection.lock:
            if not consumer_channel.closed and consumer_channel.pending_acks.mark_rejected(delivery.delivery_tag):
                consumer_channel.connection.write(encode_reject(consumer_channel.number, delivery.delivery_tag))

    def holds(self, delivery: Delivery) -> bool:
        """Whether its channel is open."""
        return isinstance(delivery.origin, ConsumerChannel) and not delivery.origin.closed

    def flush(self) -> None:
        """Say what waits."""
        consumer_channel = self._consumer_channel
        if consumer_channel is not None:
            with consumer_channel.connection.lock:
                consumer_channel.flush()

    def cancel(self, deadline: float) -> None:
        """Stop the consumer_channel."""
        if not self.cancelled:
            self.cancelled = True
            self._owner.postpone_retries()
            self._on_consumer_channel(self._send_cancel, deadline)

    def close(self, deadline: float) -> None:
        """Flush and give back what is not settled."""
        self.cancelled = self._closed = True
        self._owner.forget(self)
        self.flush()
        self._on_consumer_channel(self._close_channel, deadline)

    def discard_deliveries(self) -> None:
        """What came on a channel that is gone is delivered again: handled from here, it would be handled twice."""
        calls_to_look_up = 0
        try:
            while True:
                calls_to_look_up += self._deliveries.get_nowait() is None
        except Empty:
            for _ in range(calls_to_look_up):
                self._deliveries.put(None)

    def _on_consumer_channel(self, work: Callable[[ConsumerChannel, float], None], deadline: float) -> None:
        """Do ``work`` on the I/O thread; where the channel is gone there is nothing left to do."""
        consumer_channel = self._consumer_channel
        if consumer_channel is None or consumer_channel.closed:
            return

        def on_its_channel() -> None:
            if not consumer_channel.closed:
                work(consumer_channel, deadline)

        self._owner.recovering.on_connection(consumer_channel.connection, on_its_channel, deadline)

    def _send_cancel(self, consumer_channel: ConsumerChannel, deadline: float) -> None:
        if (
            consumer_channel.consumer_tag in consumer_channel.channel.pika.consumer_tags
        ):  # else pika asks nothing, and nobody answers
            consumer_channel.channel.call(
                lambda pika, done: pika.basic_cancel(consumer_channel.consumer_tag, callback=done), deadline
            )

    def _close_channel(self, consumer_channel: ConsumerChannel, deadline: float) -> None:
        consumer_channel.channel.close(deadline)

    # --- on the I/O thread ---------------------------------------------------------------------

    @property
    def failures(self) -> int:
        """How often in a row it could not be restored."""
        return self._failures

    def due(self, connection: ThreadedConnection) -> float | None:
        """When to establish it on this connection; ``None``: it is, or is not to be."""
        consumer_channel = self._consumer_channel
        established = (
            consumer_channel is not None and not consumer_channel.closed and consumer_channel.connection is connection
        )
        if self.cancelled or established:
            return None
        return self._retry_at if self._tried_on is connection else 0.0

    def establish(self, connection: ThreadedConnection, deadline: float) -> None:
        """Declare and consume on this connection, where that is not so yet.

        :raises MessageHubError: something is not allowed or does not fit.
        :raises ConnectionEnded: the connection ended meanwhile.
        """
        if self.due(connection) is None:
            return
        if self._tried_on is not connection:
            # Once a connection: what an attempt that failed has declared is used by the next one.
            self._tried_on = connection
            self._queue = declared_name(self._topology.queue)
        name = self._queue
        self._owner.declarations.topology(connection, self._topology, name, deadline)
        channel = open_channel(connection, deadline)
        consumer_channel = ConsumerChannel(self, channel, name, self._channel_generation + 1)
        try:
            with connection.lock:
                channel.pika.add_on_cancel_callback(consumer_channel.cancelled_by_broker)
            channel.call(lambda pika, done: pika.basic_qos(prefetch_count=self._prefetch, callback=done), deadline)
            self._consumer_channel = consumer_channel
            self._channel_generation += 1  # from here on it may receive
            channel.call(
                lambda pika, done: pika.basic_consume(
                    name, consumer_channel.deliver, consumer_tag=consumer_channel.consumer_tag, callback=done
                ),
                deadline,
            )
        except ChannelClosed as closed:
            raise entity_error(closed, f"consuming the queue {name!r}") from None
        except BaseException:
            with connection.lock:
                consumer_channel.close()
            channel.close(deadline)
            raise
        with connection.lock:
            consumer_channel.consuming = True
        if consumer_channel.closed:
            self.restore()  # between the answer and now
        elif self._closed:
            channel.close(deadline)  # whoever closed it saw no channel yet
        elif self.cancelled:
            self._send_cancel(consumer_channel, deadline)
        if self._failures:
            logger.info("the queue %s is consumed again", name)
        self._failures = 0

    def not_established(self, error: BaseException) -> None:
        """Restoring failed: say so once, and try again later, ever more rarely."""
        self._failures += 1
        pause = min(_LONGEST_RETRY, _FIRST_RETRY * 2.0 ** min(self._failures - 1, 10))
        self._retry_at = time.monotonic() + pause
        logger.log(
            logging.ERROR if self._failures == 1 else logging.DEBUG,
            "the consumer of %s cannot be restored, next try in %.1f s: %s",
            self._queue,
            pause,
            describe(error),
        )

    def restore(self) -> None:
        """Its channel is gone: have another one made soon. No lock held."""
        self._owner.recovering.request_restore()

    def replace(self, consumer_channel: ConsumerChannel) -> None:
        """The broker ended the consumer: another channel is made, and what was not settled goes back. No lock held."""
        with consumer_channel.connection.lock:
            consumer_channel.flush()
            consumer_channel.close()
            if consumer_channel.channel.pika.is_open:
                consumer_channel.channel.pika.close()
        self.restore()


class ConsumeConnection:
    """All consumers of one client, over one connection.

    Mutable, guarded by ``_lock``: ``_consumers``. ``_retries_postponed_until``, a moment, is written by anyone.
    """

    def __init__(self, config: ClientConfig, declarations: Declarations, tag_prefix: str) -> None:
        self.settle_each = config.settle_each
        self.tag_prefix = tag_prefix
        self.declarations = declarations
        self._lock = threading.Lock()
        self._consumers: list[RabbitMQConsumer] = []
        self._retries_postponed_until = 0.0
        self.recovering = RecoveringConnection(
            "consume", config, restore=self._restore, keep_open=lambda: bool(self._consumers)
        )

    def consume(self, topology: Topology, prefetch: int, deadline: float) -> RabbitMQConsumer:
        """Declare and consume, and keep it so."""
        consumer = RabbitMQConsumer(self, topology, prefetch)
        try:
            self.recovering.call(
                lambda connection: consumer.establish(
                    connection, min(deadline, RecoveringConnection.restore_deadline())
                ),
                deadline,
            )
            with self._lock:
                self._consumers.append(consumer)
            if not consumer.active:
                consumer.restore()  # it was lost between being established and being known
        except BaseException:
            consumer.close(deadline)
            raise
        return consumer

    def forget(self, consumer: RabbitMQConsumer) -> None:
        """It is not to be restored any more."""
        with self._lock:
            if consumer in self._consumers:
                self._consumers.remove(consumer)

    def close(self, deadline: float) -> None:
        """Say what waits to be acknowledged, and end the connection."""
        with self._lock:
            consumers = list(self._consumers)
        for consumer in consumers:
            consumer.flush()
        self.recovering.close(deadline)

    def postpone_retries(self) -> None:
        """A consumer ends, whose end the I/O thread has to see to: it is not to be busy with what fails."""
        self._retries_postponed_until = time.monotonic() + _POSTPONE_SECONDS

    def _restore(self, connection: ThreadedConnection) -> float | None:
        """Entity by entity: what fails is reported and tried again, the others go on.

        A queue may be silent (a quorum queue without its majority), and there may be many: those that failed last come
        last, none is waited for long while somebody else waits, and after each of them callers have their turn.
        """
        with self._lock:
            consumers = list(self._consumers)
        began = time.monotonic()
        due = [one for one in consumers if (moment := self._due(one, connection)) is not None and moment <= began]
        due.sort(key=lambda consumer: consumer.failures)
        for number, consumer in enumerate(due, 1):
            self._restore_one(consumer, connection, others=number < len(due))
            if time.monotonic() - began > _TURN_SECONDS:
                break
        moments = [moment for one in consumers if (moment := self._due(one, connection)) is not None]
        return min(moments, default=None)

    def _restore_one(self, consumer: RabbitMQConsumer, connection: ThreadedConnection, others: bool) -> None:
        now = time.monotonic()
        connection.rpc_yield_at, connection.rpc_yield_if = (
            now + _HURRIED_SECONDS,
            lambda: others or self.recovering.awaited,
        )
        try:
            consumer.establish(connection, now + _RESTORE_SECONDS)
        except ConnectionEnded:
            raise
        except (MessageHubError, ChannelClosed, RpcTimedOut) as error:
            # No answer is the entity's fault too.
            consumer.not_established(error)
        finally:
            connection.rpc_yield_at = math.inf

    def _due(self, consumer: RabbitMQConsumer, connection: ThreadedConnection) -> float | None:
        moment = consumer.due(connection)
        return moment if moment is None or not consumer.failures else max(moment, self._retries_postponed_until)
