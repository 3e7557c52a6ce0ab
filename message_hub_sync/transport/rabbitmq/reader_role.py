"""Which thread reads a connection: its I/O thread, or the single caller that waits for a confirm."""

from __future__ import annotations

import threading
from collections.abc import Sized
from typing import Protocol

from message_hub_sync.runtime.locks import Lock
from message_hub_sync.runtime.real_time import time
from message_hub_sync.transport.base import Receipt
from message_hub_sync.transport.rabbitmq.polling import wait_readable

__all__ = ["ReaderRole"]

#: After this number of confirms in a row with nothing else in flight, callers read by themselves.
_ALONE = 3
#: The I/O thread takes the socket back if no caller has read for this time, in seconds. So a frame that no caller waits
#: for, such as connection.blocked, is read one or two ticks late.
_TICK = 0.01
#: Seconds that a caller polls at a time. Then it checks whether the I/O thread wants the socket back.
_SLICE = 0.05


class SharedConnection(Protocol):
    """What this module needs of the connection. A Protocol, because the connection imports this module.

    Methods: see :class:`~message_hub_sync.transport.rabbitmq.connection.ThreadedConnection`.
    """

    lock: Lock

    @property
    def descriptor(self) -> int: ...

    @property
    def needs_its_thread(self) -> bool: ...

    def read_now(self) -> None: ...

    def wake(self) -> None: ...

    def step_without_socket(self, until: float) -> bool: ...


class ReaderRole:
    """Lets a single caller that waits for a confirm read the socket itself.

    Otherwise the I/O thread is woken and then wakes the caller. These two thread switches take longer than all the
    rest of a publish in this process.

    While ``callers_may_read``, the I/O thread runs its timers and leaves the socket to callers. It takes the socket
    back if (1) it has work, (2) a second publish is in flight, (3) something other than an ack came, (4) no caller was
    reading during a 10 ms tick. If the reading caller is interrupted, the I/O thread takes over after the 50 ms slice.

    Frames are never parsed out of order: a caller reads and parses with the connection's lock held and only while
    ``callers_may_read``, the I/O thread only while not. Only the I/O thread sets it to ``True``, between two rounds.
    """

    def __init__(self, connection: SharedConnection) -> None:
        self._connection = connection
        self.callers_may_read = False  # guarded by the connection's lock; also read without it
        self._alone = 0  # confirms in a row with nothing else in flight; guarded by the lock, also read without it
        self._reads = 0  # guarded by the connection's lock; of callers, since they may read
        self._reader_until = 0.0  # guarded by the connection's lock; when the reading caller's slice ends, 0 if none
        self._reader = 0  # guarded by the connection's lock; the thread that reads or read last
        self._wanted = False  # guarded by the connection's lock; the I/O thread wants the socket back
        self._in_flight: Sized = ()  # guarded by the connection's lock

    # --- for the channel, the lock held ----------------------------------------------------------

    def answered(self, count: int, others: int) -> None:
        """Note that one acknowledgement came.

        :param count: the number of publishes that it confirmed.
        :param others: the number of publishes still in flight.
        """
        self._alone = 0 if others or count > 1 else self._alone + 1

    @property
    def single_caller(self) -> bool:
        """Whether callers publish one at a time."""
        return self._alone >= _ALONE

    def written(self, receipt: Receipt | None, in_flight: Sized) -> None:
        """Decide who reads the answer to what was written while ``callers_may_read``.

        :param receipt: the receipt that the writing caller will wait for; ``None`` if it waits for several or for none.
        :param in_flight: all publishes without a confirm.
        """
        now = time.monotonic()
        if self._reader_until > now and self._reader != threading.get_ident():
            return  # a caller is reading: it leaves the rest to the I/O thread at its end
        # If this caller itself reads, its signal handler publishes: two are in flight, so the I/O thread reads.
        alone = receipt is not None and receipt.result is None and len(in_flight) == 1
        if receipt is not None and alone and not self._connection.needs_its_thread:
            self._reader_until = now + _SLICE
            self._reader = threading.get_ident()
            self._in_flight = in_flight
            receipt.read_until_resolved = self._read
        else:
            if receipt is not None:
                receipt.read_until_resolved = None  # it wrote for another caller after its own message
            self.callers_may_read = False
            self._connection.wake()

    # --- for the caller --------------------------------------------------------------------------

    def _read(self, receipt: Receipt, deadline: float) -> None:
        connection = self._connection
        lock, descriptor = connection.lock, connection.descriptor
        try:
            while descriptor >= 0:
                try:  # noqa: SIM105  # contextlib.suppress would cost more, at every read
                    wait_readable(descriptor, min(deadline, self._reader_until) - time.monotonic())
                except OSError:
                    pass  # the socket was closed meanwhile (select only): callers_may_read is checked below
                if not lock.run(self._read_once, receipt, deadline):
                    return
        except BaseException:  # a signal handler or a gevent timeout raised
            lock.run(self._stop_reading)
            raise

    def _read_once(self, receipt: Receipt, deadline: float) -> bool:
        """Read what is there. Returns whether the caller goes on reading."""
        connection = self._connection
        if not self.callers_may_read:
            return False
        self._reads += 1
        connection.read_now()
        if receipt.result is None and not self._wanted and not connection.needs_its_thread:
            self._reader_until = (now := time.monotonic()) + _SLICE
            if now < deadline:
                return True
        self._stop_reading()
        return False

    def _stop_reading(self) -> None:
        self._reader_until = 0.0
        if self.callers_may_read and (self._in_flight or self._wanted or self._connection.needs_its_thread):
            self.callers_may_read = False
            self._connection.wake()

    # --- for the I/O thread ----------------------------------------------------------------------

    def let_callers_read(self, until: float) -> bool:
        """Leave the socket to callers until the I/O thread takes it back.

        :param until: monotonic seconds.
        :returns: whether the waker was woken or ``until`` has passed.
        """
        connection = self._connection
        seen = 0
        connection.lock.run(self._begin_tick)
        woken = False
        while True:
            woken = connection.step_without_socket(min(until, time.monotonic() + _TICK)) or woken
            now = time.monotonic()
            woken = woken or now >= until
            if connection.lock.run(self._taken_back, woken, now, seen):
                return woken
            seen = self._reads

    def _begin_tick(self) -> None:
        self.callers_may_read = True
        self._reads = self._alone = 0

    def _taken_back(self, woken: bool, now: float, seen: int) -> bool:
        """At the end of a tick: whether the I/O thread reads again."""
        if self.callers_may_read:
            if not (woken or self._connection.needs_its_thread or self._reads == seen):
                return False
            if self._reader_until > now:
                # The reading caller hands the socket back after its next read, at the latest after its slice.
                self._wanted = woken or self._connection.needs_its_thread
                return False
            self.callers_may_read = False
        self._wanted = False
        self._alone = 0
        return True
