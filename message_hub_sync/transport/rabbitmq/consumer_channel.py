"""One channel on which a consumer receives, with what is settled there."""

from __future__ import annotations

import struct
from queue import SimpleQueue
from typing import Any, Protocol

from pika import exceptions as amqp

from message_hub_sync.envelope.values import Properties
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.text import printable
from message_hub_sync.transport.base import Delivery
from message_hub_sync.transport.rabbitmq.frames.decoding import FRAME_END, FRAME_START, decode_header
from message_hub_sync.transport.rabbitmq.frames.encoding import OWN_FRAMES, encode_ack, properties_from_pika
from message_hub_sync.transport.rabbitmq.frames.fast_decoding import Deliver, decode_deliver, decode_properties
from message_hub_sync.transport.rabbitmq.pending_acks import PendingAcks
from message_hub_sync.transport.rabbitmq.rpc import RpcChannel

__all__ = ["ConsumerChannel"]

logger = SafeLogger("message_hub_sync.rabbitmq")


#: Kinds of frames (AMQP 0-9-1, section 4.2.3), class and method of ``basic.deliver`` (1.8.3.13), class and weight of
#: its content's header.
_METHOD, _HEADER, _BODY = 1, 2, 3
_DELIVER = 60 << 16 | 60
_CONTENT = 60 << 16
_DELIVER_BYTES = _DELIVER.to_bytes(4, "big")
#: What begins a method's frame, and a content header's: kind, channel, size, then the above, and there the body's size.
_METHOD_START = struct.Struct(">BHIL")
_HEADER_START = struct.Struct(">BHILQ")


class Owner(Protocol):
    """What an consumer_channel needs of its consumer."""

    tag_prefix: str
    cancelled: bool

    @property
    def deliveries(self) -> SimpleQueue[Delivery | None]:
        """Where deliveries go."""

    def discard_deliveries(self) -> None:
        """Take back those that nobody has taken yet."""

    def restore(self) -> None:
        """The channel is gone. No lock held."""

    def replace(self, consumer_channel: ConsumerChannel) -> None:
        """The broker ended the consumer. No lock held."""


class ConsumerChannel:
    """One channel's worth of a consumer: a delivery settles on the channel it came on, or not at all.

    Mutable, guarded by the connection's lock: ``pending_acks``, ``consuming``, ``closed``, ``_timer_runs``, and
    the message that is arriving: ``_method``, ``_properties``, ``_body``, ``_missing``.
    """

    def __init__(self, consumer: Owner, channel: RpcChannel, queue: str, channel_generation: int) -> None:
        self.consumer = consumer
        self.channel = channel
        self.connection = channel.connection
        self.number = channel.number
        self.queue = queue
        self.channel_generation = channel_generation
        self.consumer_tag = f"{consumer.tag_prefix}.{channel.number}"
        self.pending_acks = PendingAcks()
        self.consuming = False
        self.closed = False
        self._timer_runs = False
        self._method: Deliver | None = None
        self._properties = Properties()
        self._body: list[bytes] = []
        self._missing = 0
        channel.on_closed = self._lost
        if OWN_FRAMES:
            self.connection.frame_handlers[self.number] = self

    def deliver(self, _channel: Any, method: Any, properties: Any, body: bytes) -> None:
        """pika's callback for one message; the connection's lock is held.

        What comes after a cancel stays unacknowledged, and goes back with the channel's end.
        """
        deliver = (method.delivery_tag, method.redelivered, method.exchange, method.routing_key)
        self._arrived(deliver, properties_from_pika(properties), body)

    def take(self, data: bytes, position: int) -> int:
        """Whole frames before pika sees them: method, header, and bodies of deliveries."""
        try:
            while end := self._delivery(data, position) if self._method is None else self._piece(data, position):
                position = end
        except (IndexError, struct.error):  # not there yet
            pass
        return position

    def _delivery(self, data: bytes, start: int) -> int:
        """Where a delivery ends that is there as a whole, as nearly all are; else what :meth:`_piece` says."""
        number = self.number
        size: int
        kind, channel, size, method = _METHOD_START.unpack_from(data, start)
        if method != _DELIVER or channel != number or kind != _METHOD:
            return 0
        header = start + size + 8
        end = len(data)
        if header + 19 < end:
            kind, channel, header_size, content, body_size = _HEADER_START.unpack_from(data, header)
            body = header + header_size + 8
            end = int(body + body_size + 8 if body_size else body)
            if (
                end <= len(data)
                and (kind, channel, content) == (_HEADER, number, _CONTENT)
                and (not body_size or FRAME_START.unpack_from(data, body) == (_BODY, number, body_size))
                and data[header - 1] == data[body - 1] == data[end - 1] == FRAME_END
            ):
                deliver = decode_deliver(data[start + 7 : header - 1])
                if deliver is None:
                    return 0
                payload = data[header + 7 : body - 1]
                properties = decode_properties(payload) or properties_from_pika(decode_header(payload))
                self._arrived(deliver, properties, data[body + 7 : end - 1] if body_size else b"")
                return end
        return self._piece(data, start)

    def _piece(self, data: bytes, start: int) -> int:
        """Where a frame ends that is part of a delivery, or 0: not whole yet, or pika's."""
        size: int
        kind, channel, size = FRAME_START.unpack_from(data, start)
        end = start + size + 8
        if channel != self.number or end > len(data) or data[end - 1] != FRAME_END:
            return 0
        payload = data[start + 7 : end - 1]
        if kind == _METHOD:
            self._method = decode_deliver(payload) if payload.startswith(_DELIVER_BYTES) else None
            return end if self._method is not None else 0
        if self._method is None:
            return 0  # the content of what pika was given
        if kind == _HEADER:
            self._properties = decode_properties(payload) or properties_from_pika(decode_header(payload))
            self._missing = int.from_bytes(payload[4:12], "big")
        elif kind == _BODY:
            self._body.append(payload)
            self._missing -= len(payload)
        else:
            return 0
        if self._missing <= 0:
            method, self._method = self._method, None
            body, self._body = self._body, []
            self._arrived(method, self._properties, body[0] if len(body) == 1 else b"".join(body))
        return end

    def _arrived(self, deliver: Deliver, properties: Properties, body: bytes) -> None:
        if self.closed or self.consumer.cancelled:
            return
        tag, redelivered, exchange, routing_key = deliver
        self.consumer.deliveries.put(
            Delivery(
                body, properties, exchange, routing_key, self.queue, redelivered, tag, self.channel_generation, self
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

        self.connection.after_unlock.append(replace)

    def _lost(self, reason: BaseException) -> None:
        """The channel is closed; the connection's lock is held."""
        self.connection.frame_handlers.pop(self.number, None)
        self.close()
        if self.consuming and isinstance(reason, amqp.ChannelClosedByBroker):
            text = printable(reason.reply_text)

            def restore() -> None:
                logger.warning("the channel consuming %s was closed by the broker: %s", self.queue, text)
                self.consumer.restore()

            self.connection.after_unlock.append(restore)

    def flush_within(self, seconds: float) -> None:
        """Have the I/O thread say what waits by then; the connection's lock is held.

        One timer at a time, which what is said before does not disarm: a new one for each batch would wake the I/O
        thread for each, and again when it is due.
        """
        if not self._timer_runs:
            self.connection.call_later(seconds, self._timed)
            self._timer_runs = True

    def _timed(self) -> None:
        self._timer_runs = False
        self.flush()

    def flush(self) -> None:
        """Say what waits; the connection's lock is held."""
        if not self.closed and self.connection.usable:
            frames = [encode_ack(self.number, tag, multiple) for tag, multiple in self.pending_acks.take()]
            if frames:
                self.connection.write(b"".join(frames))
