"""The tree of errors is the one its docstring draws."""

from __future__ import annotations

import inspect
import pickle
import re
from typing import Any
from uuid import uuid4

import pytest

from message_hub_sync import errors
from message_hub_sync.errors import (
    DeliveryFailure,
    MessageHubCircuitBreakerError,
    MessageHubDeliveryError,
    MessageHubError,
    MessageHubRejectError,
    MessageHubRemoteError,
    MessageHubRetryError,
    MessageValidationError,
)

CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, Exception) and value.__module__ == errors.__name__
}


def test_the_tree_is_as_the_docstring_draws_it() -> None:
    assert errors.__doc__ is not None
    lines = re.findall(r"^    ([│ ]*)(?:[├└]── )?(\w+)", errors.__doc__, flags=re.MULTILINE)
    assert lines[0] == ("", "MessageHubError")
    assert {name for _, name in lines} == CLASSES.keys()
    assert errors.MessageHubError.__bases__ == (Exception,)
    above = "MessageHubError"  # the latest one of the first level
    for indent, name in lines[1:]:
        assert CLASSES[name].__bases__[0] is CLASSES[above if indent else "MessageHubError"], name
        above = above if indent else name


def test_only_the_validation_error_is_also_a_value_error_as_the_docstring_says() -> None:
    assert [name for name, found in CLASSES.items() if issubclass(found, ValueError)] == ["MessageValidationError"]
    assert re.search(r"MessageValidationError\s+\(also a ValueError\)", errors.__doc__ or "")


def test_every_error_is_exported_and_explained() -> None:
    for name, found in CLASSES.items():
        assert name in errors.__all__
        assert found.__doc__


def test_a_delivery_error_of_one_message_names_it_in_its_failures() -> None:
    identity = uuid4()
    error = MessageHubDeliveryError("no inbox", outcome="rejected", reason="unroutable", message_id=identity)
    assert (error.outcome, error.reason, error.message_id) == ("rejected", "unroutable", identity)
    assert error.failures == (DeliveryFailure(0, identity, "rejected", "unroutable"),)


def test_a_delivery_error_of_a_bulk_call_keeps_the_failures_it_is_given() -> None:
    failures = [DeliveryFailure(3, uuid4(), "unknown", "deadline"), DeliveryFailure(7, uuid4(), "rejected", "nack")]
    error = MessageHubDeliveryError("2 of 9", outcome="unknown", failures=failures)
    assert error.failures == tuple(failures)
    assert error.message_id is None
    assert error.reason == "2 of 9"


def test_what_an_error_knows_are_attributes() -> None:
    assert MessageHubCircuitBreakerError("open", retry_after=4.5).retry_after == 4.5
    remote = MessageHubRemoteError("failed", error_type="KeyError", error_message="'x'")
    assert (remote.error_type, remote.error_message) == ("KeyError", "'x'")
    assert MessageHubRetryError(delay=30).delay == 30
    assert MessageHubRetryError().delay is None
    assert MessageHubRejectError("no such character").reason == "no such character"


@pytest.mark.parametrize(
    ("delay", "shown"),
    [(float("nan"), "nan"), (float("inf"), "inf"), (-1, "-1"), (3600.5, "3600.5"), (1e9, "1000000000.0"),
     (10**400, "int"), (10**5_000, "int"), ("5", "str"), (True, "True")],
    ids=range(9),
)  # fmt: skip
def test_a_delay_that_no_queue_has_is_refused_where_it_is_raised(delay: Any, shown: str) -> None:
    with pytest.raises(MessageValidationError) as caught:
        MessageHubRetryError(delay=delay)
    assert str(caught.value) == (
        f"delay must be a number of seconds from 0 to 3600, or None for the next delay of the retry policy, not {shown}"
    )


def test_a_validation_error_is_caught_as_a_value_error() -> None:
    with pytest.raises(ValueError, match="priority"):
        raise MessageValidationError("priority must be a whole number from 0 to 9, not 10")


@pytest.mark.parametrize(
    "error",
    [
        MessageHubCircuitBreakerError("open", retry_after=4.5),
        MessageHubDeliveryError("gone", outcome="unknown", message_id=uuid4()),
        MessageHubRemoteError("failed", error_type="KeyError", error_message="'x'"),
        MessageHubRetryError(delay=30),
        MessageHubRejectError("bad"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_can_be_sent_to_another_process(error: MessageHubError) -> None:
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert vars(found) == vars(error)
