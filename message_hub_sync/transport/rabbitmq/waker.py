"""A pipe by which any thread ends an I/O thread's wait."""

from __future__ import annotations

import contextlib
import selectors
import socket
import time

__all__ = ["Waker", "new_selector"]


def new_selector() -> selectors.BaseSelector:
    """The platform's ``poll``: no file descriptor of its own to be shared by a fork, no limit at 1024."""
    return getattr(selectors, "PollSelector", selectors.SelectSelector)()


class Waker:
    """A socket pair. :meth:`wake` may be called from any thread and from a signal handler.

    It remembers nothing but what is in the pipe: a flag beside it would be left set by an exception between
    flag and byte (a signal's), and no later wake would ring any more.
    """

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def fileno(self) -> int:
        """For selectors."""
        return self._reader.fileno()

    def wake(self) -> None:
        """End the present or the next wait."""
        with contextlib.suppress(OSError):  # full: it wakes anyhow; closed: nobody sleeps any more
            self._writer.send(b"\0")

    def clear(self) -> None:
        """Called by the I/O thread after each wait, *before* it looks for work."""
        with contextlib.suppress(OSError):
            self._reader.recv(1024)

    def wait(self, deadline: float) -> bool:
        """Sleep until woken (true) or until the deadline (monotonic seconds)."""
        with new_selector() as selector:
            selector.register(self._reader, selectors.EVENT_READ)
            woken = bool(selector.select(max(0.0, deadline - time.monotonic())))
        if woken:
            self.clear()
        return woken

    def close(self) -> None:
        """Free both ends."""
        self._reader.close()
        self._writer.close()
