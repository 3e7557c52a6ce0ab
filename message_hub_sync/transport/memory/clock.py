"""What time it is for a hub, and who wakes it when something is due."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from message_hub_sync.errors import MessageValidationError
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.transport.threads import Waiter

__all__ = ["Clock", "SystemClock", "VirtualClock"]

logger = SafeLogger("message_hub_sync.memory")


class Clock(Protocol):
    """A hub's clock. ``ring`` is called without any lock of the clock held."""

    def now(self) -> float:
        """Seconds since some fixed moment; never goes back."""

    def set_alarm(self, ring: Callable[[], None], due: float | None) -> None:
        """Have ``ring`` called once ``now()`` reaches ``due``, instead of when it was set to before.

        ``None`` calls it off.
        """

    def rest(self, deadline: float) -> None:
        """Return when no thread of this clock is left, provided that no alarm is set (monotonic seconds)."""


class SystemClock:
    """The monotonic clock, with one daemon thread that exists only while an alarm is set.

    Mutable, guarded by ``_lock``: ``_due``, ``_ring``, ``_running`` and ``_thread``, the latest one, which alone
    waits on ``_waiter``. The hub takes the lock while holding its own, never the other way round.
    """

    def __init__(self, owner: str) -> None:
        self._name = f"message-hub-{owner}-timer"
        self._lock = threading.Lock()
        self._waiter = Waiter()
        self._due: float | None = None
        self._ring: Callable[[], None] | None = None
        self._running = False
        self._thread: threading.Thread | None = None

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def set_alarm(self, ring: Callable[[], None], due: float | None) -> None:
        """See :class:`Clock`. One ``ring`` per clock: each hub has a clock of its own."""
        with self._lock:
            self._due, self._ring = due, ring
            if self._running:
                self._waiter.wake()
            elif due is not None:
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the interpreter is ending (3.12): nothing will be waited for
                    return
                self._running, self._thread = True, thread

    def rest(self, deadline: float) -> None:
        """See :class:`Clock`."""
        with self._lock:
            thread = self._thread if self._due is None else None
        if thread is not None and thread is not threading.current_thread():
            thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        while (ring := self._next()) is not None:
            try:
                ring()
            except Exception:
                # Ending here would leave every later delay undelivered without a word.
                logger.exception("%s: what was due could not be done", self._name)

    def _next(self) -> Callable[[], None] | None:
        """Wait for the alarm; ``None`` when there is none, and then this thread has ended."""
        while True:
            with self._lock:
                if self._due is None:
                    self._running = False
                    return None
                left = self._due - time.monotonic()
                if left <= 0:
                    self._due = None
                    return self._ring
            self._waiter.wait(min(left, threading.TIMEOUT_MAX))


class VirtualClock:
    """A clock that moves only when it is told to; any number of hubs may share it.

    :meth:`advance` makes everything that falls due happen, in order, each at its own moment, before it
    returns: a retry after 30 s is tested in milliseconds. No thread.

    Mutable: ``_now`` and ``_alarms``, guarded by ``_lock``; ``_advancing`` lets one thread move it at a time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._advancing = threading.Lock()
        self._now = 0.0
        self._alarms: dict[Callable[[], None], float] = {}

    def now(self) -> float:
        """Seconds advanced so far."""
        return self._now

    def set_alarm(self, ring: Callable[[], None], due: float | None) -> None:
        """See :class:`Clock`."""
        with self._lock:
            if due is None:
                self._alarms.pop(ring, None)
            else:
                self._alarms[ring] = due

    def rest(self, deadline: float) -> None:
        """Returns at once: there is no thread."""

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass, and what is due in them happen. May be called from any thread.

        :raises MessageValidationError: ``seconds`` is negative.
        """
        if not seconds >= 0:
            raise MessageValidationError(f"cannot advance by {seconds!r} seconds: 0 or more is possible")
        with self._advancing:
            until = self._now + seconds
            while (ring := self._next(until)) is not None:
                ring()

    def _next(self, until: float) -> Callable[[], None] | None:
        """Move to the next alarm that is due and take it, or to ``until`` when there is none before."""
        with self._lock:
            ring = min(self._alarms, key=self._alarms.__getitem__, default=None)
            if ring is None or self._alarms[ring] > until:
                self._now = until
                return None
            self._now = max(self._now, self._alarms.pop(ring))
            return ring
