"""Remembers which messages a subscription has handled, so that a repeated one is dropped.

Delivery is at least once. A message comes again if its sender repeats a call that ended ``unknown``, or if a process
dies after the handler returned and before the acknowledgement. A store drops the repeated message, within these limits:

* A key is added only *after* every handler has succeeded. A message whose handler failed or crashed the process is not
  in the store and is handled again. No message is dropped that was not handled.
* If two workers have copies of one message at the same moment, both find it new and both handle it. A copy that comes
  later is dropped. A handler for which that is too often needs a unique key in its own database, in the transaction
  that does the work.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from message_hub_sync.config import positive_seconds
from message_hub_sync.errors import MessageHubConfigurationError, MessageHubRejectError
from message_hub_sync.runtime.locks import Lock
from message_hub_sync.runtime.real_time import time
from message_hub_sync.runtime.text import printable, shown

__all__ = ["DeduplicationStore", "DuplicateRequest", "MemoryDeduplication"]


@runtime_checkable
class DeduplicationStore(Protocol):
    """What ``deduplicate=`` takes: a set of keys that forgets by itself. Several threads call it at once.

    A key is the name of a queue, the id of a message and the service that sent it. So one store serves any number of
    subscriptions, services and processes, and each of them drops only what it has handled itself. In Redis, for
    example, ``in`` is ``EXISTS`` and ``add`` is ``SET … EX 3600``. A store that cannot answer should raise: the message
    is then retried. A guess could drop a message that was never handled.
    """

    def __contains__(self, key: str, /) -> bool:
        """Whether :meth:`add` was called with ``key`` within the time that the store remembers."""

    def add(self, key: str, /) -> None:
        """Remember ``key``: its message has been handled. Adding it again is no error."""


class DuplicateRequest(MessageHubRejectError):
    """The answer to a request that was handled before. Its first answer is not kept."""

    def __init__(self, message_id: str) -> None:
        super().__init__(f"the request {printable(message_id)} was handled before, and is not handled again")


#: Characters of a key that is remembered as it is.
_LONGEST_KEY = 500


class MemoryDeduplication:
    """Remembers the keys used last in the memory of this process, each for a limited time. A restart loses them.

    A repeated call that ended ``unknown`` follows within seconds, and a redelivery within minutes. So the default
    window is one hour. 10,000 message ids take 2 MB. Any thread may use it, also after a fork.

    :param capacity: the largest number of keys; the key that was not used for the longest time is forgotten first.
    :param window: seconds for which a key is remembered after it was added.
    :param clock: returns seconds that never go back.
    :raises MessageHubConfigurationError: ``capacity`` or ``window`` is invalid.
    """

    def __init__(
        self, capacity: int = 10_000, window: float = 3600, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        given: Any = capacity
        if not isinstance(given, int) or isinstance(given, bool) or given < 1:
            raise MessageHubConfigurationError(f"capacity must be a whole number from 1, not {shown(given)}")
        self._capacity = capacity
        self._window = positive_seconds(window, "window")
        self._clock = clock
        # When each key was added, by ``clock``; the key used last is at the end.
        self._added: OrderedDict[str, float] = OrderedDict()  # guarded by _lock
        self._lock = Lock()  # replaced in a forked child
        self._process = os.getpid()  # changed in a forked child only

    def __contains__(self, key: str, /) -> bool:
        """Whether ``key`` was added within the window and not forgotten since for lack of capacity."""
        return self._guard().run(self._find, _short(key), self._clock())

    def _find(self, key: str, now: float) -> bool:
        added = self._added.get(key)
        if added is None:
            return False
        if now - added >= self._window:
            del self._added[key]
            return False
        self._added.move_to_end(key)
        return True

    def add(self, key: str, /) -> None:
        """Remember ``key`` for ``window`` seconds from now."""
        self._guard().run(self._add, _short(key), self._clock())

    def _add(self, key: str, now: float) -> None:
        self._added[key] = now
        self._added.move_to_end(key)
        if len(self._added) > self._capacity:
            self._added.popitem(last=False)

    def __len__(self) -> int:
        return len(self._added)

    def _guard(self) -> Lock:
        # In a forked child: a thread of the parent may have held the lock, and does not exist here to release it.
        if self._process != os.getpid():
            self._lock = Lock()
            self._process = os.getpid()
        return self._lock


def _short(key: str) -> str:
    """A key contains what a sender chose: a long one is remembered by its hash."""
    return key if len(key) <= _LONGEST_KEY else hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
