"""Read a dead-letter queue page by page. What is not settled returns to the queue, in its order.

A page is a consumer whose prefetch is the number of letters to read, so the broker delivers no letter more. No letter
is acknowledged before the next page is open: an acknowledgement would make room for a letter that nobody reads. So
any number of letters is read in bounded memory, and another command sees a consumer as long as letters are held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from queue import Empty
from types import TracebackType

from message_hub_sync.dead_letters.letter import DeadLetter
from message_hub_sync.errors import MessageHubConfigurationError, MessageHubConnectionError, MessageValidationError
from message_hub_sync.runtime.deadlines import remaining, take
from message_hub_sync.runtime.real_time import time
from message_hub_sync.transport.base import Consumer, Delivery, Transport
from message_hub_sync.transport.topology import DELIVERY_LIMIT, QueueSpec, Topology, raise_limit_command

__all__ = ["Held", "LetterReader", "Patience", "ReadingIsNotFree", "ReadingLost", "check_reading_is_free", "never"]

#: Letters of the first page and of a full page; and bytes of a page, estimated from the page before.
FIRST_PAGE, FULL_PAGE, PAGE_BYTES = 8, 1_000, 32 * 1024 * 1024
#: Each page is at most this many times as long as the one before: the first letters may be small ones.
_GROWTH = 4
#: Bytes of a letter beside its body, estimated.
_LETTER_BYTES = 2_000
#: Seconds without a delivery, after which the reader asks whether the queue is empty.
_QUIET_SECONDS = 0.5
#: Seconds for giving letters back after the deadline has passed.
_CLOSE_SECONDS = 2.0


class ReadingIsNotFree(MessageHubConfigurationError):
    """The queue counts how often a message returns, and drops a message that returns too often."""


class ReadingLost(Exception):
    """The connection or a channel was lost: all letters that are not acknowledged are back in the queue."""


def never() -> bool:
    """A ``stop`` that does not stop."""
    return False


@dataclass(frozen=True)
class Patience:
    """How long to wait for the hub.

    :param deadline: for everything, in monotonic seconds.
    :param step: for each single answer, in seconds. At least one of the two is finite.
    """

    deadline: float = math.inf
    step: float = math.inf

    def next(self) -> float:
        """The deadline of the next step, in monotonic seconds."""
        return min(self.deadline, time.monotonic() + self.step)


@dataclass(eq=False)
class _Page:
    consumer: Consumer
    size: int
    received: int = 0
    latest: Delivery | None = None
    complete: bool = False  # its consumer is cancelled, so that acknowledgements bring no other letter
    settled: list[Held] = field(default_factory=list)  # to be acknowledged
    acknowledged: list[Held] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Held:
    """A letter that was read and is unacknowledged."""

    letter: DeadLetter
    delivery: Delivery
    page: _Page

    @property
    def lost(self) -> bool:
        """Whether it is back in the queue, because its channel was closed."""
        return not self.page.consumer.holds(self.delivery)


class LetterReader:
    """Reads letters from the oldest one on. Not thread-safe.

    :param queue: the dead-letter queue, which must exist.
    :param wanted: how many letters to read.
    :param everything: those are all that the broker has counted. It counts none that another reader has just given
        back. So the reader goes on behind them, as long as a letter was delivered to somebody before.
    :param after_loss: the letters may come late, because the broker has not noticed the loss yet.
    :param stop: asked before each letter; reading ends if it returns true.
    :param wait: wait for new letters until the deadline. Otherwise reading ends when the queue is empty.
    """

    def __init__(
        self,
        transport: Transport,
        queue: str,
        wanted: int,
        patience: Patience,
        *,
        everything: bool = False,
        after_loss: bool = False,
        stop: Callable[[], bool] = never,
        wait: bool = False,
    ) -> None:
        self._transport = transport
        self._queue = queue
        self._wanted = wanted
        self._patience = patience
        self._stop = stop
        self._wait = wait
        self._all = everything
        self._after_loss = after_loss
        self._pages: list[_Page] = []
        self._losses_before: list[float | None] | None = None  # until the first page was open
        self.seen = 0
        self.removed = 0  # certainly

    def __enter__(self) -> LetterReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def read(self) -> Iterator[Held]:
        """The letters, oldest first.

        :raises MessageHubConnectionError: the hub did not deliver in time.
        :raises ReadingLost: the connection was lost.
        """
        size = FIRST_PAGE
        while True:
            beyond = self.seen >= self._wanted
            if beyond and not (self._all and self._ready(self._patience.next())):
                return
            page = self._open(size if beyond else min(size, self._wanted - self.seen))
            volume = 0
            while page.received < page.size:
                delivery = self._next(page)
                if delivery is None or (beyond and not delivery.redelivered):
                    return
                self.seen += 1
                volume += len(delivery.body) + _LETTER_BYTES
                yield Held(DeadLetter.of(delivery), delivery, page)
            self._check_held()
            size = max(1, min(FULL_PAGE, size * _GROWTH, PAGE_BYTES * page.size // volume))

    def settle(self, held: Held) -> None:
        """Remove a letter from the queue: :meth:`release` acknowledges it when its page is complete."""
        held.page.settled.append(held)

    def release(self, *, everything: bool = False) -> None:
        """Acknowledge the settled letters of complete pages, and close the pages of which no letter is left.

        :param everything: no more letters are read: the last page is complete, too.
        :raises ReadingLost: they are back in the queue.
        """
        if everything:
            self._complete(self._pages)
        for page in [page for page in self._pages if page.complete]:
            if any(held.lost for held in page.settled):
                raise ReadingLost
            page.consumer.ack_all([held.delivery for held in page.settled])
            page.acknowledged += page.settled
            page.settled = []
            if len(page.acknowledged) == page.received:
                # Closing the channel waits for the broker, which has then removed what was acknowledged.
                page.consumer.close(self._closing_deadline())
                self._check_connection()
                self._pages.remove(page)
                self.removed += page.received

    def unsure(self) -> list[Held]:
        """After a loss: the settled letters that may be back in the queue."""
        return [held for page in self._pages for held in (*page.acknowledged, *page.settled)]

    def _check_connection(self) -> None:
        """Check that the connection was not lost since the first page was opened."""
        # Closing on a connection that has just ended returns before the status shows the loss. An answer of the broker
        # comes after the status is up to date.
        try:
            self._transport.queue_stats([self._queue], self._closing_deadline())
        except MessageHubConnectionError:
            raise ReadingLost from None
        if self._losses() != self._losses_before:
            raise ReadingLost

    def _losses(self) -> list[float | None]:
        return [status.last_error_at for status in self._transport.status() if status.role == "consume"]

    def close(self) -> None:
        """Give all letters that are not acknowledged back, in their order. Idempotent."""
        # All are cancelled before the first one is closed: a consumer with room would get what another gives back.
        # By closing the channels, not by rejecting: measured on RabbitMQ 3.10, rejects of many messages keep a classic
        # queue busy for minutes and put those of a quorum queue back in any order.
        pages, self._pages = self._pages, []
        self._complete(pages)
        for page in pages:
            page.consumer.close(self._closing_deadline())

    def _open(self, size: int) -> _Page:
        # Passive: a queue that was deleted meanwhile is not created again, and one of another type gets no warning.
        topology = Topology(QueueSpec(self._queue, passive=True))
        page = _Page(self._transport.consume(topology, prefetch=size, deadline=self._patience.next()), size)
        if self._losses_before is None:
            self._losses_before = self._losses()
        earlier = list(self._pages)
        self._pages.append(page)
        self._check_held()
        self._complete(earlier)
        return page

    def _check_held(self) -> None:
        # After a loss, an earlier page would get letters that this reader has seen, and a later one those of others.
        for page in self._pages:
            if page.latest is not None and not page.consumer.holds(page.latest):
                raise ReadingLost

    def _complete(self, pages: list[_Page]) -> None:
        for page in pages:
            if not page.complete:
                page.complete = True
                page.consumer.cancel(self._closing_deadline())

    def _closing_deadline(self) -> float:
        return max(self._patience.next(), time.monotonic() + _CLOSE_SECONDS)

    def _next(self, page: _Page) -> Delivery | None:
        """The next letter of a page; ``None`` if the queue is empty, or reading was stopped."""
        deadline = self._patience.next()
        empty = 0
        while not self._stop():
            try:
                delivery = take(page.consumer.deliveries, min(remaining(deadline), _QUIET_SECONDS))
            except Empty:
                if remaining(deadline) == 0.0:
                    if self._wait or self._after_loss:
                        return None
                    raise MessageHubConnectionError(
                        f"the hub did not deliver the messages of {self._queue} in time: raise the timeout"
                    ) from None
                # Twice: a letter may be on its way when the broker counts those that are left.
                empty = 0 if self._wait or self._after_loss or self._ready(deadline) else empty + 1
                if empty == 2:
                    return None
            else:
                if delivery is not None:
                    if delivery.channel_generation > 1:
                        raise ReadingLost
                    page.received += 1
                    page.latest = delivery
                    return delivery
        return None

    def _ready(self, deadline: float) -> int:
        stats = self._transport.queue_stats([self._queue], deadline)[self._queue]
        if stats is None:
            raise MessageValidationError(f"the queue {self._queue} was deleted while it was read")
        return stats.depth


def check_reading_is_free(transport: Transport, queue: str, deadline: float) -> None:
    """Check that a letter can be read and given back as often as one likes.

    :raises MessageHubConfigurationError: the queue counts returns, and drops a message that returns too often.
    """
    limit = transport.delivery_limit(queue, deadline)
    if limit is None or limit >= DELIVERY_LIMIT:
        return
    what = f"drops a message that returns {limit} times" if limit else "may drop a message that returns too often"
    raise ReadingIsNotFree(
        f"the queue {queue} {what} (delivery limit of a quorum queue), and each look at a message is a return: raise "
        f"the limit first, for example with: {raise_limit_command(queue)}; then force it (--force, or force=True), "
        "because AMQP does not show policies"
    )
