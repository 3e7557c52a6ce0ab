"""What the broker refuses by closing the whole connection: the one that asked fails, and no other one."""

from __future__ import annotations

from message_hub_sync.runtime.real_time import time
from message_hub_sync.transport.rabbitmq.connection import ThreadedConnection
from message_hub_sync.transport.rabbitmq.io_tasks import IOTasks
from message_hub_sync.transport.rabbitmq.pika_channel import ChannelLimit
from message_hub_sync.transport.rabbitmq.translation import ChannelClosed, no_channel

__all__ = ["Refusals"]

#: The codes with which a broker refuses a method and closes the connection: a limit, or what it cannot do. Others say
#: that the broker stops (320), or that the stream is broken (501, 505).
_REFUSALS = frozenset((502, 503, 504, 506, 530, 540, 541))
_NOT_ALLOWED = 530
#: Seconds until a channel is asked for again after the broker has allowed no more, at first and at most.
_FIRST_PAUSE, _LONGEST_PAUSE = 300.0, 3600.0


class Refusals:
    """Watches the connections of one role, one after the other. I/O thread only.

    :param tasks: the tasks of the I/O thread.
    """

    def __init__(self, tasks: IOTasks) -> None:
        self._tasks = tasks
        self._channel_limit: ChannelLimit | None = None

    def watch(self, connection: ThreadedConnection) -> None:
        """Learn what the broker refuses on this connection, and tell it what was refused before."""
        connection.channel_limit = self._channel_limit
        # Run before the tasks get ConnectionEnded, without the lock.
        connection.on_closed_by_broker = lambda reason: connection.after_unlock.append(
            lambda: self._closed(connection, reason)
        )

    def _closed(self, connection: ThreadedConnection, reason: ChannelClosed) -> None:
        if reason.code not in _REFUSALS:
            return
        opened = connection.answered_channels
        # RabbitMQ names no method when it does not open a channel.
        of_channels = reason.code == _NOT_ALLOWED and not reason.method and opened < connection.open_channels
        connection.refused_task = not of_channels  # read by the task
        found = self._tasks.refused(no_channel(reason.text) if of_channels else reason)
        if found and of_channels and opened:
            # One more channel would cost the connection again, and with it all consumers.
            last = self._channel_limit
            pause = _FIRST_PAUSE if last is None else min(_LONGEST_PAUSE, last.seconds * 2)
            self._channel_limit = ChannelLimit(opened, reason.text, pause, time.monotonic() + pause)
