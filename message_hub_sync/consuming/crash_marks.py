"""Counts in the broker how often a process ended while a handler ran for one message."""

from __future__ import annotations

from queue import Empty

from message_hub_sync.envelope.values import PERSISTENT, Properties
from message_hub_sync.errors import MessageHubConnectionError, MessageHubError
from message_hub_sync.runtime.deadlines import remaining, take
from message_hub_sync.runtime.locks import Lock, locked
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.real_time import time
from message_hub_sync.runtime.text import printable
from message_hub_sync.transport.base import Outgoing, PublishResult, Transport
from message_hub_sync.transport.topology import DEFAULT_EXCHANGE, QueueSpec, Topology

__all__ = ["CrashMarks"]

logger = SafeLogger("message_hub_sync.subscription")

#: Seconds for one operation.
TIMEOUT = 5.0
#: Seconds after a failed operation in which none is tried. A broker that refuses marks, or that does not answer, must
#: not delay each redelivered message.
PAUSE = 30.0


class CrashMarks:
    """The marks of started handlers. Each message has a queue of its own for them, and each mark is a message there.

    A mark is added before a handler runs. The queue is deleted after the handler has ended. So a mark that is left
    means that the process ended in between. Any thread may use this. No method raises a :class:`MessageHubError`.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._lock = Lock()
        #: Why crashes cannot be counted; ``None`` if the latest operation succeeded.
        self.problem: str | None = None  # set under _lock
        self._paused_until = 0.0  # monotonic seconds; guarded by _lock
        self._left: dict[str, QueueSpec] = {}  # queues that could not be deleted, by name; guarded by _lock

    def count(self, queue: QueueSpec) -> int | None:
        """Declare a queue of marks. Returns the number of its marks; ``None`` if marks cannot be used now."""
        if self._paused():
            return None
        deadline = time.monotonic() + TIMEOUT
        try:
            # Always declared, although it may exist: that renews its x-expires.
            self._transport.declare_queue(queue, deadline)
            stats = self._transport.queue_stats([queue.name], deadline)[queue.name]
        except MessageHubError as error:
            self._failed(error)
            return None
        return 0 if stats is None else stats.depth

    def add(self, queue: QueueSpec, service: str) -> bool:
        """Add a mark to a queue that exists. Returns whether the broker has confirmed it."""
        properties = Properties(delivery_mode=PERSISTENT, app_id=service)
        mark = Outgoing(DEFAULT_EXCHANGE, queue.name, b"", properties, mandatory=True)
        deadline = time.monotonic() + TIMEOUT
        try:
            receipt = self._transport.publish(mark, deadline)
            result = receipt.wait(deadline)
            if result is not PublishResult.CONFIRMED:
                raise MessageHubConnectionError(receipt.reason or "the broker did not confirm the mark")
        except MessageHubError as error:
            self._failed(error)
            return False
        self._succeeded()
        return True

    def take_back(self, queue: QueueSpec, deadline: float) -> None:
        """Remove one mark from a queue. All marks of a queue are equal.

        :param deadline: monotonic seconds.
        """
        try:
            consumer = self._transport.consume(Topology(queue), prefetch=1, deadline=deadline)
            try:
                mark = take(consumer.deliveries, remaining(deadline))
                if mark is not None:
                    consumer.ack(mark)
            finally:
                consumer.cancel(deadline)
                consumer.close(deadline)
        except (MessageHubError, Empty) as error:
            logger.debug("a mark of %s could not be taken back: %s", queue.name, error)

    def remove(self, queue: QueueSpec) -> None:
        """Delete a queue with all its marks. If that fails, :meth:`remove_left` tries again."""
        self._lock.run(self._left.__setitem__, queue.name, queue)
        if not self._paused():
            self._delete(queue, time.monotonic() + TIMEOUT)

    @property
    def any_left(self) -> bool:
        """Whether :meth:`remove` could not delete a queue."""
        return bool(self._left)

    def remove_left(self, deadline: float) -> None:
        """Delete the queues that :meth:`remove` could not delete.

        :param deadline: monotonic seconds.
        """
        for queue in self._lock.run(lambda: list(self._left.values())):
            if not self._delete(queue, deadline):
                return

    def _delete(self, queue: QueueSpec, deadline: float) -> bool:
        try:
            self._transport.delete(Topology(queue), queue.name, deadline)
        except MessageHubError as error:
            self._failed(error)
            return False
        self._lock.run(self._left.pop, queue.name, None)
        return True

    @locked
    def _paused(self) -> bool:
        return time.monotonic() < self._paused_until

    @locked
    def _succeeded(self) -> None:
        self.problem = None
        self._paused_until = 0.0

    @locked
    def _note_failure(self, error: MessageHubError) -> bool:
        """Note why an operation failed. Returns whether the one before had succeeded."""
        first = self.problem is None
        self.problem = printable(str(error), 500)
        self._paused_until = time.monotonic() + PAUSE
        return first

    def _failed(self, error: MessageHubError) -> None:
        if self._note_failure(error):
            logger.warning(
                "crashes cannot be counted now, so a message whose handler ends its process is delivered again without "
                "limit: %s. The user needs permission to configure, write and read the queues {service}.started.*",
                self.problem,
            )
