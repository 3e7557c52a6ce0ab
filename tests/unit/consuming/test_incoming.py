"""The place of a queue in line."""

from __future__ import annotations

from collections import deque
from queue import Empty
from typing import Any

import pytest

from message_hub_sync.consuming.incoming import IncomingDeliveries


class Line:
    """A group whose threads the test plays."""

    def __init__(self) -> None:
        self.places: deque[Any] = deque()
        self.put = self.places.append


def handled(line: Line, queues: dict[Any, IncomingDeliveries]) -> list[Any]:
    """Serve whoever is first until nobody is in line."""
    order = []
    while line.places:
        delivery = queues[line.places.popleft()].take()
        if delivery is not None:
            order.append(delivery)
    return order


def test_queues_take_turns_whatever_waits_in_one_of_them() -> None:
    line = Line()
    queues = {name: IncomingDeliveries(line, name) for name in ("long", "short")}  # type: ignore[arg-type]
    for number in range(5):
        queues["long"].put(f"long {number}")  # type: ignore[arg-type]
    for number in range(2):
        queues["short"].put(f"short {number}")  # type: ignore[arg-type]

    assert handled(line, queues) == ["long 0", "short 0", "long 1", "short 1", "long 2", "long 3", "long 4"]


def test_a_queue_has_one_place_however_many_deliveries_it_has() -> None:
    line = Line()
    incoming = IncomingDeliveries(line, "queue")  # type: ignore[arg-type]
    for number in range(3):
        incoming.put(number)  # type: ignore[arg-type]

    assert list(line.places) == ["queue"]


def test_a_queue_that_ran_empty_comes_back_into_line() -> None:
    line = Line()
    incoming = IncomingDeliveries(line, "queue")  # type: ignore[arg-type]
    for number in range(3):
        incoming.put(number)  # type: ignore[arg-type]
        assert handled(line, {"queue": incoming}) == [number]
    assert incoming.empty()


def test_deliveries_that_the_transport_takes_back_leave_an_empty_place_and_no_error() -> None:
    line = Line()
    incoming = IncomingDeliveries(line, "queue")  # type: ignore[arg-type]
    incoming.put("stale")  # type: ignore[arg-type]
    assert incoming.get_nowait() == "stale"
    with pytest.raises(Empty):
        incoming.get_nowait()

    assert handled(line, {"queue": incoming}) == []
    incoming.put("new")  # type: ignore[arg-type]

    assert handled(line, {"queue": incoming}) == ["new"]


def test_a_delivery_that_comes_while_the_last_one_is_taken_is_not_forgotten() -> None:
    line = Line()
    incoming = IncomingDeliveries(line, "queue")  # type: ignore[arg-type]

    class Late(deque[Any]):
        """The second delivery comes when the first one was found to be the last."""

        def __bool__(self) -> bool:
            if not len(self) and late:
                incoming.put(late.pop())
                return False
            return bool(len(self))

    late: list[Any] = ["second"]
    incoming._deliveries = Late()
    incoming.put("first")  # type: ignore[arg-type]

    assert handled(line, {"queue": incoming}) == ["first", "second"]
