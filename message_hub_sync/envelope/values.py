"""Messages, events and AMQP properties as values. ``encode`` and ``decode`` convert them to and from the wire."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, KeysView, ValuesView
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypeVar  # a dependency of pydantic; typing.TypeVar has no default before 3.13

from message_hub_sync.errors import MessageHubConfigurationError, MessageValidationError

__all__ = [
    "EVENT",
    "JSON",
    "MAX_TTL_SECONDS",
    "PERSISTENT",
    "SERVICE_MESSAGE",
    "Event",
    "InvalidMessage",
    "Message",
    "Properties",
]

EVENT = "event"
SERVICE_MESSAGE = "service_message"
JSON = "application/json"
PERSISTENT = 2
#: RabbitMQ answers an ``expiration`` of more milliseconds than this with a channel error (rabbit_misc:check_expiry).
MAX_TTL_SECONDS = 4_294_967

#: Type of the payload: ``dict[str, Any]``, or a model.
P = TypeVar("P", default=dict[str, Any])


@dataclass(slots=True)
class Properties:
    """AMQP 0-9-1 ``basic`` properties and headers, without types of a client library."""

    message_id: str | None = None
    correlation_id: str | None = None
    type: str | None = None
    app_id: str | None = None
    content_type: str | None = JSON
    content_encoding: str | None = None
    delivery_mode: int | None = PERSISTENT
    priority: int | None = None
    expiration: str | None = None
    timestamp: int | None = None
    reply_to: str | None = None
    user_id: str | None = None
    headers: dict[str, Any] = field(default_factory=dict, repr=False)


class InvalidMessage(MessageValidationError):
    """A delivery is not a valid message of the hub. The text is the reason; it shows no part of the body."""


class _Envelope(BaseModel, Generic[P]):
    """The fields that messages and events share. Frozen; the payload is not copied."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    id: UUID
    source: str
    correlation_id: str
    payload: P = Field(repr=False)
    timestamp: datetime
    causation_id: str | None = Field(default=None, exclude=True, repr=False)
    headers: dict[str, Any] = Field(default_factory=dict, exclude=True, repr=False)
    redelivered: bool = Field(default=False, exclude=True, repr=False)


class Event(_Envelope[P], Generic[P]):
    """A received event. ``Event[Model]``: the payload is validated and converted to ``Model``."""

    type: Literal["event"] = "event"
    event_type: str


class Message(_Envelope[P], Generic[P]):
    """A received message. ``Message[Model]``: the payload is validated and converted to ``Model``.

    It is also a read-only mapping of its fields: ``message["correlation_id"]``.

    :ivar ttl: seconds until the message expires; ``None``: it never expires.
    """

    type: Literal["service_message"] = "service_message"
    destination: str
    ttl: float | None = None
    priority: int = 0
    reply_to: str | None = Field(default=None, exclude=True, repr=False)
    # The function that sends a reply, set on received messages. It gets the message as an argument: if it were bound to
    # the message, that would be a reference cycle, which keeps the body in memory until a garbage collection. It is a
    # slot, because a private attribute of pydantic takes as much time as all of the fields.
    __slots__ = ("_reply",)

    def reply(self, payload: Any) -> UUID:
        """Send a reply: to the queue in ``reply_to``, or to the sender's inbox if there is none.

        Safe from any thread. Blocks until the hub confirms the reply, for the client's ``delivery_timeout`` at most.

        :param payload: a JSON object: a dict, a pydantic model or a dataclass.
        :returns: the message id of the reply.
        :raises MessageHubConfigurationError: this message was not received by a handler.
        :raises MessageValidationError: the payload is not a JSON object, or it is too large.
        :raises MessageHubConnectionError: there was no connection in time; nothing was sent.
        :raises MessageHubDeliveryError: the sender no longer waits for the reply, or the hub did not confirm it.
        """
        reply: Callable[[Any, Any], UUID] | None = getattr(self, "_reply", None)
        if reply is None:
            raise MessageHubConfigurationError(
                "only a message received by a handler can be replied to, not one that was constructed"
            )
        return reply(self, payload)

    # The mapping of the fields.

    def __getitem__(self, key: str) -> Any:
        if key in _MESSAGE_KEYS:
            return getattr(self, key)
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:  # type: ignore[override]  # a mapping iterates over its keys
        return iter(_MESSAGE_KEYS)

    def __len__(self) -> int:
        return len(_MESSAGE_KEYS)

    def __contains__(self, key: object) -> bool:
        return key in _MESSAGE_KEYS

    def get(self, key: str, default: Any = None) -> Any:
        """The field of this name, or ``default`` if there is none."""
        return getattr(self, key) if key in _MESSAGE_KEYS else default

    def _mapping(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in _MESSAGE_KEYS}

    def keys(self) -> KeysView[str]:
        """The names of the fields."""
        return self._mapping().keys()

    def values(self) -> ValuesView[Any]:
        """The fields' values, in the order of :meth:`keys`."""
        return self._mapping().values()

    def items(self) -> ItemsView[str, Any]:
        """Pairs of a field's name and its value."""
        return self._mapping().items()


_MESSAGE_KEYS = (
    "id",
    "type",
    "source",
    "destination",
    "correlation_id",
    "payload",
    "timestamp",
    "ttl",
    "priority",
)
