"""A queue of the embedded hub, and those who consume from it. No locks: the hub's lock guards them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from queue import SimpleQueue

from message_hub_sync.transport.base import Delivery
from message_hub_sync.transport.memory.arguments import QueueArguments
from message_hub_sync.transport.memory.validation import StoredMessage, copy_headers, copy_properties
from message_hub_sync.transport.topology import QueueSpec

__all__ = ["Entry", "HubQueue", "Subscriber"]


class Entry:
    """One message in one queue. ``position`` is its place for good: a message given back returns to it."""

    __slots__ = ("expires_at", "level", "message", "position", "redelivered")

    def __init__(self, message: StoredMessage, position: int, level: int, expires_at: float) -> None:
        self.message = message
        self.position = position
        self.level = level
        self.expires_at = expires_at
        self.redelivered = False


class HubQueue:
    """Messages in order, the most urgent level first. ``gone`` once the queue is deleted.

    ``owner`` is the one client that may use an exclusive queue.
    """

    def __init__(self, name: str, spec: QueueSpec, arguments: QueueArguments, owner: object | None) -> None:
        self.name = name
        self.spec = spec
        self.arguments = arguments
        self.owner = owner
        self.gone = False
        #: When the hub has itself woken for this queue.
        self.alarm = math.inf
        self.subscribers: deque[Subscriber] = deque()
        self._levels: list[deque[Entry]] = [deque() for _ in range(arguments.max_priority + 1)]
        self._held: deque[Entry] = deque()
        self._position = 0

    @property
    def depth(self) -> int:
        """How many messages are ready."""
        return sum(map(len, self._levels))

    def append(self, message: StoredMessage, expires_at: float) -> None:
        """Put a message behind all of its level."""
        self._position += 1
        level = min(message.properties.priority or 0, self.arguments.max_priority)
        self._levels[level].append(Entry(message, self._position, level, expires_at))

    def head(self) -> Entry | None:
        """The entry to be delivered next."""
        for entries in reversed(self._levels):
            if entries:
                return entries[0]
        return None

    def drop_head(self) -> Entry:
        """Take the entry to be delivered next."""
        for entries in reversed(self._levels):
            if entries:
                return entries.popleft()
        raise IndexError("an empty queue has no head")

    def restore(self, given_back: Iterable[Entry]) -> None:
        """Put entries back to where they were, marked as redelivered."""
        by_level: dict[int, list[Entry]] = {}
        for entry in given_back:
            entry.redelivered = True
            by_level.setdefault(entry.level, []).append(entry)
        for level, returning in by_level.items():
            entries = self._levels[level]
            last = max(entry.position for entry in returning)
            while entries and entries[0].position < last:
                returning.append(entries.popleft())
            returning.sort(key=lambda entry: entry.position, reverse=True)
            entries.extendleft(returning)

    def hold(self, entry: Entry, until: float) -> None:
        """Keep an expired entry that nobody took, out of everyone's way, and have it expire again later."""
        entry.expires_at = until
        self._held.append(entry)

    @property
    def holds(self) -> bool:
        """Whether there is something held."""
        return bool(self._held)

    def next_expiry(self) -> float:
        """When the first head expires (only heads do, as in a classic queue); infinity when none will."""
        return min((entries[0].expires_at for entries in (*self._levels, self._held) if entries), default=math.inf)

    def take_expired(self, now: float) -> list[Entry]:
        """Take the heads whose time is up."""
        expired = []
        for entries in (*self._levels, self._held):
            while entries and entries[0].expires_at <= now:
                expired.append(entries.popleft())
        return expired

    def clear(self) -> None:
        """Forget every message."""
        for entries in (*self._levels, self._held):
            entries.clear()

    def next_subscriber(self) -> Subscriber | None:
        """Whose turn it is, among those who may have one more."""
        for _ in range(len(self.subscribers)):
            subscriber = self.subscribers[0]
            self.subscribers.rotate(-1)
            if not 0 < subscriber.prefetch <= len(subscriber.unsettled):
                return subscriber
        return None


class Subscriber:
    """One consumer as the hub sees it: what was handed to it and is not settled, by delivery tag.

    ``lost`` is called, without the hub's lock, when the queue is deleted under it.
    """

    __slots__ = ("_deliveries", "_intake_number", "_tag", "lost", "prefetch", "queue", "unsettled")

    def __init__(
        self,
        queue: HubQueue,
        deliveries: SimpleQueue[Delivery | None],
        prefetch: int,
        channel_generation: int,
        lost: Callable[[], None],
    ) -> None:
        self.queue = queue
        self.prefetch = prefetch
        self.lost = lost
        self.unsettled: dict[int, Entry] = {}
        self._deliveries = deliveries
        self._intake_number = channel_generation
        self._tag = 0

    def deliver(self, entry: Entry) -> None:
        """Hand an entry over. The caller takes it off the queue afterwards, under the same lock."""
        self._tag += 1
        message = entry.message
        delivery = Delivery(
            body=message.body,
            properties=copy_properties(message.properties, copy_headers(message)),
            exchange=message.exchange,
            routing_key=message.routing_key,
            queue=self.queue.name,
            redelivered=entry.redelivered,
            delivery_tag=self._tag,
            channel_generation=self._intake_number,
            origin=self,
        )
        # In this order a signal handler that raises in between costs a second delivery, never the message.
        self._deliveries.put(delivery)
        self.unsettled[self._tag] = entry
