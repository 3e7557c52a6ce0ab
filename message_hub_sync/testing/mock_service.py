"""A service that a test controls: it records what it receives, and replies or fails as configured."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar, overload
from uuid import UUID

from pydantic import BaseModel, ValidationError

from message_hub_sync.catalogue import EventType
from message_hub_sync.client.client import MessageHubClient
from message_hub_sync.consuming.subscription import Subscription
from message_hub_sync.envelope.decode import validation_reason
from message_hub_sync.envelope.topic_patterns import matches, words
from message_hub_sync.envelope.values import Event, Message
from message_hub_sync.errors import MessageValidationError
from message_hub_sync.runtime.deadlines import timeout_seconds
from message_hub_sync.runtime.real_time import time
from message_hub_sync.runtime.text import error_text, shown
from message_hub_sync.testing._hooks.arrivals import Arrivals
from message_hub_sync.testing.expectations import Where, described, event_wanted, fitting, typed, unfulfilled

__all__ = ["PROBE_HEADER", "MockService"]

M = TypeVar("M", bound=BaseModel)

#: Marks the framework's own probes. The test does not see them.
PROBE_HEADER = "x-test-probe"


class Script:
    """What a mock service received, and how it must behave. Its handlers run in the client's threads.

    It holds no reference to the framework, so that a framework that the test drops can be garbage-collected.
    """

    def __init__(self) -> None:
        self.messages: Arrivals[Message[Any]] = Arrivals()
        self.events: Arrivals[Event[Any]] = Arrivals()
        self.failed: Arrivals[tuple[Event[Any] | Message[Any], BaseException]] = Arrivals()
        self.probes: Arrivals[UUID] = Arrivals()
        self._lock = threading.RLock()
        self._failing: deque[BaseException] = deque()  # one error for each delivery to fail; guarded by _lock
        self._answer: Any = None  # guarded by _lock

    def on_message(self, message: Message[Any]) -> Any:
        """The handler of the inbox."""
        if not self._to_handle(message):
            return None
        self.messages.add(message)
        with self._lock:
            answer = self._answer
        return answer(message) if callable(answer) else answer

    def on_event(self, event: Event[Any]) -> None:
        """The handler of all events."""
        if self._to_handle(event):
            self.events.add(event)

    def fail(self, count: int, error: BaseException) -> None:
        """Raise ``error`` for the next ``count`` deliveries."""
        with self._lock:
            self._failing.extend([error] * count)

    def answer(self, answer: Any) -> None:
        """Set the reply to requests: a payload or a function of the message."""
        with self._lock:
            self._answer = answer

    def _to_handle(self, envelope: Event[Any] | Message[Any]) -> bool:
        """False for a probe, true for anything else. Raises the error that :meth:`fail` has set."""
        if PROBE_HEADER in envelope.headers:
            self.probes.add(envelope.id)
            return False
        with self._lock:
            error = self._failing.popleft() if self._failing else None
        if error is not None:
            self.failed.add((envelope, error))
            raise error
        return True


def _misfit(error: ValidationError, model: type[BaseModel] | None) -> str:
    return error_text(error) if model is None else validation_reason(error, model.__pydantic_core_schema__)


class MockService:
    """A service that a test controls. ``MessageHubTestFramework.create_mock_service`` creates it. Thread-safe.

    It consumes its inbox from the start. It works until its framework stops. A framework that is garbage-collected
    stops, too: keep a reference to it.
    """

    def __init__(self, client: MessageHubClient, script: Script, failures: Callable[[], list[str]]) -> None:
        self._subscriptions = [client.subscribe_messages(script.on_message)]  # only appended to; appending is atomic
        self._client = client
        self._script = script
        self._failures = failures

    def __repr__(self) -> str:
        return f"<MockService {self.name}>"

    @property
    def name(self) -> str:
        """The service name."""
        return self._client.service_name

    @property
    def client(self) -> MessageHubClient:
        """Its client, for everything that this class does not offer."""
        return self._client

    # --- sending, behaviour------------------------------------------------------------------------

    def send_message(self, destination: str, payload: Any = None, **options: Any) -> UUID:
        """Send a message with :meth:`MessageHubClient.send_message`.

        :param destination: the service that receives it.
        :param payload: a JSON object: a dict, a pydantic model or a dataclass.
        :param options: further parameters of that method.
        :returns: the message id.
        :raises MessageHubError: as that method does.
        """
        return self._client.send_message(destination, payload, **options)

    def publish_event(self, event_type: Any, payload: Any = None, **options: Any) -> UUID:
        """Publish an event with :meth:`MessageHubClient.publish_event`.

        :param event_type: a name, an ``EventType``, or a payload of the catalogue.
        :param payload: a JSON object: a dict, a pydantic model or a dataclass.
        :param options: further parameters of that method.
        :returns: the event id.
        :raises MessageHubError: as that method does.
        """
        return self._client.publish_event(event_type, payload, **options)

    def request(self, destination: str, payload: Any = None, timeout: float = 5, **options: Any) -> Message[Any]:
        """Send a message and wait for its reply, with :meth:`MessageHubClient.request`.

        :param destination: the service that replies.
        :param payload: a JSON object: a dict, a pydantic model or a dataclass.
        :param timeout: seconds to wait for the reply.
        :param options: further parameters of that method.
        :returns: the reply.
        :raises MessageHubError: as that method does.
        """
        return self._client.request(destination, payload, timeout, **options)

    def subscribe_to_events(self, event_types: Any, **options: Any) -> Subscription:
        """Receive events of these types from now on.

        :param event_types: names, ``EventType`` objects or patterns (``character.*``).
        :param options: options of :meth:`MessageHubClient.subscribe`: ``durable``, ``workers``, ``retry`` and so on.
        :returns: the subscription.
        :raises MessageValidationError: a name or an option is invalid.
        :raises MessageHubConnectionError: the hub did not answer in time.
        """
        subscription = self._client.subscribe(event_types, self._script.on_event, **options)
        self._subscriptions.append(subscription)
        return subscription

    def reply_with(self, answer: Any) -> None:
        """Reply to every request from now on.

        :param answer: a payload, or a function of the request's :class:`Message` that returns one. If the function
            raises, the caller of the request gets a :class:`MessageHubRemoteError`. ``None`` stops replying.
        """
        self._script.answer(answer)

    def fail_next(self, n: int = 1, exception: BaseException | type[BaseException] | None = None) -> None:
        """Let the handler raise on the next ``n`` deliveries. They are then retried as in any service.

        :param n: number of deliveries, at least 1.
        :param exception: the exception to raise, an instance or a class; ``None`` means a ``RuntimeError``.
        :raises MessageValidationError: ``n`` or ``exception`` is invalid.
        """
        if not isinstance(n, int) or isinstance(n, bool) or n < 1:
            raise MessageValidationError(f"n must be a whole number of at least 1, not {shown(n)}")
        if exception is None:
            exception = RuntimeError(f"the test called fail_next() of {self.name}")
        error = exception() if isinstance(exception, type) else exception
        if not isinstance(error, BaseException):
            raise MessageValidationError(
                f"exception must be an exception or an exception class, not {type(error).__name__}"
            )
        self._script.fail(n, error)

    # --- received ----------------------------------------------------------------------------------

    @property
    def messages_received(self) -> list[Message[Any]]:
        """The messages handled so far, in order."""
        return self._script.messages.all()

    @property
    def events_received(self) -> list[Event[Any]]:
        """The events handled so far, in order."""
        return self._script.events.all()

    @property
    def deliveries_failed(self) -> list[tuple[Event[Any] | Message[Any], BaseException]]:
        """The deliveries that :meth:`fail_next` let fail, each with the exception, in order."""
        return self._script.failed.all()

    def expect_message(self, where: Where[Message[Any]] = None, within: float = 5.0) -> Message[Any]:
        """Wait for a message. Each message meets one expectation: the next call returns the next message.

        :param where: which message: a function of the :class:`Message`, or a dict of values that its payload must hold;
            ``None``: any.
        :param within: seconds to wait.
        :returns: the message, as soon as it has arrived.
        :raises AssertionError: no such message in time. The text lists what did arrive, and which handlers failed.
        :raises MessageValidationError: ``where`` is invalid.
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
        """Wait for an event. Each event meets one expectation: the next call returns the next event.

        :param event_type: a name, an ``EventType``, or a payload model of the catalogue (``CharacterCreated``), into
            which the payload is then validated. ``None``: any event.
        :param where: which event: a function of the :class:`Event`, or a dict of values that its payload must hold;
            ``None``: any.
        :param within: seconds to wait.
        :returns: the event, as soon as it has arrived.
        :raises AssertionError: no such event in time, it does not fit the model, or this service is not subscribed to
            it. The text lists what did arrive, and which handlers failed.
        :raises MessageValidationError: ``event_type`` or ``where`` is invalid.
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
                misfit = f"; of {event.id}, {_misfit(error, model)}"
                return False

        found = self._script.events.take(wanted, time.monotonic() + seconds)
        if found is None:
            raise self._unfulfilled(f"event {name or ''}".strip(), where is not None, seconds, misfit)
        return typed(found, model)

    def _is_subscribed(self, name: str) -> bool:
        patterns: list[str] = self._client.get_health_status()["subscriptions"]
        return any(matches(words(pattern), words(name)) for pattern in patterns)

    def _check_subscribed(self, name: str) -> None:
        # Fail at once: an event without a subscription cannot arrive, and waiting for it only makes the test slow.
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
