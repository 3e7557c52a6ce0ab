"""The publish connection: a channel in confirm mode that every thread writes to."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from pika import exceptions as amqp
from pika import spec

from message_hub_sync.config import ClientConfig
from message_hub_sync.errors import MessageHubConnectionError
from message_hub_sync.transport.base import ConnectionState, Outgoing, Receipt, Result
from message_hub_sync.transport.rabbitmq.confirms import ConfirmLedger
from message_hub_sync.transport.rabbitmq.connection import ThreadedConnection
from message_hub_sync.transport.rabbitmq.encoding import encode_publish
from message_hub_sync.transport.rabbitmq.link import Link
from message_hub_sync.transport.rabbitmq.rpc import BrokerChannel, opened
from message_hub_sync.transport.rabbitmq.translation import describe

__all__ = ["PublishLink"]

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
            channel._fail(reason)
            if isinstance(reason, amqp.ChannelClosedByBroker):
                connection.after.append(on_lost)

        raw.on_closed = closed
        raw.pika.add_on_return_callback(channel._on_return)
        raw.ask(lambda pika, done: pika.confirm_delivery(channel._on_confirm, callback=done), deadline)
        return channel

    @property
    def usable(self) -> bool:
        """Whether a publish handed over now may be written."""
        return not self._closed and self.connection.usable

    def submit(self, entries: list[tuple[Receipt, Outgoing, bytes]]) -> None:
        """Write through. Receipts of what cannot be written are settled ``NOT_WRITTEN``."""
        self._pending.extend(entries)
        with self.connection.lock:
            if self._pending:
                self._drain()

    def _drain(self) -> None:
        pending, ledger = self._pending, self._ledger
        if not self.usable:
            while pending:
                pending.popleft()[0].settle(Result.NOT_WRITTEN, "the connection ended before it was written")
            return
        try:
            frames = []
            while pending:
                receipt, outgoing, data = pending.popleft()
                ledger.written(receipt, outgoing)
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
    """Publishes over one connection: the shared channel, and a second one for what may be poisonous.

    Mutable: ``_shared`` and ``_single``, replaced by the I/O thread alone and read without a lock (a stale
    one only answers ``NOT_WRITTEN``). ``_one_at_a_time`` serialises the second channel.
    """

    def __init__(self, config: ClientConfig, listeners: list[Callable[[], None]]) -> None:
        self._listeners = listeners
        self._shared: ConfirmChannel | None = None
        self._single: ConfirmChannel | None = None
        self._one_at_a_time = threading.Lock()
        self.link = Link("publish", config, restore=self._restore, wanted=lambda: False, on_open=self._announce)

    def publish(self, outgoing: Outgoing, deadline: float) -> Receipt:
        """As the seam has it."""
        while True:
            channel = self._channel(deadline)
            if channel is None:
                return _refused()
            data = encode_publish(outgoing, channel.number, channel.max_fragment)
            if not channel.connection.wait_for_room(deadline):
                raise MessageHubConnectionError("no room to write in time: the broker reads too slowly")
            receipt = Receipt()
            channel.submit([(receipt, outgoing, data)])
            if receipt.result is not Result.NOT_WRITTEN:
                return receipt

    def publish_many(self, batch: list[Outgoing], deadline: float) -> list[Receipt]:
        """As the seam has it: one write for as many as fit into the out-buffer."""
        receipts: list[Receipt] = []
        position = 0
        while position < len(batch):
            try:
                channel = self._channel(deadline)
            except MessageHubConnectionError as error:
                receipts.extend(_not_written(str(error)) for _ in batch[position:])
                break
            if channel is None:
                receipts.extend(_refused() for _ in batch[position:])
                break
            if not channel.connection.wait_for_room(deadline):
                receipts.extend(_not_written("the broker reads too slowly") for _ in batch[position:])
                break
            entries: list[tuple[Receipt, Outgoing, bytes]] = []
            size = 0
            while position + len(entries) < len(batch) and size < _SLICE_BYTES:
                outgoing = batch[position + len(entries)]
                data = encode_publish(outgoing, channel.number, channel.max_fragment)
                size += len(data)
                entries.append((Receipt(), outgoing, data))
            channel.submit(entries)
            if entries[0][0].result is Result.NOT_WRITTEN:
                continue  # the channel ended between choosing and writing: none of the slice was written
            receipts.extend(receipt for receipt, _, _ in entries)
            position += len(entries)
        return receipts

    def publish_alone(self, outgoing: Outgoing, deadline: float) -> Receipt:
        """On the second channel, one at a time, so that a closed channel has one culprit.

        Returns once the broker answered or the deadline passed.
        """
        if not self._one_at_a_time.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise MessageHubConnectionError("no turn on the second channel in time")
        try:
            while True:
                channel = self._single
                if channel is None or not channel.usable:
                    channel = self.link.call(self._open_single, deadline)
                data = encode_publish(outgoing, channel.number, channel.max_fragment)
                if not channel.connection.wait_for_room(deadline):
                    raise MessageHubConnectionError("no room to write in time: the broker reads too slowly")
                receipt = Receipt()
                channel.submit([(receipt, outgoing, data)])
                if receipt.result is Result.NOT_WRITTEN:
                    continue
                if receipt.wait(deadline) is None:
                    self._single = None  # what answers late must not be taken for the next one's channel
                return receipt
        finally:
            self._one_at_a_time.release()

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

    def _open_single(self, connection: ThreadedConnection) -> ConfirmChannel:
        channel = ConfirmChannel.open(connection, Link.restore_deadline(), lambda: None)
        self._single = channel
        return channel

    def _announce(self) -> None:
        for listener in list(self._listeners):
            listener()


#: Bytes of one write in a bulk: enough that system calls do not count, well below the out-buffer.
_SLICE_BYTES = 256 * 1024


def _refused() -> Receipt:
    receipt = Receipt()
    receipt.settle(Result.NACKED, _BLOCKED)
    return receipt


def _not_written(reason: str) -> Receipt:
    receipt = Receipt()
    receipt.settle(Result.NOT_WRITTEN, reason)
    return receipt
