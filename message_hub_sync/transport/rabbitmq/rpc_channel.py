"""A channel for RPCs: a task sends a method and waits for its answer, see :mod:`.io_tasks`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pika import exceptions as amqp

from message_hub_sync.transport.rabbitmq.connection import ThreadedConnection
from message_hub_sync.transport.rabbitmq.io_tasks import Answer, Steps
from message_hub_sync.transport.rabbitmq.pika_channel import PipelinedChannel
from message_hub_sync.transport.rabbitmq.translation import ChannelClosed, ConnectionEnded, RpcTimedOut, no_channel

__all__ = ["RpcChannel"]


class RpcChannel:
    """A new channel for RPCs, one at a time. I/O thread only.

    ``channel.open`` is sent, and its answer is not awaited: the methods that follow may be sent with it.

    :raises ConnectionEnded: the connection ended.
    :raises MessageHubConnectionError: the connection has as many channels as the broker allows.
    """

    def __init__(self, connection: ThreadedConnection) -> None:
        self.connection = connection
        self.closed_by: BaseException | None = None  # set once, by pika's close callback, with the lock held
        #: Called with the reason when the channel closes, with the connection's lock held.
        self.on_closed: Callable[[BaseException], None] | None = None
        self._opened = self._answer = Answer(connection)  # _answer: to the latest call
        self._closed = Answer(connection)
        self.pika: PipelinedChannel = connection.lock.run(self._open)

    def _open(self) -> PipelinedChannel:
        self.connection.check_usable()
        refused = self.connection.refused_channel()
        if refused is not None:
            raise no_channel(refused)
        try:
            pika: PipelinedChannel = self.connection.channel(on_open_callback=self._opened.set)
        except amqp.NoFreeChannels:
            raise no_channel("channel_max is reached") from None
        except amqp.AMQPError:
            raise ConnectionEnded from None
        pika.add_on_close_callback(self._note_close)
        return pika

    @property
    def number(self) -> int:
        """The channel number."""
        return int(self.pika.channel_number)

    def call(self, start: Callable[[PipelinedChannel, Callable[..., None]], Any]) -> Steps[Any]:
        """Send methods and wait for the answer to the last one.

        :param start: sends the methods; called with pika's channel and the callback to register, with the connection's
            lock held.
        :returns: the answer.
        :raises ChannelClosed: the broker closed the channel instead of answering.
        :raises ConnectionEnded: the connection ended.
        :raises RpcTimedOut: no answer by the deadline of the task. Also if the channel was closed here meanwhile.
        """
        answer = Answer(self.connection)

        def begin(pika: PipelinedChannel) -> None:
            self._answer = answer
            start(pika, lambda *answers: answer.set(answers[-1] if answers else None))

        self.send(begin)
        return (yield from answer.wait())

    def send(self, start: Callable[[PipelinedChannel], Any]) -> None:
        """Send methods that the broker does not answer.

        :param start: sends them; called with pika's channel, with the connection's lock held.
        :raises ChannelClosed: the broker has closed the channel.
        :raises ConnectionEnded: the connection ended.
        :raises RpcTimedOut: the channel was closed here.
        """
        self.connection.lock.run(self._start, start)

    def _start(self, start: Callable[[PipelinedChannel], Any]) -> None:
        if self.closed_by is not None:
            raise self._why(self.closed_by)
        self.connection.check_usable()
        try:
            start(self.pika)
        except amqp.ChannelWrongStateError:  # it is being closed
            raise RpcTimedOut from None
        except amqp.AMQPError:
            raise ConnectionEnded from None

    def close(self) -> None:
        """Close the channel, without waiting for the broker. The broker requeues its unacked messages."""
        self.connection.lock.run(self.close_locked)

    def close_locked(self) -> None:
        """The same, for a caller that holds the connection's lock."""
        pika = self.pika
        if self.connection.usable and pika.is_open:
            pika.close()
        self._answer.fail(RpcTimedOut())

    def wait_open(self) -> Steps[None]:
        """Wait until the broker has opened the channel. The errors are those of :meth:`call`."""
        yield from self._opened.wait()

    def wait_closed(self) -> Steps[None]:
        """Wait until the broker has closed the channel."""
        if self.closed_by is None:
            yield from self._closed.wait()

    def _note_close(self, _channel: object, reason: BaseException) -> None:
        self.closed_by = reason
        # A 404 on a declare closes the channel and never calls the method's own callback.
        self._answer.fail(self._why(reason))
        self._closed.set()
        if self.on_closed is not None:
            self.on_closed(reason)

    def _why(self, reason: BaseException) -> Exception:
        """The error of a call on this channel after it closed for this reason of pika's."""
        if isinstance(reason, amqp.ChannelClosedByBroker):
            return ChannelClosed(reason.reply_code, reason.reply_text, self.pika.failed_method)
        if isinstance(reason, amqp.ChannelClosedByClient):
            return RpcTimedOut()
        return ConnectionEnded()
