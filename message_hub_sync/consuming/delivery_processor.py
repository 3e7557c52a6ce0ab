"""One delivery from arrival to settlement: who handles it, and what becomes of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from message_hub_sync.config import ClientConfig
from message_hub_sync.consuming.decoded_delivery import DecodedDelivery, Kind
from message_hub_sync.consuming.deduplication import DeduplicationStore
from message_hub_sync.consuming.handlers import Handler
from message_hub_sync.consuming.moved_properties import (
    attempts_made,
    crash_properties,
    crashes,
    dead_letter_properties,
    expired,
    reduced_properties,
    retry_properties,
)
from message_hub_sync.consuming.republishing import Republisher
from message_hub_sync.consuming.retry_policy import RETRY_DELAYS_MS, RetryLater, RetryPolicy, decide
from message_hub_sync.envelope.correlation import MessageContext, enter, leave
from message_hub_sync.envelope.values import InvalidMessage, Properties
from message_hub_sync.errors import MessageHubRejectError, MessageHubRetryError, MessageValidationError
from message_hub_sync.metrics import ServiceMetrics
from message_hub_sync.runtime.deadlines import earliest_now
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.text import error_text, printable
from message_hub_sync.transport.base import Consumer, Delivery
from message_hub_sync.transport.topology import QueueSpec, Topology, dead_letter_queue, retry_queue

__all__ = ["DeliveryProcessor"]

logger = SafeLogger("message_hub_sync.subscription")


class DeliveryProcessor:
    """Decides what becomes of each delivery of one queue.

    Nothing in it changes, so that any number of workers share one. ``handlers`` is asked for at each
    delivery, because subscriptions come and go. ``first_in_process``: this process has not consumed the queue before,
    so that a redelivered message may be one that its predecessor died of.
    """

    def __init__(
        self,
        *,
        topology: Topology,
        kind: Kind,
        first_in_process: bool,
        retry: RetryPolicy,
        deduplicate: DeduplicationStore | None,
        config: ClientConfig,
        metrics: ServiceMetrics,
        claim_reply: Callable[[Delivery], bool],
        send_reply: Callable[[DecodedDelivery, Any], None],
        send_error: Callable[[DecodedDelivery, BaseException], None],
        handlers: Callable[[], Iterable[Handler]],
    ) -> None:
        self._queue = topology.queue.name
        self._durable = topology.queue.durable
        self._kind: Kind = kind
        self._first_in_process = first_in_process
        self._retry = retry
        self._deduplicate = deduplicate
        self._config = config
        self._metrics = metrics
        self._claim_reply = claim_reply
        self._send_reply = send_reply
        self._send_error = send_error
        self._handlers = handlers

    def process(self, delivery: Delivery, consumer: Consumer, republisher: Republisher) -> None:
        """Handle one delivery, and settle it or have it moved. Handlers' exceptions end here."""
        work = _DeliveryInProgress(self, delivery, consumer, republisher)
        received = work.received
        current = MessageContext(
            correlation_id=received.correlation_id,
            message_id=received.message_id,
            event_type=received.event_type if self._kind == "event" else None,
            service=self._config.service_name,
        )
        token = enter(current)
        try:
            self._process(work)
        finally:
            leave(token)

    def _process(self, work: _DeliveryInProgress) -> None:
        delivery = work.delivery
        headers = delivery.properties.headers
        if self._durable and delivery.redelivered and self._first_in_process and delivery.channel_generation == 1:
            # Its last handler may have died of it: this process's predecessor.
            count = crashes(headers)
            if count >= self._retry.attempts:
                work.dead_letter(None, f"its consumer ended {count} times while handling it")
            else:
                work.move(
                    retry_queue(self._queue, RETRY_DELAYS_MS[0]),
                    crash_properties(
                        delivery, crashes=count + 1, earliest_now=earliest_now(), delay_ms=RETRY_DELAYS_MS[0]
                    ),
                )
        elif expired(delivery.properties, earliest_now()):
            work.dead_letter(None, "expired: its ttl passed while it waited for a retry")
        elif self._kind == "message" and self._claim_reply(delivery):
            work.ack()
        else:
            self._handle(work)

    def _handle(self, work: _DeliveryInProgress) -> None:
        started = time.monotonic()
        received = work.received
        handler = None
        try:
            received.check()
            if self._is_duplicate(received):
                self._metrics.duplicate_dropped(self._queue)
                work.ack()
                return
            answer = None
            for handler in self._handlers():
                result = handler(handler.arguments(received))
                answer = result if answer is None else answer
            if received.is_request and answer is not None:
                self._send_reply(received, answer)
            if self._deduplicate is not None:
                self._deduplicate.add(_key(received))
        except BaseException as error:  # a handler's sys.exit() must not end the worker either
            self._metrics.count("receive", False, time.monotonic() - started)
            self._failed(work, error, handler)
        else:
            self._metrics.count("receive", True, time.monotonic() - started)
            work.ack()

    def _is_duplicate(self, received: DecodedDelivery) -> bool:
        return self._deduplicate is not None and _key(received) in self._deduplicate

    def _failed(self, work: _DeliveryInProgress, error: BaseException, handler: Handler | None) -> None:
        received = work.received
        attempt = attempts_made(work.delivery.properties.headers) + 1
        if isinstance(error, InvalidMessage):
            # Its bytes come from anywhere: one line, without its control characters, and no traceback.
            logger.error(
                "message %s in %s is not handled but %s: %s",
                printable(received.message_id or "without an id"),
                work.delivery.queue,
                f"moved to {self._queue}.dead" if self._durable else "dropped, as its queue is not durable",
                printable(str(error)),
            )
            if received.is_request and received.message_id:
                self._send_error(received, error)
            work.dead_letter(error, str(error), attempts=attempt - 1)
            return
        if received.is_request and not isinstance(error, MessageHubRetryError):
            self._log_failure(work, error, handler, logging.ERROR, "the caller is told")
            self._send_error(received, error)
            work.ack()
            return
        decision = decide(self._retry, attempt, error)
        if not self._durable:
            self._log_failure(work, error, handler, logging.ERROR, "dropped, as its queue is not durable")
            self._metrics.dead_lettered(self._queue)
            work.ack()
        elif isinstance(decision, RetryLater):
            after = f"attempt {attempt} of {self._retry.attempts}, again in {decision.delay_ms / 1000:g} s"
            # One line for those between the first_in_process and the last: theirs would be the same traceback once
            # more.
            between = attempt > 1
            if isinstance(error, MessageHubRetryError):
                after = f"{after}: {error.args[0]}" if error.args else after
            elif between:
                after = f"{after}: {type(error).__name__}: {error_text(error)}"
            self._log_failure(work, error, handler, logging.WARNING, after, traceback=not between)
            work.retry(error, attempt, decision.delay_ms)
        else:
            self._log_failure(work, error, handler, logging.ERROR, f"moved to {self._queue}.dead, {decision.reason}")
            work.dead_letter(error, decision.reason, attempts=attempt)

    def _log_failure(
        self,
        work: _DeliveryInProgress,
        error: BaseException,
        handler: Handler | None,
        level: int,
        outcome: str,
        *,
        traceback: bool = True,
    ) -> None:
        hint = None if handler is None else handler.hint(error)
        # What a handler decides is no fault to be looked for.
        decided = isinstance(error, (MessageHubRejectError, MessageHubRetryError))
        logger.log(
            level,
            "handler %s failed on message %s of %s: %s%s",
            "" if handler is None else handler.name,
            printable(work.received.message_id),
            work.delivery.queue,
            printable(outcome),
            f" ({hint})" if hint else "",
            exc_info=error if traceback and not decided else None,
        )


def _key(received: DecodedDelivery) -> str:
    # The queue by its present name: one store may serve several subscriptions, and each handles the message.
    return f"{received.delivery.queue}/{received.message_id}"


class _DeliveryInProgress:
    """One delivery with what settles and republisher it. Lives in one worker's thread."""

    __slots__ = ("consumer", "delivery", "processor", "received", "republisher")

    def __init__(
        self, processor: DeliveryProcessor, delivery: Delivery, consumer: Consumer, republisher: Republisher
    ) -> None:
        self.processor = processor
        self.delivery = delivery
        self.consumer = consumer
        self.republisher = republisher
        config = processor._config
        self.received = DecodedDelivery(
            delivery, kind=processor._kind, service=config.service_name, max_bytes=config.max_message_bytes
        )

    def ack(self) -> None:
        self.consumer.ack(self.delivery)
        if self.processor._config.settle_each:
            self.consumer.flush()

    def move(self, queue: QueueSpec, properties: Properties, counted: Callable[[], None] | None = None) -> None:
        def done() -> None:
            self.ack()
            if counted is not None:
                counted()

        def fallback(error: MessageValidationError) -> tuple[QueueSpec, Properties, Callable[[], None]]:
            processor = self.processor
            name = processor._queue
            logger.error(
                "message %s of %s is moved to %s.dead with the least that it can bear: %s",
                printable(self.received.message_id),
                name,
                name,
                printable(str(error)),
            )
            # Not to a retry queue: without its headers it would be another message to its handler.
            dead = dead_letter_queue(name, processor._config.queue_type)
            return dead, reduced_properties(properties, str(error)), self.given_up

        self.republisher.add(self.delivery, queue, properties, done, fallback)

    def given_up(self) -> None:
        """It is among the dead letters."""
        self.ack()
        self.processor._metrics.dead_lettered(self.processor._queue)

    def retry(self, error: BaseException, attempts: int, delay_ms: int) -> None:
        processor = self.processor
        queue = processor._queue
        properties = retry_properties(
            self.delivery,
            attempts=attempts,
            error=error,
            service=processor._config.service_name,
            now=time.time(),
            delay_ms=delay_ms,
            earliest_now=earliest_now(),
        )
        self.move(retry_queue(queue, delay_ms), properties, lambda: processor._metrics.retried(queue))

    def dead_letter(self, error: BaseException | None, reason: str, *, attempts: int | None = None) -> None:
        processor = self.processor
        queue = processor._queue
        if not processor._durable:
            processor._metrics.dead_lettered(queue)
            self.ack()
            return
        if error is None:
            logger.error(
                "message %s of %s is moved to %s.dead: %s",
                printable(self.received.message_id),
                queue,
                queue,
                reason,
            )
        properties = dead_letter_properties(
            self.delivery,
            error=error,
            reason=reason,
            attempts=attempts_made(self.delivery.properties.headers) if attempts is None else attempts,
            service=processor._config.service_name,
            now=time.time(),
        )
        self.move(
            dead_letter_queue(queue, processor._config.queue_type),
            properties,
            lambda: processor._metrics.dead_lettered(queue),
        )
