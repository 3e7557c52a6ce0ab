"""Remembering which messages a subscription has handled, so that a repeated one is dropped.

Delivery is at least once: a message comes again when its sender repeats a call that ended ``unknown``, or when
a process dies between the handler's end and the acknowledgement. A store makes that once, as far as it reaches:

* A key is added only *after* every handler has succeeded. A message whose handler failed, or whose process
  died of it, is not in the store and is handled again; nothing is dropped that was not handled.
* Two workers that have copies of one message in hand at the same moment both find it new, and both handle it.
  So a message runs at most once per worker that is at work at that moment, and not at all later. A handler
  that cannot bear even that needs a unique key in its own database, in the transaction that does the work.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from message_hub_sync.config import positive_seconds
from message_hub_sync.errors import MessageHubConfigurationError

__all__ = ["DeduplicationStore", "MemoryDeduplication"]


@runtime_checkable
class DeduplicationStore(Protocol):
    """What ``deduplicate=`` takes: a set of keys that forgets by itself. Called from several threads at once.

    A key is a queue's name and a message's id, so that one store serves any number of subscriptions, services and
    processes, and each drops only what it has handled itself. In Redis, for example, ``in`` is ``EXISTS`` and
    ``add`` is ``SET … EX 3600``. A store that cannot answer should raise, so that the message is retried, rather
    than say what it does not know.
    """

    def __contains__(self, key: str, /) -> bool:
        """Whether :meth:`add` was called with ``key`` within the time that the store remembers."""

    def add(self, key: str, /) -> None:
        """Remember ``key``: its message has been handled. Once more is no error."""


class MemoryDeduplication:
    """Remembers in this process: the keys used last, each for a while. A restarted process has forgotten them.

    A repeated call that ended ``unknown`` follows within seconds, a redelivery within minutes, hence an hour;
    10,000 message ids take 2 MB. Safe from any thread, and after a fork.

    :param capacity: keys remembered at most; the one unused for longest goes first.
    :param window: seconds for which a key is remembered after it was added.
    :param clock: seconds that never go back.
    :raises MessageHubConfigurationError: a value is not usable.
    """

    def __init__(
        self, capacity: int = 10_000, window: float = 3600, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        given: Any = capacity
        if not isinstance(given, int) or isinstance(given, bool) or given < 1:
            raise MessageHubConfigurationError(f"capacity {given!r} is not usable: a whole number from 1 is")
        self._capacity = capacity
        self._window = positive_seconds(window, "window")
        self._clock = clock
        # Mutable: when each key was added, the key used last at the end. The lock guards it.
        self._added: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()
        self._process = os.getpid()

    def __contains__(self, key: str, /) -> bool:
        """Whether ``key`` was added within the window and has not been crowded out since."""
        with self._guard():
            added = self._added.get(key)
            if added is None:
                return False
            if self._clock() - added >= self._window:
                del self._added[key]
                return False
            self._added.move_to_end(key)
            return True

    def add(self, key: str, /) -> None:
        """Remember ``key`` for the window, counted from now."""
        with self._guard():
            self._added[key] = self._clock()
            self._added.move_to_end(key)
            if len(self._added) > self._capacity:
                self._added.popitem(last=False)

    def __len__(self) -> int:
        return len(self._added)

    def _guard(self) -> threading.Lock:
        # A thread of the parent may have held the lock at the fork, and is not here to release it.
        if self._process != os.getpid():
            self._lock = threading.Lock()
            self._process = os.getpid()
        return self._lock
