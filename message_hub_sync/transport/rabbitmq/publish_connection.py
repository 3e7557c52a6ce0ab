"""The publish connection: a channel that all threads share, and others for what may be poisonous."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from message_hub_sync.config import ClientConfig
from message_hub_sync.errors import MessageHubConnectionError, MessageHubError, MessageValidationError
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.transport.base import ConnectionState, Outgoing, PublishResult, Receipt
from message_hub_sync.transport.rabbitmq.confirm_channel import ConfirmChannel
from message_hub_sync.transport.rabbitmq.connection import ThreadedConnection
from message_hub_sync.transport.rabbitmq.frames.encoding import encode_publish
from message_hub_sync.transport.rabbitmq.recovering_connection import RecoveringConnection

__all__ = ["PublishConnection"]

logger = SafeLogger("message_hub_sync.rabbitmq")

_NO_ROOM = "the broker reads too slowly"
_BLOCKED = "the broker accepts no messages (memory or disk alarm); nothing was sent"


class PublishConnection:
    """Publishes over one connection: the shared channel, and others for what may be poisonous.

    Mutable: ``_shared``, replaced by the I/O thread alone and read without a lock (a stale one only answers
    ``NOT_WRITTEN``); ``_single``, channels that nobody uses now or whose answer is still out: a deque, atomic
    by itself. Whoever takes one has it for himself, which needs no lock that an interrupted caller could keep.
    """

    def __init__(self, config: ClientConfig, listeners: list[Callable[[], None]]) -> None:
        self._listeners = listeners
        self._shared: ConfirmChannel | None = None
        self._single: deque[ConfirmChannel] = deque()
        self.recovering = RecoveringConnection(
            "publish", config, restore=self._restore, keep_open=lambda: False, on_open=self._announce
        )

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
            channel.submit(receipt, outgoing, data)
            if receipt.result is not PublishResult.NOT_WRITTEN:
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
                receipt.resolve(PublishResult.INVALID, str(error))  # the others go their way
            else:
                size += len(data)
                entries.append((receipt, outgoing, data))
            receipts.append(receipt)
        if entries:
            channel.submit_many(entries)
            if entries[0][0].result is PublishResult.NOT_WRITTEN:
                return []
        return receipts

    def publish_on_own_channel(self, outgoing: Outgoing, deadline: float) -> Receipt:
        """On a channel where nothing else is in flight, so that a closed channel has one culprit.

        Returns once the broker answered or the deadline passed.
        """
        while True:
            if self.recovering.wait_open(deadline, accept_blocked=False) is ConnectionState.BLOCKED:
                return _blocked()
            channel = self._idle_single()
            if channel is None:
                self.recovering.call(self._open_single, deadline)
                continue
            try:
                data = encode_publish(outgoing, channel.number, channel.max_fragment)
                if not channel.connection.wait_for_room(deadline):
                    raise MessageHubConnectionError(f"nothing was written in time: {_NO_ROOM}")
                receipt = Receipt()
                channel.submit(receipt, outgoing, data)
                if receipt.result is not PublishResult.NOT_WRITTEN:
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
            if channel is not None and channel.usable and self.recovering.state is ConnectionState.OPEN:
                return channel
            if self.recovering.wait_open(deadline, accept_blocked=False) is ConnectionState.BLOCKED:
                return None
            channel = self._shared
            if channel is None or not channel.usable:
                channel = self.recovering.call(self._open_shared, deadline)
                if channel.usable:
                    return channel

    def _restore(self, connection: ThreadedConnection) -> None:
        self._open_shared(connection)

    def _open_shared(self, connection: ThreadedConnection) -> ConfirmChannel:
        channel = self._shared
        if channel is None or not channel.usable:
            channel = ConfirmChannel.open(
                connection, RecoveringConnection.restore_deadline(), self.recovering.request_restore, self._announce
            )
            self._shared = channel
        return channel

    def _open_single(self, connection: ThreadedConnection) -> None:
        # Into the deque, not to the caller: one who gave up leaves it to the next.
        self._single.append(
            ConfirmChannel.open(connection, RecoveringConnection.restore_deadline(), lambda: None, self._announce)
        )

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
    receipt.resolve(PublishResult.BLOCKED, _BLOCKED)
    return receipt


def _not_written(reason: str) -> Receipt:
    receipt = Receipt()
    receipt.resolve(PublishResult.NOT_WRITTEN, reason)
    return receipt
