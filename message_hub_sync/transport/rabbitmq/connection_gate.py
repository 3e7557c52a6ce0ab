"""The state of a connection, and the wait until it is open."""

from __future__ import annotations

import logging
from collections.abc import Callable

from message_hub_sync.errors import MessageHubConnectionError
from message_hub_sync.runtime.locks import Lock, refuse_on_serving_thread
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.real_time import time
from message_hub_sync.transport.base import ConnectionState
from message_hub_sync.transport.rabbitmq.backoff import ASK_AGAIN_SECONDS
from message_hub_sync.transport.rabbitmq.translation import Refusal
from message_hub_sync.transport.threads import Waiter, Waiters

__all__ = ["ConnectionGate"]

logger = SafeLogger("message_hub_sync.rabbitmq")

_TROUBLED = (ConnectionState.BLOCKED, ConnectionState.RECOVERING)


class ConnectionGate:
    """The state of one recovering connection. It outlives the single AMQP connections.

    ``lock`` also guards the I/O thread of the recovering connection that owns this gate. A single field may be read
    without it.

    :param name: the connection's name in the log.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.lock = Lock()
        self.state = ConnectionState.CLOSED  # guarded by lock
        self.closing = False  # guarded by lock
        self.ever_open = False  # guarded by lock
        self._waiters = Waiters()  # guarded by lock
        #: Why the latest attempt to connect failed.
        self.refusal: Refusal | None = None  # guarded by lock
        self._all_hosts_refused = False  # guarded by lock
        self._refused_at = 0.0  # guarded by lock; monotonic seconds of the latest refusal

    @property
    def awaited(self) -> bool:
        """Whether a caller is waiting now."""
        return bool(self._waiters)

    def wait(
        self, deadline: float, ensure_thread: Callable[[], None], address: Callable[[], str], accept_blocked: bool
    ) -> ConnectionState:
        """Wait until the connection is open.

        :param deadline: monotonic seconds.
        :param ensure_thread: called with the lock held before each wait; makes sure that an I/O thread connects.
        :param address: returns the broker's address for the error text.
        :param accept_blocked: return at once if the broker accepts no messages; else wait until it does.
        :returns: ``OPEN`` or ``BLOCKED``. ``BLOCKED`` also if it is still blocked at the deadline.
        :raises MessageHubConnectionError: the connection is not open by the deadline, or the client is closed. At once
            on an I/O thread, or if all hosts refused within the last second.
        :raises MessageHubAuthorizationError: all hosts refused, and the latest one did not accept the login.
        """
        waiter = Waiter()
        try:
            while True:
                state, remaining = self.lock.run(self._look, waiter, deadline, ensure_thread, address, accept_blocked)
                if state is not None:
                    return state
                waiter.wait(remaining)
        finally:
            self.lock.run(self._waiters.remove, waiter)

    def _look(
        self,
        waiter: Waiter,
        deadline: float,
        ensure_thread: Callable[[], None],
        address: Callable[[], str],
        accept_blocked: bool,
    ) -> tuple[ConnectionState | None, float]:
        """The state, or ``None`` and the seconds to wait for a change. Parameters and errors: see :meth:`wait`."""
        self._waiters.add(waiter)
        if self.closing:
            raise MessageHubConnectionError("the client is closed: create a new MessageHubClient")
        if self.state is ConnectionState.OPEN or (self.state is ConnectionState.BLOCKED and accept_blocked):
            return self.state, 0.0
        refuse_on_serving_thread()
        ensure_thread()
        now = time.monotonic()
        remaining = deadline - now
        # A caller that comes later has the hosts tried again, and waits for that attempt.
        final = remaining <= 0 or now - self._refused_at < ASK_AGAIN_SECONDS
        if self._all_hosts_refused and self.refusal is not None and final:
            raise self.refusal.error()
        if remaining <= 0:
            if self.state is ConnectionState.BLOCKED:
                return self.state, 0.0
            reason = f"{address()} did not answer" if self.refusal is None else self.refusal.text
            raise MessageHubConnectionError(f"no connection to the hub in time: {reason}")
        return None, remaining

    def change(self, state: ConnectionState) -> bool:
        """Change the state. No other method does. The caller holds the lock.

        :returns: whether the state is another one now.
        """
        before = self.state
        if self.closing and state is not ConnectionState.CLOSED:
            return False  # a closing connection can only become closed
        self.state = state
        if state is ConnectionState.OPEN:
            self.ever_open = True
            self.forget_refusal()
        self._waiters.wake_all()
        return state is not before

    def enter(self, state: ConnectionState, why: str, first: Callable[[], None] = lambda: None) -> None:
        """Change the state and log the change. The caller holds no lock.

        :param why: the reason, for the log.
        :param first: called before the state becomes ``OPEN``; not called for other states.
        """
        # Log OPEN before setting it: a logging handler that publishes runs on this I/O thread, and after OPEN would
        # wait for an answer that only this thread reads.
        if state is ConnectionState.OPEN:
            before = self.state
            if before is not state and not self.closing:
                self._log_change(before, state, why)
            first()
            self.lock.run(self.change, state)
            return
        before = self.state  # only this thread changes it, except to CLOSING
        if self.lock.run(self.change, state):
            self._log_change(before, state, why)

    def _log_change(self, before: ConnectionState, state: ConnectionState, why: str) -> None:
        # WARNING when a problem begins and when it ends, so that the log has both or neither.
        troubled = state in _TROUBLED or (state is ConnectionState.OPEN and before in _TROUBLED)
        known = self.ever_open or state is ConnectionState.OPEN
        level = logging.WARNING if troubled and known else logging.INFO if known else logging.DEBUG
        logger.log(level, "%s: %s -> %s: %s", self._name, before.value, state.value, why)

    def announce_blocked(self, blocked: bool, first: Callable[[], None] = lambda: None) -> None:
        """Change the state after the broker stopped or resumed accepting messages. The caller holds no lock.

        :param blocked: whether it stopped.
        :param first: called if it resumed, before the state becomes ``OPEN``.
        """
        if blocked and self.state is ConnectionState.OPEN:
            self.enter(ConnectionState.BLOCKED, "the broker accepts no messages (memory or disk alarm)")
        elif not blocked and self.state is ConnectionState.BLOCKED:
            self.enter(ConnectionState.OPEN, "the broker accepts messages again", first)
        elif not blocked:
            first()

    def refuse(self, refusal: Refusal, all_hosts_refused: bool) -> None:
        """Record and log that an attempt to connect failed. The caller holds no lock.

        :param all_hosts_refused: waiting callers fail now, with this refusal.
        """
        news = self.lock.run(self._note_refusal, refusal, all_hosts_refused)
        logger.log(logging.ERROR if news else logging.DEBUG, "%s: %s", self._name, refusal.text)

    def _note_refusal(self, refusal: Refusal, all_hosts_refused: bool) -> bool:
        news = all_hosts_refused and not self._all_hosts_refused
        self.refusal, self._all_hosts_refused = refusal, all_hosts_refused
        self._refused_at = time.monotonic()
        self._waiters.wake_all()
        return news

    def forget_refusal(self) -> None:
        """Forget why the last attempt failed, before the next one. The caller holds the lock."""
        self.refusal, self._all_hosts_refused = None, False

    def close(self) -> None:
        """Fail the waiting and all later callers. The caller holds the lock."""
        if self.state is not ConnectionState.CLOSED:
            self.change(ConnectionState.CLOSING)
        self.closing = True
        self._waiters.wake_all()
