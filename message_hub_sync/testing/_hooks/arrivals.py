"""A list of what arrived, in order, on which threads can wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from message_hub_sync.runtime.deadlines import remaining

__all__ = ["Arrivals"]

T = TypeVar("T")


class Arrivals(Generic[T]):
    """A list to which items are only appended. Thread-safe.

    Predicates (``fits``) are the test's own code: they run without the lock.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._items: list[T] = []  # guarded by _changed
        self._taken: set[int] = set()  # indexes that take() has returned; guarded by _changed

    def add(self, item: T) -> None:
        """Append ``item`` and wake all waiting threads."""
        with self._changed:
            self._items.append(item)
            self._changed.notify_all()

    def all(self) -> list[T]:
        """All items so far, in order of arrival."""
        with self._changed:
            return list(self._items)

    def find(self, fits: Callable[[T], bool], deadline: float) -> T | None:
        """Wait for the first item that fits.

        :param fits: called with each item, without the lock.
        :param deadline: monotonic seconds.
        :returns: the item, or ``None`` if the deadline passes first. A second call returns the same item.
        """
        return next((item for _, item in self._each(deadline) if fits(item)), None)

    def take(self, fits: Callable[[T], bool], deadline: float) -> T | None:
        """Wait for the first item that fits and that no earlier call of ``take`` has returned.

        :param fits: called with each item, without the lock.
        :param deadline: monotonic seconds.
        :returns: the item, or ``None`` if the deadline passes first.
        """
        for index, item in self._each(deadline):
            # _claim checks again: another thread may have taken the item while fits() ran without the lock.
            if not self._is_taken(index) and fits(item) and self._claim(index):
                return item
        return None

    def _each(self, deadline: float) -> Iterator[tuple[int, T]]:
        """Index and item, from the first on, including items that arrive before the deadline."""
        index = 0
        while found := self._at(index, deadline):
            yield index, found[0]
            index += 1

    def _is_taken(self, index: int) -> bool:
        with self._changed:
            return index in self._taken

    def _claim(self, index: int) -> bool:
        with self._changed:
            if index in self._taken:
                return False
            self._taken.add(index)
            return True

    def _at(self, index: int, deadline: float) -> list[T]:
        """Wait for the item at ``index``: a list of that item, or an empty list if the deadline passes first."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._items) > index, remaining(deadline))
            return self._items[index : index + 1]
