"""One channel in confirm mode, on which any thread publishes."""

from __future__ import annotations

import struct
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from pika import exceptions as amqp
from pika import spec

from message_hub_sync.runtime.real_time import time
from message_hub_sync.transport.base import Outgoing, PublishResult, Receipt
from message_hub_sync.transport.rabbitmq.connection import ThreadedConnection
from message_hub_sync.transport.rabbitmq.frames.decoding import FRAME_END
from message_hub_sync.transport.rabbitmq.frames.encoding import OWN_FRAMES
from message_hub_sync.transport.rabbitmq.io_tasks import Steps
from message_hub_sync.transport.rabbitmq.outstanding_confirms import OutstandingConfirms
from message_hub_sync.transport.rabbitmq.rpc_channel import RpcChannel
from message_hub_sync.transport.rabbitmq.translation import describe

__all__ = ["ConfirmChannel"]

#: A frame with a ``basic.ack``: kind, channel, size, class and method, tag, multiple, end (AMQP 0-9-1, 1.8.3.14).
_ACK = struct.Struct(">BHILQBB")
_ACK_BYTES = _ACK.size
_METHOD = 1
_ACK_PAYLOAD = 13
_BASIC_ACK = 60 << 16 | 80

#: Seconds after a confirm in which the confirmed callers are expected to publish again.
_BACK_WITHIN = 0.001
#: Seconds until each further caller is expected: they take turns at the interpreter lock.
_BACK_EACH = 0.00012
#: This number of messages is enough for one write: the broker works on them while other callers prepare theirs.
_TOGETHER = 4
#: Seconds until a message that is not urgent is written, with all that come meanwhile.
_SOON = 0.002
#: How many writes one caller does if other threads keep adding messages; then the I/O thread takes over.
_ROUNDS = 8


class ConfirmChannel:
    """One channel in confirm mode. Any thread may publish on it.

    A caller appends its message to ``_pending``, then drains that deque under the connection's lock: it assigns the
    delivery tags in the order of the deque and sends all messages with one write.
    """

    def __init__(self, channel: RpcChannel, on_late: Callable[[], None] = lambda: None) -> None:
        self.connection = channel.connection
        self._on_late = on_late
        self.number = channel.number
        self.max_fragment = channel.connection.max_fragment
        self._channel = channel
        self._pending: deque[tuple[Receipt, Outgoing, bytes]] = deque()  # any thread appends; a deque is atomic
        self._outstanding = OutstandingConfirms()  # guarded by the connection's lock
        self._closed = False  # guarded by the connection's lock, also read without it
        self._draining = False  # guarded by the connection's lock, also read without it
        self._writes_soon = False  # whether a timer will write what is pending; single operations only
        # How many confirmed callers have probably not published again yet. No lock: if two threads update it at once,
        # one update is lost, which costs one caller one short wait.
        self._returning = 0
        # The thread that waits for others before it writes, 0 if none. No lock: it only decides who writes.
        self._gathering = 0

    @classmethod
    def open(
        cls, connection: ThreadedConnection, on_lost: Callable[[], None], on_late: Callable[[], None]
    ) -> Steps[ConfirmChannel]:
        """Open a channel and turn confirms on, in a task.

        :param on_lost: called on the I/O thread, no lock held, after the broker closed the channel.
        :param on_late: called on the I/O thread, no lock held, after a confirm for a caller that had stopped waiting:
            a silent broker answers again.
        :raises ChannelClosed: the broker closed the channel.
        :raises ConnectionEnded: the connection ended.
        :raises RpcTimedOut: no answer before the deadline of the task.
        """
        raw = RpcChannel(connection)
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
        # Without a callback pika asks for no answer. The broker reads this before any message on the channel.
        raw.send(lambda pika: pika.confirm_delivery(channel._on_confirm))
        try:
            yield from raw.wait_open()
        except Exception:
            raw.close()
            raise
        return channel

    @property
    def usable(self) -> bool:
        """Whether the channel and its connection are open for publishing."""
        return not self._closed and self.connection.usable

    @property
    def idle(self) -> bool:
        """Whether the broker has answered every publish on this channel."""
        # With the lock: a receipt is resolved shortly before its tag is removed from in_flight.
        return self.connection.lock.run(lambda: not self._pending and not self._outstanding.in_flight)

    @property
    def awaited(self) -> bool:
        """Whether a caller waits for the answer to a publish that is written."""
        return self.connection.lock.run(self._is_awaited)

    def _is_awaited(self) -> bool:
        return any(
            receipt.result is None and not receipt.abandoned for receipt, _ in self._outstanding.in_flight.values()
        )

    def submit(self, receipt: Receipt, outgoing: Outgoing, data: bytes) -> None:
        """Write one message, or leave it to another thread that writes.

        :param receipt: resolved as ``NOT_WRITTEN`` if the channel is closed; else when the broker answers.
        :param data: the encoded frames of ``outgoing``.
        """
        pending = self._pending
        try:
            pending.append((receipt, outgoing, data))
            # 1: another thread is draining: it writes this message too, as it checks the deque again after it has
            #    cleared `_draining`.
            if self._draining:
                return
            # 2: several callers were confirmed at once and should publish again soon. The first one waits up to 1 ms
            #    for the others; the others leave their messages to it; the fourth message ends the wait. One write
            #    for all costs client and broker as much as a write for one, and RabbitMQ confirms with one ack what
            #    arrives together.
            if self._returning > 1 and len(pending) < _TOGETHER and (others := self._expected()):
                gathering, this_thread = self._gathering, threading.get_ident()
                # Not to this thread: then this call is in a signal handler or in __del__, and interrupted that wait.
                if gathering and gathering != this_thread:
                    return
                if not gathering:
                    self._gather(this_thread, receipt, time.monotonic() + min(others * _BACK_EACH, _BACK_WITHIN))
            # 3: write now.
            self._returning = 0
            # The caller of a request must not read: it waits for the reply too, which comes on another connection.
            self._drain(None if outgoing.properties.reply_to else receipt)
        except BaseException:
            self._drain()  # interrupted by a signal handler: other threads may have left their messages to this one
            raise

    def submit_soon(self, receipt: Receipt, outgoing: Outgoing, data: bytes) -> None:
        """Have the I/O thread write one message within 2 ms, with all that come meanwhile.

        A thread that publishes one message after the other, and waits for none, would else make a write for each.

        :param receipt: see :meth:`submit`.
        """
        self._pending.append((receipt, outgoing, data))
        # After the append: the timer that runs writes this message too, and so does the end of the channel.
        if not self._writes_soon or not self.usable:
            self._writes_soon = True
            self.connection.lock.run(self._start_writing_soon)

    def _start_writing_soon(self) -> None:
        if self.usable:
            self.connection.call_later(_SOON, self._write_what_came)
        else:
            self._write_pending()

    def _write_what_came(self) -> None:
        self._writes_soon = False  # first: what comes from here on starts the timer again
        self._write_pending()

    def submit_many(self, entries: list[tuple[Receipt, Outgoing, bytes]]) -> None:
        """Write several messages, in order and with one write. Each receipt is resolved as ``NOT_WRITTEN`` if the
        channel is closed; else when the broker answers.

        :param entries: for each message its receipt, the message and its encoded frames.
        """
        self._returning = 0
        try:
            self._pending.extend(entries)
            self._drain()
        except BaseException:
            self._drain()  # interrupted by a signal handler: other threads may have left their messages to this one
            raise

    def _gather(self, this_thread: int, receipt: Receipt, until: float) -> None:
        """Wait for messages of other callers, which leave them to this thread until this method ends."""
        self._gathering = this_thread
        try:
            receipt.wait(until)
        finally:
            self._gathering = 0  # before this thread writes: what was left to it until now is in the deque

    def _expected(self) -> int:
        """How many other callers are likely to publish now, because they were confirmed within the last 1 ms."""
        self._returning -= 1
        return self._returning if time.monotonic() - self.connection.read_at < _BACK_WITHIN else 0

    def _drain(self, receipt: Receipt | None = None) -> None:
        """Write all pending messages.

        :param receipt: the receipt for which the caller waits afterwards; ``None`` for several or for none.
        """
        for _ in range(_ROUNDS):
            if not self._pending or self._draining:
                return
            self.connection.lock.run(self._drain_once, receipt)
        # Other threads keep adding messages: the I/O thread writes the rest, so that this caller can return.
        self.connection.lock.run(self._leave_the_rest)

    def _drain_once(self, receipt: Receipt | None) -> None:
        try:
            self._draining = True
            self._write_pending(receipt)
        finally:
            self._draining = False

    def _leave_the_rest(self) -> None:
        if self._closed:
            self._write_pending()  # the I/O thread may have ended
        else:
            self.connection.call_later(0, self._write_pending)

    def _write_pending(self, receipt: Receipt | None = None) -> None:
        """Assign tags to all pending messages and send them with one write. The caller holds the connection's lock.

        On a closed channel, resolve them as ``NOT_WRITTEN``.
        """
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
                pending.popleft()  # after add(): if a signal interrupts this, the receipt is in at least one of both
                frames.append(data)
            if frames:
                self.connection.write(frames[0] if len(frames) == 1 else b"".join(frames))
            if self.connection.reader_role.callers_may_read:
                self.connection.reader_role.written(receipt, outstanding.in_flight)
        except BaseException:
            # Interrupted by a signal handler: the tags may no longer match the frames on the wire, so end the
            # connection.
            self.connection.kill(amqp.StreamLostError("publishing was interrupted"))
            raise

    def _fail(self, reason: BaseException) -> None:
        """The channel is closed: resolve every receipt. The caller holds the connection's lock."""
        self._closed = True
        if isinstance(reason, amqp.ChannelClosedByBroker):
            self._outstanding.closed(f"{reason.reply_code} {reason.reply_text}", reason.reply_code)
        else:
            self._outstanding.fail(PublishResult.LOST, describe(reason))
        self._write_pending()  # the channel is closed: this resolves all that is pending as NOT_WRITTEN

    def take(self, data: bytes, position: int) -> int:
        """Handle the ``basic.ack`` frames from ``position`` on. The caller holds the connection's lock.

        :returns: the position of the first other or incomplete frame, which is left to pika.
        """
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
        """The broker confirmed ``count`` publishes."""
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
