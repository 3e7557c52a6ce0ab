"""pika's channel, without its waits between methods."""

from __future__ import annotations

from typing import Any

from pika.channel import Channel

__all__ = ["PipelinedChannel"]


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
        method = method_frame.method
        self.failed_method = method.class_id << 16 | method.method_id
        super()._on_close_from_broker(method_frame)
