"""A publisher whose calls pass the client's middleware. A client without middleware has a plain ``Publisher``."""

from __future__ import annotations

import time
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
from message_hub_sync.middleware import CallNext, Middleware, Sending, SendingOutcome, method_name, overriding
from message_hub_sync.publishing.circuit_breaker import CircuitBreakers
from message_hub_sync.publishing.publisher import Publisher
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
        # The index of the middleware with which a call begins. A call that a middleware makes inside its own send()
        # begins after that middleware: else it would call itself for ever. One variable for each publisher, reset
        # after each step.
        self._first: ContextVar[int] = ContextVar("message_hub_first_send", default=0)

    def publish(self, outgoing: Outgoing, timeout: float) -> UUID:
        """As :meth:`Publisher.publish`; the time that middleware takes counts against ``timeout`` (seconds)."""
        return _Call((Sending(outgoing),), timeout, self._sends, self._first).run(partial(super().publish, outgoing))

    def hand_over(self, outgoing: Outgoing, timeout: float) -> None:
        """As :meth:`Publisher.hand_over`; the time that middleware takes counts against ``timeout`` (seconds)."""
        _Call((Sending(outgoing),), timeout, self._sends, self._first).run(partial(super().hand_over, outgoing))

    def publish_many(self, batch: Sequence[Outgoing], timeout: float) -> list[UUID]:
        """As :meth:`Publisher.publish_many`; the time that middleware takes counts against ``timeout`` (seconds)."""
        if not batch:
            return []
        call = _Call(tuple(map(Sending, batch)), timeout, self._sends, self._first)
        return call.run(partial(super().publish_many, batch))


class _Call:
    """One call that passes the middleware. No lock: only the thread of its caller uses it."""

    __slots__ = (
        "_batch",
        "_began",
        "_deadline",
        "_ended",
        "_failure",
        "_first",
        "_publish",
        "_result",
        "_sends",
        "_timeout",
    )

    def __init__(
        self, batch: tuple[Sending, ...], timeout: float, sends: tuple[Send, ...], first: ContextVar[int]
    ) -> None:
        self._batch = batch
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout
        self._sends = sends
        self._first = first
        self._publish: Callable[[float], Any]
        self._result: Any = None
        self._failure: BaseException | None = None
        self._began = False
        self._ended = False

    def run(self, publish: Callable[[float], T]) -> T:
        """Call the middleware in order, then ``publish`` with the seconds that are left. Returns its result."""
        self._publish = publish
        self._step(self._first.get())
        # Raise the error even if a middleware did not pass it on: the caller relies on it.
        if self._failure is not None:
            raise self._failure
        if not self._ended:
            what = "it is not known whether anything was sent" if self._began else "nothing was sent"
            raise MessageHubConfigurationError(f"{what}: a middleware returned before call_next had returned")
        result: T = self._result
        return result

    def _step(self, index: int) -> None:
        if index == len(self._sends):
            self._publish_now()
            return
        send = self._sends[index]
        call_next = CallNext(send, partial(self._step, index + 1))
        token = self._first.set(index + 1)
        try:
            send(self._batch, call_next)
        finally:
            call_next.end()
            self._first.reset(token)
        if not call_next.called:
            raise MessageHubConfigurationError(
                f"{method_name(send)} must call call_next once, not never: nothing was sent. "
                "To prevent a message, raise an error"
            )

    def _publish_now(self) -> None:
        self._began = True
        for sending in self._batch:
            sending.freeze()
        # A call made inside _publish() comes from a logging handler, not from a middleware: it passes all middleware.
        token = self._first.set(0)
        try:
            seconds = self._deadline - time.monotonic()
            if seconds <= 0:
                raise MessageHubConnectionError(f"nothing was sent: the middleware took all of the {self._timeout:g} s")
            self._result = self._publish(seconds)
        except BaseException as error:
            self._failure = error
            _note_failure(self._batch, error)
            raise
        else:
            for sending in self._batch:
                sending.outcome = "confirmed"
        finally:
            self._ended = True
            self._first.reset(token)


def _note_failure(batch: tuple[Sending, ...], error: BaseException) -> None:
    """Set the outcome of each message of a call that raised ``error``."""
    outcome = _outcome(error)
    failures = error.failures if isinstance(error, MessageHubDeliveryError) else ()
    if not failures:
        for sending in batch:
            sending.outcome = outcome
        return
    for sending in batch:
        sending.outcome = "confirmed"
    for failed in failures:
        batch[failed.index].outcome = failed.outcome


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
