from __future__ import annotations

import traceback

import pytest
from pydantic import BaseModel, ValidationError

from message_hub_sync.consuming.error_headers import MAX_TRACEBACK_BYTES, error_headers, traceback_header
from message_hub_sync.errors import MessageHubRejectError, MessageHubRetryError, MessageValidationError

SECRET = "amqp://me:s3cret@db"


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def failed(error: BaseException) -> dict[str, str]:
    return error_headers(error) | traceback_header(error)


@pytest.mark.parametrize("error", [ValueError(SECRET), KeyError(SECRET), OSError(5, SECRET), SystemExit(SECRET)])
def test_a_foreign_errors_text_is_not_told_but_its_class_and_place(error: BaseException) -> None:
    found = failed(raised(error))
    assert "s3cret" not in str(found)
    assert found["x-error-type"] == type(error).__name__
    line = raised.__code__.co_firstlineno + 2
    assert found["x-error-message"] == f"raised in {__name__}.raised, line {line}; its text is in the log"
    assert found["x-error-traceback"].split("\n") == [
        f'File "{__file__}", line {line}, in {__name__}.raised',
        type(error).__name__,
    ]


@pytest.mark.parametrize("kind", [MessageHubRejectError, MessageHubRetryError, MessageValidationError])
def test_what_the_handler_chose_to_tell_is_told(kind: type[Exception]) -> None:
    assert failed(raised(kind("no such campaign")))["x-error-message"] == "no such campaign"


@pytest.mark.parametrize("suppressed", [False, True])
def test_causes_are_told_by_class_and_place_too(suppressed: bool) -> None:
    def outer() -> None:
        try:
            raised_here = ConnectionError(SECRET)
            raise raised_here
        except ConnectionError as error:
            raise MessageHubRejectError("the database is down") from (None if suppressed else error)

    with pytest.raises(MessageHubRejectError) as caught:
        outer()
    found = failed(caught.value)
    assert "s3cret" not in str(found)
    assert ("ConnectionError" in found["x-error-traceback"]) is not suppressed
    assert found["x-error-traceback"].endswith("MessageHubRejectError")


def test_a_note_and_the_source_line_are_not_told() -> None:
    error = ValueError("x")
    error.__notes__ = [SECRET]  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="s3cret") as caught:
        raise ValueError("amqp://me:s3cret@db")
    assert "s3cret" in "".join(traceback.format_exception(caught.value)), "the test shows nothing"
    assert "s3cret" not in str(failed(caught.value)) + str(failed(raised(error)))


def test_a_validation_error_tells_only_which_kinds_of_errors_it_has() -> None:
    class Campaign(BaseModel):
        number: int

    with pytest.raises(ValidationError) as caught:
        Campaign.model_validate({"number": SECRET})
    found = failed(caught.value)
    assert "int_parsing" in found["x-error-message"]
    assert "s3cret" not in str(found)


def test_errors_that_cause_each_other_end() -> None:
    first, second = ValueError("1"), KeyError("2")
    first.__cause__, second.__cause__ = second, first
    assert traceback_header(first)["x-error-traceback"] == "KeyError\nValueError"


def test_a_deep_recursion_is_cut_to_its_innermost_frames() -> None:
    def outer(depth: int) -> None:
        inner(depth - 1)

    def inner(depth: int) -> None:
        if depth <= 0:
            raise ValueError
        outer(depth)

    with pytest.raises(ValueError) as caught:  # noqa: PT011
        outer(200)
    text = traceback_header(caught.value)["x-error-traceback"]
    assert MAX_TRACEBACK_BYTES // 2 < len(text.encode()) <= MAX_TRACEBACK_BYTES
    assert text.endswith(f"in {__name__}.inner\nValueError")


def test_an_error_whose_methods_fail_is_told_by_its_class() -> None:
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

        def __eq__(self, other: object) -> bool:
            raise RuntimeError("no comparison")

        __repr__ = __str__
        __hash__ = None  # type: ignore[assignment]

    found = failed(raised(Unspeakable()))
    assert found["x-error-type"] == "Unspeakable"
    assert found["x-error-traceback"].endswith("Unspeakable")
