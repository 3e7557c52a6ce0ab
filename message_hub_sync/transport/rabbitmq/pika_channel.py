"""pika's channel without its waits between methods, and its connection with what the broker says at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pika.channel import Channel
from pika.connection import Connection

from message_hub_sync.runtime.real_time import time
from message_hub_sync.transport.rabbitmq.translation import ChannelClosed

__all__ = ["ChannelLimit", "PipelinedChannel", "PipelinedConnection"]


class PipelinedChannel(Channel):
    """A channel that sends each method at once, so that many methods take one round trip.

    The broker handles the methods of a channel in order, ``channel.open`` included. pika would send each one after the
    answer to the one before. Methods with the same answer must not be sent together: that answer would be for both.
    """

    #: Whether the broker has answered ``channel.open``.
    answered = False  # set once, with the connection's lock held
    #: Class and method of the method that made the broker close the channel, as in ``pika.spec.Queue.Declare.INDEX``.
    failed_method = 0  # set once, with the connection's lock held

    def open(self) -> None:
        super().open()
        self._set_state(self.OPEN)

    def _rpc(self, *args: Any, **kwargs: Any) -> None:
        super()._rpc(*args, **kwargs)
        self._blocking = None

    def _on_openok(self, method_frame: Any) -> None:
        self.answered = True
        super()._on_openok(method_frame)

    def _on_close_from_broker(self, method_frame: Any) -> None:
        self.failed_method = _failed_method(method_frame.method)
        super()._on_close_from_broker(method_frame)


@dataclass(frozen=True)
class ChannelLimit:
    """How many channels the broker allowed on a connection when it last refused one."""

    channels: int
    text: str
    """What the broker said."""
    seconds: float
    """How long not to ask again: a refusal costs the connection."""
    until: float
    """The end of that time, in monotonic seconds."""


class PipelinedConnection(Connection):
    """pika's connection, with such channels. Everything here is guarded by the connection's lock."""

    #: Called with the reason when the broker closes the connection, before the channels are told.
    on_closed_by_broker: Callable[[ChannelClosed], None] | None = None
    channel_limit: ChannelLimit | None = None
    #: Whether the broker closed it because of the one task that ran, and would do so again.
    refused_task = False

    @property
    def answered_channels(self) -> int:
        """The number of channels that the broker has opened."""
        return sum(channel.answered for channel in self._channels.values())

    @property
    def open_channels(self) -> int:
        """The number of channels, with those that the broker has not opened yet."""
        return len(self._channels)

    def refused_channel(self) -> str | None:
        """What the broker said when it last refused as many channels as there would be with another one."""
        limit = self.channel_limit
        if limit is None or len(self._channels) < limit.channels or time.monotonic() >= limit.until:
            return None
        return limit.text

    def _create_channel(self, channel_number: int, on_open_callback: Any) -> PipelinedChannel:
        return PipelinedChannel(self, channel_number, on_open_callback)

    def _on_connection_close_from_broker(self, method_frame: Any) -> None:
        method = method_frame.method
        if self.on_closed_by_broker is not None:
            self.on_closed_by_broker(ChannelClosed(method.reply_code, method.reply_text, _failed_method(method)))
        super()._on_connection_close_from_broker(method_frame)


def _failed_method(close: Any) -> int:
    return int(close.class_id << 16 | close.method_id)
