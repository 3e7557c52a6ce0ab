"""Whether a destination may be called now: one pybreaker circuit each, admitting without serialising.

pybreaker keeps the states and counts the failures. Its ``call`` holds a lock while the guarded function
runs, so it never runs the work itself: it is told the outcome afterwards. And it reads the wall clock, so
it is never asked about time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime

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
from message_hub_sync.runtime.log import SafeLogger

__all__ = ["MAX_CIRCUITS", "CircuitBreakers", "Permit"]

#: Above so many, circuits that are closed and without a failure are dropped, the longest idle first.
MAX_CIRCUITS = 1_000

#: Instead of a state: the circuit ends with its client; without a key, all have.
_ENDED = "ended"

logger = SafeLogger("message_hub_sync.circuit_breaker")


class CircuitBreakers:
    """One circuit per destination, and one for the event exchange.

    :param service: whose calls these are, for the log: one process may have several clients.
    :param on_change: called with key and new state at every change, in the order of the changes and never
        under the lock. It must be quick; what it raises is logged.
    :param on_new: called with the key of each new circuit, as long as none had to be dropped. Like ``on_change``.
    :param clock: seconds that only ever grow. The wall clock is not read.

    Safe from any thread. A forked child makes a new one, since the lock may have been held at the fork.
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
        self._on_change = on_change
        self._on_new = on_new
        self._clock = clock
        self._lock = threading.Lock()
        # Guarded by _lock, with the circuits' own fields; only admit's closed path reads without it.
        self._circuits: dict[str, _Circuit] = {}
        self._restorations = 0
        self._changes: deque[tuple[str, str]] = deque()
        # Who tells changes now: one call at a time, so that they are told in order; and the thread it is in.
        self._teller: object = None
        self._teller_thread = 0

    def admit(self, key: str) -> Permit:
        """Let one call to ``key`` through, or refuse it at once.

        :returns: an permit, to be told exactly one of succeeded, failed and not_counted.
        :raises MessageHubCircuitBreakerError: the circuit is open, or half-open with its one trial under way.
        """
        circuit = self._circuits.get(key)
        # Without the lock: a call that slips in while the circuit opens is like one admitted just before.
        if circuit is not None and circuit.state == STATE_CLOSED:
            circuit.used = self._clock()
            return Permit(self, circuit, self._restorations, False)
        with self._lock:
            new = circuit is None and key not in self._circuits and len(self._circuits) < MAX_CIRCUITS
            permit = self._decide(key)
        if new and self._on_new is not None:
            self._heard(self._on_new, key)
        self._tell()
        return permit

    def connection_restored(self) -> None:
        """The connection is back: the circuits that its loss opened go half-open, and admit a trial now."""
        with self._lock:
            self._restorations += 1
            for circuit in self._circuits.values():
                if circuit.state == STATE_OPEN and circuit.opened_by_connection:
                    circuit.breaker.half_open()
        self._tell()

    def close(self) -> None:
        """The client ends, and its circuits with it: ``on_change`` hears that they are closed, and then no more."""
        with self._lock:
            self._changes.extend(
                (key, _ENDED) for key, circuit in self._circuits.items() if circuit.state != STATE_CLOSED
            )
            self._changes.append(("", _ENDED))
        self._tell()

    def states(self) -> dict[str, str]:
        """Each circuit's state: ``closed``, ``open`` (until a trial is admitted) or ``half-open``."""
        with self._lock:
            return {key: circuit.state for key, circuit in self._circuits.items()}

    def worst(self) -> str:
        """The worst state there is: ``open``, else ``half-open``, else ``closed``."""
        found = self.states().values()
        return next((state for state in (STATE_OPEN, STATE_HALF_OPEN) if state in found), STATE_CLOSED)

    def _decide(self, key: str) -> Permit:
        now = self._clock()
        circuit = self._circuits.get(key)
        if circuit is None:
            self._drop_one_idle()
            circuit = self._circuits[key] = _Circuit(key, self._config, self._clock, self._changes)
        circuit.used = now
        if circuit.state == STATE_CLOSED:
            return Permit(self, circuit, self._restorations, False)
        if circuit.state == STATE_OPEN:
            wait = circuit.storage.opened + self._config.reset_timeout - now
            if wait > 0:
                why = f"the circuit of {key!r} is open after repeated failures"
                raise _refusal(why, wait, or_reconnected=circuit.opened_by_connection)
            circuit.breaker.half_open()
        elif self._teller is not None and self._teller_thread == threading.get_ident():
            # A logging handler that publishes what it hears, on the thread that is to carry the trial, may be.
            raise _refusal(f"the circuit of {key!r} is half-open, which is being told: this call is not its trial", 0.0)
        # A trial that was never settled (a signal raised in its thread) bars others only for its own time.
        elif circuit.trial is not None and now < circuit.trial_ends:
            wait = circuit.trial_ends - now
            raise _refusal(f"the circuit of {key!r} is half-open, its one trial under way", wait)
        circuit.trial = Permit(self, circuit, self._restorations, True)
        circuit.trial_ends = now + self._config.half_open_timeout
        return circuit.trial

    def _drop_one_idle(self) -> None:
        if len(self._circuits) >= MAX_CIRCUITS:
            # Without a failure it is closed: what opened a circuit stays counted until it closes.
            idle = (c for c in self._circuits.values() if not c.failures)
            oldest = min(idle, key=lambda circuit: circuit.used, default=None)
            if oldest is not None:
                del self._circuits[oldest.key]

    def _settle(self, permit: Permit, circuit: _Circuit, outcome: _Outcome) -> None:
        with self._lock:
            # A circuit dropped while this call was under way comes back, or its successor counts.
            circuit = self._circuits.setdefault(circuit.key, circuit)
            if circuit.trial is permit:
                circuit.trial = None
            elif circuit.state != STATE_CLOSED:
                return  # admitted before the circuit opened, or a trial past its time: another one decides
            if outcome is not None:
                outcome(circuit)
        self._tell()

    def _failed(self, permit: Permit, circuit: _Circuit, restorations: int, connection: bool) -> None:
        def outcome(circuit: _Circuit) -> None:
            circuit.count_failure(by_connection=connection)
            # The connection came back while the call waited for it: nobody will announce that again.
            if connection and circuit.state == STATE_OPEN and restorations != self._restorations:
                circuit.breaker.half_open()

        self._settle(permit, circuit, outcome)

    def _tell(self) -> None:
        """Log the changes and call the listener, with no lock held; nobody waits for another's logging handlers.

        Whoever comes while somebody is at it, in another thread or further up in this one, leaves his changes to that
        one, who looks for more until he gives up being it under the lock that changes are made under.
        """
        if not self._changes:
            return
        mine = object()
        try:
            while (change := self._next_change(mine)) is not None:
                key, state = change
                if state != _ENDED:
                    # The end of the trouble as loudly as its beginning: whoever heard one is to hear the other.
                    level = logging.INFO if state == STATE_HALF_OPEN else logging.WARNING
                    logger.log(level, "%s: the circuit of %s is %s", self._service, key, state)
                if not key:
                    self._on_change = None
                elif self._on_change is not None:
                    self._heard(self._on_change, key, STATE_CLOSED if state == _ENDED else state)
        except BaseException:
            # A signal's. In the orderly course it is given up inside the block above, where no signal can come between.
            with self._lock:
                if self._teller is mine:
                    self._teller = None
            raise

    def _next_change(self, mine: object) -> tuple[str, str] | None:
        """The next one for this teller, ``None`` when there is none, or another one tells."""
        with self._lock:
            if self._teller is not None and self._teller is not mine:
                return None
            if not self._changes:
                self._teller = None
                return None
            self._teller, self._teller_thread = mine, threading.get_ident()
            return self._changes.popleft()

    @staticmethod
    def _heard(listener: Callable[..., None], *news: str) -> None:
        try:
            listener(*news)
        except Exception:
            logger.exception("the listener to circuit changes failed")


class Permit:
    """Leave for one call. Exactly one outcome is told, once; a second one changes nothing.

    ``trial`` is true for the one call of a half-open circuit; the caller bounds it by ``half_open_timeout``,
    after which the next trial is admitted and this one's outcome no longer counts.
    Mutable: the circuit, taken away by the first outcome. Belongs to the calling thread.
    """

    __slots__ = ("_breakers", "_circuit", "_restorations", "trial")

    def __init__(self, breakers: CircuitBreakers, circuit: _Circuit, restorations: int, trial: bool) -> None:
        self._breakers = breakers
        self._circuit: _Circuit | None = circuit
        self._restorations = restorations
        self.trial = trial

    def succeeded(self) -> None:
        """The broker took the message: failures in a row end, a trial closes the circuit."""
        circuit = self._circuit
        self._circuit = None
        if circuit is not None and (self.trial or circuit.failures):
            self._breakers._settle(self, circuit, _Circuit.count_success)

    def failed(self, *, connection: bool = False) -> None:
        """A deadline, a nack or (``connection``) a lost connection: counted; after a trial, open again."""
        circuit = self._circuit
        self._circuit = None
        if circuit is not None:
            self._breakers._failed(self, circuit, self._restorations, connection)

    def not_counted(self, *, answered: bool = False) -> None:
        """Neither: unroutable, or the caller's mistake.

        In a closed circuit nothing changes. A trial gives its permit back, so that the next call is the
        trial; one that the broker ``answered`` (unroutable, not permitted) has shown that the broker is
        there, and closes the circuit.
        """
        circuit = self._circuit
        self._circuit = None
        if circuit is not None and self.trial:
            self._breakers._settle(self, circuit, _Circuit.count_success if answered else None)


class _Circuit(CircuitBreakerListener):
    """One key's pybreaker and what it does not keep. Mutable; guarded by the lock of its CircuitBreakers."""

    def __init__(
        self,
        key: str,
        config: CircuitBreakerConfig,
        clock: Callable[[], float],
        changes: deque[tuple[str, str]],
    ) -> None:
        self.key = key
        self.state = STATE_CLOSED
        self.failures = 0
        self.used = clock()
        self.trial: Permit | None = None
        self.trial_ends = 0.0
        self.opened_by_connection = False
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
        """pybreaker's announcement of a change."""
        self.state = new_state.name
        self.trial = None
        self._changes.append((self.key, self.state))

    def count_success(self) -> None:
        """Not in the open state, where pybreaker would take it for a trial."""
        self.breaker.call(_succeed)
        self.failures = 0

    def count_failure(self, *, by_connection: bool) -> None:
        """Not in the open state, where pybreaker would take it for a trial."""
        try:
            self.breaker.call(_fail)
        except _CountedError:
            self.failures = self.breaker.fail_counter
            self.opened_by_connection = by_connection


class _Storage(CircuitMemoryStorage):
    """pybreaker's own storage, its moment of opening read off a clock that the wall clock cannot move."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(STATE_CLOSED)
        self.opened = 0.0
        self._clock = clock

    @property
    def opened_at(self) -> datetime | None:
        """``None``: pybreaker would compare it with the wall clock. :attr:`opened` is the one to ask."""
        return None

    @opened_at.setter
    def opened_at(self, wall: datetime) -> None:
        self.opened = self._clock()


class _CountedError(Exception):
    """What pybreaker sees of a failure."""


_Outcome = Callable[[_Circuit], None] | None


def _succeed() -> None:
    """What pybreaker sees of a success."""


def _fail() -> None:
    raise _CountedError


def _refusal(why: str, wait: float, *, or_reconnected: bool = False) -> MessageHubCircuitBreakerError:
    when = f"in at most {wait:.1f} s (retry_after), or as soon as the connection is back"
    if not or_reconnected:
        when = f"in {wait:.1f} s (retry_after)"
    return MessageHubCircuitBreakerError(f"{why}: nothing was sent; try again {when}", retry_after=wait)
