"""The clocks of a hub: the current time, and a timer for the next time at which something is due."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from message_hub_sync.errors import MessageValidationError
from message_hub_sync.runtime.locks import Lock, locked, refuse_to_wait_for
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.real_time import time
from message_hub_sync.runtime.text import shown
from message_hub_sync.transport.memory.lock_order import CLOCK
from message_hub_sync.transport.threads import Waiter

__all__ = ["Clock", "SystemClock", "VirtualClock"]

logger = SafeLogger("message_hub_sync.memory")


class Clock(Protocol):
    """The clock of a hub. All methods may be called from any thread."""

    def now(self) -> float:
        """Seconds since a fixed moment; never decreases."""

    def set_alarm(self, ring: Callable[[], None], due: float | None) -> None:
        """Call ``ring`` once ``now()`` reaches ``due``. This replaces the alarm that was set for ``ring`` before.

        :param ring: called with no lock of the clock held.
        :param due: ``None`` cancels the alarm.
        """

    def rest(self, deadline: float) -> None:
        """If no alarm is set, wait until the clock's thread has ended.

        :param deadline: how long to wait, in monotonic seconds.
        """


class SystemClock:
    """The monotonic clock, with one daemon thread that exists only while an alarm is set.

    Methods: see :class:`Clock`. It has one alarm, so each hub needs its own clock.
    """

    def __init__(self, owner: str) -> None:
        self._name = f"message-hub-{owner}-timer"
        self._lock = Lock(CLOCK)
        self._waiter = Waiter()  # only the thread _thread waits on it
        self._due: float | None = None  # guarded by _lock
        self._ring: Callable[[], None] | None = None  # guarded by _lock
        self._running = False  # guarded by _lock
        self._thread: threading.Thread | None = None  # the latest thread; guarded by _lock

    def now(self) -> float:
        return time.monotonic()

    @locked
    def set_alarm(self, ring: Callable[[], None], due: float | None) -> None:
        self._due, self._ring = due, ring
        if self._running:
            self._waiter.wake()
        elif due is not None:
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the interpreter exits (Python 3.12 and later): no delay will end any more
                return
            self._running, self._thread = True, thread

    def rest(self, deadline: float) -> None:
        thread = self._lock.run(lambda: self._thread if self._due is None else None)
        if thread is not None and thread is not threading.current_thread():
            thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        while (ring := self._next()) is not None:
            try:
                ring()
            except Exception:
                # Keep the thread: without it every later delay would stay undelivered, with nothing in the log.
                logger.exception("%s: an alarm raised; the thread waits for the next alarm", self._name)

    def _next(self) -> Callable[[], None] | None:
        """Wait for the alarm and take it. ``None`` if no alarm is set: the thread must end then."""
        while True:
            taken, left = self._take_alarm()
            if left is None:
                return taken
            self._waiter.wait(min(left, threading.TIMEOUT_MAX))

    @locked
    def _take_alarm(self) -> tuple[Callable[[], None] | None, float | None]:
        """The alarm if it is due, or ``None`` and the seconds until then; ``None`` twice if no alarm is set."""
        if self._due is None:
            self._running = False
            return None, None
        left = self._due - time.monotonic()
        if left > 0:
            return None, left
        self._due = None
        return self._ring, None


class VirtualClock:
    """A clock that moves only by :meth:`advance`, for tests. Any number of hubs may share it. It has no thread.

    With it, a test of a retry after 30 s takes milliseconds. Other methods: see :class:`Clock`.
    """

    def __init__(self) -> None:
        self._lock = Lock(CLOCK)
        self._advancing = threading.Lock()  # held during advance(): one thread advances at a time
        self._advancer = 0  # the thread that advances; written with _advancing held, read without it
        self._now = 0.0  # seconds advanced so far; guarded by _lock, also read without it
        self._alarms: dict[Callable[[], None], float] = {}  # guarded by _lock

    def now(self) -> float:
        return self._now

    @locked
    def set_alarm(self, ring: Callable[[], None], due: float | None) -> None:
        if due is None:
            self._alarms.pop(ring, None)
        else:
            self._alarms[ring] = due

    def rest(self, deadline: float) -> None:
        """Return at once: there is no thread."""

    def advance(self, seconds: float, settle: Callable[[], None] = lambda: None) -> None:
        """Advance by ``seconds``. Everything that falls due is done before this returns: in order, each at its time.

        May be called from any thread.

        :param settle: called after each alarm, before time goes on. It can wait for what the alarm has caused, which
            may set a next alarm within these seconds.
        :raises MessageValidationError: ``seconds`` is negative or NaN.
        :raises MessageHubReentryError: the calling thread advances it already.
        """
        if not seconds >= 0:
            raise MessageValidationError(f"seconds must be a number of at least 0, not {shown(seconds)}")
        refuse_to_wait_for(self._advancer)
        with self._advancing:
            self._advancer = threading.get_ident()
            try:
                until = self._now + seconds
                while (ring := self._next(until)) is not None:
                    ring()
                    settle()
            finally:
                self._advancer = 0

    @locked
    def _next(self, until: float) -> Callable[[], None] | None:
        """Move to the next alarm up to ``until`` and take it. If there is none, move to ``until``: ``None``."""
        ring = min(self._alarms, key=self._alarms.__getitem__, default=None)
        if ring is None or self._alarms[ring] > until:
            self._now = until
            return None
        self._now = max(self._now, self._alarms.pop(ring))
        return ring
