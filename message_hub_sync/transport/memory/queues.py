"""A queue of the embedded hub, and its consumers.

The caller of each method holds the hub's lock. So that lock guards all fields here.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable

from message_hub_sync.transport.base import Delivery
from message_hub_sync.transport.memory.arguments import QueueArguments
from message_hub_sync.transport.memory.validation import StoredMessage, copy_headers, copy_properties
from message_hub_sync.transport.topology import QueueSpec

__all__ = ["Entry", "HubQueue", "Subscriber"]


class Entry:
    """One message in one queue.

    ``position`` never changes: a requeued message returns to it. ``level`` is its priority in this queue.
    ``since``, when it came into this queue, and ``expires_at`` are in seconds of the hub's clock.
    """

    __slots__ = ("expires_at", "failures", "level", "message", "position", "redelivered", "since")

    def __init__(self, message: StoredMessage, position: int, level: int, since: float, expires_at: float) -> None:
        self.message = message
        self.position = position
        self.level = level
        self.since = since
        self.expires_at = expires_at
        self.redelivered = False
        #: How often it came back without an acknowledgement.
        self.failures = 0


class HubQueue:
    """One queue. It delivers the messages with the highest priority first, and those of one priority in order.

    :param owner: the client of an exclusive queue, the only one that may use it; else ``None``.
    """

    def __init__(self, name: str, spec: QueueSpec, arguments: QueueArguments, owner: object | None) -> None:
        self.name = name
        self.spec = spec
        self.arguments = arguments
        self.owner = owner
        self.gone = False  # the queue was deleted
        #: The hub's alarm for this queue, in seconds of the hub's clock; infinity if none is set.
        self.alarm = math.inf
        #: When the queue is deleted if it stays unused, in seconds of the hub's clock; infinity if it has no x-expires.
        self.expires_at = math.inf
        self.subscribers: deque[Subscriber] = deque()
        self._levels: list[deque[Entry]] = [deque() for _ in range(arguments.max_priority + 1)]  # by priority
        self._held: deque[Entry] = deque()  # expired entries that no queue has accepted yet
        self._position = 0  # of the latest entry

    @property
    def depth(self) -> int:
        """The number of ready messages."""
        return sum(map(len, self._levels))

    def append(self, message: StoredMessage, now: float, expires_at: float) -> None:
        """Append a message, behind the others of its priority.

        :param now: the current time, in seconds of the hub's clock.
        :param expires_at: in seconds of the hub's clock; infinity if it does not expire.
        """
        self._position += 1
        level = min(message.properties.priority or 0, self.arguments.max_priority)
        self._levels[level].append(Entry(message, self._position, level, now, expires_at))

    def head(self) -> Entry | None:
        """The entry to deliver next; ``None`` if the queue is empty."""
        for entries in reversed(self._levels):
            if entries:
                return entries[0]
        return None

    def drop_head(self) -> Entry:
        """Remove and return the entry to deliver next.

        :raises IndexError: the queue is empty.
        """
        for entries in reversed(self._levels):
            if entries:
                return entries.popleft()
        raise IndexError("an empty queue has no head")

    def restore(self, given_back: Iterable[Entry]) -> None:
        """Requeue entries at their old positions, marked as redelivered."""
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
        """Keep an expired entry that no queue has accepted. It is not delivered, and expires again at ``until``."""
        entry.expires_at = until
        self._held.append(entry)

    @property
    def holds(self) -> bool:
        """Whether there are entries that no queue has accepted."""
        return bool(self._held)

    def next_expiry(self) -> float:
        """When the next entry expires; infinity if none will.

        Only the first entry of each priority can expire, as in a classic queue of RabbitMQ.
        """
        return min((entries[0].expires_at for entries in (*self._levels, self._held) if entries), default=math.inf)

    def take_expired(self, now: float) -> list[Entry]:
        """Remove and return the expired entries, from the head of each priority on."""
        expired = []
        for entries in (*self._levels, self._held):
            while entries and entries[0].expires_at <= now:
                expired.append(entries.popleft())
        return expired

    def clear(self) -> None:
        """Remove every message."""
        for entries in (*self._levels, self._held):
            entries.clear()

    def next_subscriber(self) -> Subscriber | None:
        """The next consumer in rotation with fewer unacked messages than its prefetch; ``None`` if there is none."""
        for _ in range(len(self.subscribers)):
            subscriber = self.subscribers[0]
            self.subscribers.rotate(-1)
            if not 0 < subscriber.prefetch <= len(subscriber.unacked):
                return subscriber
        return None


class Subscriber:
    """The hub's record of one consumer: its unacked messages, by delivery tag.

    :param put: takes the deliveries, in order.
    :param prefetch: how many messages may be unacked at once; 0 is no limit.
    :param lost: called, without the hub's lock, after a client has deleted the queue.
    """

    __slots__ = ("_channel_generation", "_put", "_tag", "lost", "prefetch", "queue", "unacked")

    def __init__(
        self,
        queue: HubQueue,
        put: Callable[[Delivery], None],
        prefetch: int,
        channel_generation: int,
        lost: Callable[[], None],
    ) -> None:
        self.queue = queue
        self.prefetch = prefetch
        self.lost = lost
        self.unacked: dict[int, Entry] = {}
        self._put = put
        self._channel_generation = channel_generation
        self._tag = 0

    def deliver(self, entry: Entry) -> None:
        """Deliver an entry. The caller then removes it from the queue, under the same lock."""
        self._tag += 1
        message = entry.message
        headers = copy_headers(message)
        if entry.failures and self.queue.arguments.quorum:
            headers["x-delivery-count"] = entry.failures
        delivery = Delivery(
            body=message.body,
            properties=copy_properties(message.properties, headers),
            exchange=message.exchange,
            routing_key=message.routing_key,
            queue=self.queue.name,
            redelivered=entry.redelivered,
            delivery_tag=self._tag,
            channel_generation=self._channel_generation,
            origin=self,
        )
        # In this order: if a signal handler raises in between, the message is delivered twice, and never lost.
        self._put(delivery)
        self.unacked[self._tag] = entry
