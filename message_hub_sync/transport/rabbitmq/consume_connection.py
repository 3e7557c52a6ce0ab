"""The consume connection: one channel per consumer, restored after a loss until the consumer is closed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import repeat
from queue import SimpleQueue
from typing import Any

from pika.channel import Channel

from message_hub_sync.config import ClientConfig
from message_hub_sync.errors import MessageHubError
from message_hub_sync.runtime.locks import Lock, locked
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.real_time import time
from message_hub_sync.transport.base import Delivery, DeliverySink, take_untaken
from message_hub_sync.transport.rabbitmq.connection import ThreadedConnection
from message_hub_sync.transport.rabbitmq.consumer_channel import ConsumerChannel
from message_hub_sync.transport.rabbitmq.declaring import Declarations, Start
from message_hub_sync.transport.rabbitmq.frames.encoding import encode_reject
from message_hub_sync.transport.rabbitmq.io_tasks import Steps, Work
from message_hub_sync.transport.rabbitmq.recovering_connection import RecoveringConnection
from message_hub_sync.transport.rabbitmq.rpc_channel import RpcChannel
from message_hub_sync.transport.rabbitmq.translation import ChannelClosed, RpcTimedOut, describe
from message_hub_sync.transport.topology import Topology, declared_name

__all__ = ["ConsumeConnection", "RabbitMQConsumer"]

logger = SafeLogger("message_hub_sync.rabbitmq")

#: The longest time in seconds until a pending ack is sent, and the most acks that are pending.
_FLUSH_SECONDS, _FLUSH_COUNT = 0.05, 64
#: Seconds that consumers get to be restored before a new connection counts as open. A queue may not answer (a quorum
#: queue without its majority).
_RESTORE_PATIENCE = 2.0
#: Seconds until the first retry of a consumer that could not be restored; each pause is twice the one before, up to
#: the second number. The others are for an attempt that cost the connection, and with it all consumers.
_FIRST_RETRY, _LONGEST_RETRY = 0.5, 10.0
_FIRST_COSTLY_RETRY, _LONGEST_COSTLY_RETRY = 300.0, 3600.0
#: After so many seconds without a loss, the next one is not taken for a repetition.
_RARE_LOSS = 3 * _LONGEST_RETRY


class RabbitMQConsumer:
    """A consumer of one queue. Public methods: see :class:`~message_hub_sync.transport.base.Consumer`."""

    def __init__(
        self, owner: ConsumeConnection, topology: Topology, prefetch: int, sink: DeliverySink | None = None
    ) -> None:
        self._owner = owner
        self._topology = topology
        self._prefetch = prefetch
        self._flush_at = 1 if owner.settle_each else max(1, min(_FLUSH_COUNT, prefetch // 2))
        self._deliveries: SimpleQueue[Delivery | None] = SimpleQueue()
        self.sink: DeliverySink = self._deliveries if sink is None else sink
        self.tag_prefix = owner.tag_prefix
        self.max_message_bytes = owner.max_message_bytes
        self.cancelled = False  # any thread sets it, once
        self._closed = False  # any thread sets it, once
        self._giving_back = False  # set on the I/O thread, once
        # Arrived after the cancel; guarded by the connection's lock.
        self._late: list[tuple[ConsumerChannel, int]] = []
        # Written by the I/O thread only. Other threads read single fields without a lock.
        self._consumer_channel: ConsumerChannel | None = None
        self._channel_generation = 0  # how many channels it has received on
        self._queue = topology.queue.name
        self._tried_on: ThreadedConnection | None = None  # the connection of the latest attempt to establish it
        self._establishing: ThreadedConnection | None = None  # the connection on which a task establishes it now
        self._failures = 0  # failed attempts since the last success
        self._retry_at = 0.0  # monotonic seconds
        self._losses = 0  # how often in a row the broker has ended its channel soon after it consumed
        self._lost_at = 0.0  # monotonic seconds
        self._costly = False  # whether the latest attempt cost the connection
        self._error: str | None = None  # why it is not consumed now

    @property
    def deliveries(self) -> SimpleQueue[Delivery | None]:
        return self._deliveries

    @property
    def queue(self) -> str:
        return self._queue

    @property
    def active(self) -> bool:
        consumer_channel = self._consumer_channel
        return (
            consumer_channel is not None
            and consumer_channel.consuming
            and not (consumer_channel.closed or self.cancelled)
            and consumer_channel.connection.usable
        )

    @property
    def error(self) -> str | None:
        return None if self.active else self._error

    @property
    def other_limit(self) -> bool:
        return self._queue in self._owner.declarations.other_limits

    def ack(self, delivery: Delivery) -> None:
        consumer_channel: Any = delivery.origin  # a ConsumerChannel; isinstance() would cost more, at every message
        consumer_channel.connection.lock.run(self._ack, consumer_channel, delivery.delivery_tag)

    def _ack(self, consumer_channel: ConsumerChannel, tag: int) -> None:
        if consumer_channel.closed:
            return
        waiting = consumer_channel.pending_acks.mark_handled(tag)
        # Send the pending acks together: once there are enough of them, or no delivery is left that could add one.
        if waiting >= self._flush_at or self.sink.empty():
            consumer_channel.flush()
        else:
            consumer_channel.flush_within(_FLUSH_SECONDS)

    def ack_all(self, deliveries: Sequence[Delivery]) -> None:
        consumer_channel = self._consumer_channel
        if consumer_channel is not None:
            consumer_channel.connection.lock.run(self._ack_all, consumer_channel, deliveries)

    def _ack_all(self, consumer_channel: ConsumerChannel, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            if delivery.origin is consumer_channel:
                consumer_channel.pending_acks.mark_handled(delivery.delivery_tag)
        consumer_channel.flush()

    def requeue(self, delivery: Delivery) -> None:
        consumer_channel = delivery.origin
        assert isinstance(consumer_channel, ConsumerChannel)
        consumer_channel.connection.lock.run(self._requeue, consumer_channel, delivery.delivery_tag)

    def _requeue(self, consumer_channel: ConsumerChannel, tag: int) -> None:
        if not consumer_channel.closed and consumer_channel.pending_acks.mark_rejected(tag):
            consumer_channel.connection.write(encode_reject(consumer_channel.number, tag))

    def holds(self, delivery: Delivery) -> bool:
        return isinstance(delivery.origin, ConsumerChannel) and not delivery.origin.closed

    def waited(self, delivery: Delivery) -> float | None:
        """``None``: the broker does not tell it."""
        return None

    def flush(self) -> None:
        consumer_channel = self._consumer_channel
        if consumer_channel is not None:
            consumer_channel.connection.lock.run(consumer_channel.flush)

    def cancel(self, deadline: float) -> None:
        # Nobody waits for the broker: deliveries that are under way are ignored, and requeued by close().
        self.cancelled = True
        consumer_channel = self._consumer_channel
        if consumer_channel is not None:
            consumer_channel.cancel()

    def give_back(self) -> None:
        # After basic.cancel, which cancel() has written: else the broker might deliver them to this consumer again.
        consumer_channel = self._consumer_channel
        if consumer_channel is not None and not consumer_channel.closed:
            consumer_channel.connection.lock.run(self._requeue_all)

    def _requeue_all(self) -> None:
        self._giving_back = True
        untaken = [(delivery.origin, delivery.delivery_tag) for delivery in take_untaken(self.sink)]
        late, self._late = self._late, []
        for origin, tag in [*untaken, *late]:
            assert isinstance(origin, ConsumerChannel)
            self._requeue(origin, tag)

    def arrived_late(self, consumer_channel: ConsumerChannel, tag: int) -> None:
        """A delivery came after the cancel. It stays unacked until :meth:`give_back` or :meth:`close`.

        The caller holds the connection's lock.
        """
        if self._giving_back:
            self._requeue(consumer_channel, tag)
        else:
            self._late.append((consumer_channel, tag))

    def close(self, deadline: float) -> None:
        # The broker requeues the unacked messages when their channel closes.
        self.cancelled = self._closed = True
        self._owner.forget(self)
        self.flush()
        consumer_channel = self._consumer_channel
        if consumer_channel is not None and not consumer_channel.closed:
            self._owner.recovering.on_connection(
                consumer_channel.connection, lambda: _close(consumer_channel), deadline
            )

    def discard_deliveries(self) -> None:
        """Drop the queued deliveries of a closed channel: they are redelivered, and the handler would run twice."""
        take_untaken(self.sink)

    # --- on the I/O thread ---------------------------------------------------------------------

    def due(self, connection: ThreadedConnection) -> bool:
        """Whether it must be established on this connection now."""
        consumer_channel = self._consumer_channel
        established = (
            consumer_channel is not None and not consumer_channel.closed and consumer_channel.connection is connection
        )
        if self.cancelled or established or self._establishing is connection:
            return False
        if time.monotonic() >= self._retry_at:
            return True
        return self._tried_on is not connection and not self._costly

    def establish(self, connection: ThreadedConnection) -> Steps[None]:
        """Declare the queue and consume it on this connection, unless that is done already.

        :raises MessageHubError: the queue cannot be declared or consumed.
        :raises ChannelClosed: the broker closed a channel while it was being opened.
        :raises ConnectionEnded: the connection ended.
        :raises RpcTimedOut: no answer before the deadline.
        """
        if not self.due(connection):
            return
        if self._tried_on is not connection:
            # One name per connection: a retry uses the queue that a failed attempt has declared.
            self._tried_on = connection
            self._queue = declared_name(self._topology.queue)
        self._establishing = connection
        try:
            yield from self._owner.declarations.topology(connection, self._topology, self._queue, self._consume)
        except Exception:
            self._establishing = None
            consumer_channel = self._consumer_channel
            if consumer_channel is not None and consumer_channel.connection is connection:
                connection.lock.run(consumer_channel.close)
            if not self._closed:  # else close() has closed the channel
                raise
            return
        self._establishing = None
        if self._failures:
            logger.info("the queue %s is consumed again", self._queue)
        self._failures, self._error = 0, None
        self._consumed()

    def _consume(self, channel: RpcChannel) -> Start:
        """What consumes the queue on a new channel."""
        self._channel_generation += 1  # before basic_consume: deliveries may come before its answer
        consumer_channel = ConsumerChannel(self, channel, self._queue, self._channel_generation)
        self._consumer_channel = consumer_channel

        def send(pika: Channel, done: Callable[..., None]) -> None:
            pika.add_on_cancel_callback(consumer_channel.cancelled_by_broker)
            pika.basic_qos(prefetch_count=self._prefetch)
            pika.basic_consume(
                self._queue, consumer_channel.deliver, consumer_tag=consumer_channel.consumer_tag, callback=done
            )

        return send

    def _consumed(self) -> None:
        """The broker consumes the queue for it."""
        consumer_channel = self._consumer_channel
        assert consumer_channel is not None
        consumer_channel.connection.lock.run(setattr, consumer_channel, "consuming", True)
        # Another thread or the broker may have acted before `consuming` was set:
        # 1: the broker closed the channel after its answer: restore the consumer.
        # 2: close() was called, perhaps before there was a channel to close: close it now.
        # 3: cancel() was called, perhaps before there was a channel: cancel it now.
        if consumer_channel.ended is not None:
            self.lost(consumer_channel.ended)
        elif self._closed:
            consumer_channel.channel.close()
        elif self.cancelled:
            consumer_channel.cancel()

    def establish_again(self, connection: ThreadedConnection) -> Steps[None]:
        """The same, after a loss: an attempt that fails is logged and repeated after a pause.

        :raises ConnectionEnded: the connection ended.
        """
        try:
            yield from self.establish(connection)
        except (MessageHubError, ChannelClosed, RpcTimedOut) as error:
            self._retry_later(connection, error)

    def _retry_later(self, connection: ThreadedConnection, error: Exception) -> None:
        """Log the first failure as an error, and retry after a growing pause."""
        self._failures += 1
        self._costly = connection.refused_task
        first, longest = (
            (_FIRST_COSTLY_RETRY, _LONGEST_COSTLY_RETRY) if self._costly else (_FIRST_RETRY, _LONGEST_RETRY)
        )
        pause = min(longest, first * 2.0 ** min(self._failures - 1, 10))
        self._retry_at = time.monotonic() + pause
        self._error = describe(error)
        logger.log(
            logging.ERROR if self._failures == 1 else logging.DEBUG,
            "the consumer of %s cannot be restored: %s; next attempt in %.1f s",
            self._queue,
            self._error,
            pause,
        )
        self.retry_on(connection)

    def retry_on(self, connection: ThreadedConnection) -> None:
        """Have it established on this connection when its pause is over, if there is one."""
        pause = self._retry_at - time.monotonic()
        if pause <= 0:
            return
        connection.lock.run(connection.call_later, pause, lambda: connection.after_unlock.append(self.restore))

    def restore(self) -> None:
        """Its channel is closed: have the I/O thread open another one. The caller holds no lock."""
        self._owner.recovering.request_restore()

    def lost(self, why: str) -> None:
        """The broker ended the channel: open another one, later if the one before was ended soon as well."""
        now = time.monotonic()
        if now - self._lost_at > _RARE_LOSS:
            self._losses = 0
        self._lost_at = now
        self._losses += 1
        if self._losses > 1:
            self._retry_at = now + min(_LONGEST_RETRY, _FIRST_RETRY * 2.0 ** min(self._losses - 2, 10))
        self._error = why
        logger.log(logging.WARNING if self._losses == 1 else logging.DEBUG, "%s; consuming it again soon", why)
        self.restore()

    def replace(self, consumer_channel: ConsumerChannel) -> None:
        """The broker cancelled the consumer: close its channel and open another one. The caller holds no lock.

        The broker requeues the unacked messages of the closed channel.
        """

        def close() -> None:
            consumer_channel.flush()
            consumer_channel.close()
            consumer_channel.channel.close_locked()

        consumer_channel.connection.lock.run(close)
        self.lost(
            f"the broker cancelled the consumer of {consumer_channel.queue}: the queue was deleted or moved, or a "
            "message stayed unacknowledged for longer than the queue's consumer timeout"
        )


class ConsumeConnection:
    """All consumers of one client, over one connection. Its public methods may be called from any thread.

    :param declarations: declares queues and exchanges; shared with the publish connection.
    :param tag_prefix: the start of every consumer tag.
    """

    def __init__(self, config: ClientConfig, declarations: Declarations, tag_prefix: str) -> None:
        self.settle_each = config.settle_each
        self.max_message_bytes = config.max_message_bytes
        self.tag_prefix = tag_prefix
        self.declarations = declarations
        self._lock = Lock()
        self._consumers: list[RabbitMQConsumer] = []  # guarded by _lock
        self.recovering = RecoveringConnection(
            "consume",
            config,
            restore=self._restore,
            restore_patience=_RESTORE_PATIENCE,
            keep_open=lambda: bool(self._consumers),
        )

    def consume(
        self, wanted: Sequence[tuple[Topology, int]], deadline: float, sinks: Sequence[DeliverySink] = ()
    ) -> list[RabbitMQConsumer]:
        """See :meth:`Transport.consume_many`."""
        consumers = [
            RabbitMQConsumer(self, topology, prefetch, sink)
            for (topology, prefetch), sink in zip(wanted, sinks or repeat(None), strict=False)
        ]
        try:
            self.recovering.call_all([consumer.establish for consumer in consumers], deadline)
            self._lock.run(self._consumers.extend, consumers)
            if not all(consumer.active for consumer in consumers):
                self.recovering.request_restore()  # a channel was lost before its consumer was in the list
        except BaseException:
            for consumer in consumers:
                consumer.cancel(deadline)
            for consumer in consumers:
                consumer.close(deadline)
            raise
        return consumers

    @locked
    def forget(self, consumer: RabbitMQConsumer) -> None:
        """Stop restoring ``consumer``."""
        if consumer in self._consumers:
            self._consumers.remove(consumer)

    def close(self, deadline: float) -> None:
        """Send the pending acks of all consumers, then close the connection; wait for it until ``deadline``."""
        consumers = self._lock.run(self._consumers.copy)
        for consumer in consumers:
            consumer.flush()
        self.recovering.close(deadline)

    def _restore(self, connection: ThreadedConnection) -> list[Work[object]]:
        consumers = self._lock.run(self._consumers.copy)
        due = [consumer for consumer in consumers if consumer.due(connection)]
        for consumer in consumers:
            if consumer not in due:
                consumer.retry_on(connection)
        return [consumer.establish_again for consumer in due]


def _close(consumer_channel: ConsumerChannel) -> Steps[None]:
    consumer_channel.channel.close()
    if consumer_channel.consuming:  # else it waits for an answer of its queue, and has no messages to give back
        yield from consumer_channel.channel.wait_closed()
