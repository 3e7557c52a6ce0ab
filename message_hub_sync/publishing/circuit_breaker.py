"""Circuit breakers: one pybreaker circuit for each destination and event type, and one for the connection.

Nacks and missing confirms count for the destination or event type: one full queue must not stop the others. Failures of
the connection count for all of them in one circuit, so that a broker that is down is noticed once. Calls still run in
parallel.

pybreaker keeps the state and counts the failures. It does not run the call, because its ``call`` holds a lock: the
caller reports the outcome afterwards. It does not measure time, because it reads the wall clock, which may be set.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from datetime import datetime
from enum import Enum, auto

from pybreaker import (
    STATE_CLOSED,
    STATE_HALF_OPEN,
    STATE_OPEN,
    CircuitBreaker,
    CircuitBreakerListener,
    CircuitBreakerState,
    CircuitMemoryStorage,
)

from message_hub_sync.config import CircuitBreakerConfig
from message_hub_sync.errors import MessageHubCircuitBreakerError
from message_hub_sync.runtime.locks import Lock, locked
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.real_time import time

__all__ = ["CONNECTION", "MAX_CIRCUITS", "CircuitBreakers", "Permit"]

#: The key of the circuit that failures of the connection open, for all destinations. No name has this character.
CONNECTION = "*"

#: Limit of the number of circuits. At the limit, a new one replaces the longest idle one: of those without a failure,
#: else of the closed ones, else of all.
MAX_CIRCUITS = 1_000

#: A queued change with this state: the client was closed, so report the circuit as closed. With an empty key: no more
#: changes are reported.
_ENDED = "ended"

#: The consequence of each state, for the log.
_CONSEQUENCES = {
    STATE_OPEN: "calls fail at once until a trial call is admitted",
    STATE_HALF_OPEN: "the next call is the trial call",
    STATE_CLOSED: "calls are admitted again",
}

_Changes = deque[tuple[str, str]]

logger = SafeLogger("message_hub_sync.circuit_breaker")


class CircuitBreakers:
    """One circuit for each destination and event type, and one for the connection. Safe from any thread.

    A forked child needs a new instance, because a thread of the parent may have held the lock at the fork.

    :param service: name of the service that makes the calls, for the log: one process may have several clients.
    :param on_change: called with the key and the new state of each change, in order and without the lock. It must be
        quick. If it raises, the error is logged.
    :param on_new: called with the key of each new circuit, until :data:`MAX_CIRCUITS` are reached; otherwise like
        ``on_change``.
    :param clock: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        config: CircuitBreakerConfig,
        service: str,
        *,
        on_change: Callable[[str, str], None] | None = None,
        on_new: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._service = service
        self._on_change = on_change  # set to None by the announcer after close()
        self._on_new = on_new
        self._clock = clock
        self._lock = Lock()
        self._changes: _Changes = deque()  # guarded by _lock; only tested for emptiness without it
        self._circuits: dict[str, _Circuit] = {}  # guarded by _lock; admit() also reads it without the lock
        # It is among the circuits after the first failure of the connection.
        self._connection = _Circuit(CONNECTION, config, clock, self._changes)  # its fields are guarded by _lock
        self._restorations = 0  # guarded by _lock; admit() also reads it without the lock
        # The call of _announce_changes() that announces now, and the id of its thread.
        self._announcer: object = None  # guarded by _lock
        self._announcer_thread = 0  # guarded by _lock

    def admit(self, key: str) -> Permit:
        """Admit one call to ``key``, or raise at once.

        :param key: the destination, or the event type.
        :returns: a permit of the circuits of ``key`` and of the connection. The caller reports the outcome to it.
        :raises MessageHubCircuitBreakerError: one of them is open, or half-open with a trial call in progress.
        """
        circuit = self._circuits.get(key)
        connection = self._connection
        # No lock for closed circuits. If one opens meanwhile, this call is like one admitted just before.
        if circuit is not None and circuit.state == STATE_CLOSED and connection.state == STATE_CLOSED:
            circuit.used = self._clock()
            return Permit(self, circuit, connection, self._restorations, False)
        return self._admitted(key, connection)

    def admit_to_destination(self, key: str) -> Permit:
        """Like :meth:`admit`, without the circuit of the connection: a bulk call asks for that once."""
        return self._admitted(key, None)

    def admit_to_connection(self) -> Permit:
        """Like :meth:`admit`, but only the circuit of the connection."""
        return self._admitted(None, self._connection)

    def _admitted(self, key: str | None, connection: _Circuit | None) -> Permit:
        new = key not in self._circuits and len(self._circuits) < MAX_CIRCUITS
        permit = self._lock.run(self._decide, key, connection)
        if new and key is not None and self._on_new is not None:
            self._call_listener(self._on_new, key)
        self._announce_changes()
        return permit

    def connection_restored(self) -> None:
        """Make the circuits half-open that lost connections or missing confirms opened: they admit a trial call now."""
        self._half_open_by_connection()
        self._announce_changes()

    @locked
    def _half_open_by_connection(self) -> None:
        self._restorations += 1
        for circuit in self._circuits.values():
            if circuit.state == STATE_OPEN and circuit.opened_by_connection:
                circuit.breaker.half_open()

    def close(self) -> None:
        """Report all circuits as closed to ``on_change``, and no more changes after that: the client is closed."""
        self._queue_ends()
        self._announce_changes()

    @locked
    def _queue_ends(self) -> None:
        self._changes.extend((key, _ENDED) for key, circuit in self._circuits.items() if circuit.state != STATE_CLOSED)
        self._changes.append(("", _ENDED))

    @locked
    def states(self) -> dict[str, str]:
        """The state of each circuit: ``closed``, ``open`` (until a trial call is admitted) or ``half-open``."""
        return {key: circuit.state for key, circuit in self._circuits.items()}

    def worst(self) -> str:
        """The worst state of all circuits: ``open``, else ``half-open``, else ``closed``."""
        found = self.states().values()
        return next((state for state in (STATE_OPEN, STATE_HALF_OPEN) if state in found), STATE_CLOSED)

    def _decide(self, key: str | None, connection: _Circuit | None) -> Permit:
        # The caller holds _lock.
        now = self._clock()
        circuit = None
        if key is not None:
            circuit = self._circuits.get(key)
            if circuit is None:
                circuit = _Circuit(key, self._config, self._clock, self._changes)
                self._add(circuit)
            circuit.used = now
        not_closed = [c for c in (connection, circuit) if c is not None and c.state != STATE_CLOSED]
        # First ask both, then change them: a trial call that the other circuit refuses would not take place.
        for asked in not_closed:
            self._refuse_unless_trial_is_due(asked, now)
        permit = Permit(self, circuit, connection, self._restorations, bool(not_closed))
        for tried in not_closed:
            if tried.state == STATE_OPEN:
                tried.breaker.half_open()
            tried.trial = permit
            tried.trial_ends = now + self._config.half_open_timeout
        return permit

    def _refuse_unless_trial_is_due(self, circuit: _Circuit, now: float) -> None:
        if circuit.state == STATE_OPEN:
            wait = circuit.storage.opened + self._config.reset_timeout - now
            if wait > 0:
                raise _circuit_error(circuit, "open after consecutive failures", wait, circuit.opened_by_connection)
        elif self._announcer is not None and self._announcer_thread == threading.get_ident():
            # A logging handler or listener makes this call during the announcement, for example to publish log records.
            # It must not be the trial call: the announcement may run on the I/O thread (connection_restored()), and the
            # call would wait for an answer that only this thread reads.
            why = "half-open; a call made during its announcement cannot be the trial call"
            raise _circuit_error(circuit, why, 0.0)
        # If the outcome of a trial call was never reported (a signal's exception interrupted it), it blocks other calls
        # only until trial_ends.
        elif circuit.trial is not None and now < circuit.trial_ends:
            raise _circuit_error(circuit, "half-open, with its one trial call in progress", circuit.trial_ends - now)

    def _add(self, circuit: _Circuit) -> None:
        # The caller holds _lock.
        if len(self._circuits) >= MAX_CIRCUITS:
            others = (other for other in self._circuits.values() if other is not self._connection)
            dropped = min(others, key=lambda other: (other.state != STATE_CLOSED, other.failures > 0, other.used))
            del self._circuits[dropped.key]
            if dropped.state != STATE_CLOSED:
                self._changes.append((dropped.key, _ENDED))
        self._circuits[circuit.key] = circuit

    @locked
    def _note_outcomes(self, permit: Permit, *outcomes: tuple[_Circuit | None, _Outcome]) -> None:
        for circuit, outcome in outcomes:
            if circuit is not None:
                # If the circuit was dropped during this call, and there is a new one of that key, use that.
                self._note_outcome(permit, self._circuits.get(circuit.key, circuit), outcome)

    def _note_outcome(self, permit: Permit, circuit: _Circuit, outcome: _Outcome) -> None:
        # The caller holds _lock.
        trial = circuit.trial is permit
        if trial:
            circuit.trial = None
        elif circuit.state != STATE_CLOSED:
            return  # admitted before the circuit opened, or a trial call after its time: another trial decides
        if outcome is _Outcome.SUCCESS or (outcome is _Outcome.ANSWER and trial):
            circuit.count_success()
        elif outcome in (_Outcome.FAILURE, _Outcome.SILENCE):
            silence = outcome is _Outcome.SILENCE
            if circuit.key not in self._circuits:
                self._add(circuit)
            circuit.count_failure(by_connection=silence)
            # The connection was restored during this call, so connection_restored() will not be called again for it.
            if silence and circuit.state == STATE_OPEN and permit.restorations != self._restorations:
                circuit.breaker.half_open()

    def _announce_changes(self) -> None:
        """Log the queued changes, and call the listener for each, without holding the lock.

        One call announces at a time, so that changes are announced in order. Other threads, and calls nested in this
        one (made by a listener or logging handler), only queue their changes and do not wait. The announcer drains the
        queue, then clears ``_announcer`` under ``_lock``, which guards the queue too: so no change is left over.
        """
        if not self._changes:
            return
        mine = object()
        try:
            while (change := self._next_change(mine)) is not None:
                key, state = change
                if state != _ENDED:
                    # CLOSED has the level of OPEN: a log that shows the failure must show its end too.
                    level = logging.INFO if state == STATE_HALF_OPEN else logging.WARNING
                    text = "%s: the circuit of %s is %s; %s"
                    logger.log(level, text, self._service, _shown_key(key), state, _CONSEQUENCES[state])
                if not key:
                    self._on_change = None
                elif self._on_change is not None:
                    self._call_listener(self._on_change, key, STATE_CLOSED if state == _ENDED else state)
        except BaseException:
            # Interrupted by a signal's exception: clear _announcer, so that the next call announces the remaining
            # changes. Without an exception, _next_change() has cleared _announcer under the lock already.
            self._lock.run(self._stop_announcing, mine)
            raise

    def _stop_announcing(self, mine: object) -> None:
        if self._announcer is mine:
            self._announcer = None

    @locked
    def _next_change(self, mine: object) -> tuple[str, str] | None:
        """The next change for the announcer ``mine``; ``None`` if there is none, or if another call announces."""
        if self._announcer is not None and self._announcer is not mine:
            return None
        if not self._changes:
            self._announcer = None
            return None
        self._announcer, self._announcer_thread = mine, threading.get_ident()
        return self._changes.popleft()

    @staticmethod
    def _call_listener(listener: Callable[..., None], *arguments: str) -> None:
        try:
            listener(*arguments)
        except Exception:
            logger.exception("a listener to circuit changes failed; the circuit is not affected")


class _Outcome(Enum):
    """What a call showed about one circuit."""

    SUCCESS = auto()
    #: The broker answered, which is neither a success nor a failure. It ends a trial call as a success.
    ANSWER = auto()
    #: Nothing. After a trial call, the next call is the trial call.
    NOTHING = auto()
    FAILURE = auto()
    #: A failure that may be over when the connection is back.
    SILENCE = auto()


class Permit:
    """The permission for one call. Its caller reports one outcome: succeeded, failed or not_counted.

    A second report changes nothing. A permit belongs to the thread that got it.

    :ivar trial: whether this is the trial call of a half-open circuit. The caller limits it to ``half_open_timeout``
        seconds: after that, the next trial call is admitted, and the outcome of this one no longer counts.
    :ivar restorations: how often the connection had been restored before this call.
    """

    __slots__ = ("_breakers", "_circuit", "_connection", "restorations", "trial")

    def __init__(
        self,
        breakers: CircuitBreakers,
        circuit: _Circuit | None,
        connection: _Circuit | None,
        restorations: int,
        trial: bool,
    ) -> None:
        self._breakers = breakers
        # Both: calling thread only; None after the first report.
        self._circuit = circuit
        self._connection = connection
        self.restorations = restorations
        self.trial = trial

    def succeeded(self) -> None:
        """The broker accepted the message. The count of consecutive failures restarts; a trial closes the circuit."""
        circuit, connection = self._circuit, self._connection
        if self.trial or (circuit and circuit.failures) or (connection and connection.failures):
            self._report(_Outcome.SUCCESS, _Outcome.SUCCESS)
        self._circuit = self._connection = None

    def failed(self, *, connection: bool = False, silent: bool = False) -> None:
        """The call failed, which is counted. A failed trial opens the circuit again.

        :param connection: the connection failed, so this counts for its circuit and not for the destination's.
        :param silent: no confirm came before the deadline. It shows nothing about the connection, and may be over when
            the connection is back.
        """
        if connection:
            self._report(_Outcome.NOTHING, _Outcome.SILENCE)
        elif silent:
            self._report(_Outcome.SILENCE, _Outcome.NOTHING)
        else:
            self._report(_Outcome.FAILURE, _Outcome.SUCCESS)

    def not_counted(self, *, answered: bool = False) -> None:
        """The outcome is no success and no failure of the destination: unroutable, or the caller's mistake.

        A closed circuit does not change. If this was the trial call, there are two cases. (1) The broker ``answered``:
        the circuit closes. (2) It did not: the next call is the trial call.

        :param answered: the broker answered the call (unroutable, no permission), so it works.
        """
        if answered:
            self._report(_Outcome.ANSWER, _Outcome.SUCCESS)
        elif self.trial:
            self._report(_Outcome.NOTHING, _Outcome.NOTHING)

    def _report(self, of_destination: _Outcome, of_connection: _Outcome) -> None:
        circuit, connection = self._circuit, self._connection
        self._circuit = self._connection = None
        self._breakers._note_outcomes(self, (circuit, of_destination), (connection, of_connection))
        self._breakers._announce_changes()


class _Circuit(CircuitBreakerListener):
    """One circuit: its pybreaker, and the state that pybreaker does not keep."""

    def __init__(self, key: str, config: CircuitBreakerConfig, clock: Callable[[], float], changes: _Changes) -> None:
        # "the lock" is that of the CircuitBreakers.
        self.key = key
        self.state = STATE_CLOSED  # guarded by the lock; admit() also reads it without the lock
        self.failures = 0  # consecutive ones; guarded by the lock; Permit also reads it without the lock
        self.used = clock()  # time of the last call; no lock: any recent value will do
        self.trial: Permit | None = None  # guarded by the lock
        self.trial_ends = 0.0  # guarded by the lock
        self.opened_by_connection = False  # guarded by the lock
        self.storage = _Storage(clock)
        self.breaker = CircuitBreaker(
            fail_max=config.failure_threshold,
            reset_timeout=config.reset_timeout,
            listeners=[self],
            state_storage=self.storage,
            name=key,
            throw_new_error_on_trip=False,
        )
        self._changes = changes

    def state_change(
        self, cb: CircuitBreaker, old_state: CircuitBreakerState | None, new_state: CircuitBreakerState
    ) -> None:
        """Called by pybreaker after a change of the state."""
        self.state = new_state.name
        self.trial = None
        self._changes.append((self.key, self.state))

    def count_success(self) -> None:
        """Count a success. Do not call this in the open state: pybreaker would take it for a trial call."""
        self.breaker.call(_succeed)
        self.failures = 0

    def count_failure(self, *, by_connection: bool) -> None:
        """Count a failure. Do not call this in the open state: pybreaker would take it for a trial call."""
        try:
            self.breaker.call(_fail)
        except _CountedError:
            self.failures = self.breaker.fail_counter
            self.opened_by_connection = by_connection


class _Storage(CircuitMemoryStorage):
    """pybreaker's storage, but with the time of opening from a monotonic clock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(STATE_CLOSED)
        self.opened = 0.0  # guarded by the lock of the CircuitBreakers
        self._clock = clock

    @property
    def opened_at(self) -> datetime | None:
        """Always ``None``: pybreaker would compare it with the wall clock. Use :attr:`opened` instead."""
        return None

    @opened_at.setter
    def opened_at(self, wall: datetime) -> None:
        self.opened = self._clock()


def _shown_key(key: str) -> str:
    return "the connection" if key == CONNECTION else key


class _CountedError(Exception):
    """Raised inside pybreaker's ``call``, so that it counts a failure."""


def _succeed() -> None:
    """Called by pybreaker, so that it counts a success."""


def _fail() -> None:
    raise _CountedError


def _circuit_error(circuit: _Circuit, why: str, wait: float, until_back: bool = False) -> MessageHubCircuitBreakerError:
    when = f"in {wait:.1f} s (retry_after)"
    if until_back:
        when = f"in at most {wait:.1f} s (retry_after), or as soon as the connection is back"
    text = f"the circuit of {_shown_key(circuit.key)} is {why}: nothing was sent; try again {when}"
    return MessageHubCircuitBreakerError(text, retry_after=wait)
