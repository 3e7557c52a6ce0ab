"""The publish connection: a channel in confirm mode that every thread writes to."""

from __future__ import annotations

import logging
import struct
from collections import deque
from collections.abc import Callable
from typing import Any

from pika import exceptions as amqp
from pika import spec

from message_hub_sync.config import ClientConfig
from message_hub_sync.errors import MessageHubConnectionError, MessageHubError, MessageValidationError
from message_hub_sync.transport.base import ConnectionState, Outgoing, Receipt, Result
from message_hub_sync.transport.rabbitmq.confirms import ConfirmLedger
from message_hub_sync.transport.rabbitmq.connection import ThreadedConnection
from message_hub_sync.transport.rabbitmq.encoding import OWN_FRAMES, encode_publish
from message_hub_sync.transport.rabbitmq.link import Link
from message_hub_sync.transport.rabbitmq.rpc import BrokerChannel, opened
from message_hub_sync.transport.rabbitmq.translation import RpcTimedOut, describe

__all__ = ["PublishLink"]

logger = logging.getLogger("message_hub_sync.rabbitmq")

#: The payload of a ``basic.ack``: class and method, tag, multiple (AMQP 0-9-1, section 1.8.3.14).
_METHOD = 1
_BASIC_ACK = 60 << 16 | 80
_ACK = struct.Struct(">LQB")
_ACK_SIZE = _ACK.size
_NO_ROOM = "the broker reads too slowly"
_BLOCKED = "the broker accepts no messages (memory or disk alarm); nothing was sent"


class ConfirmChannel:
    """One channel in confirm mode.

    Callers append to ``_pending`` and then drain under the connection's lock; whoever drains assigns the
    delivery tags, in the order of the deque, and sends all of it at once. Mutable, guarded by the
    connection's lock: ``_ledger``, ``_closed``; ``_pending`` is a deque, atomic by itself.
    """

    def __init__(self, channel: BrokerChannel) -> None:
        self.connection = channel.connection
        self.number = channel.number
        self.max_fragment = channel.connection.max_fragment
        self._channel = channel
        self._pending: deque[tuple[Receipt, Outgoing, bytes]] = deque()
        self._ledger = ConfirmLedger()
        self._closed = False

    @classmethod
    def open(cls, connection: ThreadedConnection, deadline: float, on_lost: Callable[[], None]) -> ConfirmChannel:
        """Open a channel and turn confirms on. On the I/O thread; errors as :meth:`BrokerChannel.ask`.

        :param on_lost: called on the I/O thread, no lock held, when the broker closed the channel.
        """
        raw = opened(connection, deadline)
        channel = cls(raw)

        def closed(reason: BaseException) -> None:
            connection.receivers.pop(channel.number, None)
            channel._fail(reason)
            if isinstance(reason, amqp.ChannelClosedByBroker):
                connection.after.append(on_lost)

        raw.on_closed = closed
        if OWN_FRAMES:
            connection.receivers[channel.number] = channel
        raw.pika.add_on_return_callback(channel._on_return)
        try:
            raw.ask(lambda pika, done: pika.confirm_delivery(channel._on_confirm, callback=done), deadline)
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
        return not self._pending and not self._ledger

    def submit(self, entries: list[tuple[Receipt, Outgoing, bytes]]) -> None:
        """Write through. Receipts of what cannot be written are settled ``NOT_WRITTEN``."""
        self._pending.extend(entries)
        with self.connection.lock:
            if self._pending:
                self._drain()

    def _drain(self) -> None:
        pending, ledger = self._pending, self._ledger
        if self._closed or not self.connection.usable:
            while pending:
                pending.popleft()[0].settle(Result.NOT_WRITTEN, "the connection ended before it was written")
            return
        try:
            frames = []
            while pending:
                receipt, outgoing, data = pending[0]
                ledger.written(receipt, outgoing)
                pending.popleft()  # last, so that an interrupted one is in the one or the other
                frames.append(data)
            self.connection.write(frames[0] if len(frames) == 1 else b"".join(frames))
        except BaseException:
            # A signal's exception in here leaves tags and wire out of step: only a new connection is sure.
            self.connection.kill(amqp.StreamLostError("publishing was interrupted"))
            raise

    def _fail(self, reason: BaseException) -> None:
        """The channel is gone: nothing in flight will be answered. The connection's lock is held."""
        self._closed = True
        if isinstance(reason, amqp.ChannelClosedByBroker):
            self._ledger.fail(Result.CHANNEL_CLOSED, f"{reason.reply_code} {reason.reply_text}", reason.reply_code)
        else:
            self._ledger.fail(Result.LOST, describe(reason))
        while self._pending:
            self._pending.popleft()[0].settle(Result.NOT_WRITTEN, "the connection ended before it was written")

    def take(self, kind: int, payload: bytes) -> bool:
        """An acknowledgement, before pika sees it; everything else is pika's."""
        if len(payload) == _ACK_SIZE and kind == _METHOD:
            method, tag, bits = _ACK.unpack(payload)
            if method == _BASIC_ACK:
                self._ledger.acknowledged(tag, bits & 1 != 0)
                return True
        return False

    def _on_confirm(self, method: Any) -> None:
        confirmed = method.method
        if isinstance(confirmed, spec.Basic.Ack):
            self._ledger.acknowledged(confirmed.delivery_tag, confirmed.multiple)
        else:
            self._ledger.refused(confirmed.delivery_tag, confirmed.multiple)

    def _on_return(self, _channel: Any, method: Any, properties: Any, _body: bytes) -> None:
        self._ledger.returned(
            properties.message_id, method.exchange, method.routing_key, method.reply_code, method.reply_text
        )


class PublishLink:
    """Publishes over one connection: the shared channel, and others for what may be poisonous.

    Mutable: ``_shared``, replaced by the I/O thread alone and read without a lock (a stale one only answers
    ``NOT_WRITTEN``); ``_single``, channels that nobody uses now or whose answer is still out: a deque, atomic
    by itself. Whoever takes one has it for himself, which needs no lock that an interrupted caller could keep.
    """

    def __init__(self, config: ClientConfig, listeners: list[Callable[[], None]]) -> None:
        self._listeners = listeners
        self._shared: ConfirmChannel | None = None
        self._single: deque[ConfirmChannel] = deque()
        self.link = Link("publish", config, restore=self._restore, wanted=lambda: False, on_open=self._announce)

    def publish(self, outgoing: Outgoing, deadline: float) -> Receipt:
        """As the seam has it."""
        while True:
            channel = self._channel(deadline)
            if channel is None:
                return _blocked()
            data = encode_publish(outgoing, channel.number, channel.max_fragment)
            if not channel.connection.wait_for_room(deadline):
                raise MessageHubConnectionError(f"nothing was written in time: {_NO_ROOM}")
            receipt = Receipt()
            channel.submit([(receipt, outgoing, data)])
            if receipt.result is not Result.NOT_WRITTEN:
                return receipt

    def publish_many(self, batch: list[Outgoing], deadline: float) -> list[Receipt]:
        """As the seam has it: one write for as many as fit into a slice."""
        receipts: list[Receipt] = []
        while len(receipts) < len(batch):
            rest = len(batch) - len(receipts)
            try:
                channel = self._channel(deadline)
            except MessageHubError as error:
                if not receipts and not isinstance(error, MessageHubConnectionError):
                    raise
                # What was written before has its receipts, and they must reach the caller.
                return receipts + [_not_written(str(error)) for _ in range(rest)]
            if channel is None:
                return receipts + [_blocked() for _ in range(rest)]
            if not channel.connection.wait_for_room(deadline):
                return receipts + [_not_written(_NO_ROOM) for _ in range(rest)]
            receipts.extend(self._slice(channel, batch, len(receipts)))
        return receipts

    def _slice(self, channel: ConfirmChannel, batch: list[Outgoing], start: int) -> list[Receipt]:
        """Write as many as make a slice; none, when the channel turns out to have ended before."""
        receipts: list[Receipt] = []
        entries: list[tuple[Receipt, Outgoing, bytes]] = []
        size = 0
        while start + len(receipts) < len(batch) and size < _SLICE_BYTES:
            outgoing = batch[start + len(receipts)]
            receipt = Receipt()
            try:
                data = encode_publish(outgoing, channel.number, channel.max_fragment)
            except MessageValidationError as error:
                receipt.settle(Result.NACKED, str(error))  # the others go their way
            else:
                size += len(data)
                entries.append((receipt, outgoing, data))
            receipts.append(receipt)
        if entries:
            channel.submit(entries)
            if entries[0][0].result is Result.NOT_WRITTEN:
                return []
        return receipts

    def publish_alone(self, outgoing: Outgoing, deadline: float) -> Receipt:
        """On a channel where nothing else is in flight, so that a closed channel has one culprit.

        Returns once the broker answered or the deadline passed.
        """
        while True:
            if self.link.wait_open(deadline, blocked_will_do=False) is ConnectionState.BLOCKED:
                return _blocked()
            channel = self._idle_single()
            if channel is None:
                self.link.call(self._open_single, deadline)
                continue
            try:
                data = encode_publish(outgoing, channel.number, channel.max_fragment)
                if not channel.connection.wait_for_room(deadline):
                    raise MessageHubConnectionError(f"nothing was written in time: {_NO_ROOM}")
                receipt = Receipt()
                channel.submit([(receipt, outgoing, data)])
                if receipt.result is not Result.NOT_WRITTEN:
                    receipt.wait(deadline)
                    return receipt
            finally:
                self._single.append(channel)

    def _idle_single(self) -> ConfirmChannel | None:
        for _ in range(len(self._single)):
            try:
                channel = self._single.popleft()
            except IndexError:
                return None
            if channel.usable:
                if channel.idle:
                    return channel
                self._single.append(channel)  # what it carries may still be answered
        return None

    def _channel(self, deadline: float) -> ConfirmChannel | None:
        """The shared channel, waiting for it; ``None`` when the broker still blocks at the deadline."""
        while True:
            channel = self._shared
            if channel is not None and channel.usable and self.link.state is ConnectionState.OPEN:
                return channel
            if self.link.wait_open(deadline, blocked_will_do=False) is ConnectionState.BLOCKED:
                return None
            channel = self._shared
            if channel is None or not channel.usable:
                channel = self.link.call(self._open_shared, deadline)
                if channel.usable:
                    return channel

    def _restore(self, connection: ThreadedConnection) -> None:
        self._open_shared(connection)

    def _open_shared(self, connection: ThreadedConnection) -> ConfirmChannel:
        channel = self._shared
        if channel is None or not channel.usable:
            channel = ConfirmChannel.open(connection, Link.restore_deadline(), self.link.disturb)
            self._shared = channel
        return channel

    def _open_single(self, connection: ThreadedConnection) -> None:
        # Into the deque, not to the caller: one who gave up leaves it to the next.
        self._single.append(ConfirmChannel.open(connection, Link.restore_deadline(), lambda: None))

    def _announce(self) -> None:
        for listener in list(self._listeners):
            try:
                listener()
            except Exception:
                logger.exception("what listens for the connection failed")


#: Bytes of one write in a bulk: enough that system calls do not count, well below the out-buffer.
_SLICE_BYTES = 256 * 1024


def _blocked() -> Receipt:
    receipt = Receipt()
    receipt.settle(Result.BLOCKED, _BLOCKED)
    return receipt


def _not_written(reason: str) -> Receipt:
    receipt = Receipt()
    receipt.settle(Result.NOT_WRITTEN, reason)
    return receipt
