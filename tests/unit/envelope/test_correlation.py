"""Which message is being handled: local to a thread, restored afterwards, on every log record."""

from __future__ import annotations

import contextvars
import logging
import threading
from typing import Any
from uuid import UUID, uuid4

import pytest

from message_hub_sync.envelope.correlation import (
    CorrelationFilter,
    MessageContext,
    bound_correlation,
    correlation_text,
    current_correlation_id,
    current_message,
    entered,
)
from message_hub_sync.errors import MessageValidationError
from message_hub_sync.runtime.text import shown


def test_outside_of_any_message_there_is_no_correlation() -> None:
    assert current_message() is None
    assert current_correlation_id() is None


def test_a_bound_id_holds_inside_the_block_and_the_outer_one_after_it() -> None:
    with bound_correlation("outer") as outer:
        assert outer == "outer"
        with bound_correlation("inner"):
            assert current_correlation_id() == "inner"
        assert current_correlation_id() == "outer"
    assert current_correlation_id() is None


def test_a_block_left_by_an_error_restores_too() -> None:
    with pytest.raises(KeyError), bound_correlation("x"):
        raise KeyError
    assert current_correlation_id() is None


def test_without_an_id_a_new_uuid_is_bound() -> None:
    with bound_correlation() as one:
        pass
    with bound_correlation() as two:
        pass
    assert str(UUID(one)) == one
    assert one != two


def test_a_uuid_is_bound_as_its_text() -> None:
    identity = uuid4()
    with bound_correlation(identity) as text:
        assert text == current_correlation_id() == str(identity)


def test_another_thread_does_not_see_it_unless_it_runs_in_a_copy_of_the_context() -> None:
    seen: list[str | None] = []

    def look() -> None:
        seen.append(current_correlation_id())

    with bound_correlation("here"):
        context = contextvars.copy_context()
        for target in (look, lambda: context.run(look)):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join(timeout=30)
    assert seen == [None, "here"]


@pytest.mark.parametrize("value", ["a", "order 66", "ü" * 127, "x" * 255, "日本語"])
def test_printable_text_up_to_255_bytes_is_a_correlation_id(value: str) -> None:
    assert correlation_text(value) == value


BAD: list[Any] = ["", "x" * 256, "ü" * 128, "a\nb", "a\x00", "\x1b[31m", "\ud800", 7, None, b"a", ["a"]]


@pytest.mark.parametrize("value", BAD, ids=ascii)
def test_anything_else_is_refused_and_shown_on_one_line(value: Any) -> None:
    with pytest.raises(MessageValidationError) as caught:
        correlation_text(value)
    text = str(caught.value)
    assert text == f"correlation_id must be a UUID or printable text of 1 to 255 bytes, not {shown(value)}"
    assert text.isprintable()


def test_a_bad_id_binds_nothing() -> None:
    with pytest.raises(MessageValidationError), bound_correlation("a\nb"):
        pytest.fail("the block was entered")
    assert current_correlation_id() is None


# --- logs ------------------------------------------------------------------------------------------


def record(**extra: Any) -> logging.LogRecord:
    logger = logging.getLogger("test.correlation")
    return logger.makeRecord(logger.name, logging.INFO, __file__, 1, "text", (), None, extra=extra)


def test_the_filter_puts_the_message_being_handled_on_a_record() -> None:
    made = record()
    with entered(MessageContext("c-1", message_id="m-1", event_type="a.b", service="s")):
        assert CorrelationFilter().filter(made)
    found = vars(made)
    assert [found[name] for name in ("correlation_id", "message_id", "event_type", "service")] == [
        "c-1", "m-1", "a.b", "s",
    ]  # fmt: skip


def test_what_the_caller_gave_as_extra_wins() -> None:
    made = record(correlation_id="mine")
    with entered(MessageContext("c-1", message_id="m-1")):
        CorrelationFilter().filter(made)
    assert vars(made)["correlation_id"] == "mine"
    assert vars(made)["message_id"] == "m-1"


def test_a_text_of_somebody_elses_cannot_forge_a_line_of_the_log() -> None:
    made = record()
    with entered(MessageContext("c\r\nERROR\x1b[31m", event_type="a\nb", service="särvice")):
        CorrelationFilter().filter(made)
    assert vars(made)["correlation_id"] == r"c\r\nERROR\x1b[31m"
    assert vars(made)["event_type"] == r"a\nb"
    assert vars(made)["service"] == "särvice"


def test_outside_of_a_message_the_names_are_there_so_that_a_format_can_use_them() -> None:
    made = record()
    assert CorrelationFilter().filter(made)
    text = logging.Formatter("%(correlation_id)s %(message_id)s %(event_type)s %(service)s").format(made)
    assert text == "None None None None"


@pytest.mark.parametrize("fits", ["a-request", "x" * 255, "é"])
def test_a_foreign_id_that_fits_stays_as_it_is(fits: str) -> None:
    with bound_correlation(fits, foreign=True) as bound:
        assert bound == current_correlation_id() == fits


@pytest.mark.parametrize(
    "foreign", ["x" * 300, "a\r\nb", "é" * 200, "\x1b[31m", "lone \ud83d", b"\xff\n", 12, "\u202e"], ids=ascii
)
def test_a_foreign_id_that_does_not_fit_is_replaced_by_the_same_uuid_each_time(foreign: Any) -> None:
    record = logging.makeLogRecord({})

    with bound_correlation(foreign, foreign=True) as first:
        CorrelationFilter().filter(record)
    with bound_correlation(foreign, foreign=True) as second:
        pass

    assert first == second == str(UUID(first))
    assert record.__dict__["correlation_id"] == first
    assert record.__dict__["original_correlation_id"].isprintable()
    with bound_correlation("y" * 300, foreign=True) as other:
        assert other != first


@pytest.mark.parametrize("nothing", [None, "", b""])
def test_no_foreign_id_is_a_new_one(nothing: Any) -> None:
    with bound_correlation(nothing, foreign=True) as first, bound_correlation(nothing, foreign=True) as second:
        assert UUID(first) != UUID(second)


def test_without_the_word_foreign_it_is_refused_as_before() -> None:
    with pytest.raises(MessageValidationError), bound_correlation("x" * 300):
        pass
