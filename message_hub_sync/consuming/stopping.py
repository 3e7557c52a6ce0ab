"""Stops consumers: all at once, under one deadline, in steps that may be repeated."""

from __future__ import annotations

from collections.abc import Sequence

from message_hub_sync.consuming.queue_consumer import CLOSE_TIMEOUT, QueueConsumer
from message_hub_sync.consuming.suspects import Suspects
from message_hub_sync.consuming.worker_group import WorkerThread
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.real_time import time
from message_hub_sync.runtime.text import printable

__all__ = ["Stop"]

logger = SafeLogger("message_hub_sync.subscription")


class Stop:
    """Stops some consumers. Several may stop the same ones at the same time.

    Running handlers finish, and what is being moved to a retry or dead-letter queue is awaited and acknowledged. No
    other handler begins, and no move is repeated. What is unacked then goes back to its queue, in order.

    :param consumers: the consumers.
    :param suspects: has its waiting workers look whether they stop.
    :param deadline: monotonic seconds.
    :param caller: the worker whose handler stops them. It is not waited for: it ends its consumer after its handler.
    """

    def __init__(
        self, consumers: Sequence[QueueConsumer], suspects: Suspects, deadline: float, caller: WorkerThread | None
    ) -> None:
        self._consumers = consumers
        self._suspects = suspects
        self._deadline = deadline
        self._caller = caller

    def run(self) -> None:
        """Stop them, and wait for that until the deadline."""
        # 1: no handler begins any more, in any of them.
        for consumer in self._consumers:
            consumer.refuse()
        self._suspects.wake()
        # 2: the broker is told of all of them, before anything is awaited.
        for consumer in self._consumers:
            consumer.tell_broker()
        # 3: running handlers finish, and what is being moved is settled.
        idle = [consumer for consumer in self._consumers if consumer.wait_idle(self._deadline, self._caller)]
        # 4: those whose handlers have ended give back what is unacked. The others keep their channel for their last
        #    acknowledgements, but other consumers get what no handler has begun with.
        for consumer in self._consumers:
            if consumer in idle and not consumer.workers:
                consumer.end(0.0)
            else:
                consumer.give_back()
                consumer.leave_to_workers()
        # 5: the broker has answered, and the threads are gone.
        for consumer in idle:
            if consumer.ended:
                consumer.end(self._deadline)
        for consumer in idle:
            consumer.group.join(max(self._deadline, time.monotonic() + CLOSE_TIMEOUT))

    def log_unfinished(self, began: float) -> bool:
        """Log the messages whose handlers still run, except the handler that stops them. Returns whether any does.

        :param began: since when they were waited for, in monotonic seconds.
        """
        seconds = time.monotonic() - began
        found = False
        for consumer in self._consumers:
            running = [
                delivery.properties.message_id or "without an id"
                for worker in consumer.workers
                if worker is not self._caller and (delivery := worker.delivery) is not None
            ]
            if running:
                found = True
                logger.warning(
                    "%d handler%s of %s still ran after %.3g s: message %s %s",
                    len(running),
                    "s" * (len(running) > 1),
                    consumer.queue,
                    seconds,
                    printable(", ".join(running)),
                    "will be delivered again" if consumer.consumed.topology.queue.durable else "is lost with its queue",
                )
        return found
