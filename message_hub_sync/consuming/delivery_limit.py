"""Notices queues whose messages the broker may give up because they came back too often."""

from __future__ import annotations

from message_hub_sync.envelope.header_names import DELIVERY_COUNT
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.transport.base import Consumer, Delivery
from message_hub_sync.transport.topology import QueueSpec, raise_limit_command

__all__ = ["DeliveryLimit"]

logger = SafeLogger("message_hub_sync.subscription")


class DeliveryLimit:
    """Whether a queue may have a delivery limit that this client did not declare.

    A queue that was declared without arguments is a quorum queue if the virtual host's ``default_queue_type`` says so.
    The declare succeeds then. Only the header of a message that came back shows it.
    """

    def __init__(self, queue: QueueSpec) -> None:
        self._queue = queue
        self._counted = False  # any worker sets it to True, and it stays so

    def consumed(self, consumer: Consumer) -> None:
        """The queue is consumed: log it if its arguments differ."""
        if consumer.other_limit:
            self._warn("has another delivery limit than this client declares")

    def look_at(self, redelivered: Delivery) -> None:
        """Notice whether the queue counts deliveries. Logs it once."""
        headers = redelivered.properties.headers
        if not self._counted and DELIVERY_COUNT in headers and "x-delivery-limit" not in self._queue.arguments:
            self._counted = True
            self._warn("counts how often a message comes back")

    def possible(self, consumer: Consumer | None) -> bool:
        """Whether messages may be given up, as far as it is known."""
        return self._counted or (consumer is not None and consumer.other_limit)

    def _warn(self, found: str) -> None:
        logger.warning(
            "the queue %s %s, so it may drop messages that no handler has seen: a lost connection returns all that was "
            "prefetched. Raise its limit, in its virtual host (--vhost): %s",
            self._queue.name,
            found,
            raise_limit_command(self._queue.name),
        )
