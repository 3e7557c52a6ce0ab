"""Decides what happens to a delivery, from its arrival to its acknowledgement."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from contextvars import Context
from typing import Any

from message_hub_sync.consuming.consumed_queue import ConsumedQueue, ConsumeOptions, ConsumerContext
from message_hub_sync.consuming.decoded_delivery import DecodedDelivery
from message_hub_sync.consuming.deduplication import DuplicateRequest
from message_hub_sync.consuming.delivery_in_progress import DeliveryInProgress
from message_hub_sync.consuming.delivery_limit import DeliveryLimit
from message_hub_sync.consuming.handler_middleware import HandlerMiddleware
from message_hub_sync.consuming.handlers import Handler
from message_hub_sync.consuming.republished_properties import attempts_made
from message_hub_sync.consuming.republishing import Republisher
from message_hub_sync.consuming.retry_policy import RetryLater, decide
from message_hub_sync.envelope.correlation import MessageContext, enter
from message_hub_sync.envelope.values import InvalidMessage
from message_hub_sync.errors import MessageHubRejectError, MessageHubRetryError
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.real_time import time
from message_hub_sync.runtime.text import error_text, printable
from message_hub_sync.transport.base import Consumer, Delivery

__all__ = ["DeliveryProcessor"]

#: Characters of a source in a key for deduplication. No service has a longer name.
_LONGEST_SOURCE = 200

logger = SafeLogger("message_hub_sync.subscription")


class DeliveryProcessor:
    """Decides what happens to each delivery of one queue. Immutable, so all workers share one.

    :param handlers: returns the current callbacks. Called for each delivery, because subscriptions start and end.
    :param stopping: whether the consumer stops, so that no other delivery is handled.
    :param limit: looks at the redelivered ones.
    """

    def __init__(
        self,
        consumed: ConsumedQueue,
        options: ConsumeOptions,
        context: ConsumerContext,
        handlers: Callable[[], Iterable[Handler]],
        *,
        stopping: Callable[[], bool],
        limit: DeliveryLimit,
    ) -> None:
        self._consumed = consumed
        self._context = context
        self._queue = consumed.name
        self._kind = consumed.kind
        self._service = context.config.service_name
        self._durable = consumed.topology.queue.durable
        self._stopping = stopping
        self._limit = limit
        self._suspects = context.suspects
        self._retry = options.retry or context.retry
        self._deduplicate = options.deduplicate
        self._metrics = context.metrics
        self._handlers = handlers
        # Choose the entry points once here, so that a message costs nothing more without middleware.
        middleware = HandlerMiddleware(context.middleware)
        self._middleware = middleware
        self._begin = self._begin_with_middleware if middleware.overrides_arrived else self._decide
        self._run = self._run_with_middleware if middleware.overrides_handle else self._run_handlers

    def process(self, delivery: Delivery, consumer: Consumer, republisher: Republisher) -> None:
        """Handle one delivery. Afterwards it is acknowledged or being republished. Errors of handlers do not raise."""
        work = DeliveryInProgress(delivery, self._consumed, self._context, consumer, republisher)
        # A new, empty context: a context variable that one handler sets is not seen with the next message.
        Context().run(self._process, work)

    def _process(self, work: DeliveryInProgress) -> None:
        decoded = work.decoded
        enter(
            MessageContext(
                decoded.correlation_id,
                decoded.message_id or None,
                decoded.event_type if self._kind == "event" else None,
                self._service,
            )
        )
        # First match wins, here and in _decide. 1: it has crashed too many processes: dead-letter queue. This comes
        # before the middleware, which may be what crashed. 2: the middleware rejects it on arrival. 3: its ttl ran out
        # during a retry: dead-letter queue. 4: a reply that is awaited here. 5: the handlers.
        if work.delivery.redelivered and self._durable:
            self._limit.look_at(work.delivery)
            self._suspects.handle(work, self._retry.attempts, self._begin, self._stopping)
        else:
            self._begin(work)

    def _begin_with_middleware(self, work: DeliveryInProgress) -> None:
        try:
            work.decoded.check_kept()  # a middleware may judge the body, which is not there then
            self._middleware.arrived(work.decoded)
        except MessageHubRejectError as error:
            self._rejected_on_arrival(work, error)
        except BaseException as error:
            self._metrics.count("receive", False, 0.0)
            # No reply to a request: the middleware may be the one that verifies the sender.
            self._failed(work, error, reply=False)
        else:
            self._decide(work)

    def _decide(self, work: DeliveryInProgress) -> None:
        delivery = work.delivery
        if work.expired:
            work.dead_letter(None, "expired: its ttl passed while it waited for a retry")
        elif self._kind == "message" and self._context.claim_reply(delivery):
            work.ack()
        else:
            self._handle(work)

    def _handle(self, work: DeliveryInProgress) -> None:
        started = time.monotonic()
        decoded = work.decoded
        try:
            decoded.check()
            answer = self._run(work)
            if answer is not None and decoded.is_request:
                self._context.send_reply(decoded, answer)
            elif work.duplicate and decoded.is_request:
                # Its caller would wait for its whole timeout.
                self._context.send_error(decoded, DuplicateRequest(decoded.message_id))
            if self._deduplicate is not None and work.handled and decoded.message_id:
                # Last, after all callbacks and middleware: if one of them fails, the message must be handled again.
                self._deduplicate.add(_key(decoded))
        except BaseException as error:  # a handler's sys.exit() must not end the worker either
            self._metrics.count("receive", False, time.monotonic() - started)
            self._failed(work, error)
        else:
            if work.handled:
                self._metrics.count("receive", True, time.monotonic() - started)
            work.ack()

    def _run_handlers(self, work: DeliveryInProgress) -> Any:
        """Run all callbacks. Returns the first result that is not ``None``."""
        decoded = work.decoded
        if self._deduplicate is not None and decoded.message_id and _key(decoded) in self._deduplicate:
            self._metrics.duplicate_dropped(self._queue)
            work.handled, work.duplicate = False, True
            return None
        answer = None
        for handler in self._handlers():
            work.handler = handler
            result = handler(handler.arguments(decoded))
            answer = result if answer is None else answer
        return answer

    def _run_with_middleware(self, work: DeliveryInProgress) -> Any:
        ran = False

        def run() -> Any:
            nonlocal ran
            ran = True
            answer = self._run_handlers(work)
            work.handler = None  # what is raised from here on is an error of a middleware
            return answer

        answer = self._middleware.handle(work.decoded, run)
        if not ran:
            self._metrics.skipped(self._queue)
            work.handled = False
        return answer

    # --- failures ---------------------------------------------------------------------------------

    def _rejected_on_arrival(self, work: DeliveryInProgress, error: MessageHubRejectError) -> None:
        reason = error_text(error)
        message_id = printable(work.decoded.message_id or "without an id")
        work.dead_letter(
            error,
            reason,
            log=lambda outcome: logger.error(
                "message %s of %s was rejected on arrival and is %s: %s",
                message_id,
                work.delivery.queue,
                outcome,
                printable(reason),
            ),
        )

    def _failed(self, work: DeliveryInProgress, error: BaseException, *, reply: bool = True) -> None:
        decoded = work.decoded
        attempt = attempts_made(work.delivery.properties.headers) + 1
        reply = reply and decoded.is_request
        # First match wins. 1: it is not a message of the hub: dead-letter queue at once. 2: a request: the error is
        # the reply. 3: the retry policy decides.
        if isinstance(error, InvalidMessage):
            if reply:
                self._context.send_error(decoded, error)
            # Any client may have sent it: log one line without control characters, and no traceback.
            reason = str(error)
            work.dead_letter(
                error,
                reason,
                attempts=attempt - 1,
                log=lambda outcome: logger.error(
                    "message %s in %s is not handled but %s: %s",
                    printable(decoded.message_id or "without an id"),
                    work.delivery.queue,
                    outcome,
                    printable(reason),
                ),
            )
        elif reply and not isinstance(error, MessageHubRetryError):
            self._log_failure(work, error, logging.ERROR, "the caller gets the error")
            self._context.send_error(decoded, error)
            work.ack()
        else:
            self._retry_or_dead_letter(work, error, attempt)

    def _retry_or_dead_letter(self, work: DeliveryInProgress, error: BaseException, attempt: int) -> None:
        decision = decide(self._retry, attempt, error)
        if not self._durable:
            work.dead_letter(error, "", log=lambda outcome: self._log_failure(work, error, logging.ERROR, outcome))
        elif isinstance(decision, RetryLater):
            after = f"attempt {attempt} of {self._retry.attempts}, again in {decision.delay_ms / 1000:g} s"
            # Log a traceback for the first and the last attempt, and one line for each between.
            between = attempt > 1
            if isinstance(error, MessageHubRetryError):
                after = f"{after}: {error.args[0]}" if error.args else after
            elif between:
                after = f"{after}: {type(error).__name__}: {error_text(error)}"
            self._log_failure(work, error, logging.WARNING, after, traceback=not between)
            work.retry(error, attempt, decision.delay_ms)
        else:
            reason = decision.reason
            work.dead_letter(
                error,
                reason,
                attempts=attempt,
                log=lambda outcome: self._log_failure(work, error, logging.ERROR, f"{outcome}, {reason}"),
            )

    def _log_failure(
        self,
        work: DeliveryInProgress,
        error: BaseException,
        level: int,
        outcome: str,
        *,
        traceback: bool = True,
    ) -> None:
        handler = work.handler
        hint = None if handler is None else handler.hint(error)
        # With these two errors a handler decides about the message. They are no failure, so log no traceback.
        decided = isinstance(error, (MessageHubRejectError, MessageHubRetryError))
        logger.log(
            level,
            "%s failed on message %s of %s: %s%s",
            "a middleware, the deduplication store, or sending the reply"
            if handler is None
            else f"handler {handler.name}",
            printable(work.decoded.message_id),
            work.delivery.queue,
            printable(outcome),
            f" ({hint})" if hint else "",
            exc_info=error if traceback and not decided else None,
        )


def _key(decoded: DecodedDelivery) -> str:
    # With the name of the queue: one store may serve several subscriptions, and each of them handles the message. With
    # the source: another sender that uses the id of a message must not have that message dropped. The source is last,
    # as it may be any text; a long one is shortened to a hash, as stores keep the keys.
    source = decoded.source
    if len(source) > _LONGEST_SOURCE:
        source = hashlib.sha256(source.encode("utf-8", "replace")).hexdigest()
    return f"{decoded.delivery.queue}/{decoded.message_id}/{source}"
