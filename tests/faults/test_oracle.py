"""Tests of the oracle: it finds every kind of error."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from faults.oracle import Counts, Ledger, Oracle

from message_hub_sync import MessageHubConnectionError, MessageHubDeliveryError


@pytest.fixture
def oracle(tmp_path: Path) -> Iterator[Oracle]:
    with Oracle(tmp_path / "oracle") as oracle:
        yield oracle


def accept(message_id: UUID) -> None:
    """A simulated broker that accepts everything."""


def lose_the_answer(message_id: UUID) -> None:
    raise MessageHubDeliveryError("no confirm", outcome="unknown", message_id=message_id)


def refuse(message_id: UUID) -> None:
    raise MessageHubConnectionError("no connection")


def test_what_was_accepted_and_handled_is_fine(oracle: Oracle) -> None:
    message_id = uuid4()
    oracle.ledger.call(accept, message_id)
    oracle.ledger.handled(message_id)
    verdict = oracle.verdict()
    assert verdict.holds
    assert verdict.counts == Counts(invoked=1, ok=1, handled=1)


def test_what_was_accepted_and_never_handled_is_lost(oracle: Oracle) -> None:
    message_id = uuid4()
    oracle.ledger.call(accept, message_id)
    assert not oracle.drained(0.01)
    verdict = oracle.verdict()
    assert not verdict.holds
    assert verdict.lost == {str(message_id)}
    assert verdict.counts.lost == 1


def test_a_dead_letter_is_not_lost(oracle: Oracle) -> None:
    message_id = uuid4()
    oracle.ledger.call(accept, message_id)
    oracle.ledger.dead(message_id)
    assert oracle.verdict().holds


def test_what_was_called_rejected_and_handled_all_the_same_is_found(oracle: Oracle) -> None:
    message_id = uuid4()
    oracle.ledger.call(refuse, message_id)
    assert oracle.verdict().holds
    oracle.ledger.handled(message_id)
    assert oracle.verdict().false_rejections == {str(message_id)}
    assert not oracle.verdict().holds


def test_what_was_called_rejected_and_lies_among_the_dead_letters_is_found(oracle: Oracle) -> None:
    message_id = uuid4()
    oracle.ledger.call(refuse, message_id)
    oracle.ledger.dead(message_id)
    assert oracle.verdict().false_rejections == {str(message_id)}
    assert not oracle.verdict().holds


def test_what_nobody_sent_is_found(oracle: Oracle) -> None:
    oracle.ledger.handled("from-nowhere")
    assert oracle.verdict().invented == {"from-nowhere"}
    assert not oracle.verdict().holds


def test_an_unknown_one_may_be_handled_or_not_and_repeating_it_may_succeed(oracle: Oracle) -> None:
    first, second = uuid4(), uuid4()
    for message_id in (first, second):
        oracle.ledger.call(lose_the_answer, message_id)
    oracle.ledger.handled(first)
    assert oracle.verdict().holds
    assert oracle.verdict().counts == Counts(invoked=2, unknown=2, handled=1)
    oracle.ledger.call(accept, first)
    assert oracle.verdict().counts == Counts(invoked=2, ok=1, unknown=1, handled=1)


def test_a_call_whose_process_was_killed_is_unknown_even_after_a_rejected_one(oracle: Oracle) -> None:
    message_id = uuid4()
    oracle.ledger.call(refuse, message_id)
    child = os.fork()
    if child == 0:
        oracle.ledger.call(lambda _: os._exit(9), message_id)
    os.waitpid(child, 0)
    oracle.ledger.handled(message_id)
    assert oracle.verdict().holds
    assert oracle.verdict().counts == Counts(invoked=1, unknown=1, handled=1)


def test_handling_twice_is_counted_as_a_duplicate(oracle: Oracle) -> None:
    message_id = uuid4()
    oracle.ledger.call(accept, message_id)
    oracle.ledger.handled(message_id)
    oracle.ledger.handled(message_id)
    assert oracle.verdict().counts.duplicates == 1
    assert oracle.verdict().holds


def test_an_error_that_is_not_ours_breaks_the_verdict_unless_the_test_threw_it(oracle: Oracle) -> None:
    def fail(message_id: UUID) -> None:
        raise KeyError(message_id)

    with pytest.raises(KeyError):
        oracle.ledger.call(fail, thrown=(KeyError,))
    assert oracle.verdict().holds
    with pytest.raises(KeyError):
        oracle.ledger.call(fail)
    assert oracle.verdict().foreign == ("KeyError",)
    assert not oracle.verdict().holds


def test_calls_are_kept_with_their_error_and_duration(oracle: Oracle) -> None:
    oracle.ledger.call(accept)
    error = oracle.ledger.call(refuse)
    assert isinstance(error, MessageHubConnectionError)
    assert [(call.outcome, call.error) for call in oracle.calls()] == [
        ("ok", ""),
        ("rejected", "MessageHubConnectionError"),
    ]
    assert all(0 <= call.seconds < 30 for call in oracle.calls())


def test_what_another_process_wrote_is_read(oracle: Oracle) -> None:
    child = os.fork()
    if child == 0:
        ledger = Ledger(oracle.path)
        ledger.call(accept)
        os._exit(0)
    os.waitpid(child, 0)
    assert oracle.wait(lambda counts: counts.ok == 1, 5).invoked == 1


def test_waiting_for_what_does_not_come_fails_with_the_counts(oracle: Oracle) -> None:
    with pytest.raises(AssertionError, match="handled=0"):
        oracle.wait(lambda counts: counts.handled == 1, 0.01)
