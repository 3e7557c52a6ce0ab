"""The checks after every fault."""

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
    """Check that nothing was lost or wrongly rejected, and that no call raised a foreign error or missed its deadline.

    :param drain: seconds for handling everything that was accepted.
    :param slowest: seconds that a call may have taken: its ``delivery_timeout``.
    """
    oracle.drained(drain)
    verdict = oracle.verdict()
    if not verdict.holds:
        pytest.fail(str(verdict))
    assert verdict.counts.invoked, "nothing was sent, so the test shows nothing"
    longest = max((call.seconds for call in oracle.calls()), default=0.0)
    assert longest <= slowest + TOLERANCE, f"a call took {longest:.2f} s"
    if workers is not None:
        assert not workers.complaints()
    return verdict


def only(oracle: Oracle, *errors: str) -> None:
    """Check that calls failed with these errors only."""
    found = {call.error for call in oracle.calls() if call.error}
    assert found <= set(errors), found
