"""Wait for SIGTERM or SIGINT. The signal handlers only write one byte, so that the interrupted code continues."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["StopSignals"]


class StopSignals:
    """Inside the ``with`` block, SIGTERM and SIGINT end :meth:`wait`; at its end the previous handlers are restored.

    In another thread than the main thread, Python allows no signal handlers: only :meth:`wake` ends :meth:`wait`.
    """

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._earlier: dict[int, Any] = {}  # written by __enter__ only, in the thread of the ``with`` block

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            # SIGINT first: after that, no KeyboardInterrupt can interrupt this loop.
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
            # None: the previous handler was not installed from Python, so Python cannot restore it.
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)
        self._writer.close()
        self._reader.close()

    def wait(self) -> None:
        """Block until SIGTERM or SIGINT arrives, or :meth:`wake` is called."""
        self._reader.recv(1)

    def wake(self) -> None:
        """End :meth:`wait`. Safe from any thread and from a signal handler."""
        # OSError: the socket's buffer is full, so wait() ends anyway; or the block has ended, so nobody waits.
        with contextlib.suppress(OSError):
            self._writer.send(b"\0")

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self.wake()
