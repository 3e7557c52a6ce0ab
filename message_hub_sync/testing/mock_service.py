"""A service that a test plays: it records what it receives, and answers or fails as it is told."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar, overload
from uuid import UUID

from pydantic import BaseModel, ValidationError

from message_hub_sync.catalogue import EventType
from message_hub_sync.client.client import MessageHubClient
from message_hub_sync.consuming.subscription import Subscription
from message_hub_sync.envelope.decode import validation_reason
from message_hub_sync.envelope.values import Event, Message
from message_hub_sync.errors import MessageValidationError
from message_hub_sync.runtime.deadlines import timeout_seconds
from message_hub_sync.testing._hooks.arrivals import Arrivals
from message_hub_sync.testing.expectations import Where, described, event_wanted, fitting, typed, unfulfilled
from message_hub_sync.transport.memory.routing import matches, words

__all__ = ["PROBE_HEADER", "MockService"]

M = TypeVar("M", bound=BaseModel)

#: Marks the framework's own messages, which the test is not shown.
PROBE_HEADER = "x-test-probe"


class Script:
    """What a mock service received, and how it is to behave.

    Handlers run in the client's threads and hold on to this, and to nothing of the framework: a framework that
    the test drops must be collectable.

    Mutable: ``_failing`` and ``_answer``, guarded by ``_lock``; the arrivals guard themselves.
    """

    def __init__(self) -> None:
        self.messages: Arrivals[Message[Any]] = Arrivals()
        self.events: Arrivals[Event[Any]] = Arrivals()
        self.failed: Arrivals[tuple[Event[Any] | Message[Any], BaseException]] = Arrivals()
        self.probes: Arrivals[UUID] = Arrivals()
        self._lock = threading.Lock()
        self._failing: deque[BaseException] = deque()
        self._answer: Any = None

    def on_message(self, message: Message[Any]) -> Any:
        """The inbox's handler."""
        if not self._goes_on(message):
            return None
        self.messages.add(message)
        with self._lock:
            answer = self._answer
        return answer(message) if callable(answer) else answer

    def on_event(self, event: Event[Any]) -> None:
        """The handler of every event."""
        if self._goes_on(event):
            self.events.add(event)

    def fail(self, count: int, error: BaseException) -> None:
        """Have the next deliveries fail."""
        with self._lock:
            self._failing.extend([error] * count)

    def answer(self, answer: Any) -> None:
        """What requests are answered with."""
        with self._lock:
            self._answer = answer

    def _goes_on(self, envelope: Event[Any] | Message[Any]) -> bool:
        if PROBE_HEADER in envelope.headers:
            self.probes.add(envelope.id)
            return False
        with self._lock:
            error = self._failing.popleft() if self._failing else None
        if error is not None:
            self.failed.add((envelope, error))
            raise error
        return True


class MockService:
    """A service of the test's own. Made by ``MessageHubTestFramework.create_mock_service``.

    It has an inbox from the beginning. Safe from any thread. It works for as long as its framework does; keep a
    reference to that one. Mutable: its subscriptions, a list that is only appended to.
    """

    def __init__(self, client: MessageHubClient, script: Script, failures: Callable[[], list[str]]) -> None:
        self._subscriptions = [client.subscribe_messages(script.on_message)]
        self._client = client
        self._script = script
        self._failures = failures

    def __repr__(self) -> str:
        return f"<MockService {self.name}>"

    @property
    def name(self) -> str:
        """The service's name."""
        return self._client.service_name

    @property
    def client(self) -> MessageHubClient:
        """The client it works with, for whatever is not offered here."""
        return self._client

    # --- what it does -----------------------------------------------------------------------------

    def send_message(self, destination: str, payload: Any = None, **options: Any) -> UUID:
        """Send a message; parameters, result and errors as :meth:`MessageHubClient.send_message` has them."""
        return self._client.send_message(destination, payload, **options)

    def publish_event(self, event_type: Any, payload: Any = None, **options: Any) -> UUID:
        """Publish an event; parameters, result and errors as :meth:`MessageHubClient.publish_event` has them."""
        return self._client.publish_event(event_type, payload, **options)

    def request(self, destination: str, payload: Any = None, timeout: float = 5, **options: Any) -> Message[Any]:
        """Send a message and wait for its reply, as :meth:`MessageHubClient.request` does."""
        return self._client.request(destination, payload, timeout, **options)

    def subscribe_to_events(self, event_types: Any, **options: Any) -> Subscription:
        """Receive events of these types from now on.

        :param event_types: names, ``EventType`` objects or patterns (``character.*``).
        :param options: those of :meth:`MessageHubClient.subscribe`: ``durable``, ``workers``, ``retry`` and so on.
        :raises MessageValidationError: a name cannot be subscribed to.
        :raises MessageHubConnectionError: the hub did not answer in time.
        """
        subscription = self._client.subscribe(event_types, self._script.on_event, **options)
        self._subscriptions.append(subscription)
        return subscription

    def reply_with(self, answer: Any) -> None:
        """Answer every request from now on.

        :param answer: a payload, or a function of the request's :class:`Message` that returns one; what it raises
            reaches the caller of the request as :class:`MessageHubRemoteError`. ``None`` answers no more.
        """
        self._script.answer(answer)

    def fail_next(self, n: int = 1, exception: BaseException | type[BaseException] | None = None) -> None:
        """Have the handler raise on the next ``n`` deliveries, which are then retried as any service's are.

        :param exception: what to raise, an instance or a class; by default a ``RuntimeError``.
        :raises MessageValidationError: ``n`` is not a whole number of at least 1, or that is no exception.
        """
        if not isinstance(n, int) or isinstance(n, bool) or n < 1:
            raise MessageValidationError(f"n {n!r} is not usable: a whole number of at least 1 is")
        if exception is None:
            exception = RuntimeError(f"{self.name} was told to fail")
        error = exception() if isinstance(exception, type) else exception
        if not isinstance(error, BaseException):
            raise MessageValidationError(f"exception of type {type(error).__name__} is not usable: an exception is")
        self._script.fail(n, error)

    # --- what it received -------------------------------------------------------------------------

    @property
    def messages_received(self) -> list[Message[Any]]:
        """The messages handled so far, in order: ``payload``, ``headers``, ``id``, ``correlation_id``, …"""
        return self._script.messages.all()

    @property
    def events_received(self) -> list[Event[Any]]:
        """The events handled so far, in order: ``event_type``, ``payload``, ``headers``, ``id``, …"""
        return self._script.events.all()

    @property
    def deliveries_failed(self) -> list[tuple[Event[Any] | Message[Any], BaseException]]:
        """What :meth:`fail_next` made fail, with the exception raised, in order."""
        return self._script.failed.all()

    def expect_message(self, where: Where[Message[Any]] = None, within: float = 5.0) -> Message[Any]:
        """Wait for a message, and return it. Each message meets one expectation: the next call gets the next one.

        :param where: a function of the :class:`Message`, or a dict of what its payload holds.
        :param within: seconds to wait; returns as soon as it is there.
        :raises AssertionError: none came in time. The text lists what did arrive, and which handlers failed.
        """
        seconds = timeout_seconds(within, 5.0)
        found = self._script.messages.take(fitting(where), time.monotonic() + seconds)
        if found is None:
            raise self._unfulfilled("message", where is not None, seconds)
        return found

    @overload
    def expect_event(self, event_type: type[M], where: Where[Event[M]] = None, within: float = 5.0) -> Event[M]: ...

    @overload
    def expect_event(
        self, event_type: str | EventType | None = None, where: Where[Event[Any]] = None, within: float = 5.0
    ) -> Event[Any]: ...

    def expect_event(self, event_type: Any = None, where: Where[Any] = None, within: float = 5.0) -> Event[Any]:
        """Wait for an event, and return it. Each event meets one expectation: the next call gets the next one.

        :param event_type: a name, an ``EventType``, or a payload's model from the catalogue (``CharacterCreated``),
            into which the payload is then validated. ``None``: any event.
        :param where: a function of the :class:`Event`, or a dict of what its payload holds.
        :param within: seconds to wait; returns as soon as it is there.
        :raises AssertionError: none came in time, or it does not fit the model. The text lists what did arrive,
            and which handlers failed.
        :raises MessageValidationError: the model belongs to no event type, or the name is none.
        """
        name, model = event_wanted(event_type)
        if name is not None:
            self._check_subscribed(name)
        seconds = timeout_seconds(within, 5.0)
        fits = fitting(where)
        misfit = ""

        def wanted(event: Event[Any]) -> bool:
            nonlocal misfit
            if name is not None and event.event_type != name:
                return False
            try:
                return fits(typed(event, model))
            except ValidationError as error:
                misfit = f"; of {event.id}, {validation_reason(error)}"
                return False

        found = self._script.events.take(wanted, time.monotonic() + seconds)
        if found is None:
            raise self._unfulfilled(f"event {name or ''}".strip(), where is not None, seconds, misfit)
        return typed(found, model)

    def _is_subscribed(self, name: str) -> bool:
        patterns: list[str] = self._client.get_health_status()["subscriptions"]
        return any(matches(words(pattern), words(name)) for pattern in patterns)

    def _check_subscribed(self, name: str) -> None:
        # Waiting for what cannot come would only make the test slow before it fails.
        if not self._is_subscribed(name):
            patterns = self._client.get_health_status()["subscriptions"]
            raise AssertionError(
                f"{self.name} cannot receive {name}: it is subscribed to {', '.join(patterns) or 'no event'} "
                f"(call subscribe_to_events(['{name}']) before it is published)"
            )

    def _unfulfilled(self, what: str, chosen: bool, seconds: float, misfit: str = "") -> AssertionError:
        received = self._script.events if what.startswith("event") else self._script.messages
        arrived = [described(item) for item in received.all()]
        that_fits = " that fits" if chosen else ""
        further = "further " if arrived and not chosen else ""
        return unfulfilled(
            f"{self.name} received no {further}{what}{that_fits} within {seconds:g} s{misfit}",
            arrived,
            self._failures(),
        )
