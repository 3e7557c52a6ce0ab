"""One channel in confirm mode that every thread writes to."""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from pika import exceptions as amqp
from pika import spec

from message_hub_sync.transport.base import Outgoing, PublishResult, Receipt
from message_hub_sync.transport.rabbitmq.confirms import OutstandingConfirms
from message_hub_sync.transport.rabbitmq.connection import ThreadedConnection
from message_hub_sync.transport.rabbitmq.frames.decoding import FRAME_END
from message_hub_sync.transport.rabbitmq.frames.encoding import OWN_FRAMES
from message_hub_sync.transport.rabbitmq.rpc import RpcChannel, open_channel
from message_hub_sync.transport.rabbitmq.translation import RpcTimedOut, describe

__all__ = ["ConfirmChannel"]

#: A frame with a ``basic.ack``: kind, channel, size, class and method, tag, multiple, end (AMQP 0-9-1, 1.8.3.14).
_ACK = struct.Struct(">BHILQBB")
_ACK_BYTES = _ACK.size
_METHOD = 1
_ACK_PAYLOAD = 13
_BASIC_ACK = 60 << 16 | 80

#: Callers that were answered so short a time ago, in seconds, are likely to publish again at once …
_BACK_WITHIN = 0.001
#: … each of them after about so long, as it takes its turn at the interpreter.
_BACK_EACH = 0.00012
#: So many are enough for one write: the broker works on them while others get ready.
_TOGETHER = 4
#: Writes that one caller makes for others that come meanwhile, before the I/O thread does.
_ROUNDS = 8


class ConfirmChannel:
    """One channel in confirm mode.

    Callers append to ``_pending`` and then drain under the connection's lock; whoever drains assigns the
    delivery tags, in the order of the deque, and sends all of it at once. Who comes while another one drains leaves
    its message to that one, which looks again after it has said that it is done.

    Where several callers were answered together, the first that is back waits a moment for the others, so that one
    write carries them all: RabbitMQ confirms what came together together, and a write costs it and us as much as many.

    Mutable, guarded by the connection's lock: ``_outstanding``, ``_closed``, and ``_draining``, which is read without;
    ``_pending`` is a deque, atomic by itself. ``_returning`` is a guess at how many were answered and are not back: an
    update lost between threads costs one caller one short wait.
    """

    def __init__(self, channel: RpcChannel, on_late: Callable[[], None] = lambda: None) -> None:
        self.connection = channel.connection
        self._on_late = on_late
        self.number = channel.number
        self.max_fragment = channel.connection.max_fragment
        self._channel = channel
        self._pending: deque[tuple[Receipt, Outgoing, bytes]] = deque()
        self._outstanding = OutstandingConfirms()
        self._closed = False
        self._draining = False
        self._returning = 0

    @classmethod
    def open(
        cls,
        connection: ThreadedConnection,
        deadline: float,
        on_lost: Callable[[], None],
        on_late: Callable[[], None],
    ) -> ConfirmChannel:
        """Open a channel and turn confirms on. On the I/O thread; errors as :meth:`RpcChannel.call`.

        :param on_lost: called on the I/O thread, no lock held, when the broker closed the channel.
        :param on_late: likewise, when it has answered somebody who had given up: it was silent, and is not any more.
        """
        raw = open_channel(connection, deadline)
        channel = cls(raw, on_late)

        def closed(reason: BaseException) -> None:
            connection.frame_handlers.pop(channel.number, None)
            channel._fail(reason)
            if isinstance(reason, amqp.ChannelClosedByBroker):
                connection.after_unlock.append(on_lost)

        raw.on_closed = closed
        if OWN_FRAMES:
            connection.frame_handlers[channel.number] = channel
        raw.pika.add_on_return_callback(channel._on_return)
        try:
            raw.call(lambda pika, done: pika.confirm_delivery(channel._on_confirm, callback=done), deadline)
        except RpcTimedOut:
            raw.close(deadline)
            raise
        return channel

    @property
    def usable(self) -> bool:
        """Whether a publish handed over now may be written."""
        return not self._closed and self.connection.usable

    @property
    def idle(self) -> bool:
        """Whether every publish on it has been answered."""
        with self.connection.lock:  # an answer is settled just before it is forgotten
            return not self._pending and not self._outstanding.in_flight

    def submit(self, receipt: Receipt, outgoing: Outgoing, data: bytes) -> None:
        """Write one message through. If it cannot be written, its receipt is settled ``NOT_WRITTEN``."""
        pending = self._pending
        try:
            pending.append((receipt, outgoing, data))
            if self._draining:
                return
            if self._returning > 1 and len(pending) < _TOGETHER and (others := self._expected()):
                if not self._is_first(receipt):
                    return  # the first one sends it
                receipt.wait(time.monotonic() + min(others * _BACK_EACH, _BACK_WITHIN))
            self._returning = 0
            self._drain(receipt)
        except BaseException:
            self._drain()  # a signal's exception: others may have relied on this one
            raise

    def submit_many(self, entries: list[tuple[Receipt, Outgoing, bytes]]) -> None:
        """The same for several at once."""
        self._returning = 0
        try:
            self._pending.extend(entries)
            self._drain()
        except BaseException:
            self._drain()  # likewise
            raise

    def _is_first(self, receipt: Receipt) -> bool:
        """Whether nothing waits before it. (Nothing at all: it was written already.)"""
        try:
            return self._pending[0][0] is receipt
        except IndexError:
            return False

    def _expected(self) -> int:
        """How many of those that were answered a moment ago are likely to publish now, too."""
        self._returning -= 1
        return self._returning if time.monotonic() - self.connection.read_at < _BACK_WITHIN else 0

    def _drain(self, receipt: Receipt | None = None) -> None:
        """Write what waits; ``receipt``: that of the caller, who then waits for it."""
        for _ in range(_ROUNDS):
            if not self._pending or self._draining:
                return
            with self.connection.lock:
                try:
                    self._draining = True
                    self._write_pending(receipt)
                finally:
                    self._draining = False
        with self.connection.lock:  # nobody is to be kept writing for others
            if self._closed:
                self._write_pending()  # there may be no I/O thread any more
            else:
                self.connection.call_later(0, self._write_pending)

    def _write_pending(self, receipt: Receipt | None = None) -> None:
        """Tags for all that waits, and one write. The connection's lock is held."""
        pending, outstanding = self._pending, self._outstanding
        if self._closed or not self.connection.usable:
            while pending:
                pending.popleft()[0].resolve(PublishResult.NOT_WRITTEN, "the connection ended before it was written")
            return
        try:
            frames = []
            while pending:
                each, outgoing, data = pending[0]
                outstanding.add(each, outgoing)
                pending.popleft()  # last, so that an interrupted one is in the one or the other
                frames.append(data)
            if frames:
                self.connection.write(frames[0] if len(frames) == 1 else b"".join(frames))
            if self.connection.reader_role.callers_may_read:
                self.connection.reader_role.written(receipt, outstanding.in_flight)
        except BaseException:
            # A signal's exception in here leaves tags and wire out of step: only a new connection is sure.
            self.connection.kill(amqp.StreamLostError("publishing was interrupted"))
            raise

    def _fail(self, reason: BaseException) -> None:
        """The channel is gone: nothing in flight will be answered. The connection's lock is held."""
        self._closed = True
        if isinstance(reason, amqp.ChannelClosedByBroker):
            self._outstanding.closed(f"{reason.reply_code} {reason.reply_text}", reason.reply_code)
        else:
            self._outstanding.fail(PublishResult.LOST, describe(reason))
        self._write_pending()  # which is too late now, and told to those who wait

    def take(self, data: bytes, position: int) -> int:
        """Acknowledgements, before pika sees them; everything else is pika's."""
        last = len(data) - _ACK_BYTES
        while position <= last:
            kind, channel, size, method, tag, bits, end = _ACK.unpack_from(data, position)
            if method != _BASIC_ACK or channel != self.number or kind != _METHOD:
                break
            if size != _ACK_PAYLOAD or end != FRAME_END:
                break
            count = self._outstanding.ack(tag, bits & 1 != 0)
            self._answered(count)
            self.connection.reader_role.answered(count, len(self._outstanding.in_flight))
            position += _ACK_BYTES
        return position

    def _answered(self, count: int) -> None:
        if self._outstanding.late:
            self._outstanding.late = False
            if self._on_late not in self.connection.after_unlock:
                self.connection.after_unlock.append(self._on_late)
        self._returning += count

    def _on_confirm(self, method: Any) -> None:
        confirmed = method.method
        if isinstance(confirmed, spec.Basic.Ack):
            self._answered(self._outstanding.ack(confirmed.delivery_tag, confirmed.multiple))
        else:
            self._outstanding.nack(confirmed.delivery_tag, confirmed.multiple)

    def _on_return(self, _channel: Any, method: Any, properties: Any, _body: bytes) -> None:
        self._outstanding.returned(
            properties.message_id, method.exchange, method.routing_key, method.reply_code, method.reply_text
        )
