"""Methods that the broker answers, asked by the I/O thread, which goes on serving while it waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pika import exceptions as amqp
from pika.channel import Channel

from message_hub_sync.errors import MessageHubConnectionError
from message_hub_sync.transport.rabbitmq.connection import ThreadedConnection
from message_hub_sync.transport.rabbitmq.translation import ChannelClosed, ConnectionEnded, RpcTimedOut

__all__ = ["RpcChannel", "open_channel", "temporary_channel"]


class RpcChannel:
    """One channel, seen from the I/O thread.

    Mutable, guarded by the connection's lock: ``closed_by``, set once by the close callback.
    """

    def __init__(self, connection: ThreadedConnection) -> None:
        self.connection = connection
        self.closed_by: BaseException | None = None
        self.on_closed: Callable[[BaseException], None] | None = None
        self.pika: Channel

    @property
    def number(self) -> int:
        """The channel's number on the wire."""
        return int(self.pika.channel_number)

    def call(self, start: Callable[[Channel, Callable[..., None]], Any], deadline: float) -> Any:
        """Send one method and serve the connection until its answer is there.

        Every waiter is also ended by the channel's and the connection's end: a 404 on a declare never
        calls the method's own callback.

        :param start: called with the channel and the callback to register.
        :raises ChannelClosed: the broker closed the channel instead.
        :raises ConnectionEnded: the connection ended.
        :raises RpcTimedOut: no answer before the deadline (monotonic seconds), or before it when somebody else waits.
        """
        answers: list[Any] = []
        connection = self.connection
        with connection.lock:
            self._check()
            try:
                start(self.pika, lambda *answer: answers.append(answer[-1] if answer else None))
            except amqp.AMQPError:
                self._check()
                raise ConnectionEnded from None
            connection._flush()
        while not answers:
            self._check()
            _wait(connection, deadline)
        return answers[0]

    def close(self, deadline: float) -> None:
        """Close the channel; whatever is unacknowledged on it goes back to its queue."""
        if self.closed_by is None and self.connection.usable:
            with self.connection.lock:
                if self.pika.is_open or self.pika.is_opening:
                    self.pika.close()
                    self.connection._flush()
            with suppress(RpcTimedOut):
                while self.closed_by is None and self.connection.usable:
                    _wait(self.connection, deadline)

    def _check(self) -> None:
        if self.closed_by is not None:
            reason = self.closed_by
            if isinstance(reason, amqp.ChannelClosedByBroker):
                raise ChannelClosed(reason.reply_code, reason.reply_text)
            raise ConnectionEnded
        self.connection.check_usable()

    def _note_close(self, _channel: Channel, reason: BaseException) -> None:
        self.closed_by = reason
        if self.on_closed is not None:
            self.on_closed(reason)


def _wait(connection: ThreadedConnection, deadline: float) -> None:
    """Serve the connection for one round.

    :raises RpcTimedOut: there is no time left for it.
    """
    now = time.monotonic()
    hurried = now >= connection.rpc_yield_at
    if now >= deadline or (hurried and connection.rpc_yield_if()):
        raise RpcTimedOut
    connection.step(deadline if hurried else min(deadline, connection.rpc_yield_at))


def open_channel(connection: ThreadedConnection, deadline: float) -> RpcChannel:
    """A new channel, open. Errors as :meth:`RpcChannel.call`."""
    channel = RpcChannel(connection)
    answers: list[Any] = []
    with connection.lock:
        connection.check_usable()
        try:
            channel.pika = connection.channel(on_open_callback=answers.append)
        except amqp.NoFreeChannels:
            raise MessageHubConnectionError("the broker allows no more channels on this connection") from None
        except amqp.AMQPError:
            raise ConnectionEnded from None
        channel.pika.add_on_close_callback(channel._note_close)
        connection._flush()
    while not answers:
        channel._check()
        try:
            _wait(connection, deadline)
        except RpcTimedOut:
            channel.close(deadline)  # else it would be open for good once the broker answers
            raise
    return channel


@contextmanager
def temporary_channel(connection: ThreadedConnection, deadline: float) -> Iterator[RpcChannel]:
    """A channel for one question: an error closes a channel, and no other may suffer from it."""
    channel = open_channel(connection, deadline)
    try:
        yield channel
    finally:
        channel.close(deadline)
