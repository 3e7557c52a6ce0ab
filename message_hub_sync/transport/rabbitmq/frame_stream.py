"""The received bytes, split into frames."""

from __future__ import annotations

import re
from typing import Any, Protocol

import pika
from pika import exceptions as amqp
from pika import frame, spec

from message_hub_sync.transport.rabbitmq.frames.decoding import decode, frame_start
from message_hub_sync.transport.rabbitmq.pika_channel import PipelinedConnection

__all__ = ["FrameHandler", "FrameStream"]


#: Heartbeats in a row. pika gets one of them: handling each one takes 10 µs with the connection's lock held, so in a
#: flood of them callers would wait for the lock beyond their deadlines.
_HEARTBEATS = re.compile(b"(?:" + re.escape(frame.Heartbeat().marshal()) + b")+")


class FrameHandler(Protocol):
    """Handles the common frames of one channel without pika."""

    def take(self, data: bytes, position: int) -> int:
        """Handle the frames from ``position`` on, up to the first one that is incomplete or not common.

        The connection's lock is held.

        :returns: where that first one begins: ``position`` itself if no frame was handled.
        """


class FrameStream(PipelinedConnection):
    """pika's connection, with its own splitting of the stream into frames.

    A base class and not a part: pika calls ``_on_data_available`` on the connection, and a part would cost one more
    call per confirm. Everything here is guarded by the connection's lock.
    """

    def __init__(self, parameters: pika.ConnectionParameters) -> None:
        #: By channel number. If a channel has none, pika handles all of its frames.
        self.frame_handlers: dict[int, FrameHandler] = {}  # guarded by lock
        self._frame_buffer: bytes = b""  # guarded by lock; an incomplete frame, or what is left to the I/O thread
        # By channel number, while the content of a method comes: the bytes that are missing (None: its header, too),
        # and the handler, which gets no frame meanwhile.
        self._contents: dict[int, tuple[int | None, FrameHandler | None]] = {}  # guarded by lock
        self._left = False  # guarded by lock; whether a caller left frames to the I/O thread
        super().__init__(  # type: ignore[no-untyped-call, unused-ignore]
            parameters,
            on_open_error_callback=lambda *_: None,  # without one pika raises
            internal_connection_workflow=False,
        )

    def _on_data_available(self, data_in: bytes, answers_only: bool = False) -> None:
        """Split into frames and give each to the channel's handler, or to pika.

        :param data_in: the bytes received.
        :param answers_only: stop at the first frame that no handler takes. The I/O thread goes on from there.
        :raises Exception: a frame cannot be decoded, or a callback of pika's failed.
        """
        held: bytes = self._frame_buffer
        data = held + data_in if held else data_in
        position, last = 0, len(data) - 8
        frame_handlers = self.frame_handlers
        try:
            # The bytes are sliced per frame, and the rest is copied once: pika copies the rest after each frame.
            while position <= last:
                handler = frame_handlers.get(data[position + 1] << 8 | data[position + 2])
                if handler is not None:
                    taken = handler.take(data, position)
                    if taken != position:
                        position = taken
                        continue
                if answers_only:
                    break
                if beats := _HEARTBEATS.match(data, position):
                    position = beats.end()
                    self._process_frame(frame.Heartbeat())
                    continue
                kind, _, size = frame_start(data, position)  # raises at once if this is no frame
                if position + size > len(data):
                    break
                start, position = position, position + size
                found = decode(kind, data[start:position])
                self._check_order(found)
                self._process_frame(found)
        finally:
            self.bytes_received += position
            self._frame_buffer = data[position:]
            self._left = answers_only and position < len(data)

    def _check_order(self, found: Any) -> None:
        """Check that content follows its method at once, before any other frame of its channel.

        pika does not check that: it would lose a ``basic.return`` without its content.

        :raises UnexpectedFrameError: it does not.
        """
        number = found.channel_number
        missing, handler = self._contents.get(number, (0, None))
        if missing == 0 and not isinstance(found, (frame.Header, frame.Body)):
            if isinstance(found, frame.Method) and spec.has_content(found.method.INDEX):
                # Without its handler, so that each frame of the channel comes here.
                self._contents[number] = (None, self.frame_handlers.pop(number, None))
            return
        if missing is None and isinstance(found, frame.Header):
            missing = found.body_size
        elif missing and isinstance(found, frame.Body) and len(found.fragment) <= missing:
            missing -= len(found.fragment)
        else:
            raise amqp.UnexpectedFrameError(f"{type(found).__name__} instead of the content of a method")
        if missing:
            self._contents[number] = (missing, handler)
            return
        del self._contents[number]
        if handler is not None:
            self.frame_handlers[number] = handler
