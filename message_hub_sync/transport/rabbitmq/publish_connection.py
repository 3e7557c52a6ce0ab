"""The publish connection: one channel that all threads share, and own channels for publishes after a channel error."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from message_hub_sync.config import ClientConfig
from message_hub_sync.errors import MessageHubConnectionError, MessageHubError, MessageValidationError
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.transport.base import ConnectionState, Outgoing, PublishResult, Receipt
from message_hub_sync.transport.rabbitmq.confirm_channel import ConfirmChannel
from message_hub_sync.transport.rabbitmq.connection import ThreadedConnection
from message_hub_sync.transport.rabbitmq.frames.encoding import encode_publish
from message_hub_sync.transport.rabbitmq.io_tasks import Answer, Steps, Work
from message_hub_sync.transport.rabbitmq.recovering_connection import RecoveringConnection

__all__ = ["PublishConnection"]

logger = SafeLogger("message_hub_sync.rabbitmq")

_NO_ROOM = "the broker reads too slowly"
_BLOCKED = "the broker accepts no messages (memory or disk alarm); nothing was sent"


class PublishConnection:
    """Publishes over one connection. Every method may be called from any thread.

    :param listeners: called on the I/O thread, no lock held, when the connection opens or answers again.
    """

    def __init__(self, config: ClientConfig, listeners: list[Callable[[], None]]) -> None:
        self._listeners = listeners
        # Written by the I/O thread only, read without a lock: a closed channel only resolves NOT_WRITTEN.
        self._shared: ConfirmChannel | None = None
        self._opening_shared: Answer | None = None  # I/O thread only; set while a task opens the shared channel
        # Own channels that are idle or whose last publish is unanswered. No lock: pop() is atomic, so exactly one
        # caller gets a channel. An interrupted caller could leave a lock held.
        self._own_channels: deque[ConfirmChannel] = deque()
        self._channels: list[ConfirmChannel] = []  # I/O thread only; all that are open
        self.recovering = RecoveringConnection(
            "publish",
            config,
            restore=self._restore,
            restore_patience=math.inf,  # without its channel the connection is of no use
            keep_open=lambda: False,
            on_open=self._announce,
            awaited_at_close=self._awaited,
        )

    def publish(self, outgoing: Outgoing, deadline: float, *, together: bool = False) -> Receipt:
        """See :meth:`Transport.publish`, without ``own_channel``."""
        while True:
            channel = self._channel(deadline)
            if channel is None:
                return _blocked()
            data = encode_publish(outgoing, channel.number, channel.max_fragment)
            if not channel.connection.wait_for_room(deadline):
                raise MessageHubConnectionError(f"nothing was written in time: {_NO_ROOM}")
            receipt = Receipt()
            if together:
                channel.submit_soon(receipt, outgoing, data)
            else:
                channel.submit(receipt, outgoing, data)
            if receipt.result is not PublishResult.NOT_WRITTEN:
                return receipt

    def publish_many(self, batch: list[Outgoing], deadline: float) -> list[Receipt]:
        """See :meth:`Transport.publish_many`. One write carries up to ``_SLICE_BYTES``."""
        receipts: list[Receipt] = []
        while len(receipts) < len(batch):
            rest = len(batch) - len(receipts)
            try:
                channel = self._channel(deadline)
            except MessageHubError as error:
                if not receipts and not isinstance(error, MessageHubConnectionError):
                    raise
                # The caller needs the receipts of the messages that are already written.
                return receipts + [_not_written(str(error)) for _ in range(rest)]
            if channel is None:
                return receipts + [_blocked() for _ in range(rest)]
            if not channel.connection.wait_for_room(deadline):
                return receipts + [_not_written(_NO_ROOM) for _ in range(rest)]
            receipts.extend(self._slice(channel, batch, len(receipts)))
        return receipts

    def _slice(self, channel: ConfirmChannel, batch: list[Outgoing], start: int) -> list[Receipt]:
        """Write one slice of ``batch``, from index ``start``.

        :returns: its receipts; none if the channel was closed before the write.
        """
        receipts: list[Receipt] = []
        entries: list[tuple[Receipt, Outgoing, bytes]] = []
        size = 0
        while start + len(receipts) < len(batch) and size < _SLICE_BYTES:
            outgoing = batch[start + len(receipts)]
            receipt = Receipt()
            try:
                data = encode_publish(outgoing, channel.number, channel.max_fragment)
            except MessageValidationError as error:
                receipt.resolve(PublishResult.INVALID, str(error))  # and publish the others
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
        """Publish on a channel without any other publish in flight, so that a channel error has one possible cause.

        :returns: the receipt, once the broker has answered or the deadline has passed.
        :raises MessageValidationError: AMQP cannot carry a value of the message.
        :raises MessageHubConnectionError: nothing was written before the deadline.
        """
        while True:
            if self.recovering.wait_open(deadline, accept_blocked=False) is ConnectionState.BLOCKED:
                return _blocked()
            channel = self._idle_own_channel()
            if channel is None:
                self.recovering.call(self._open_own_channel, deadline)
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
                self._own_channels.append(channel)

    def _idle_own_channel(self) -> ConfirmChannel | None:
        for _ in range(len(self._own_channels)):
            try:
                channel = self._own_channels.popleft()
            except IndexError:
                return None
            if channel.usable:
                if channel.idle:
                    return channel
                self._own_channels.append(channel)  # its publish may still be answered
        return None

    def _channel(self, deadline: float) -> ConfirmChannel | None:
        """Wait for the shared channel; ``None`` if the broker still blocks the connection at the deadline."""
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

    def _restore(self, connection: ThreadedConnection) -> list[Work[object]]:
        return [self._open_shared]

    def _open_shared(self, connection: ThreadedConnection) -> Steps[ConfirmChannel]:
        while True:
            channel = self._shared
            if channel is not None and channel.usable:
                return channel
            opening = self._opening_shared
            if opening is not None:  # another task opens it
                yield from opening.wait()
                continue
            opening = self._opening_shared = Answer(connection)
            try:
                self._shared = yield from self._open(connection, self.recovering.request_restore)
            except Exception:
                self._end_opening(opening)
                raise
            self._end_opening(opening)

    def _end_opening(self, opening: Answer) -> None:
        self._opening_shared = None
        opening.connection.lock.run(opening.set)

    def _open_own_channel(self, connection: ThreadedConnection) -> Steps[None]:
        # Into the deque, not returned: if the caller stopped waiting, the next caller uses it.
        self._own_channels.append((yield from self._open(connection, lambda: None)))

    def _open(self, connection: ThreadedConnection, on_lost: Callable[[], None]) -> Steps[ConfirmChannel]:
        channel = yield from ConfirmChannel.open(connection, on_lost, self._announce)
        self._channels = [*(one for one in self._channels if one.usable), channel]
        return channel

    def _awaited(self) -> bool:
        """Whether a caller waits for the answer to a publish that is written."""
        return any(channel.awaited for channel in self._channels)

    def _announce(self) -> None:
        for listener in list(self._listeners):
            try:
                listener()
            except Exception:
                logger.exception("a listener of the publish connection raised; the connection stays open")


#: Bytes of one write of a bulk: enough to make the cost of a system call negligible, well below the out-buffer.
_SLICE_BYTES = 256 * 1024


def _blocked() -> Receipt:
    receipt = Receipt()
    receipt.resolve(PublishResult.BLOCKED, _BLOCKED)
    return receipt


def _not_written(reason: str) -> Receipt:
    receipt = Receipt()
    receipt.resolve(PublishResult.NOT_WRITTEN, reason)
    return receipt
