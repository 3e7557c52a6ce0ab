"""Circuits: they trip and recover, admit one trial, never serialise, and never look at the wall clock."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo

import pybreaker
import pytest
from mailing import mailing

from message_hub_sync.config import CircuitBreakerConfig
from message_hub_sync.errors import MessageHubCircuitBreakerError, MessageHubError
from message_hub_sync.publishing.circuit_breaker import CONNECTION, MAX_CIRCUITS, CircuitBreakers, Permit

SERVICE = "campaign-service"
KEY = "character-service"
CONFIG = CircuitBreakerConfig(failure_threshold=3, reset_timeout=60, half_open_timeout=30)


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breakers(clock: Clock) -> CircuitBreakers:
    return CircuitBreakers(CONFIG, SERVICE, clock=clock)


def trip(breakers: CircuitBreakers, key: str = KEY, *, connection: bool = False) -> None:
    for _ in range(CONFIG.failure_threshold):
        breakers.admit(key).failed(connection=connection)


def refused(breakers: CircuitBreakers, key: str = KEY) -> MessageHubCircuitBreakerError:
    with pytest.raises(MessageHubCircuitBreakerError) as caught:
        breakers.admit(key)
    return caught.value


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Run ``work`` in so many threads; the first error of any is raised here."""
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(n,), name=f"test-caller-{n}") for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


# --- trip and recovery -----------------------------------------------------------------------------


def test_failures_in_a_row_open_the_circuit_and_the_error_says_when_to_come_back(
    breakers: CircuitBreakers, clock: Clock
) -> None:
    trip(breakers)
    clock.now += 18
    error = refused(breakers)
    assert error.retry_after == pytest.approx(42)
    assert isinstance(error, MessageHubError)
    assert error.__cause__ is None
    assert error.__context__ is None
    assert str(error) == (
        "the circuit of character-service is open after consecutive failures: "
        "nothing was sent; try again in 42.0 s (retry_after)"
    )


def test_one_failure_less_than_the_threshold_leaves_it_closed(breakers: CircuitBreakers) -> None:
    for _ in range(CONFIG.failure_threshold - 1):
        breakers.admit(KEY).failed()
    assert breakers.states() == {KEY: "closed"}
    assert not breakers.admit(KEY).trial


def test_a_success_ends_the_row_of_failures(breakers: CircuitBreakers) -> None:
    for _ in range(4):
        breakers.admit(KEY).failed()
        breakers.admit(KEY).failed()
        breakers.admit(KEY).succeeded()
    assert breakers.states() == {KEY: "closed"}


def test_what_is_ignored_neither_counts_nor_ends_the_row(breakers: CircuitBreakers) -> None:
    breakers.admit(KEY).failed()
    breakers.admit(KEY).failed()
    for _ in range(10):
        breakers.admit(KEY).not_counted()
    assert breakers.states() == {KEY: "closed"}
    breakers.admit(KEY).failed()
    assert breakers.states() == {KEY: "open"}


def test_a_dead_destination_opens_its_own_circuit_only(breakers: CircuitBreakers) -> None:
    breakers.admit("image-service").succeeded()
    trip(breakers)
    breakers.admit("image-service").succeeded()
    assert breakers.states() == {"image-service": "closed", KEY: "open"}


def test_a_trial_that_succeeds_closes_the_circuit(breakers: CircuitBreakers, clock: Clock) -> None:
    trip(breakers)
    clock.now += 60
    assert breakers.states() == {KEY: "open"}, "until a trial is admitted"
    trial = breakers.admit(KEY)
    assert trial.trial
    assert breakers.states() == {KEY: "half-open"}
    trial.succeeded()
    assert breakers.states() == {KEY: "closed"}
    breakers.admit(KEY).failed()
    breakers.admit(KEY).failed()
    assert breakers.states() == {KEY: "closed"}, "the count began anew"


def test_a_trial_that_fails_opens_it_for_another_reset_timeout(breakers: CircuitBreakers, clock: Clock) -> None:
    trip(breakers)
    clock.now += 60
    trial = breakers.admit(KEY)
    clock.now += 5
    trial.failed()
    assert breakers.states() == {KEY: "open"}
    assert refused(breakers).retry_after == pytest.approx(60)
    clock.now += 60
    assert breakers.admit(KEY).trial


def test_a_trial_that_is_ignored_leaves_its_permit_to_the_next_call(breakers: CircuitBreakers, clock: Clock) -> None:
    trip(breakers)
    clock.now += 60
    breakers.admit(KEY).not_counted()
    assert breakers.states() == {KEY: "half-open"}
    assert breakers.admit(KEY).trial


def test_a_trial_that_the_broker_answered_closes_the_circuit(breakers: CircuitBreakers, clock: Clock) -> None:
    trip(breakers)
    clock.now += 60
    breakers.admit(KEY).not_counted(answered=True)
    assert breakers.states() == {KEY: "closed"}


def test_only_the_first_outcome_of_an_admission_counts(breakers: CircuitBreakers) -> None:
    permit = breakers.admit(KEY)
    for _ in range(10):
        permit.failed()
    assert breakers.states() == {KEY: "closed"}
    breakers.admit(KEY).failed()
    permit.succeeded()
    breakers.admit(KEY).failed()
    assert breakers.states() == {KEY: "open"}, "the late success did not end the row"


def test_outcomes_of_calls_admitted_before_it_opened_do_not_decide_the_trial(
    breakers: CircuitBreakers, clock: Clock
) -> None:
    early = [breakers.admit(KEY) for _ in range(3)]
    trip(breakers)
    clock.now += 30
    early[0].failed()
    assert refused(breakers).retry_after == pytest.approx(30), "a late failure does not prolong it"
    clock.now += 30
    trial = breakers.admit(KEY)
    early[1].succeeded()
    early[2].failed()
    assert breakers.states() == {KEY: "half-open"}
    trial.succeeded()
    assert breakers.states() == {KEY: "closed"}


def test_a_trial_nobody_settled_bars_others_only_for_its_own_time(breakers: CircuitBreakers, clock: Clock) -> None:
    trip(breakers)
    clock.now += 60
    lost = breakers.admit(KEY)
    clock.now += 10
    assert refused(breakers).retry_after == pytest.approx(20)
    clock.now += 20
    second = breakers.admit(KEY)
    assert second.trial
    lost.failed()
    assert breakers.states() == {KEY: "half-open"}, "the second decides"
    second.succeeded()
    assert breakers.states() == {KEY: "closed"}


def test_the_worst_state_is_open_before_half_open_before_closed(breakers: CircuitBreakers, clock: Clock) -> None:
    assert breakers.worst() == "closed"
    breakers.admit("a").succeeded()
    assert breakers.worst() == "closed"
    trip(breakers, "b")
    clock.now += 60
    breakers.admit("b")
    assert breakers.worst() == "half-open"
    trip(breakers, "c")
    assert breakers.worst() == "open"


# --- the connection --------------------------------------------------------------------------------


def test_a_circuit_opened_by_lost_connections_admits_a_trial_once_the_connection_is_back(
    breakers: CircuitBreakers,
) -> None:
    trip(breakers, connection=True)
    error = refused(breakers)
    assert str(error).endswith("try again in at most 60.0 s (retry_after), or as soon as the connection is back")
    assert error.retry_after == pytest.approx(60)
    breakers.connection_restored()
    assert breakers.states() == {KEY: "closed", CONNECTION: "half-open"}
    trial = breakers.admit(KEY)
    assert trial.trial
    refused(breakers)
    trial.succeeded()
    assert breakers.states() == {KEY: "closed", CONNECTION: "closed"}


def test_a_circuit_opened_by_nacks_stays_open_when_the_connection_comes_back(
    breakers: CircuitBreakers,
) -> None:
    trip(breakers, connection=False)
    breakers.connection_restored()
    assert breakers.states() == {KEY: "open"}
    refused(breakers)


def test_a_restored_connection_admits_no_second_trial_beside_the_first(breakers: CircuitBreakers, clock: Clock) -> None:
    trip(breakers, connection=True)
    clock.now += 60
    breakers.admit(KEY)
    breakers.connection_restored()
    assert breakers.states() == {KEY: "closed", CONNECTION: "half-open"}
    refused(breakers)


def test_calls_that_waited_for_a_connection_that_came_back_meanwhile_leave_a_trial_open(
    breakers: CircuitBreakers,
) -> None:
    waiting = [breakers.admit(KEY) for _ in range(CONFIG.failure_threshold)]
    breakers.connection_restored()
    for permit in waiting:
        permit.failed(connection=True)
    assert breakers.states() == {KEY: "closed", CONNECTION: "half-open"}, "no second announcement would come"
    assert breakers.admit(KEY).trial


def test_a_lost_connection_stops_all_destinations_after_one_threshold(breakers: CircuitBreakers) -> None:
    for key in ("image-service", "quest.started", "quest.ended"):
        breakers.admit(key).failed(connection=True)
    assert breakers.states()[CONNECTION] == "open"
    assert "the circuit of the connection is open" in str(refused(breakers, "never-asked-before"))
    assert breakers.worst() == "open"


@pytest.mark.parametrize("answer", ["nack", "unroutable"])
def test_an_answer_of_the_broker_ends_the_failures_of_the_connection(breakers: CircuitBreakers, answer: str) -> None:
    for _ in range(CONFIG.failure_threshold):
        breakers.admit("image-service").failed(connection=True)
        if answer == "nack":
            breakers.admit("llm-service").failed()
        else:
            breakers.admit("llm-service").not_counted(answered=True)
    assert breakers.states()[CONNECTION] == "closed"


def test_a_missing_confirm_shows_nothing_about_the_connection(breakers: CircuitBreakers) -> None:
    breakers.admit(KEY).failed(connection=True)
    breakers.admit(KEY).failed(connection=True)
    breakers.admit(KEY).failed(silent=True)
    breakers.admit(KEY).failed(connection=True)
    assert breakers.states() == {KEY: "closed", CONNECTION: "open"}


def test_a_circuit_opened_by_missing_confirms_admits_a_trial_once_the_connection_is_back(
    breakers: CircuitBreakers,
) -> None:
    for _ in range(CONFIG.failure_threshold):
        breakers.admit(KEY).failed(silent=True)
    assert "as soon as the connection is back" in str(refused(breakers))
    breakers.connection_restored()
    assert breakers.states() == {KEY: "half-open"}
    breakers.admit("image-service").succeeded()
    assert breakers.admit(KEY).trial


def test_a_destination_that_nacks_is_a_good_trial_of_the_connection(breakers: CircuitBreakers) -> None:
    trip(breakers, connection=True)
    breakers.connection_restored()
    trial = breakers.admit(KEY)
    trial.failed()
    assert breakers.states() == {KEY: "closed", CONNECTION: "closed"}


def test_a_trial_of_the_connection_without_a_confirm_leaves_its_permit_to_the_next_call(
    breakers: CircuitBreakers,
) -> None:
    trip(breakers, connection=True)
    breakers.connection_restored()
    breakers.admit(KEY).failed(silent=True)
    assert breakers.states()[CONNECTION] == "half-open"
    assert breakers.admit("image-service").trial


def test_a_call_that_an_open_destination_refuses_is_not_the_trial_of_the_connection(breakers: CircuitBreakers) -> None:
    trip(breakers)
    trip(breakers, "image-service", connection=True)
    breakers.connection_restored()
    assert "circuit of character-service" in str(refused(breakers))
    assert breakers.admit("image-service").trial


def test_one_trial_call_may_close_both_circuits(breakers: CircuitBreakers, clock: Clock) -> None:
    trip(breakers)
    trip(breakers, "image-service", connection=True)
    clock.now += 60
    breakers.admit(KEY).succeeded()
    assert breakers.states() == {KEY: "closed", "image-service": "closed", CONNECTION: "closed"}


# --- threads ---------------------------------------------------------------------------------------


def test_32_threads_are_all_inside_their_calls_at_once(breakers: CircuitBreakers) -> None:
    together = threading.Barrier(32)

    def call(number: int) -> None:
        for turn in range(5):
            permit = breakers.admit(KEY)
            together.wait(timeout=30)  # broken unless every thread is admitted and none has ended
            if number == 0 and turn % 2:
                permit.failed()
            else:
                permit.succeeded()

    in_threads(32, call)
    assert breakers.states() == {KEY: "closed"}


@pytest.mark.parametrize("restored", [False, True], ids=["reset timeout over", "connection back"])
def test_half_open_admits_one_of_32(
    breakers: CircuitBreakers, clock: Clock, restored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    company = threading.Barrier(2)
    half_open = pybreaker.CircuitBreaker.half_open

    def slowly(breaker: pybreaker.CircuitBreaker) -> None:
        """Delay the change of the state: if the lock did not exclude a second caller, it would be admitted now."""
        with contextlib.suppress(threading.BrokenBarrierError):
            company.wait(timeout=0.2)
        half_open(breaker)

    monkeypatch.setattr(pybreaker.CircuitBreaker, "half_open", slowly)
    trip(breakers, connection=restored)
    if restored:
        breakers.connection_restored()
    else:
        clock.now += 60
    together = threading.Barrier(32)
    admitted: list[Permit] = []
    turned_away: list[MessageHubCircuitBreakerError] = []

    def call(_: int) -> None:
        together.wait(timeout=30)
        try:
            admitted.append(breakers.admit(KEY))
        except MessageHubCircuitBreakerError as error:
            turned_away.append(error)

    in_threads(32, call)
    assert [permit.trial for permit in admitted] == [True]
    assert [error.retry_after for error in turned_away] == [pytest.approx(30)] * 31
    assert "with its one trial call in progress" in str(turned_away[0])


def test_nobody_waits_for_the_one_who_tells_and_changes_are_told_in_order(clock: Clock) -> None:
    told: list[tuple[str, str]] = []
    telling, go_on = threading.Event(), threading.Event()

    def listener(key: str, state: str) -> None:
        telling.set()
        assert go_on.wait(30)
        told.append((state, threading.current_thread().name))

    circuits = CircuitBreakers(CONFIG, SERVICE, on_change=listener, clock=clock)
    teller = threading.Thread(target=trip, args=(circuits,), kwargs={"connection": True}, name="test-teller")
    teller.start()
    assert telling.wait(30)
    # The I/O thread does this. The listener may be waiting for an answer that only the I/O thread reads.
    restorer = threading.Thread(target=circuits.connection_restored, name="test-restorer", daemon=True)
    restorer.start()
    restorer.join(timeout=10)
    waited = restorer.is_alive()
    go_on.set()
    teller.join(timeout=30)
    assert not waited
    assert told == [("open", "test-teller"), ("half-open", "test-teller")]


def test_a_change_made_while_one_is_told_is_told_after_it_by_the_same_thread_too(clock: Clock) -> None:
    told: list[str] = []

    def listener(key: str, state: str) -> None:
        if state == "open":
            circuits.connection_restored()
        told.append(state)

    circuits = CircuitBreakers(CONFIG, SERVICE, on_change=listener, clock=clock)
    trip(circuits, connection=True)
    assert told == ["open", "half-open"]


def test_a_signal_that_interrupts_the_telling_leaves_it_to_the_next(clock: Clock) -> None:
    told: list[str] = []
    interrupts = iter((True,))

    def listener(key: str, state: str) -> None:
        if next(interrupts, False):
            raise KeyboardInterrupt
        told.append(state)

    circuits = CircuitBreakers(CONFIG, SERVICE, on_change=listener, clock=clock)
    with pytest.raises(KeyboardInterrupt):
        trip(circuits)
    clock.now += 60
    circuits.admit(KEY).succeeded()
    assert told == ["half-open", "closed"]


# --- changes ---------------------------------------------------------------------------------------


def test_each_change_is_told_once_with_key_and_state(clock: Clock) -> None:
    told: list[tuple[str, str]] = []
    breakers = CircuitBreakers(CONFIG, SERVICE, on_change=lambda key, state: told.append((key, state)), clock=clock)
    trip(breakers)
    refused(breakers)
    clock.now += 60
    breakers.admit(KEY).failed()
    clock.now += 60
    breakers.admit(KEY).succeeded()
    breakers.admit(KEY).succeeded()
    assert told == [(KEY, state) for state in ("open", "half-open", "open", "half-open", "closed")]


def test_the_log_says_whose_circuit_changed(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    breakers = CircuitBreakers(CONFIG, SERVICE, clock=clock)
    trip(breakers)
    clock.now += 60
    breakers.admit(KEY).succeeded()
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        (
            "WARNING",
            "campaign-service: the circuit of character-service is open; "
            "calls fail at once until a trial call is admitted",
        ),
        ("INFO", "campaign-service: the circuit of character-service is half-open; the next call is the trial call"),
        ("WARNING", "campaign-service: the circuit of character-service is closed; calls are admitted again"),
    ]


def test_a_listener_may_ask_and_admit_and_its_error_harms_nobody(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[dict[str, str]] = []

    def listener(key: str, state: str) -> None:
        seen.append(circuits.states())
        circuits.admit("another-service").succeeded()
        raise RuntimeError("a listener's own")

    circuits = CircuitBreakers(CONFIG, SERVICE, on_change=listener, clock=clock)
    trip(circuits)
    assert seen == [{KEY: "open"}]
    assert "a listener to circuit changes failed; the circuit is not affected" in caplog.text


def test_whoever_hears_that_a_trial_is_admitted_does_not_become_it(clock: Clock) -> None:
    refusals: list[MessageHubCircuitBreakerError] = []

    def listener(key: str, state: str) -> None:
        if state == "half-open":
            refusals.append(refused(circuits))

    circuits = CircuitBreakers(CONFIG, SERVICE, on_change=listener, clock=clock)
    trip(circuits, connection=True)
    circuits.connection_restored()
    assert len(refusals) == 1
    circuits.admit(KEY).succeeded()
    assert circuits.states() == {KEY: "closed", CONNECTION: "closed"}


# --- the wall clock --------------------------------------------------------------------------------


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_wall_clock_that_jumps_changes_nothing(
    breakers: CircuitBreakers, clock: Clock, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    class Jumped(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + timedelta(hours=hours)

    wall = time.time
    trip(breakers)
    monkeypatch.setattr(pybreaker, "datetime", Jumped)
    monkeypatch.setattr("message_hub_sync.runtime.real_time.time.time", lambda: wall() + hours * 3600)
    clock.now += 59
    assert refused(breakers).retry_after == pytest.approx(1)
    clock.now += 1
    breakers.admit(KEY).failed()
    monkeypatch.undo()
    clock.now += 59
    assert refused(breakers).retry_after == pytest.approx(1)
    clock.now += 1
    breakers.admit(KEY).succeeded()
    assert breakers.states() == {KEY: "closed"}


# --- the bound -------------------------------------------------------------------------------------


def test_beyond_1000_keys_the_longest_idle_is_dropped(breakers: CircuitBreakers, clock: Clock) -> None:
    assert MAX_CIRCUITS == 1_000
    for number in range(1_000):
        clock.now += 1
        breakers.admit(f"s{number}").succeeded()
    clock.now += 1
    breakers.admit("s0").succeeded()
    breakers.admit("one-more").succeeded()
    states = breakers.states()
    assert len(states) == 1_000
    assert "s1" not in states
    assert {"s0", "s2", "one-more"} <= states.keys()


def test_circuits_that_are_not_closed_or_have_failures_are_never_dropped(
    breakers: CircuitBreakers, clock: Clock
) -> None:
    trip(breakers, "open")
    breakers.admit("failing").failed()
    for number in range(1_500):
        clock.now += 0.01
        breakers.admit(f"s{number}").succeeded()
    states = breakers.states()
    assert len(states) == 1_000
    assert (states["open"], states["failing"]) == ("open", "closed")
    breakers.admit("failing").failed()
    breakers.admit("failing").failed()
    assert breakers.states()["failing"] == "open"


def test_calls_under_way_while_their_circuit_is_dropped_are_counted_still(
    breakers: CircuitBreakers, clock: Clock
) -> None:
    under_way = [breakers.admit(KEY) for _ in range(CONFIG.failure_threshold)]
    for number in range(1_000):
        clock.now += 1
        breakers.admit(f"s{number}").succeeded()
    assert KEY not in breakers.states()
    under_way[0].failed()
    assert breakers.states()[KEY] == "closed"
    for permit in under_way[1:]:
        permit.failed()
    assert breakers.states()[KEY] == "open"


def test_there_are_never_more_circuits_than_the_limit_whatever_their_states(clock: Clock) -> None:
    told: dict[str, str] = {}
    breakers = CircuitBreakers(CONFIG, SERVICE, on_change=told.__setitem__, clock=clock)
    trip(breakers, connection=True)
    breakers.connection_restored()
    breakers.admit(KEY).succeeded()
    under_way = []
    for number in range(3_000):
        clock.now += 0.001
        trip(breakers, f"s{number}")
        under_way.append(breakers.admit(f"t{number}"))
    for permit in under_way:
        permit.failed()
    assert len(breakers.states()) == MAX_CIRCUITS
    assert breakers.states()[CONNECTION] == "closed"
    shown_open = {key for key, state in told.items() if state != "closed"}
    assert shown_open <= breakers.states().keys(), "a dropped circuit is reported as closed"


def test_a_success_does_not_bring_a_dropped_circuit_back(breakers: CircuitBreakers, clock: Clock) -> None:
    under_way = [breakers.admit(f"s{number}") for number in range(3_000)]
    for permit in under_way:
        permit.succeeded()
    breakers.admit(KEY).failed()
    breakers.admit(KEY).succeeded()
    assert len(breakers.states()) == MAX_CIRCUITS


def test_a_logging_handler_that_raises_takes_no_callers_outcome_away(breakers: CircuitBreakers) -> None:
    with mailing():
        trip(breakers)

    assert breakers.states() == {KEY: "open"}


def test_a_listener_is_told_of_new_circuits_and_at_the_end_that_none_is_open_any_more(clock: Clock) -> None:
    told: list[tuple[str, str]] = []
    made: list[str] = []
    breakers = CircuitBreakers(
        CONFIG, SERVICE, on_change=lambda *change: told.append(change), on_new=made.append, clock=clock
    )
    trip(breakers)
    for _ in range(2):
        breakers.admit("well").succeeded()
    late = breakers.admit("late")

    breakers.close()

    assert made == [KEY, "well", "late"]
    assert told == [(KEY, "open"), (KEY, "closed")]
    late.failed()
    for _ in range(CONFIG.failure_threshold - 1):
        breakers.admit("late").failed()
    breakers.close()
    assert told == [(KEY, "open"), (KEY, "closed")], "nobody is told of what ends with its client"
    assert breakers.states()[KEY] == "open"


def test_new_circuits_are_told_of_only_while_none_had_to_be_dropped(clock: Clock) -> None:
    made: list[str] = []
    breakers = CircuitBreakers(CONFIG, SERVICE, on_new=made.append, clock=clock)
    for number in range(MAX_CIRCUITS + 10):
        breakers.admit(f"service-{number}").succeeded()
    assert len(made) == MAX_CIRCUITS
