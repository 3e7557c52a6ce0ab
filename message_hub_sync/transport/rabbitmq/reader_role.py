"""Whose turn it is to read a connection: its I/O thread's, or that of the one caller who waits for an answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Sized
from typing import Protocol

from message_hub_sync.transport.base import Receipt
from message_hub_sync.transport.rabbitmq.polling import wait_readable

__all__ = ["ReaderRole"]

#: After so many answers in a row with nothing else in flight, callers read for themselves.
_ALONE = 3
#: Seconds after which the I/O thread takes the socket back when nobody has read: what comes unasked waits one or two.
_TICK = 0.01
#: Seconds that a caller polls at a time, before it looks whether the I/O thread wants its socket back.
_SLICE = 0.05


class SharedConnection(Protocol):
    """What this module needs of the connection. A Protocol: the connection imports this module."""

    lock: threading.Lock

    @property
    def descriptor(self) -> int:
        """The socket's file descriptor, -1 when it is closed."""

    @property
    def needs_its_thread(self) -> bool:
        """Whether there is something to do that only the I/O thread does."""

    def read_now(self) -> None:
        """Take in whole acknowledgements. The caller holds the lock."""

    def wake(self) -> None:
        """End the I/O thread's wait."""

    def step_without_socket(self, until: float) -> bool:
        """A round of the I/O thread without the socket."""


class ReaderRole:
    """Lets a caller that is alone in waiting for the broker read the answer itself.

    Otherwise the I/O thread is woken to wake the caller: two changes of thread, which take longer and cost more than
    everything else that a publish does here. While it is ``callers_may_read``, the I/O thread leaves the socket to
    callers and sees to its timers; it takes it back when it is wanted for anything, when callers become several, when
    something came that is not theirs, and when nobody has read for a moment.

    A caller reads and parses under the connection's lock, and only while ``callers_may_read``; the I/O thread only
    while not. It alone changes that from false to true, between two rounds of its own, so that nothing is parsed out
    of order. A caller that vanished (a signal's exception) is missed after its slice.

    Mutable, guarded by the connection's lock: all of it; ``callers_may_read`` is also read without.
    """

    def __init__(self, connection: SharedConnection) -> None:
        self._connection = connection
        self.callers_may_read = False
        self._alone = 0
        self._reads = 0
        self._reader_until = 0.0
        self._wanted = False
        self._in_flight: Sized = ()

    # --- for the channel, the lock held ----------------------------------------------------------

    def answered(self, count: int, others: int) -> None:
        """An answer came, for so many; ``others``: how many are still waited for."""
        self._alone = 0 if others or count > 1 else self._alone + 1

    @property
    def single_caller(self) -> bool:
        """Whether callers come one at a time."""
        return self._alone >= _ALONE

    def written(self, receipt: Receipt | None, in_flight: Sized) -> None:
        """Something was written while callers read: see to it that somebody reads the answer.

        :param receipt: what the writing caller will wait for, if it waits for one answer.
        :param in_flight: all that is waited for.
        """
        now = time.monotonic()
        if self._reader_until > now:
            return  # whoever reads now leaves the rest to the I/O thread
        alone = receipt is not None and receipt.result is None and len(in_flight) == 1
        if receipt is not None and alone and not (self._wanted or self._connection.needs_its_thread):
            self._reader_until = now + _SLICE
            self._in_flight = in_flight
            receipt.read_until_resolved = self._read
        else:
            self.callers_may_read = False
            self._connection.wake()

    # --- for the caller --------------------------------------------------------------------------

    def _read(self, receipt: Receipt, deadline: float) -> None:
        connection = self._connection
        lock, descriptor = connection.lock, connection.descriptor
        try:
            while descriptor >= 0:
                try:  # noqa: SIM105  # costs nothing
                    wait_readable(descriptor, min(deadline, self._reader_until) - time.monotonic())
                except OSError:
                    pass  # closed meanwhile, where there is no poll: seen below
                with lock:
                    if not self.callers_may_read:
                        return
                    self._reads += 1
                    connection.read_now()
                    if receipt.result is not None or self._wanted or connection.needs_its_thread:
                        self._stop_reading()
                        return
                    self._reader_until = (now := time.monotonic()) + _SLICE
                    if now >= deadline:
                        self._stop_reading()
                        return
        except BaseException:  # a signal's or a gevent timeout
            with lock:
                self._stop_reading()
            raise

    def _stop_reading(self) -> None:
        self._reader_until = 0.0
        if self.callers_may_read and (self._in_flight or self._wanted or self._connection.needs_its_thread):
            self.callers_may_read = False
            self._connection.wake()

    # --- for the I/O thread ----------------------------------------------------------------------

    def let_callers_read(self, until: float) -> bool:
        """Leave the reading to callers for as long as they do it.

        :returns: whether the waker rang or ``until`` has passed.
        """
        connection = self._connection
        seen = 0
        with connection.lock:
            self.callers_may_read = True
            self._reads = self._alone = 0
        woken = False
        while True:
            woken = connection.step_without_socket(min(until, time.monotonic() + _TICK)) or woken
            now = time.monotonic()
            with connection.lock:
                if not self.callers_may_read:
                    break
                woken = woken or now >= until
                if woken or connection.needs_its_thread or self._reads == seen:
                    if self._reader_until <= now:
                        self.callers_may_read = False
                        break
                    # It hands the socket back as soon as it has read something, and at the end of its slice.
                    self._wanted = woken or connection.needs_its_thread
                seen = self._reads
        with connection.lock:
            self._wanted = False
            self._alone = 0
        return woken
