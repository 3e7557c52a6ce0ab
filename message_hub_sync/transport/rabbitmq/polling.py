"""How an I/O thread sleeps until there is something to read or to do, and how others wake it."""

from __future__ import annotations

import contextlib
import select
import selectors
import socket
import time

__all__ = ["Poller", "Waker", "new_selector", "wait_readable"]


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


class Poller:
    """Waits for one socket and one waker. For one thread.

    The platform's ``poll`` itself, where there is one: this is on the way of every confirm, and ``selectors``
    costs as much as all the parsing. It has no file descriptor of its own to be shared by a fork, and no limit
    at 1024.
    """

    def __init__(self, connected: socket.socket, waker: Waker) -> None:
        self._socket = connected
        self._waker = waker
        self._waker_descriptor = waker.fileno()
        self._writing = False
        self._poll = None
        if hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(connected, select.POLLIN)
            self._poll.register(waker, select.POLLIN)

    def wait_rung(self, seconds: float) -> bool:
        """Wait for the waker alone; whether it rang."""
        rung = wait_readable(self._waker_descriptor, seconds)
        if rung:
            self._waker.clear()
        return rung

    def wait(self, seconds: float, writing: bool) -> tuple[bool, bool]:
        """Wait for something to read, for the waker, for room where ``writing``; at most so many seconds.

        :returns: whether there is something to read (or the end of it), and whether the waker rang.
        """
        if self._poll is None:
            return self._select(max(0.0, seconds), writing)
        if writing is not self._writing:
            self._writing = writing
            self._poll.modify(self._socket, select.POLLIN | select.POLLOUT if writing else select.POLLIN)
        readable = rung = False
        # Rounded up: a timer that is nearly due must not make this spin.
        for descriptor, events in self._poll.poll(int(seconds * 1000) + 1 if seconds > 0 else 0):
            if descriptor == self._waker_descriptor:
                rung = True
                self._waker.clear()
            elif events != select.POLLOUT:
                readable = True
        return readable, rung

    def _select(self, seconds: float, writing: bool) -> tuple[bool, bool]:
        both: list[socket.socket | Waker] = [self._socket, self._waker]
        found, _, failed = select.select(both, [self._socket] if writing else [], [self._socket], seconds)
        rung = self._waker in found
        if rung:
            self._waker.clear()
        return self._socket in found or bool(failed), rung


def wait_readable(descriptor: int, seconds: float) -> bool:
    """Wait for something to read, or the end of it, at most so many seconds. For any thread."""
    try:
        poll = select.poll()
    except AttributeError:
        return bool(select.select([descriptor], [], [], max(0.0, seconds))[0])
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(int(seconds * 1000) + 1 if seconds > 0 else 0))
