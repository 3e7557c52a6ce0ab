"""Callers wait at the gate, each with its own deadline, and no signal upsets whose lock is whose."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import pytest
from locking import held
from mailing import mailing

from message_hub_sync.errors import MessageHubAuthorizationError, MessageHubConnectionError
from message_hub_sync.transport.base import ConnectionState
from message_hub_sync.transport.rabbitmq.connection_gate import ConnectionGate
from message_hub_sync.transport.rabbitmq.translation import Refusal

REFUSED = Refusal(MessageHubAuthorizationError, "refused", True)


def wait(gate: ConnectionGate, seconds: float, *, accept_blocked: bool = True) -> ConnectionState:
    return gate.wait(time.monotonic() + seconds, lambda: None, lambda: "amqp://host", accept_blocked)


def waiting(gate: ConnectionGate, **how: Any) -> SimpleQueue[Any]:
    """The result of a wait in another thread, which waits already."""
    results: SimpleQueue[Any] = SimpleQueue()
    attended = threading.Event()

    def run() -> None:
        try:
            how.setdefault("accept_blocked", True)
            results.put(gate.wait(time.monotonic() + 600, attended.set, lambda: "amqp://host", **how))
        except Exception as error:
            results.put(error)

    threading.Thread(target=run, daemon=True).start()
    assert attended.wait(30)
    return results


def test_callers_pass_when_it_opens() -> None:
    gate = ConnectionGate("test")
    callers = [waiting(gate) for _ in range(3)]
    assert gate.awaited
    gate.enter(ConnectionState.OPEN, "now")
    assert [caller.get(timeout=30) for caller in callers] == [ConnectionState.OPEN] * 3
    assert wait(gate, 0) is ConnectionState.OPEN


def test_a_logging_handler_that_raises_changes_no_state() -> None:
    gate = ConnectionGate("test")
    with mailing():
        gate.enter(ConnectionState.OPEN, "now")
        gate.enter(ConnectionState.RECOVERING, "lost")
        gate.refuse(REFUSED, all_hosts_refused=True)
    assert (gate.state, gate.refusal) == (ConnectionState.RECOVERING, REFUSED)


def test_that_it_is_open_is_said_before_it_is_so_as_whoever_hears_it_on_the_io_thread_may_not_pass(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gate = ConnectionGate("test")
    seen: list[Any] = []

    class Looking(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append((record.getMessage(), gate.state))

    ours, handler = logging.getLogger("message_hub_sync.rabbitmq"), Looking()
    ours.addHandler(handler)
    try:
        with caplog.at_level(logging.DEBUG, "message_hub_sync.rabbitmq"):
            gate.enter(ConnectionState.OPEN, "now", lambda: seen.append(("the listeners", gate.state)))
            gate.enter(ConnectionState.RECOVERING, "lost")
    finally:
        ours.removeHandler(handler)
    assert seen == [
        ("test: closed -> open: now", ConnectionState.CLOSED),
        ("the listeners", ConnectionState.CLOSED),
        ("test: open -> recovering: lost", ConnectionState.RECOVERING),
    ]


def test_the_end_of_a_trouble_is_said_as_loudly_as_its_beginning_and_once(caplog: pytest.LogCaptureFixture) -> None:
    gate = ConnectionGate("test")
    with caplog.at_level(logging.WARNING, "message_hub_sync.rabbitmq"):
        gate.enter(ConnectionState.CONNECTING, "somewhere")
        for state in (ConnectionState.OPEN, ConnectionState.RECOVERING, ConnectionState.OPEN, ConnectionState.OPEN):
            gate.enter(state, "so")
        gate.announce_blocked(True)
        gate.announce_blocked(False)
    assert [record.getMessage().rpartition(": ")[0] for record in caplog.records] == [
        "test: open -> recovering",
        "test: recovering -> open",
        "test: open -> blocked",
        "test: blocked -> open",
    ]


def test_nobody_waits_past_its_deadline_and_the_reason_is_told() -> None:
    gate = ConnectionGate("test")
    gate.refuse(Refusal(MessageHubConnectionError, "nobody listens", False), all_hosts_refused=False)
    began = time.monotonic()
    with pytest.raises(MessageHubConnectionError, match="nobody listens"):
        wait(gate, 0.05)
    assert time.monotonic() - began < 30
    assert not gate.awaited


def test_a_hopeless_refusal_ends_every_wait() -> None:
    gate = ConnectionGate("test")
    caller = waiting(gate)
    gate.refuse(REFUSED, all_hosts_refused=True)
    assert isinstance(caller.get(timeout=30), MessageHubAuthorizationError)


def test_closing_ends_every_wait_and_nothing_opens_afterwards() -> None:
    gate = ConnectionGate("test")
    caller = waiting(gate)
    with held(gate.lock):
        gate.close()
    assert "closed" in str(caller.get(timeout=30))
    gate.enter(ConnectionState.OPEN, "too late")
    assert gate.state is ConnectionState.CLOSED


def test_a_blocked_connection_will_do_for_some_and_is_waited_out_by_others() -> None:
    gate = ConnectionGate("test")
    gate.enter(ConnectionState.OPEN, "now")
    gate.announce_blocked(True)
    assert wait(gate, 0) is ConnectionState.BLOCKED
    assert wait(gate, 0.05, accept_blocked=False) is ConnectionState.BLOCKED
    caller = waiting(gate, accept_blocked=False)
    gate.announce_blocked(False)
    assert caller.get(timeout=30) is ConnectionState.OPEN


class Interrupted(BaseException):
    """Thrown by a signal handler."""


@pytest.fixture
def alarm() -> Iterator[None]:
    def interrupt(*_: Any) -> None:
        raise Interrupted

    previous = signal.signal(signal.SIGALRM, interrupt)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


@pytest.mark.usefixtures("alarm")
def test_a_signal_at_the_end_of_a_wait_does_not_release_a_lock_that_another_thread_holds() -> None:
    gate = ConnectionGate("test")
    errors: SimpleQueue[BaseException | None] = SimpleQueue()
    holding, interrupted = threading.Event(), threading.Event()

    def hold() -> None:
        try:
            with held(gate.lock):
                holding.set()
                interrupted.wait(5)  # the signal comes long before
            errors.put(None)
        except RuntimeError as error:
            errors.put(error)

    def ensure_thread() -> None:
        # From now on the lock is taken as soon as the wait lets go of it, until the signal has come.
        threading.Thread(target=hold, daemon=True).start()
        signal.setitimer(signal.ITIMER_REAL, 0.3)

    with pytest.raises(Interrupted):
        gate.wait(time.monotonic() + 0.1, ensure_thread, lambda: "amqp://host", True)
    assert holding.is_set()
    interrupted.set()
    assert errors.get(timeout=30) is None
