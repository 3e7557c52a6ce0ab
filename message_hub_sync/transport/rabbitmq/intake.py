"""One channel on which a consumer receives, with what is settled there."""

from __future__ import annotations

import logging
from queue import SimpleQueue
from typing import Any, Protocol

from pika import exceptions as amqp

from message_hub_sync.envelope import Properties
from message_hub_sync.text import printable
from message_hub_sync.transport.base import Delivery
from message_hub_sync.transport.rabbitmq.decoding import decode_header
from message_hub_sync.transport.rabbitmq.encoding import OWN_FRAMES, encode_ack, properties_from_pika
from message_hub_sync.transport.rabbitmq.fast_decoding import decode_deliver, decode_properties
from message_hub_sync.transport.rabbitmq.rpc import BrokerChannel
from message_hub_sync.transport.rabbitmq.settlements import Settlements

__all__ = ["Intake"]

logger = logging.getLogger("message_hub_sync.rabbitmq")


#: Kinds of frames, and class and method of ``basic.deliver`` (AMQP 0-9-1, sections 4.2.3 and 1.8.3.13).
_METHOD, _HEADER, _BODY = 1, 2, 3
_DELIVER = b"\0\x3c\0\x3c"


class Owner(Protocol):
    """What an intake needs of its consumer."""

    tag_prefix: str
    cancelled: bool

    @property
    def deliveries(self) -> SimpleQueue[Delivery | None]:
        """Where deliveries go."""

    def discard_deliveries(self) -> None:
        """Take back those that nobody has taken yet."""

    def restore(self) -> None:
        """The channel is gone. No lock held."""

    def replace(self, intake: Intake) -> None:
        """The broker ended the consumer. No lock held."""


class Intake:
    """One channel's worth of a consumer: a delivery settles on the channel it came on, or not at all.

    Mutable, guarded by the connection's lock: ``settlements``, ``consuming``, ``closed``, ``flush_armed``, and
    the message that is arriving: ``_method``, ``_properties``, ``_body``, ``_missing``.
    """

    def __init__(self, consumer: Owner, channel: BrokerChannel, queue: str, connection_number: int) -> None:
        self.consumer = consumer
        self.channel = channel
        self.connection = channel.connection
        self.number = channel.number
        self.queue = queue
        self.connection_number = connection_number
        self.consumer_tag = f"{consumer.tag_prefix}.{channel.number}"
        self.settlements = Settlements()
        self.consuming = False
        self.closed = False
        self.flush_armed = False
        self._method: tuple[str, int, bool, str, str] | None = None
        self._properties = Properties()
        self._body: list[bytes] = []
        self._missing = 0
        channel.on_closed = self._lost
        if OWN_FRAMES:
            self.connection.receivers[self.number] = self

    def deliver(self, _channel: Any, method: Any, properties: Any, body: bytes) -> None:
        """pika's callback for one message; the connection's lock is held.

        What comes after a cancel stays unacknowledged, and goes back with the channel's end.
        """
        self._arrived(
            method.exchange,
            method.routing_key,
            method.redelivered,
            method.delivery_tag,
            properties_from_pika(properties),
            body,
        )

    def take(self, kind: int, payload: bytes) -> bool:
        """The same for whole frames, before pika sees them: method, header, and bodies of one delivery."""
        if kind == _METHOD:
            self._method = decode_deliver(payload) if payload.startswith(_DELIVER) else None
            return self._method is not None
        if self._method is None:
            return False  # the content of what pika was given
        if kind == _HEADER:
            self._properties = decode_properties(payload) or properties_from_pika(decode_header(payload))
            self._missing = int.from_bytes(payload[4:12], "big")
        elif kind == _BODY:
            self._body.append(payload)
            self._missing -= len(payload)
        else:
            return False
        if self._missing <= 0:
            (_, tag, redelivered, exchange, routing_key), self._method = self._method, None
            body, self._body = self._body, []
            whole = body[0] if len(body) == 1 else b"".join(body)
            self._arrived(exchange, routing_key, redelivered, tag, self._properties, whole)
        return True

    def _arrived(
        self, exchange: str, routing_key: str, redelivered: bool, tag: int, properties: Properties, body: bytes
    ) -> None:
        if self.closed or self.consumer.cancelled:
            return
        self.consumer.deliveries.put(
            Delivery(
                body=body,
                properties=properties,
                exchange=exchange,
                routing_key=routing_key,
                queue=self.queue,
                redelivered=redelivered,
                delivery_tag=tag,
                connection_number=self.connection_number,
                origin=self,
            )
        )

    def close(self) -> None:
        """Nothing settles on it any more; the connection's lock is held."""
        if not self.closed:
            self.closed = True
            self.consumer.discard_deliveries()

    def cancelled_by_broker(self, _frame: Any) -> None:
        """pika's callback for a queue that was deleted or moved; the connection's lock is held."""

        def replace() -> None:
            logger.warning("the broker ended the consumer of %s (the queue was deleted or moved)", self.queue)
            self.consumer.replace(self)

        self.connection.after.append(replace)

    def _lost(self, reason: BaseException) -> None:
        """The channel is closed; the connection's lock is held."""
        self.connection.receivers.pop(self.number, None)
        self.close()
        if self.consuming and isinstance(reason, amqp.ChannelClosedByBroker):
            text = printable(reason.reply_text)

            def restore() -> None:
                logger.warning("the channel consuming %s was closed by the broker: %s", self.queue, text)
                self.consumer.restore()

            self.connection.after.append(restore)

    def flush(self) -> None:
        """Say what waits; the connection's lock is held."""
        self.flush_armed = False
        if not self.closed and self.connection.usable:
            frames = [encode_ack(self.number, tag, multiple) for tag, multiple in self.settlements.take()]
            if frames:
                self.connection.write(b"".join(frames))
