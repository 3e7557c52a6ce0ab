"""The deliveries of one queue that no worker has taken yet."""

from __future__ import annotations

from collections import deque
from queue import Empty

from message_hub_sync.consuming.worker_group import Work, WorkerGroup
from message_hub_sync.transport.base import Delivery

__all__ = ["IncomingDeliveries"]


class IncomingDeliveries:
    """A :class:`~message_hub_sync.transport.base.DeliverySink` whose queue is in line at its group while it has any.

    Any thread may use it. No lock: single operations only, in an order that leaves no delivery without a place in line.
    Two threads at once may give it two places. That changes the turns for a moment, and loses nothing.

    :param handle_next: has a worker handle the next delivery.
    """

    __slots__ = ("_deliveries", "_group", "_handle_next", "_in_line", "acknowledging")

    def __init__(self, group: WorkerGroup, handle_next: Work) -> None:
        self._group = group
        self._handle_next = handle_next
        self._deliveries: deque[Delivery | None] = deque()
        self._in_line = False
        #: A worker acknowledges several deliveries now: the transport need not send each acknowledgement alone.
        self.acknowledging = False

    def put(self, delivery: Delivery | None) -> None:
        """Append a delivery. The transport calls this."""
        self._deliveries.append(delivery)
        if not self._in_line:
            self.queue_up()

    def queue_up(self) -> None:
        """Stand in line at the group."""
        self._in_line = True
        self._group.put(self._handle_next)

    def take(self) -> Delivery | None:
        """The next delivery; ``None`` if there is none. Only a worker calls this, as the next work in line."""
        deliveries = self._deliveries
        delivery: Delivery | None = None
        try:  # noqa: SIM105  # contextlib.suppress would cost more, at every delivery
            delivery = deliveries.popleft()
        except IndexError:  # its channel was closed, so the transport took it
            pass
        if deliveries:
            self._group.put(self._handle_next)
        else:
            self._in_line = False
            if deliveries:  # one came before put() could see that the queue is not in line
                self.queue_up()
        return delivery

    def get_nowait(self) -> Delivery | None:
        """The next delivery, taken out.

        :raises Empty: there is none.
        """
        try:
            return self._deliveries.popleft()
        except IndexError:
            raise Empty from None

    def empty(self) -> bool:
        """Whether there is none, and no acknowledgement follows at once."""
        return not (self._deliveries or self.acknowledging)
