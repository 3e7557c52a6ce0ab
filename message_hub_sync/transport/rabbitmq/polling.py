"""The wait of an I/O thread for its socket, and the waker with which other threads end that wait."""

from __future__ import annotations

import contextlib
import select
import selectors
import socket

from message_hub_sync.runtime.real_time import time

__all__ = ["Poller", "Waker", "new_selector", "wait_readable"]


def new_selector() -> selectors.BaseSelector:
    """A selector over ``poll``, or over ``select`` if the platform has no ``poll``."""
    # Unlike epoll, poll has no file descriptor that a fork would share. Unlike select, it takes descriptors over 1024.
    return getattr(selectors, "PollSelector", selectors.SelectSelector)()


class Waker:
    """A socket pair that ends a wait. :meth:`wake` may be called from any thread and from a signal handler."""

    def __init__(self) -> None:
        # No flag beside the pair: if a signal handler raised between flag and byte, the flag would stay set and no
        # later wake would send a byte.
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def fileno(self) -> int:
        """The descriptor that becomes readable when :meth:`wake` is called."""
        return self._reader.fileno()

    def wake(self) -> None:
        """End the current or the next wait."""
        with contextlib.suppress(OSError):  # full: the wait ends anyway; closed: no thread waits
            self._writer.send(b"\0")

    def clear(self) -> None:
        """Reset the waker. The I/O thread calls this after each wait, *before* it looks for work."""
        with contextlib.suppress(OSError):
            self._reader.recv(1024)

    def wait(self, deadline: float) -> bool:
        """Wait until woken (true) or until the deadline in monotonic seconds (false)."""
        with new_selector() as selector:
            selector.register(self._reader, selectors.EVENT_READ)
            woken = bool(selector.select(max(0.0, deadline - time.monotonic())))
        if woken:
            self.clear()
        return woken

    def close(self) -> None:
        """Close both sockets."""
        self._reader.close()
        self._writer.close()


class Poller:
    """Waits for one socket and one waker. I/O thread only.

    Uses ``poll`` itself if the platform has it: every confirm is waited for here, and ``selectors`` would cost as much
    as all the parsing. ``poll`` has no file descriptor that a fork would share, and no limit of 1024.
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

    def wait_for_waker(self, seconds: float) -> bool:
        """Wait for the waker only, at most ``seconds``.

        :returns: whether it was woken.
        """
        rung = wait_readable(self._waker_descriptor, seconds)
        if rung:
            self._waker.clear()
        return rung

    def wait(self, seconds: float, writing: bool) -> tuple[bool, bool]:
        """Wait until the socket is readable or the waker is woken, at most ``seconds``.

        :param writing: wait until the socket is writable, too.
        :returns: whether the socket is readable (or at its end), and whether the waker was woken.
        """
        if self._poll is None:
            return self._select(max(0.0, seconds), writing)
        if writing is not self._writing:
            self._writing = writing
            self._poll.modify(self._socket, select.POLLIN | select.POLLOUT if writing else select.POLLIN)
        readable = rung = False
        # Round up: if a timer is due in less than a millisecond, a timeout of 0 would spin.
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
    """Wait until the descriptor is readable or at its end, at most ``seconds``. For any thread."""
    try:
        poll = select.poll()
    except AttributeError:
        return bool(select.select([descriptor], [], [], max(0.0, seconds))[0])
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(int(seconds * 1000) + 1 if seconds > 0 else 0))
