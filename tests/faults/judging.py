"""What every fault must leave behind."""

from __future__ import annotations

import pytest
from faults.oracle import Oracle, Verdict
from faults.processes import Workers
from faults.timing import TOLERANCE

__all__ = ["CIRCUIT", "CONNECTION", "DELIVERY", "judge", "only"]

CONNECTION = "MessageHubConnectionError"
CIRCUIT = "MessageHubCircuitBreakerError"
DELIVERY = "MessageHubDeliveryError"


def judge(oracle: Oracle, workers: Workers | None = None, *, drain: float = 20, slowest: float = 5) -> Verdict:
    """Nothing lost, no false success, no foreign error, no call past its deadline.

    :param drain: seconds for what was accepted to be handled.
    :param slowest: seconds that a call may have taken: its ``delivery_timeout``.
    """
    oracle.drained(drain)
    verdict = oracle.verdict()
    if not verdict.holds:
        pytest.fail(str(verdict))
    assert verdict.counts.invoked, "nothing was sent, so that nothing was shown"
    longest = max((call.seconds for call in oracle.calls()), default=0.0)
    assert longest <= slowest + TOLERANCE, f"a call took {longest:.2f} s"
    if workers is not None:
        assert not workers.complaints()
    return verdict


def only(oracle: Oracle, *errors: str) -> None:
    """No call failed with any other error."""
    found = {call.error for call in oracle.calls() if call.error}
    assert found <= set(errors), found
