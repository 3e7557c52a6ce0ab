"""Where callers wait for a connection: its state, and why it is not open."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from message_hub_sync.errors import MessageHubConnectionError
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.transport.base import ConnectionState
from message_hub_sync.transport.rabbitmq.translation import Refusal
from message_hub_sync.transport.threads import Waiter, Waiters, refuse_on_io_thread

__all__ = ["ConnectionGate"]

logger = SafeLogger("message_hub_sync.rabbitmq")

_TROUBLED = (ConnectionState.BLOCKED, ConnectionState.RECOVERING)


class ConnectionGate:
    """The state of one connection, over all its lives.

    Mutable, guarded by ``lock`` (which also guards the thread of the link that owns this): ``state``,
    ``closing``, ``ever_open``, ``refusal``, ``_all_hosts_refused``, ``_waiters``. Single ones are read without it.

    :param name: whose connection, for the log.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.lock = threading.Lock()
        self.state = ConnectionState.CLOSED
        self.closing = False
        self.ever_open = False
        self._waiters = Waiters()
        #: Why the latest attempt failed.
        self.refusal: Refusal | None = None
        self._all_hosts_refused = False

    @property
    def awaited(self) -> bool:
        """Whether anybody waits now."""
        return bool(self._waiters)

    def wait(
        self, deadline: float, ensure_thread: Callable[[], None], address: Callable[[], str], accept_blocked: bool
    ) -> ConnectionState:
        """Wait until the connection is open.

        :param ensure_thread: called with the lock held before each wait: sees to it that somebody connects.
        :returns: ``OPEN`` or ``BLOCKED`` (also when it is still blocked at the deadline).
        :raises MessageHubConnectionError: not open by the deadline, or closed; at once on an I/O thread.
        :raises MessageHubAuthorizationError: refused.
        """
        waiter = Waiter()
        try:
            while True:
                with self.lock:
                    self._waiters.add(waiter)
                    if self.closing:
                        raise MessageHubConnectionError("the client is closed: make a new one")
                    if self.state is ConnectionState.OPEN:
                        return self.state
                    if self.state is ConnectionState.BLOCKED and accept_blocked:
                        return self.state
                    refuse_on_io_thread()
                    ensure_thread()
                    if self._all_hosts_refused and self.refusal is not None:
                        raise self.refusal.error()
                    remaining = deadline - time.monotonic()
                    if remaining <= 0:
                        if self.state is ConnectionState.BLOCKED:
                            return self.state
                        reason = f"{address()} did not answer" if self.refusal is None else self.refusal.text
                        raise MessageHubConnectionError(f"no connection to the hub in time: {reason}")
                waiter.wait(remaining)
        finally:
            with self.lock:
                self._waiters.remove(waiter)

    def change(self, state: ConnectionState) -> bool:
        """The one place where the state changes; whether it did. The caller holds the lock.

        What is being closed becomes nothing but closed.
        """
        before = self.state
        if self.closing and state is not ConnectionState.CLOSED:
            return False
        self.state = state
        if state is ConnectionState.OPEN:
            self.ever_open = True
            self.forget_refusal()
        self._waiters.wake_all()
        return state is not before

    def enter(self, state: ConnectionState, why: str, first: Callable[[], None] = lambda: None) -> None:
        """Change the state and say so. No lock held.

        That it is open is said before it is so: a logging handler that publishes what it hears is on the I/O thread,
        where it must not pass, write, and wait for an answer that this thread would have to read.

        :param first: called then, too.
        """
        if state is ConnectionState.OPEN:
            before = self.state
            if before is not state and not self.closing:
                self._say(before, state, why)
            first()
            with self.lock:
                self.change(state)
            return
        with self.lock:
            before = self.state
            changed = self.change(state)
        if changed:
            self._say(before, state, why)

    def _say(self, before: ConnectionState, state: ConnectionState, why: str) -> None:
        # The end of a trouble as loudly as its beginning: whoever heard one is to hear the other.
        troubled = state in _TROUBLED or (state is ConnectionState.OPEN and before in _TROUBLED)
        known = self.ever_open or state is ConnectionState.OPEN
        level = logging.WARNING if troubled else logging.INFO if known else logging.DEBUG
        logger.log(level, "%s: %s -> %s: %s", self._name, before.value, state.value, why)

    def announce_blocked(self, blocked: bool, first: Callable[[], None] = lambda: None) -> None:
        """The broker stopped or resumed accepting messages. No lock held.

        :param first: called when it resumes; see :meth:`enter`.
        """
        if blocked and self.state is ConnectionState.OPEN:
            self.enter(ConnectionState.BLOCKED, "the broker accepts no messages (memory or disk alarm)")
        elif not blocked and self.state is ConnectionState.BLOCKED:
            self.enter(ConnectionState.OPEN, "the broker accepts messages again", first)
        elif not blocked:
            first()

    def refuse(self, refusal: Refusal, all_hosts_refused: bool) -> None:
        """An attempt to connect failed. ``all_hosts_refused``: nobody needs to wait for another one. No lock held."""
        with self.lock:
            news = all_hosts_refused and not self._all_hosts_refused
            self.refusal, self._all_hosts_refused = refusal, all_hosts_refused
            self._waiters.wake_all()
        logger.log(logging.ERROR if news else logging.DEBUG, "%s: %s", self._name, refusal.text)

    def forget_refusal(self) -> None:
        """Somebody tries anew. The caller holds the lock."""
        self.refusal, self._all_hosts_refused = None, False

    def close(self) -> None:
        """Nobody passes any more. The caller holds the lock."""
        if self.state is not ConnectionState.CLOSED:
            self.change(ConnectionState.CLOSING)
        self.closing = True
        self._waiters.wake_all()
