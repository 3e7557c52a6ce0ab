"""Tests of the soak's verdict and report."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from faults.oracle import Call, Counts, Verdict
from faults.report import Row, write_table
from faults.soak import DEADLINE, MARGIN, Outcome, report

NONE: frozenset[str] = frozenset()
FINE = Verdict(Counts(invoked=2, ok=1, unknown=1, handled=2), NONE, NONE, NONE, ())
IN_TIME = Call("unknown", "MessageHubDeliveryError", DEADLINE + MARGIN - 0.1)


def test_a_run_without_fault_holds() -> None:
    outcome = Outcome(FINE, (IN_TIME,))
    assert outcome.holds
    text = report(42, 10, Counter({"forks": 2}), outcome)
    assert text.startswith("soak of 10 minutes, seed 42: HOLDS")
    assert "longest call: 6.90 s of 5 s" in text


@pytest.mark.parametrize(
    ("outcome", "says"),
    [
        (Outcome(Verdict(FINE.counts, frozenset({"one"}), NONE, NONE, ())), "lost ['one']"),
        (Outcome(FINE, (IN_TIME, Call("ok", "", 7.25))), "late: ok  after 7.25 s"),
        (Outcome(FINE, bad_ends=("a publisher ended with 1",)), "end: a publisher ended with 1"),
        (Outcome(FINE, complaints=("failed in an unexpected way",)), "log: failed in an unexpected way"),
    ],
)
def test_each_kind_of_fault_is_found_and_named(outcome: Outcome, says: str) -> None:
    assert not outcome.holds
    text = report(42, 10, Counter(), outcome)
    assert "VIOLATED" in text
    assert says in text


def test_its_row_says_how_long_it_was_and_what_draws_it_again(tmp_path: Path) -> None:
    document = tmp_path / "reliability.md"
    document.write_text("before\n<!-- faults: begin -->\n<!-- faults: end -->\nafter\n")
    write_table({34: Row(passed=1, counts=FINE.counts, played="10 minutes, seed 42")}, document)
    assert "| 34 | soak: random draws of the above | holds (10 minutes, seed 42) | 2 | 1 | 0 | 1 | 2 | 0 | 0 |" in (
        document.read_text()
    )
