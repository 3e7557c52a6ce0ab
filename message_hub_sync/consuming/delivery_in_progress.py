"""One delivery that a worker handles, and the ways in which it ends: acknowledged, retried, dead-lettered."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context

from message_hub_sync.consuming.consumed_queue import ConsumedQueue, ConsumerContext
from message_hub_sync.consuming.decoded_delivery import DecodedDelivery
from message_hub_sync.consuming.handlers import Handler
from message_hub_sync.consuming.republished_properties import (
    attempts_made,
    dead_letter_properties,
    expired,
    reduced_properties,
    retry_properties,
)
from message_hub_sync.consuming.republishing import Republisher
from message_hub_sync.envelope.header_names import TTL_LEFT
from message_hub_sync.envelope.values import Properties
from message_hub_sync.errors import MessageValidationError
from message_hub_sync.runtime.deadlines import earliest_now
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.real_time import time
from message_hub_sync.runtime.text import printable
from message_hub_sync.transport.base import Consumer, Delivery
from message_hub_sync.transport.topology import QueueSpec, dead_letter_queue, retry_queue

__all__ = ["DeliveryInProgress"]

logger = SafeLogger("message_hub_sync.subscription")


class DeliveryInProgress:
    """One delivery that a worker thread handles. No lock: only that thread uses it.

    ``handler``: the callback that runs or ran last. ``handled``: false if its callbacks were not run, because it is a
    duplicate or a middleware skipped them; it does not count as received then. ``duplicate``: whether it is one.
    """

    __slots__ = (
        "_consumed",
        "_consumer",
        "_context",
        "_republisher",
        "decoded",
        "delivery",
        "duplicate",
        "handled",
        "handler",
    )

    def __init__(
        self,
        delivery: Delivery,
        consumed: ConsumedQueue,
        context: ConsumerContext,
        consumer: Consumer,
        republisher: Republisher,
    ) -> None:
        self.delivery = delivery
        self._consumed = consumed
        self._context = context
        self._consumer = consumer
        self._republisher = republisher
        self.handler: Handler | None = None
        self.handled = True
        self.duplicate = False
        config = context.config
        self.decoded = DecodedDelivery(
            delivery, consumed.kind, config.service_name, config.max_message_bytes, consumed.event_type
        )

    def ack(self) -> None:
        """Acknowledge it."""
        self._consumer.ack(self.delivery)
        if self._context.config.settle_each:
            self._consumer.flush()

    @property
    def held(self) -> bool:
        """Whether it can still be acknowledged. If not, its connection was lost, and it is delivered again."""
        return self._consumer.holds(self.delivery)

    @property
    def expired(self) -> bool:
        """Whether its ttl passed during a retry, or since."""
        properties = self.delivery.properties
        return TTL_LEFT in properties.headers and expired(
            properties, earliest_now(), self._consumer.waited(self.delivery)
        )

    def flush(self) -> None:
        """Send its acknowledgement now, if it has one."""
        self._consumer.flush()

    def retry(self, error: BaseException, attempts: int, delay_ms: int) -> None:
        """Republish it to a retry queue.

        :param attempts: handler runs that failed, this one included.
        :param delay_ms: one of :data:`RETRY_DELAYS_MS`.
        """
        queue = self._consumed.name
        properties = retry_properties(
            self.delivery,
            attempts=attempts,
            error=error,
            service=self._context.config.service_name,
            now=time.time(),
            delay_ms=delay_ms,
            earliest_now=earliest_now(),
            waited=self._consumer.waited(self.delivery),
        )

        def retried() -> None:
            self.ack()
            self._context.metrics.retried(queue)

        self._republish(retry_queue(queue, delay_ms), properties, retried)

    def dead_letter(
        self,
        error: BaseException | None,
        reason: str,
        *,
        attempts: int | None = None,
        log: Callable[[str], None] | None = None,
    ) -> None:
        """Republish it to the dead-letter queue; a transient queue has none, so it is dropped and counted.

        :param error: what the handler raised; ``None``: no handler ran, so the reason is logged here.
        :param attempts: handler runs that failed; ``None``: those that its header counts.
        :param log: logs why, with where it was moved; called once the broker has it, or when moving it fails.
        """
        if not self._consumed.topology.queue.durable:
            self._dead_lettered()
            if log is not None:
                log("dropped, as its queue is not durable")
            return
        properties = self._dead_letter_properties(error, reason, attempts)
        self._republish(self._dead_letter_queue(), properties, self._dead_lettered, log or self._logs(reason))

    def dead_letter_crashed(self, crashes: int, settled: Callable[[], None]) -> None:
        """Republish it to the dead-letter queue, because its handler has ended several processes.

        :param crashes: how many of them were counted.
        :param settled: called after it was acknowledged.
        """
        times = "once" if crashes == 1 else f"{crashes} times"
        reason = f"its handler was started again {times}, and each time the process crashed before the handler ended"

        def dead_lettered() -> None:
            self._dead_lettered()
            self._consumer.flush()
            settled()

        properties = self._dead_letter_properties(None, reason, crashes=crashes)
        self._republish(self._dead_letter_queue(), properties, dead_lettered, self._logs(reason))

    def _dead_letter_properties(
        self, error: BaseException | None, reason: str, attempts: int | None = None, crashes: int = 0
    ) -> Properties:
        return dead_letter_properties(
            self.delivery,
            error=error,
            reason=reason,
            attempts=attempts_made(self.delivery.properties.headers) if attempts is None else attempts,
            service=self._context.config.service_name,
            now=time.time(),
            crashes=crashes,
        )

    def _logs(self, reason: str) -> Callable[[str], None]:
        """Logs it, as no handler ran that could log it."""
        return lambda outcome: logger.error(
            "message %s of %s was %s: %s", printable(self.decoded.message_id), self._consumed.name, outcome, reason
        )

    def _dead_lettered(self) -> None:
        self.ack()
        self._context.metrics.dead_lettered(self._consumed.name)

    def _dead_letter_queue(self) -> QueueSpec:
        return dead_letter_queue(self._consumed.name, self._context.config.queue_type)

    def _republish(
        self,
        queue: QueueSpec,
        properties: Properties,
        done: Callable[[], None],
        log: Callable[[str], None] | None = None,
    ) -> None:
        """Publish it to ``queue`` with a confirm; ``done`` acknowledges it after the confirm, never before."""

        def fallback(error: MessageValidationError) -> tuple[QueueSpec, Properties, Callable[[], None]]:
            logger.error(
                "message %s of %s is moved to %s.dead without some of its properties: %s",
                printable(self.decoded.message_id),
                self._consumed.name,
                self._consumed.name,
                printable(str(error)),
            )
            # Not to a retry queue: without some of its headers it would be another message for its handler.
            return self._dead_letter_queue(), reduced_properties(properties, str(error)), self._dead_lettered

        report = None
        if log is not None:
            context = copy_context()  # the log records carry its correlation id, whenever they are made
            text = f"moved to {self._consumed.name}.dead"

            def report(moved: bool) -> None:
                context.run(log, text if moved else f"not {text} yet")

        self._republisher.add(self.delivery, queue, properties, done, fallback, report)
