"""A middleware that records what is sent, received and handled, for tests of services and of other middleware."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

from message_hub_sync.middleware import Middleware, Received, Sending
from message_hub_sync.middleware.sending import SendingKind, SendingOutcome
from message_hub_sync.runtime.real_time import time

__all__ = ["RecordedDelivery", "RecordedSending", "RecordingMiddleware"]


T = TypeVar("T")


@dataclass(frozen=True)
class RecordedSending:
    """One message or event that was sent, as it was when its call ended.

    ``call``: the number of the call, from 1; the messages of a bulk call have the same one. ``error``: what the call
    raised, ``None`` if it returned.
    """

    call: int
    kind: SendingKind
    destination: str | None
    event_type: str | None
    message_id: UUID
    correlation_id: str | None
    body: bytes = field(repr=False)
    headers: Mapping[str, Any] = field(repr=False)
    outcome: SendingOutcome | None
    error: BaseException | None

    @property
    def payload(self) -> Any:
        """The body's JSON."""
        return json.loads(self.body)


@dataclass(frozen=True)
class RecordedDelivery:
    """One delivery. ``result`` and ``error``: what its handlers returned or raised; both ``None`` on arrival."""

    kind: SendingKind
    queue: str
    event_type: str | None
    message_id: str | None
    correlation_id: str | None
    attempt: int
    redelivered: bool
    body: bytes = field(repr=False)
    headers: Mapping[str, Any] = field(repr=False)
    result: Any = field(default=None, repr=False)
    error: BaseException | None = None

    @property
    def payload(self) -> Any:
        """The body's JSON; raises ``ValueError`` for a body that is none."""
        return json.loads(self.body)


class RecordingMiddleware(Middleware):
    """Records what is sent, what arrives and what is handled, and changes nothing of it.

    Place it first in the list to see what the service does, last to see what goes over the wire. Thread-safe. Several
    clients may share one::

        recording = RecordingMiddleware()
        client = MessageHubClient("quest-service", "memory://test", middleware=[recording])
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._calls = 0  # guarded by _changed
        self._sent: list[RecordedSending] = []  # guarded by _changed
        self._arrivals: list[RecordedDelivery] = []  # guarded by _changed
        self._handled: list[RecordedDelivery] = []  # guarded by _changed

    @property
    def sent(self) -> list[RecordedSending]:
        """Each message and event that was sent, in the order in which their calls ended; those that failed, too."""
        with self._changed:
            return list(self._sent)

    @property
    def arrivals(self) -> list[RecordedDelivery]:
        """Each delivery that arrived, replies included."""
        with self._changed:
            return list(self._arrivals)

    @property
    def handled(self) -> list[RecordedDelivery]:
        """Each delivery whose handlers have ended, with their result or error. A retry is one more."""
        with self._changed:
            return list(self._handled)

    def wait_for_handled(self, count: int = 1, timeout: float = 5.0) -> list[RecordedDelivery]:
        """Wait until ``count`` deliveries were handled.

        :param timeout: seconds.
        :returns: all that were handled so far.
        :raises AssertionError: there were fewer after ``timeout``.
        """
        return self._wait(self._handled, count, timeout, "deliveries were handled")

    def wait_for_sent(self, count: int = 1, timeout: float = 5.0) -> list[RecordedSending]:
        """Wait until ``count`` messages and events were sent, replies included.

        A reply is recorded when the hub has it. The request may therefore return earlier.

        :param timeout: seconds.
        :returns: all that were sent so far.
        :raises AssertionError: there were fewer after ``timeout``.
        """
        return self._wait(self._sent, count, timeout, "messages were sent")

    def _wait(self, records: list[T], count: int, timeout: float, what: str) -> list[T]:
        deadline = time.monotonic() + timeout
        with self._changed:
            while len(records) < count and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            if len(records) < count:
                raise AssertionError(f"{len(records)} of {count} {what} within {timeout:g} s")
            return list(records)

    def clear(self) -> None:
        """Forget all records."""
        with self._changed:
            self._sent.clear()
            self._arrivals.clear()
            self._handled.clear()

    def send(self, batch: Sequence[Sending], call_next: Callable[[], None]) -> None:
        """Record a call that sends, when it has ended."""
        error: BaseException | None = None
        try:
            call_next()
        except BaseException as raised:
            error = raised
            raise
        finally:
            with self._changed:
                self._calls += 1
                self._sent.extend(
                    RecordedSending(
                        call=self._calls,
                        kind=sending.kind,
                        destination=sending.destination,
                        event_type=sending.event_type,
                        message_id=sending.message_id,
                        correlation_id=sending.correlation_id,
                        body=sending.body,
                        headers=dict(sending.headers),
                        outcome=sending.outcome,
                        error=error,
                    )
                    for sending in batch
                )
                self._changed.notify_all()

    def arrived(self, received: Received) -> None:
        """Record a delivery."""
        with self._changed:
            self._arrivals.append(_recorded(received))
            self._changed.notify_all()

    def handle(self, received: Received, call_next: Callable[[], Any]) -> Any:
        """Record a delivery when its handlers have ended."""
        result: Any = field(default=None, repr=False)
        error: BaseException | None = None
        try:
            result = call_next()
        except BaseException as raised:
            error = raised
            raise
        finally:
            with self._changed:
                self._handled.append(_recorded(received, result, error))
                self._changed.notify_all()
        return result

    def __repr__(self) -> str:
        return (
            f"<RecordingMiddleware: {len(self._sent)} sent, {len(self._arrivals)} arrived, "
            f"{len(self._handled)} handled>"
        )


def _recorded(received: Received, result: Any = None, error: BaseException | None = None) -> RecordedDelivery:
    return RecordedDelivery(
        kind=received.kind,
        queue=received.queue,
        event_type=received.event_type,
        message_id=received.properties.message_id,
        correlation_id=received.properties.correlation_id,
        attempt=received.attempt,
        redelivered=received.redelivered,
        body=received.body,
        headers=dict(received.headers),
        result=result,
        error=error,
    )
