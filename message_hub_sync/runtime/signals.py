"""Waiting for SIGTERM or SIGINT. The handlers only write one byte: whatever they interrupted goes on unharmed."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["StopSignals"]


class StopSignals:
    """Inside the ``with`` block, SIGTERM and SIGINT wake :meth:`wait`; afterwards the earlier handlers are back.

    Off the main thread, where Python allows no signal handlers, only :meth:`wake` does. Nothing in it
    changes after entering, but the socket pair's contents.
    """

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            # SIGINT first: from then on no KeyboardInterrupt can leave this half done.
            for number in (signal.SIGINT, signal.SIGTERM):
                self._earlier[number] = signal.signal(number, self._signalled)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, earlier in self._earlier.items():
            # None: a handler that was not installed from Python, and cannot be.
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)
        self._writer.close()
        self._reader.close()

    def wait(self) -> None:
        """Block until a signal came or :meth:`wake` was called."""
        self._reader.recv(1)

    def wake(self) -> None:
        """End :meth:`wait`, from any thread or signal handler."""
        with contextlib.suppress(OSError):  # full, which wakes just as well; or closed, as nobody waits any more
            self._writer.send(b"\0")

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self.wake()
