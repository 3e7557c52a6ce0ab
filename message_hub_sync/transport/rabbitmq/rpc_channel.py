"""RPCs to the broker. The I/O thread sends a method and serves the connection until the answer arrives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pika import exceptions as amqp
from pika.channel import Channel

from message_hub_sync.errors import MessageHubConnectionError
from message_hub_sync.runtime.real_time import time
from message_hub_sync.transport.rabbitmq.connection import ThreadedConnection
from message_hub_sync.transport.rabbitmq.translation import ChannelClosed, ConnectionEnded, RpcTimedOut

__all__ = ["RpcChannel", "open_channel", "temporary_channel"]


class RpcChannel:
    """One channel for RPCs. I/O thread only."""

    def __init__(self, connection: ThreadedConnection) -> None:
        self.connection = connection
        self.closed_by: BaseException | None = None  # set once, by pika's close callback, with the lock held
        #: Called with the reason when the channel closes, with the connection's lock held.
        self.on_closed: Callable[[BaseException], None] | None = None
        self.pika: Channel

    @property
    def number(self) -> int:
        """The channel number."""
        return int(self.pika.channel_number)

    def call(self, start: Callable[[Channel, Callable[..., None]], Any], deadline: float) -> Any:
        """Send one method and serve the connection until the answer arrives.

        :param start: sends the method; called with pika's channel and the callback to register, with the connection's
            lock held.
        :param deadline: monotonic seconds.
        :returns: the answer.
        :raises ChannelClosed: the broker closed the channel instead of answering.
        :raises ConnectionEnded: the connection ended.
        :raises RpcTimedOut: no answer by the deadline. From the connection's ``rpc_yield_at`` on, also before it if
            ``rpc_yield_if`` returns true.
        """
        answers: list[Any] = []
        self.send(lambda pika: start(pika, lambda *answer: answers.append(answer[-1] if answer else None)))
        while not answers:
            self._check()  # a 404 on a declare closes the channel and never calls the method's own callback
            _wait(self.connection, deadline)
        return answers[0]

    def send(self, start: Callable[[Channel], Any]) -> None:
        """Send one method that the broker does not answer.

        :param start: sends the method; called with pika's channel, with the connection's lock held.
        :raises ChannelClosed: the broker has closed the channel.
        :raises ConnectionEnded: the connection ended.
        """
        self.connection.lock.run(self._start, start)

    def _start(self, start: Callable[[Channel], Any]) -> None:
        self._check()
        try:
            start(self.pika)
        except amqp.AMQPError:
            self._check()
            raise ConnectionEnded from None
        self.connection._flush()

    def close(self, deadline: float) -> None:
        """Close the channel. The broker requeues its unacked messages.

        :param deadline: how long to wait for the broker, in monotonic seconds; no error if it passes.
        """
        if self.closed_by is None and self.connection.usable:
            self.connection.lock.run(self._send_close)
            with suppress(RpcTimedOut):
                while self.closed_by is None and self.connection.usable:
                    _wait(self.connection, deadline)

    def _send_close(self) -> None:
        if self.pika.is_open or self.pika.is_opening:
            self.pika.close()
            self.connection._flush()

    def send_open(self, on_open: Callable[[Any], Any]) -> None:
        """Send ``channel.open``; ``on_open`` is called when the broker has answered. The caller holds the lock."""
        self.connection.check_usable()
        try:
            self.pika = self.connection.channel(on_open_callback=on_open)
        except amqp.NoFreeChannels:
            raise MessageHubConnectionError(
                "the broker allows no more channels on this connection: raise channel_max on the broker"
            ) from None
        except amqp.AMQPError:
            raise ConnectionEnded from None
        self.pika.add_on_close_callback(self._note_close)
        self.connection._flush()

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

    :raises RpcTimedOut: the deadline has passed, or this RPC must yield to another waiter.
    """
    now = time.monotonic()
    hurried = now >= connection.rpc_yield_at
    if now >= deadline or (hurried and connection.rpc_yield_if()):
        raise RpcTimedOut
    connection.step(deadline if hurried else min(deadline, connection.rpc_yield_at))


def open_channel(connection: ThreadedConnection, deadline: float) -> RpcChannel:
    """Open a new channel. I/O thread only.

    :param deadline: monotonic seconds.
    :raises ChannelClosed: the broker closed the channel instead of answering.
    :raises ConnectionEnded: the connection ended.
    :raises RpcTimedOut: no answer by the deadline, or this RPC must yield to another waiter.
    :raises MessageHubConnectionError: the connection has as many channels as the broker allows.
    """
    channel = RpcChannel(connection)
    answers: list[Any] = []
    connection.lock.run(channel.send_open, answers.append)
    while not answers:
        channel._check()
        try:
            _wait(connection, deadline)
        except RpcTimedOut:
            channel.close(deadline)  # else a late answer would leave an unused channel open
            raise
    return channel


@contextmanager
def temporary_channel(connection: ThreadedConnection, deadline: float) -> Iterator[RpcChannel]:
    """Open a channel for a few RPCs and close it afterwards. Parameters and errors: see :func:`open_channel`."""
    # An error closes the channel, so it must not be one that others use.
    channel = open_channel(connection, deadline)
    try:
        yield channel
    finally:
        channel.close(deadline)
