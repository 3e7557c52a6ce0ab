from __future__ import annotations

import math
from typing import Any

import pytest

from message_hub_sync.consuming.retry_policy import (
    RETRY_DELAYS_MS,
    GiveUp,
    RetryLater,
    RetryPolicy,
    decide,
    retry_delay_ms,
)
from message_hub_sync.envelope.values import InvalidMessage
from message_hub_sync.errors import (
    MessageHubConfigurationError,
    MessageHubError,
    MessageHubRejectError,
    MessageHubRetryError,
)

# --- the policy ----------------------------------------------------------------------------------


def test_by_default_a_message_is_tried_four_times_after_1_5_and_30_seconds() -> None:
    outcomes = [decide(RetryPolicy(), attempt, ValueError("no")) for attempt in (1, 2, 3, 4)]
    assert outcomes == [
        RetryLater(1_000),
        RetryLater(5_000),
        RetryLater(30_000),
        GiveUp("failed 4 times, at last with ValueError"),
    ]


def test_the_last_delay_repeats() -> None:
    policy = RetryPolicy(attempts=10, delays=(1, 60))
    assert [decide(policy, n, ValueError()) for n in (1, 2, 3, 9)] == [
        RetryLater(1_000),
        RetryLater(60_000),
        RetryLater(60_000),
        RetryLater(60_000),
    ]


def test_a_policy_of_one_attempt_never_repeats() -> None:
    assert decide(RetryPolicy.none(), 1, ValueError()) == GiveUp("failed once, at last with ValueError")


@pytest.mark.parametrize(
    ("delay", "ms"),
    [
        (0, 1_000),
        (0.001, 1_000),
        (1, 1_000),
        (1.001, 5_000),
        (6, 30_000),
        (300, 300_000),
        (301, 3_600_000),
        (1e9, 3_600_000),
        (math.inf, 3_600_000),
    ],
)
def test_a_delay_is_rounded_up_to_a_rung_and_above_the_top_is_the_top(delay: float, ms: int) -> None:
    assert retry_delay_ms(delay) == ms
    assert ms in RETRY_DELAYS_MS


def test_a_handler_that_asks_for_a_retry_gets_its_own_delay_within_the_attempts() -> None:
    policy = RetryPolicy(attempts=2, never=(MessageHubError,))
    assert decide(policy, 1, MessageHubRetryError(delay=45)) == RetryLater(60_000)
    assert decide(policy, 1, MessageHubRetryError(delay=0)) == RetryLater(1_000)
    assert isinstance(decide(policy, 2, MessageHubRetryError(delay=45)), GiveUp)


def test_a_retry_without_a_delay_takes_the_one_of_the_policy() -> None:
    assert decide(RetryPolicy(), 2, MessageHubRetryError()) == RetryLater(5_000)


def test_rejected_and_invalid_messages_are_given_up_at_once_with_their_reason() -> None:
    assert decide(RetryPolicy(), 1, MessageHubRejectError("no such campaign")) == GiveUp("no such campaign")
    assert decide(RetryPolicy(), 1, InvalidMessage("the body is empty")) == GiveUp("the body is empty")


def test_errors_that_are_never_retried_are_given_up_at_once_with_their_subclasses() -> None:
    policy = RetryPolicy(never=(LookupError,))
    assert decide(policy, 1, KeyError("x")) == GiveUp("KeyError is never retried here")
    assert decide(policy, 1, ValueError()) == RetryLater(1_000)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"attempts": 0}, r"attempts must be a whole number from 1 to 2147483647 \(1 never retries\), not 0$"),
        ({"attempts": True}, "attempts must be a whole number .* not True$"),
        ({"attempts": 2.5}, r"attempts must be a whole number .* not 2\.5$"),
        ({"delays": ()}, "delays must hold at least one delay, not none"),
        ({"delays": 5}, r"delays must be a tuple of seconds, for example \(1, 5, 30\), not 5$"),
        ({"delays": (1, -1)}, "greater than 0 and at most 3600, not -1$"),
        ({"delays": (math.nan,)}, "greater than 0 and at most 3600, not nan$"),
        ({"delays": (1, 99_999)}, "greater than 0 and at most 3600, not 99999$"),
        ({"delays": "15"}, "delays must be a tuple of seconds, .* not '15'$"),
        ({"never": ValueError}, "never must be a tuple of exception classes, .* not the class ValueError$"),
        ({"never": (ValueError("x"),)}, "never must hold exception classes, not ValueError$"),
        ({"never": (int,)}, "never must hold exception classes, not the class int$"),
    ],
)
def test_a_policy_says_which_of_its_values_is_wrong(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(MessageHubConfigurationError, match=says):
        RetryPolicy(**settings)


def test_lists_are_as_good_as_tuples() -> None:
    settings: dict[str, Any] = {"delays": [1, 60], "never": [ValueError]}
    assert RetryPolicy(**settings) == RetryPolicy(delays=(1, 60), never=(ValueError,))
    hash(RetryPolicy(**settings))
