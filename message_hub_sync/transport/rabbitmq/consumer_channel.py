"""One channel on which a consumer receives: its deliveries and its pending acks."""

from __future__ import annotations

import functools
import struct
from typing import Any, Protocol

from pika import exceptions as amqp

from message_hub_sync.envelope.header_names import BODY_BYTES
from message_hub_sync.envelope.values import Properties
from message_hub_sync.runtime.text import printable
from message_hub_sync.transport.base import Delivery, DeliverySink
from message_hub_sync.transport.rabbitmq.frames.decoding import FRAME_END, FRAME_START, decode, decode_header
from message_hub_sync.transport.rabbitmq.frames.encoding import OWN_FRAMES, encode_ack, properties_from_pika
from message_hub_sync.transport.rabbitmq.frames.fast_decoding import Deliver, decode_deliver, decode_properties
from message_hub_sync.transport.rabbitmq.pending_acks import PendingAcks
from message_hub_sync.transport.rabbitmq.rpc_channel import RpcChannel

__all__ = ["ConsumerChannel"]


#: Frame types (AMQP 0-9-1, section 4.2.3), class and method of ``basic.deliver`` (1.8.3.13), class and weight of its
#: content header.
_METHOD, _HEADER, _BODY = 1, 2, 3
_DELIVER = 60 << 16 | 60
_CONTENT = 60 << 16
_DELIVER_BYTES = _DELIVER.to_bytes(4, "big")
#: The start of a method frame: type, channel, size, class and method. The start of a content header frame: type,
#: channel, size, class and weight, body size.
_METHOD_START = struct.Struct(">BHIL")
_HEADER_START = struct.Struct(">BHILQ")


class Owner(Protocol):
    """What a consumer channel needs of its consumer."""

    tag_prefix: str
    """The start of its consumer tags; the channel number follows."""
    max_message_bytes: int
    """The largest body that is kept."""
    cancelled: bool
    """Whether further deliveries come late."""

    sink: DeliverySink
    """Where to put deliveries."""

    def arrived_late(self, consumer_channel: ConsumerChannel, tag: int) -> None:
        """A delivery came after the cancel. Called with the connection's lock held."""

    def discard_deliveries(self) -> None:
        """Drop the deliveries that no worker has taken yet."""

    def lost(self, why: str) -> None:
        """The broker closed the channel. Called on the I/O thread, no lock held."""

    def replace(self, consumer_channel: ConsumerChannel) -> None:
        """The broker cancelled the consumer. Called on the I/O thread, no lock held."""


class ConsumerChannel:
    """One channel of a consumer. A delivery can be acknowledged only on the channel it came on.

    If the channel is lost, the consumer continues on another one, with the next ``channel_generation``.
    """

    def __init__(self, consumer: Owner, channel: RpcChannel, queue: str, channel_generation: int) -> None:
        self.consumer = consumer
        self.channel = channel
        self.connection = channel.connection
        self.number = channel.number
        self.queue = queue
        self.channel_generation = channel_generation
        self.consumer_tag = f"{consumer.tag_prefix}.{channel.number}"
        self.pending_acks = PendingAcks()  # guarded by the connection's lock
        self.consuming = False  # guarded by the connection's lock, also read without it
        self.closed = False  # guarded by the connection's lock, also read without it
        self.ended: str | None = None  # guarded by the connection's lock; why the broker closed it
        self._timer_runs = False  # guarded by the connection's lock
        self._max_message_bytes = consumer.max_message_bytes
        self._put = consumer.sink.put
        # The message that is arriving in pieces; no message if _method is None.
        self._method: Deliver | None = None  # guarded by the connection's lock
        self._properties: Properties | None = None  # guarded by the connection's lock; None until its header is there
        self._body: list[bytes] = []  # guarded by the connection's lock
        self._size = 0  # bytes of the whole body; guarded by the connection's lock
        self._missing = 0  # bytes of the body still to come; guarded by the connection's lock
        channel.on_closed = self._lost
        if OWN_FRAMES:
            self.connection.frame_handlers[self.number] = self

    def deliver(self, _channel: Any, method: Any, properties: Any, body: bytes) -> None:
        """pika's callback for one message. The caller holds the connection's lock."""
        exchange, routing_key = _text(method.exchange), _text(method.routing_key)
        if len(body) > self._max_message_bytes:
            properties.headers = {**(properties.headers or {}), BODY_BYTES: len(body)}
            body = b""
        deliver = (method.delivery_tag, method.redelivered, exchange, routing_key)
        self._arrived(deliver, properties_from_pika(properties), body)

    def take(self, data: bytes, position: int) -> int:
        """Handle the complete frames of deliveries from ``position`` on. The caller holds the connection's lock.

        :returns: the position of the first other or incomplete frame, which is left to pika.
        :raises UnexpectedFrameError: the frames of a delivery do not follow each other.
        """
        try:
            while end := self._delivery(data, position) if self._method is None else self._piece(data, position):
                position = end
        except (IndexError, struct.error):  # the rest of a frame is not received yet
            pass
        return position

    def _delivery(self, data: bytes, start: int) -> int:
        """Handle the delivery at ``start``; its end, or 0 if there is none or not enough of it."""
        # 1: another frame: pika handles it.
        # 2: method, header and at most one body frame are received completely, as for nearly all messages: decode them
        #    at once.
        # 3: several body frames, an incomplete one, or a body that is too large: _piece() handles frame by frame.
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
                and body_size <= self._max_message_bytes
                and (kind, channel, content) == (_HEADER, number, _CONTENT)
                and (not body_size or FRAME_START.unpack_from(data, body) == (_BODY, number, body_size))
                and data[header - 1] == data[body - 1] == data[end - 1] == FRAME_END
            ):
                deliver = decode_deliver(data[start + 7 : header - 1]) or _decoded_by_pika(data[start:header])
                payload = data[header + 7 : body - 1]
                properties = decode_properties(payload) or properties_from_pika(decode_header(payload))
                self._arrived(deliver, properties, data[body + 7 : end - 1] if body_size else b"")
                return end
        return self._piece(data, start)

    def _piece(self, data: bytes, start: int) -> int:
        """Handle one frame of a delivery at ``start``; its end, or 0 if it is incomplete or another frame.

        :raises UnexpectedFrameError: the frames of a delivery do not follow each other.
        """
        size: int
        kind, channel, size = FRAME_START.unpack_from(data, start)
        end = start + size + 8
        if channel != self.number or end > len(data) or data[end - 1] != FRAME_END:
            return 0
        payload = data[start + 7 : end - 1]
        if self._method is None:
            if kind != _METHOD or not payload.startswith(_DELIVER_BYTES):
                return 0  # pika handles it
            self._method = decode_deliver(payload) or _decoded_by_pika(data[start:end])
            return end
        if kind == _HEADER and self._properties is None:
            self._properties = decode_properties(payload) or properties_from_pika(decode_header(payload))
            self._size = self._missing = int.from_bytes(payload[4:12], "big")
        elif kind == _BODY and self._properties is not None and size <= self._missing:
            self._missing -= size
            if self._size <= self._max_message_bytes:
                self._body.append(payload)
        else:
            raise amqp.UnexpectedFrameError("a delivery without its content")
        if not self._missing:
            self._complete(self._method, self._properties)
        return end

    def _complete(self, method: Deliver, properties: Properties) -> None:
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._method, self._properties, self._body = None, None, []
        if len(body) < self._size:
            properties.headers[BODY_BYTES] = self._size
        self._arrived(method, properties, body)

    def _arrived(self, deliver: Deliver, properties: Properties, body: bytes) -> None:
        if self.closed:
            return
        tag, redelivered, exchange, routing_key = deliver
        if self.consumer.cancelled:
            self.consumer.arrived_late(self, tag)
            return
        self._put(
            Delivery(
                body, properties, exchange, routing_key, self.queue, redelivered, tag, self.channel_generation, self
            )
        )

    def cancel(self) -> None:
        """Ask the broker to send no more deliveries, without waiting for its answer. Any thread, no lock held."""

        def send() -> None:
            # For an unknown tag, pika only logs a warning.
            if not self.closed and self.connection.usable and self.consumer_tag in self.channel.pika.consumer_tags:
                self.channel.pika.basic_cancel(self.consumer_tag)

        self.connection.lock.run(send)
        self.connection.wake()  # the I/O thread sends it

    def close(self) -> None:
        """Acknowledge nothing more on this channel. The caller holds the connection's lock."""
        if not self.closed:
            self.closed = True
            self.consumer.discard_deliveries()

    def cancelled_by_broker(self, _frame: Any) -> None:
        """pika's callback for a ``basic.cancel`` of the broker. The caller holds the connection's lock."""

        self.connection.after_unlock.append(lambda: self.consumer.replace(self))

    def _lost(self, reason: BaseException) -> None:
        """The channel is closed. The caller holds the connection's lock."""
        self.connection.frame_handlers.pop(self.number, None)
        self.close()
        if isinstance(reason, amqp.ChannelClosedByBroker):
            self.ended = f"the broker closed the channel that consumes {self.queue}: {printable(reason.reply_text)}"
            if self.consuming:
                self.connection.after_unlock.append(functools.partial(self.consumer.lost, self.ended))

    def flush_within(self, seconds: float) -> None:
        """Have the I/O thread send the pending acks within ``seconds``. The caller holds the connection's lock."""
        # At most one flush timer, which a flush does not cancel: a timer per batch would wake the I/O thread twice per
        # batch.
        if not self._timer_runs:
            self.connection.call_later(seconds, self._timed)
            self._timer_runs = True

    def _timed(self) -> None:
        self._timer_runs = False
        self.flush()

    def flush(self) -> None:
        """Send the pending acks. The caller holds the connection's lock."""
        if not self.closed and self.connection.usable:
            frames = [encode_ack(self.number, tag, multiple) for tag, multiple in self.pending_acks.take()]
            if frames:
                self.connection.write(b"".join(frames))


def _decoded_by_pika(frame: bytes) -> Deliver:
    """Decode the frame of a ``basic.deliver`` that is not of the common shape."""
    found = decode(_METHOD, frame).method
    return found.delivery_tag, found.redelivered, _text(found.exchange), _text(found.routing_key)


def _text(short_string: str | bytes) -> str:
    """pika leaves a short string that is not UTF-8 as bytes."""
    return short_string if isinstance(short_string, str) else short_string.decode("utf-8", "backslashreplace")
