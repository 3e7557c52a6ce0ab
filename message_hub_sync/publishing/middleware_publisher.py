"""A publisher whose calls pass the client's middleware. A client without middleware has a plain ``Publisher``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

from message_hub_sync.config import ClientConfig
from message_hub_sync.errors import (
    MessageHubCircuitBreakerError,
    MessageHubConfigurationError,
    MessageHubConnectionError,
    MessageHubDeliveryError,
    MessageHubError,
    MessageValidationError,
)
from message_hub_sync.metrics import ServiceMetrics
from message_hub_sync.middleware import Middleware, Sending
from message_hub_sync.middleware.call_next import CallNext, method_name, refuse_not_run
from message_hub_sync.middleware.checking import overriding
from message_hub_sync.middleware.sending import SendingOutcome
from message_hub_sync.publishing.acceptance import Acceptance
from message_hub_sync.publishing.circuit_breaker import CircuitBreakers
from message_hub_sync.publishing.publish_attempts import Verdict, verdicts_of
from message_hub_sync.publishing.publisher import Publisher
from message_hub_sync.runtime.real_time import time
from message_hub_sync.transport.base import Outgoing, Transport

__all__ = ["MiddlewarePublisher"]

Send = Callable[[Sequence[Sending], Callable[[], None]], None]
T = TypeVar("T")


class MiddlewarePublisher(Publisher):
    """Passes each call through :meth:`Middleware.send`, then publishes. Safe from any thread."""

    def __init__(
        self,
        transport: Transport,
        config: ClientConfig,
        breakers: CircuitBreakers,
        metrics: ServiceMetrics,
        middleware: Sequence[Middleware],
    ) -> None:
        super().__init__(transport, config, breakers, metrics)
        self._sends: tuple[Send, ...] = overriding(middleware, "send")
        # The middleware whose send() runs now. A call that this middleware makes starts at the next one in the list:
        # otherwise it would call itself for ever. One variable for each publisher, reset after each step.
        self._running: ContextVar[CallNext | None] = ContextVar("message_hub_running_send", default=None)

    def publish(self, outgoing: Outgoing, timeout: float, acceptance: Acceptance | None = None) -> UUID:
        """Publish one message after the middleware. ``timeout``: seconds, with the time of the middleware."""
        call = _Call((Sending(outgoing),), timeout, self._sends, self._running)
        return call.run(partial(super().publish, outgoing, acceptance=acceptance))

    def hand_over(self, outgoing: Outgoing, timeout: float) -> None:
        """Publish a reply after the middleware. ``timeout``: seconds, with the time of the middleware."""
        _Call((Sending(outgoing),), timeout, self._sends, self._running).run(partial(super().hand_over, outgoing))

    def publish_many(self, batch: Sequence[Outgoing], timeout: float) -> list[UUID]:
        """Publish messages in order after the middleware. ``timeout``: seconds, with the time of the middleware."""
        if not batch:
            return []
        call = _Call(tuple(map(Sending, batch)), timeout, self._sends, self._running)
        return call.run(partial(super().publish_many, batch))


class _Call:
    """One call that passes the middleware. No lock: only the thread of its caller uses it."""

    __slots__ = ("_batch", "_deadline", "_publish", "_result", "_running", "_sends", "_timeout")

    def __init__(
        self,
        batch: tuple[Sending, ...],
        timeout: float,
        sends: tuple[Send, ...],
        running: ContextVar[CallNext | None],
    ) -> None:
        self._batch = batch
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout
        self._sends = sends
        self._running = running
        self._publish: Callable[[float], Any]
        self._result: Any = None

    def run(self, publish: Callable[[float], T]) -> T:
        """Call the middleware in order, then ``publish`` with the seconds that are left. Returns its result."""
        self._publish = publish
        running = self._running.get()
        # If it is not active, this context was copied inside a send() that has ended.
        self._step(running.index + 1 if running is not None and running.active else 0)
        result: T = self._result
        return result

    def _step(self, index: int) -> None:
        if index == len(self._sends):
            self._publish_now()
            return
        send = self._sends[index]
        call_next = CallNext(send, index, partial(self._step, index + 1))
        token = self._running.set(call_next)
        try:
            result: Any = send(self._batch, call_next)
            if result is not None:
                refuse_not_run(result, send)
        except BaseException:
            call_next.take_error()
            if not call_next.end():
                self._note_not_sent()
            raise
        finally:
            self._running.reset(token)
        self._check_called(call_next, send)

    def _check_called(self, call_next: CallNext, send: Send) -> None:
        """A ``send`` has returned. First match wins: never called, still running in another thread, failed."""
        if not call_next.end():
            self._note_not_sent()
            raise MessageHubConfigurationError(
                f"{method_name(send)} must call call_next once, not never: nothing was sent. "
                "To prevent a message, raise an error"
            )
        if not call_next.returned:
            raise MessageHubConfigurationError(
                f"{method_name(send)} must return after its call_next, not before it: it is not known whether "
                "anything was sent"
            )
        error = call_next.take_error()
        if error is not None:
            try:
                # Raised even if the middleware did not pass it on: the caller relies on it.
                raise error
            finally:
                del error  # otherwise this frame and the traceback keep each other and the message in memory

    def _note_not_sent(self) -> None:
        for sending in self._batch:
            if sending.outcome is None:
                sending.outcome = "not_sent"

    def _publish_now(self) -> None:
        for sending in self._batch:
            sending._freeze()
        # A call made inside _publish() comes from a logging handler, not from a middleware: it passes all middleware.
        token = self._running.set(None)
        try:
            seconds = self._deadline - time.monotonic()
            if seconds <= 0:
                raise MessageHubConnectionError(f"nothing was sent: the middleware took all of the {self._timeout:g} s")
            self._result = self._publish(seconds)
        except BaseException as error:
            _note_failure(self._batch, error)
            raise
        finally:
            self._running.reset(token)
        for sending in self._batch:
            sending.outcome = "confirmed"


#: The outcomes of messages that a bulk call reports as rejected although they were not written.
_OUTCOMES: dict[Verdict | None, SendingOutcome] = {
    Verdict.NOT_SENT: "not_sent",
    Verdict.CIRCUIT_OPEN: "circuit_open",
    Verdict.INVALID: "invalid",
}


def _note_failure(batch: tuple[Sending, ...], error: BaseException) -> None:
    """Set the outcome of each message of a call that raised ``error``."""
    outcome = _outcome(error)
    failures = error.failures if isinstance(error, MessageHubDeliveryError) else ()
    verdicts = verdicts_of(error)
    if not failures:
        for sending in batch:
            sending.outcome = outcome
        return
    for sending in batch:
        sending.outcome = "confirmed"
    for failed in failures:
        batch[failed.index].outcome = _OUTCOMES.get(verdicts.get(failed.index), failed.outcome)


def _outcome(error: BaseException) -> SendingOutcome:
    if isinstance(error, MessageHubDeliveryError):
        return error.outcome
    if isinstance(error, MessageHubConnectionError):
        return "not_sent"
    if isinstance(error, MessageHubCircuitBreakerError):
        return "circuit_open"
    if isinstance(error, MessageValidationError):
        return "invalid"
    # Authorization and configuration errors: the broker did not accept it. Anything else (a signal, a gevent timeout)
    # interrupted the call, and something may have been written before.
    return "rejected" if isinstance(error, MessageHubError) else "unknown"
