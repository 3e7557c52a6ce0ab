"""Waits for what handlers received, with a condition instead of sleeping."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any


class Collector:
    """A list on which a test can wait. It is callable and appends its argument, so that it can be a handler."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._items: list[Any] = []  # guarded by _condition

    def __call__(self, item: Any) -> None:
        with self._condition:
            self._items.append(item)
            self._condition.notify_all()

    @property
    def items(self) -> list[Any]:
        """The items so far."""
        with self._condition:
            return list(self._items)

    def wait(self, count: int = 1, timeout: float = 30) -> list[Any]:
        """Wait until there are at least ``count`` items, and return them."""
        with self._condition:
            assert self._condition.wait_for(lambda: len(self._items) >= count, timeout), (
                f"{len(self._items)} of {count} came within {timeout} s: {self._items[:10]}"
            )
            return list(self._items)

    def until(self, complete: Callable[[list[Any]], bool], timeout: float = 30.0) -> list[Any]:
        """Wait until ``complete(items)`` is true, and return the items."""
        with self._condition:
            assert self._condition.wait_for(lambda: complete(self._items), timeout), (
                f"not complete within {timeout} s: {self._items[:100]}"
            )
            return list(self._items)

    def stays(self, count: int, seconds: float = 0.2) -> list[Any]:
        """Wait for ``count`` items, and check that no other arrives within ``seconds``."""
        self.wait(count)
        deadline = time.monotonic() + seconds
        with self._condition:
            while (left := deadline - time.monotonic()) > 0:
                self._condition.wait(left)
            assert len(self._items) == count, self._items[:10]
            return list(self._items)
