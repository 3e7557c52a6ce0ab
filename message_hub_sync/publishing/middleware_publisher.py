"""A publisher whose calls pass the client's middleware. A client without middleware has a plain ``Publisher``."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any
from uuid import UUID

from message_hub_sync.config import ClientConfig
from message_hub_sync.envelope.ids import uuid_of
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

#: Where a call that a middleware makes inside its own ``send`` enters, by the publisher's number: behind that
#: middleware. Without this, a middleware that sends would call itself for ever.
_entries: ContextVar[Mapping[int, int]] = ContextVar("message_hub_send_entries", default=MappingProxyType({}))
_numbers = itertools.count(1)


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
        self._sends: tuple[Callable[[Sequence[Sending], Callable[[], None]], None], ...] = overriding(
            middleware, "send"
        )
        # Not id(self): a copied context may outlive this object.
        self._number = next(_numbers)

    def publish(self, outgoing: Outgoing, timeout: float) -> UUID:
        """As :meth:`Publisher.publish`; the time that middleware takes counts against ``timeout`` (seconds)."""
        self._through((Sending(outgoing),), timeout, lambda seconds: Publisher.publish(self, outgoing, seconds))
        return uuid_of(outgoing.properties.message_id)

    def hand_over(self, outgoing: Outgoing, timeout: float) -> None:
        """As :meth:`Publisher.hand_over`; the time that middleware takes counts against ``timeout`` (seconds)."""
        self._through((Sending(outgoing),), timeout, lambda seconds: Publisher.hand_over(self, outgoing, seconds))

    def publish_many(self, batch: Sequence[Outgoing], timeout: float) -> list[UUID]:
        """As :meth:`Publisher.publish_many`; the time that middleware takes counts against ``timeout`` (seconds)."""
        if batch:
            sendings = tuple(map(Sending, batch))
            self._through(sendings, timeout, lambda seconds: Publisher.publish_many(self, batch, seconds))
        return [uuid_of(outgoing.properties.message_id) for outgoing in batch]

    def _through(self, batch: tuple[Sending, ...], timeout: float, publish: Callable[[float], Any]) -> None:
        deadline = time.monotonic() + timeout
        ended = False
        failure: BaseException | None = None

        def publish_now() -> None:
            nonlocal ended, failure
            entries = _entries.get()
            # What is sent in here is not sent by a middleware, but by a logging handler: it passes all of them.
            token = _entries.set({key: value for key, value in entries.items() if key != self._number})
            for sending in batch:
                sending.freeze()
            try:
                seconds = deadline - time.monotonic()
                if seconds <= 0:
                    raise MessageHubConnectionError(f"nothing was sent: the middleware took all of the {timeout:g} s")
                publish(seconds)
            except BaseException as error:
                failure = error
                _note_failure(batch, error)
                raise
            else:
                for sending in batch:
                    sending.outcome = "confirmed"
            finally:
                ended = True
                _entries.reset(token)

        self._step(_entries.get().get(self._number, 0), batch, publish_now)
        # A middleware cannot hide what became of the call: who sends relies on it.
        if failure is not None:
            raise failure
        if not ended:
            raise MessageHubConfigurationError("nothing was sent: a middleware ended the call without call_next")

    def _step(self, index: int, batch: tuple[Sending, ...], publish_now: Callable[[], None]) -> None:
        if index == len(self._sends):
            publish_now()
            return
        method = self._sends[index]
        call_next = CallNext(method, lambda: self._step(index + 1, batch, publish_now))
        token = _entries.set({**_entries.get(), self._number: index + 1})
        try:
            method(batch, call_next)
        finally:
            call_next.end()
            _entries.reset(token)
        if not call_next.called:
            raise MessageHubConfigurationError(
                f"{method_name(method)} must call call_next once, not never: nothing was sent. "
                "To prevent a message, raise an error"
            )


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
    # Authorization and configuration errors: the broker did not accept it. Anything else interrupted the call, of
    # which something may have been written: a signal, a gevent timeout.
    return "rejected" if isinstance(error, MessageHubError) else "unknown"
