"""A delivery, as a middleware sees it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

from message_hub_sync.envelope.values import Event, Message, Properties
from message_hub_sync.middleware.sending import SendingKind
from message_hub_sync.transport.base import Delivery

__all__ = ["DeliveryView", "Received"]


class DeliveryView(Protocol):
    """What :class:`Received` shows: a delivery that knows what it is. A Protocol: the way in imports this module."""

    delivery: Delivery

    @property
    def sending_kind(self) -> SendingKind: ...

    @property
    def event_type(self) -> str: ...

    @property
    def attempt(self) -> int: ...

    def envelope(self) -> Event[Any] | Message[Any]: ...


class Received:
    """One delivery, as :meth:`Middleware.arrived` and :meth:`Middleware.handle` see it. For the consumer's thread.

    Everything is read from the delivery when it is asked for.
    """

    __slots__ = ("_delivery", "_is_reply", "_view")

    def __init__(self, view: DeliveryView, *, is_reply: bool = False) -> None:
        self._view = view
        self._delivery = view.delivery
        self._is_reply = is_reply

    @property
    def kind(self) -> SendingKind:
        """``event``, ``message``, ``request`` (its sender waits for a reply) or ``reply``."""
        return "reply" if self._is_reply else self._view.sending_kind

    @property
    def event_type(self) -> str | None:
        """The type of an event, also after a retry; ``None`` for anything else."""
        return self._view.event_type if self.kind == "event" else None

    @property
    def attempt(self) -> int:
        """1 for the first run of the handler, counted by the message's own header."""
        return self._view.attempt

    @property
    def body(self) -> bytes:
        """The body as it came, not checked."""
        return self._delivery.body

    @property
    def headers(self) -> Mapping[str, Any]:
        """The headers as they came, read-only. Other clients may write anything there."""
        return MappingProxyType(self._delivery.properties.headers)

    @property
    def properties(self) -> Properties:
        """The AMQP properties as they came: ``message_id``, ``correlation_id``, ``app_id``, … Not to be changed."""
        return self._delivery.properties

    @property
    def queue(self) -> str:
        """The queue that delivered it."""
        return self._delivery.queue

    @property
    def redelivered(self) -> bool:
        """Whether the broker has delivered it before."""
        return self._delivery.redelivered

    @property
    def envelope(self) -> Event[Any] | Message[Any]:
        """The envelope, decoded at the first call. Handlers of the delivery share it.

        :raises MessageValidationError: it is not a message of the hub; the text says why.
        """
        return self._view.envelope()

    def __repr__(self) -> str:
        return f"<Received {self.kind} from {self.queue} (attempt {self.attempt})>"
