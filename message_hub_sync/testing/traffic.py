"""What a client publishes, sends and handles while a test records it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, overload

from pydantic import BaseModel, ValidationError

from message_hub_sync.catalogue import EventType
from message_hub_sync.envelope.names import validate_service_name
from message_hub_sync.envelope.values import Event, Message
from message_hub_sync.runtime.deadlines import timeout_seconds
from message_hub_sync.runtime.real_time import time
from message_hub_sync.testing._hooks.arrivals import Arrivals
from message_hub_sync.testing.envelopes import delivered, left_queue, sent
from message_hub_sync.testing.expectations import Where, described, event_wanted, fitting, typed, unfulfilled
from message_hub_sync.transport.base import Delivery, Outgoing, PublishResult, Receipt
from message_hub_sync.transport.topology import Topology

__all__ = ["Traffic"]

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class _Attempt:
    """One attempt to publish. One message may need several."""

    outgoing: Outgoing
    receipt: Receipt


class Traffic:
    """What passes between one client and its hub. ``MessageHubTestFramework.intercept`` creates it. Thread-safe.

    It is recorded in the client's transport. It contains what the client published and the hub confirmed, and what the
    client's handlers handled without an error. It does not contain messages republished to retry or dead-letter queues.
    """

    def __init__(self, service_name: str, failures: Callable[[], list[str]]) -> None:
        self._name = service_name
        self._failures = failures
        self._attempts: Arrivals[_Attempt] = Arrivals()
        self._handled: Arrivals[Event[Any] | Message[Any]] = Arrivals()
        self._lock = threading.RLock()
        # Queue and message id of what is being moved to a retry or dead-letter queue; guarded by _lock.
        self._republishing: set[tuple[str, str | None]] = set()
        self.listener = _Listener(self)

    # --- sent -------------------------------------------------------------------------------------

    @property
    def events_published(self) -> list[Event[Any]]:
        """The events that the hub has confirmed so far, in order."""
        return [envelope for envelope in self._confirmed() if isinstance(envelope, Event)]

    @property
    def messages_sent(self) -> list[Message[Any]]:
        """The messages, replies included, that the hub has confirmed so far, in order."""
        return [envelope for envelope in self._confirmed() if isinstance(envelope, Message)]

    @overload
    def published(self, event_type: type[M], where: Where[Event[M]] = None, within: float = 5.0) -> Event[M]: ...

    @overload
    def published(
        self, event_type: str | EventType | None = None, where: Where[Event[Any]] = None, within: float = 5.0
    ) -> Event[Any]: ...

    def published(self, event_type: Any = None, where: Where[Any] = None, within: float = 5.0) -> Event[Any]:
        """Wait for an event that the client published.

        :param event_type: a name, an ``EventType``, or a payload model of the catalogue (``CharacterCreated``), into
            which the payload is then validated. ``None``: any event.
        :param where: which event: a function of the :class:`Event`, or a dict of values that its payload must hold;
            ``None``: any.
        :param within: seconds to wait.
        :returns: the first such event, as soon as the hub has confirmed it. Each call returns the same one.
        :raises AssertionError: no such event in time. The text lists what was published, and which handlers failed.
        :raises MessageValidationError: ``event_type`` or ``where`` is invalid.
        """
        name, fits = _event_fits(event_type, where)
        found = self._sent(fits, within)
        if found is None:
            arrived = [described(event) for event in self.events_published]
            raise unfulfilled(f"{self._name} published no {name}{_chosen(where, within)}", arrived, self._failures())
        assert isinstance(found, Event)
        return typed(found, event_wanted(event_type)[1])

    def sent(
        self, destination: str | None = None, where: Where[Message[Any]] = None, within: float = 5.0
    ) -> Message[Any]:
        """Wait for a message (or a reply) that the client sent.

        :param destination: the service to which it was sent; ``None``: any.
        :param where: which message: a function of the :class:`Message`, or a dict of values that its payload must hold;
            ``None``: any.
        :param within: seconds to wait.
        :returns: the first such message, as soon as the hub has confirmed it. Each call returns the same one.
        :raises AssertionError: no such message in time. The text lists what was sent, and which handlers failed.
        :raises MessageValidationError: ``destination`` or ``where`` is invalid.
        """
        if destination is not None:
            validate_service_name(destination, what="destination")
        wanted = fitting(where)

        def fits(envelope: Event[Any] | Message[Any]) -> bool:
            return isinstance(envelope, Message) and destination in (None, envelope.destination) and wanted(envelope)

        found = self._sent(fits, within)
        if found is None:
            arrived = [described(message) for message in self.messages_sent]
            to = f" to {destination}" if destination else ""
            raise unfulfilled(f"{self._name} sent no message{to}{_chosen(where, within)}", arrived, self._failures())
        assert isinstance(found, Message)
        return found

    # --- handled ----------------------------------------------------------------------------------

    @property
    def events_received(self) -> list[Event[Any]]:
        """The events that the client's handlers have handled so far, in order."""
        return [envelope for envelope in self._handled.all() if isinstance(envelope, Event)]

    @property
    def messages_received(self) -> list[Message[Any]]:
        """The messages that the client's handlers have handled so far, in order."""
        return [envelope for envelope in self._handled.all() if isinstance(envelope, Message)]

    @overload
    def received(self, event_type: type[M], where: Where[Event[M]] = None, within: float = 5.0) -> Event[M]: ...

    @overload
    def received(
        self, event_type: str | EventType | None = None, where: Where[Event[Any]] = None, within: float = 5.0
    ) -> Event[Any]: ...

    def received(self, event_type: Any = None, where: Where[Any] = None, within: float = 5.0) -> Event[Any]:
        """Wait for an event that the client's handlers handled without an error.

        :param event_type: a name, an ``EventType``, or a payload model of the catalogue (``CharacterCreated``), into
            which the payload is then validated. ``None``: any event.
        :param where: which event: a function of the :class:`Event`, or a dict of values that its payload must hold;
            ``None``: any.
        :param within: seconds to wait.
        :returns: the first such event, as soon as it has been handled. Each call returns the same one.
        :raises AssertionError: no such event in time. The text lists what was handled, and which handlers failed.
        :raises MessageValidationError: ``event_type`` or ``where`` is invalid.
        """
        name, fits = _event_fits(event_type, where)
        found = self._handled.find(fits, time.monotonic() + timeout_seconds(within, 5.0))
        if found is None:
            arrived = [described(event) for event in self.events_received]
            raise unfulfilled(f"{self._name} handled no {name}{_chosen(where, within)}", arrived, self._failures())
        assert isinstance(found, Event)
        return typed(found, event_wanted(event_type)[1])

    def received_message(self, where: Where[Message[Any]] = None, within: float = 5.0) -> Message[Any]:
        """Wait for a message that the client's handler handled without an error.

        :param where: which message: a function of the :class:`Message`, or a dict of values that its payload must hold;
            ``None``: any.
        :param within: seconds to wait.
        :returns: the first such message, as soon as it has been handled. Each call returns the same one.
        :raises AssertionError: no such message in time. The text lists what was handled, and which handlers failed.
        :raises MessageValidationError: ``where`` is invalid.
        """
        wanted = fitting(where)
        found = self._handled.find(
            lambda envelope: isinstance(envelope, Message) and wanted(envelope),
            time.monotonic() + timeout_seconds(within, 5.0),
        )
        if found is None:
            arrived = [described(message) for message in self.messages_received]
            raise unfulfilled(f"{self._name} handled no message{_chosen(where, within)}", arrived, self._failures())
        assert isinstance(found, Message)
        return found

    # --- inside -----------------------------------------------------------------------------------

    def _sent(self, fits: Callable[[Any], bool], within: float) -> Event[Any] | Message[Any] | None:
        deadline = time.monotonic() + timeout_seconds(within, 5.0)
        found = self._attempts.find(
            lambda attempt: fits(sent(attempt.outgoing)) and attempt.receipt.wait(deadline) is PublishResult.CONFIRMED,
            deadline,
        )
        return None if found is None else sent(found.outgoing)

    def _confirmed(self) -> list[Event[Any] | Message[Any]]:
        return [
            sent(attempt.outgoing)
            for attempt in self._attempts.all()
            if attempt.receipt.result is PublishResult.CONFIRMED
        ]


class _Listener:
    """Records for a :class:`Traffic`. Methods: see :class:`Listener` of the transport hooks."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic

    def published(self, outgoing: Outgoing, receipt: Receipt) -> None:
        traffic = self._traffic
        queue = left_queue(outgoing)
        if queue is None:
            traffic._attempts.add(_Attempt(outgoing, receipt))
            return
        with traffic._lock:
            traffic._republishing.add((queue, outgoing.properties.message_id))

    def consuming(self, topology: Topology) -> None: ...

    def acknowledged(self, delivery: Delivery) -> None:
        traffic = self._traffic
        moved = (delivery.queue, delivery.properties.message_id)
        with traffic._lock:
            # Acknowledged because it was moved to a retry or dead-letter queue: its handler failed.
            if moved in traffic._republishing:
                traffic._republishing.remove(moved)
                return
        envelope = delivered(delivery)
        if envelope is not None:
            traffic._handled.add(envelope)


def _event_fits(event_type: Any, where: Where[Any]) -> tuple[str, Callable[[Any], bool]]:
    """A description of the wanted event for error texts, and the function that recognizes it."""
    name, model = event_wanted(event_type)
    wanted = fitting(where)

    def fits(envelope: Event[Any] | Message[Any]) -> bool:
        if not isinstance(envelope, Event) or name not in (None, envelope.event_type):
            return False
        try:
            return wanted(typed(envelope, model))
        except ValidationError:
            return False

    return f"event {name}" if name else "event", fits


def _chosen(where: Any, within: float) -> str:
    return f"{' that fits' if where is not None else ''} within {within:g} s"
