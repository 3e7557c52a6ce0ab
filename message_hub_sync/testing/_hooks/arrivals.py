"""What arrived somewhere, in order, to look at and to wait on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from message_hub_sync.runtime.deadlines import remaining

__all__ = ["Arrivals"]

T = TypeVar("T")


class Arrivals(Generic[T]):
    """A list that only grows. Any thread may add, look and wait.

    Mutable, guarded by the condition's lock: ``_items``, and ``_taken``, the places of those taken by
    :meth:`take`. Predicates are a user's code and run outside it.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._items: list[T] = []
        self._taken: set[int] = set()

    def add(self, item: T) -> None:
        """Append, and wake whoever waits."""
        with self._changed:
            self._items.append(item)
            self._changed.notify_all()

    def all(self) -> list[T]:
        """Everything so far, in order of arrival."""
        with self._changed:
            return list(self._items)

    def find(self, fits: Callable[[T], bool], deadline: float) -> T | None:
        """The first that fits, waited for until the deadline (monotonic seconds); ``None`` when it passes."""
        return next((item for _, item in self._each(deadline) if fits(item)), None)

    def take(self, fits: Callable[[T], bool], deadline: float) -> T | None:
        """As :meth:`find`, and nobody else takes it afterwards: the next call gets the next one."""
        for place, item in self._each(deadline):
            if not self._is_taken(place) and fits(item) and self._claim(place):
                return item
        return None

    def _each(self, deadline: float) -> Iterator[tuple[int, T]]:
        """Places and items from the first on, those included that come before the deadline."""
        place = 0
        while found := self._at(place, deadline):
            yield place, found[0]
            place += 1

    def _is_taken(self, place: int) -> bool:
        with self._changed:
            return place in self._taken

    def _claim(self, place: int) -> bool:
        with self._changed:
            if place in self._taken:
                return False
            self._taken.add(place)
            return True

    def _at(self, place: int, deadline: float) -> list[T]:
        """The item at ``place`` in a list, once it is there; an empty list when the deadline passes first."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._items) > place, remaining(deadline))
            return self._items[place : place + 1]
