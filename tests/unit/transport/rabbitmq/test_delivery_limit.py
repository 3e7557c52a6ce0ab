"""What the broker's text of a 406 tells about a queue."""

from __future__ import annotations

import pytest

from message_hub_sync.transport.rabbitmq.delivery_limit import Difference, _limit, first_difference

START = "PRECONDITION_FAILED - inequivalent arg 'x-delivery-limit' for queue 'q.dead' in vhost '/': received "


@pytest.mark.parametrize(
    ("text", "difference"),
    [
        (START + "'unknown' but current is '5'", Difference("x-delivery-limit", True, 5)),
        (START + "the value 'unknown' of type 'longstr' but current is none", Difference("x-delivery-limit", True)),
        (START + "none but current is the value '-1' of type 'signedint'", Difference("x-delivery-limit", True, -1)),
        (
            START + "none but current is the value 'drop' of type 'longstr'",
            Difference("x-delivery-limit", True, "drop"),
        ),
        (START + "the value 'unknown' of type 'longstr' but cur", Difference("x-delivery-limit", False)),
        (START + "'unknown' but current is '1000", Difference("x-delivery-limit", False)),
        ("PRECONDITION_FAILED - invalid arg 'x-max-priority' for queue 'q' in vhost '/'", None),
        ("ACCESS_REFUSED - access to queue 'q' in vhost '/' refused", None),
        ("", None),
    ],
)
def test_a_text_tells_the_first_difference(text: str, difference: Difference | None) -> None:
    assert first_difference(text) == difference


@pytest.mark.parametrize(
    ("value", "version", "limit"),
    [
        (None, (3, 10), None),
        (None, (3, 13), None),
        (None, (4, 0), 20),
        (None, (), 20),
        (5, (3, 10), 5),
        (100_000, (4, 3), 100_000),
        (-1, (4, 3), None),
        (-1, (3, 10), 0),
        ("unknown", (4, 3), 0),
    ],
)
def test_a_queue_without_a_limit_of_its_own_has_that_of_its_broker(
    value: int | str | None, version: tuple[int, ...], limit: int | None
) -> None:
    assert _limit(value, version) == limit
