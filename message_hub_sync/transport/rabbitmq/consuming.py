"""The consume connection: a channel per consumer, restored for as long as the consumer is not closed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from pika import exceptions as amqp

from message_hub_sync.config import ClientConfig
from message_hub_sync.errors import (
    MessageHubAuthorizationError,
    MessageHubConfigurationError,
    MessageHubConnectionError,
    MessageHubError,
)
from message_hub_sync.topology import Topology
from message_hub_sync.transport.base import Delivery
from message_hub_sync.transport.rabbitmq.connection import ThreadedConnection
from message_hub_sync.transport.rabbitmq.declaring import Declarations
from message_hub_sync.transport.rabbitmq.encoding import encode_ack, encode_reject, properties_from_pika
from message_hub_sync.transport.rabbitmq.link import Link
from message_hub_sync.transport.rabbitmq.rpc import BrokerChannel, opened
from message_hub_sync.transport.rabbitmq.settlements import Settlements
from message_hub_sync.transport.rabbitmq.translation import ChannelClosed, describe, entity_error

__all__ = ["ConsumeLink", "RabbitMQConsumer"]

logger = logging.getLogger("message_hub_sync.rabbitmq")

#: Seconds an acknowledgement may wait for others, and how many may wait at most.
_FLUSH_SECONDS, _FLUSH_COUNT = 0.05, 64
#: Seconds until a consumer that cannot be restored is tried again: soon at first, then rarely.
_FIRST_RETRY, _LONGEST_RETRY = 0.5, 30.0


class _Intake:
    """One channel's worth of a consumer: a delivery settles on the channel it came on, or not at all.

    Mutable, guarded by the connection's lock: ``settlements``, ``closed``, ``flush_armed``.
    """

    def __init__(self, consumer: RabbitMQConsumer, channel: BrokerChannel, queue: str, connection_number: int) -> None:
        self.consumer = consumer
        self.channel = channel
        self.connection = channel.connection
        self.number = channel.number
        self.queue = queue
        self.connection_number = connection_number
        self.settlements = Settlements()
        self.closed = False
        self.flush_armed = False
        self.consumer_tag = ""

    def deliver(self, _channel: Any, method: Any, properties: Any, body: bytes) -> None:
        """pika's callback for one message; the connection's lock is held."""
        self.consumer.deliveries.put(
            Delivery(
                body=body,
                properties=properties_from_pika(properties),
                exchange=method.exchange,
                routing_key=method.routing_key,
                queue=self.queue,
                redelivered=method.redelivered,
                delivery_tag=method.delivery_tag,
                connection_number=self.connection_number,
                origin=self,
            )
        )

    def flush(self) -> None:
        """Say what waits; the connection's lock is held."""
        self.flush_armed = False
        if not self.closed and self.connection.usable:
            frames = [encode_ack(self.number, tag, multiple) for tag, multiple in self.settlements.take()]
            if frames:
                self.connection.write(b"".join(frames))


class RabbitMQConsumer:
    """One queue being consumed (see :class:`~message_hub_sync.transport.base.Consumer`).

    Mutable: ``_intake``, replaced by the I/O thread; ``_cancelled`` and ``_closed``, set once by the owner;
    ``retry_at`` and ``_failures``, the I/O thread's own. Each is one reference or flag, read without a lock.
    """

    def __init__(self, owner: ConsumeLink, topology: Topology, prefetch: int) -> None:
        self._owner = owner
        self._topology = topology
        self._prefetch = prefetch
        self._flush_at = 1 if owner.settle_each else max(1, min(_FLUSH_COUNT, prefetch // 2))
        self._deliveries: SimpleQueue[Delivery | None] = SimpleQueue()
        self._intake: _Intake | None = None
        self._cancelled = False
        self._closed = False
        self._failures = 0
        self._queue = topology.queue.name
        self.retry_at = 0.0

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
        intake = self._intake
        return intake is not None and not intake.closed and not self._cancelled and intake.connection.usable

    def settle(self, delivery: Delivery) -> None:
        """Acknowledge, together with others."""
        intake = delivery.origin
        assert isinstance(intake, _Intake)
        with intake.connection.lock:
            if intake.closed:
                return
            intake.settlements.finished(delivery.delivery_tag)
            if intake.settlements.waiting >= self._flush_at or self._deliveries.empty():
                intake.flush()
            elif not intake.flush_armed:
                intake.flush_armed = True
                intake.connection.call_later(_FLUSH_SECONDS, intake.flush)

    def release(self, delivery: Delivery) -> None:
        """Give it back to its queue."""
        intake = delivery.origin
        assert isinstance(intake, _Intake)
        with intake.connection.lock:
            if not intake.closed and intake.settlements.given_back(delivery.delivery_tag):
                intake.connection.write(encode_reject(intake.number, delivery.delivery_tag))

    def flush(self) -> None:
        """Say what waits."""
        intake = self._intake
        if intake is not None:
            with intake.connection.lock:
                intake.flush()

    def cancel(self, deadline: float) -> None:
        """Stop the intake."""
        if self._cancelled:
            return
        self._cancelled = True
        self._on_intake(self._send_cancel, deadline)

    def close(self, deadline: float) -> None:
        """Flush and give back what is not settled."""
        self._cancelled = self._closed = True
        self._owner.forget(self)
        self.flush()
        self._on_intake(self._close_channel, deadline)
        self._intake = None

    def _on_intake(self, work: Callable[[_Intake, float], None], deadline: float) -> None:
        """Do ``work`` on the I/O thread; without a connection there is nothing left to do."""
        intake = self._intake
        if intake is None or intake.closed or not intake.connection.usable:
            return

        def on_its_connection(connection: ThreadedConnection) -> None:
            if connection is intake.connection and not intake.closed:
                work(intake, deadline)

        try:
            self._owner.link.call(on_its_connection, deadline)
        except MessageHubError as error:
            logger.debug("the consumer of %s could not be ended properly: %s", self._queue, error)

    def _send_cancel(self, intake: _Intake, deadline: float) -> None:
        intake.channel.ask(lambda pika, done: pika.basic_cancel(intake.consumer_tag, callback=done), deadline)

    def _close_channel(self, intake: _Intake, deadline: float) -> None:
        intake.channel.close(deadline)

    # --- on the I/O thread ---------------------------------------------------------------------

    def establish(self, connection: ThreadedConnection, deadline: float) -> None:
        """Declare and consume on this connection, where that is not so yet.

        :raises MessageHubError: something is not allowed or does not fit.
        :raises ConnectionEnded: the connection ended meanwhile.
        """
        intake = self._intake
        if self._cancelled or (intake is not None and not intake.closed and intake.connection is connection):
            return
        name = self._owner.declarations.topology(connection, self._topology, deadline)
        channel = opened(connection, deadline)
        intake = _Intake(self, channel, name, self._owner.link.connection_number)

        def lost(reason: BaseException) -> None:
            intake.closed = True
            if isinstance(reason, amqp.ChannelClosedByBroker):
                logger.warning("the channel consuming %s was closed by the broker: %s", name, reason.reply_text)
                connection.after.append(self._owner.link.disturb)

        def cancelled(_frame: Any) -> None:
            logger.warning("the broker ended the consumer of %s (the queue was deleted or moved)", name)
            connection.after.append(lambda: self._owner.replace(intake))

        channel.on_closed = lost
        try:
            channel.ask(lambda pika, done: pika.basic_qos(prefetch_count=self._prefetch, callback=done), deadline)
            with connection.lock:
                channel.pika.add_on_cancel_callback(cancelled)
            self._queue = name
            self._intake = intake
            intake.consumer_tag = f"{self._owner.tag_prefix}.{channel.number}"
            channel.ask(
                lambda pika, done: pika.basic_consume(
                    name,
                    intake.deliver,
                    exclusive=False,
                    consumer_tag=intake.consumer_tag,
                    callback=done,
                ),
                deadline,
            )
        except ChannelClosed as closed:
            intake.closed = True
            raise entity_error(closed, f"consuming the queue {name!r}") from None
        except BaseException:
            intake.closed = True
            channel.close(deadline)
            raise
        self._failures = 0

    def not_established(self, error: BaseException) -> None:
        """Restoring failed: report once in a while, and try again later."""
        self._failures += 1
        pause = min(_LONGEST_RETRY, _FIRST_RETRY * 2.0 ** min(self._failures - 1, 10))
        self.retry_at = time.monotonic() + pause
        log = logger.error if self._failures == 1 else logger.debug
        log(
            "the consumer of %s cannot be restored, next try in %.1f s: %s",
            self._queue,
            pause,
            describe(error),
        )

    def give_up_intake(self, intake: _Intake) -> None:
        """The broker ended the consumer: a new channel will be made. What runs still settles on the old one."""
        if self._intake is intake:
            with intake.connection.lock:
                intake.flush()
                intake.closed = True
                if intake.channel.pika.is_open:
                    intake.channel.pika.close()


class ConsumeLink:
    """All consumers of one client, over one connection.

    Mutable, guarded by ``_lock``: ``_consumers``.
    """

    def __init__(self, config: ClientConfig, declarations: Declarations, tag_prefix: str) -> None:
        self.settle_each = config.settle_each
        self.tag_prefix = tag_prefix
        self.declarations = declarations
        self._lock = threading.Lock()
        self._consumers: list[RabbitMQConsumer] = []
        self.link = Link("consume", config, restore=self._restore, wanted=lambda: bool(self._consumers))

    def consume(self, topology: Topology, prefetch: int, deadline: float) -> RabbitMQConsumer:
        """Declare and consume, and keep it so."""
        consumer = RabbitMQConsumer(self, topology, prefetch)
        try:
            self.link.call(
                lambda connection: consumer.establish(connection, min(deadline, Link.restore_deadline())),
                deadline,
            )
            with self._lock:
                self._consumers.append(consumer)
            if not consumer.active:
                self.link.disturb()  # it was lost between being established and being known
        except BaseException:
            consumer.close(deadline)
            raise
        return consumer

    def forget(self, consumer: RabbitMQConsumer) -> None:
        """It is not to be restored any more."""
        with self._lock:
            if consumer in self._consumers:
                self._consumers.remove(consumer)

    def replace(self, intake: _Intake) -> None:
        """On the I/O thread, no lock held: the broker ended a consumer."""
        intake.consumer.give_up_intake(intake)
        self.link.disturb()

    def _restore(self, connection: ThreadedConnection) -> float | None:
        """Entity by entity: what fails is reported and tried again, the others go on."""
        with self._lock:
            consumers = list(self._consumers)
        again: float | None = None
        for consumer in consumers:
            if consumer.retry_at <= time.monotonic():
                try:
                    consumer.establish(connection, Link.restore_deadline())
                    consumer.retry_at = 0.0
                except (
                    MessageHubAuthorizationError,
                    MessageHubConfigurationError,
                    MessageHubConnectionError,
                ) as error:
                    consumer.not_established(error)
            if consumer.retry_at:
                again = consumer.retry_at if again is None else min(again, consumer.retry_at)
        return again
