"""The envelope: what travels, as values. ``encode`` and ``decode`` bring them to bytes and back."""

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
#: RabbitMQ refuses an ``expiration`` above this many milliseconds (rabbit_misc:check_expiry).
MAX_TTL_SECONDS = 4_294_967

#: What a payload is: ``dict[str, Any]`` unless a model is asked for.
P = TypeVar("P", default=dict[str, Any])


@dataclass(slots=True)
class Properties:
    """AMQP 0-9-1 ``basic`` properties and headers, free of any client library's types."""

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
    headers: dict[str, Any] = field(default_factory=dict)


class InvalidMessage(MessageValidationError):
    """What arrived is not a message of the hub; its text is the reason, free of the message's own bytes."""


class _Envelope(BaseModel, Generic[P]):
    """What messages and events have in common. Frozen; the payload is shared, not copied."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    id: UUID
    source: str
    correlation_id: str
    payload: P
    timestamp: datetime
    causation_id: str | None = Field(default=None, exclude=True, repr=False)
    headers: dict[str, Any] = Field(default_factory=dict, exclude=True, repr=False)
    redelivered: bool = Field(default=False, exclude=True, repr=False)


class Event(_Envelope[P], Generic[P]):
    """An event as it was published. ``Event[Model]`` has its payload validated into ``Model``."""

    type: Literal["event"] = "event"
    event_type: str


class Message(_Envelope[P], Generic[P]):
    """A message as it was sent. ``Message[Model]`` has its payload validated into ``Model``.

    It is also a read-only mapping of the wire's names: ``message["correlation_id"]``.
    ``ttl`` is in seconds, ``None`` when the message never expires.
    """

    type: Literal["service_message"] = "service_message"
    destination: str
    ttl: float | None = None
    priority: int = 0
    reply_to: str | None = Field(default=None, exclude=True, repr=False)
    # What a received message is answered through; it is given the message at the call, for bound to it, it would be a
    # cycle that keeps bodies until a collection. A slot: a private attribute costs as much as all of the fields.
    __slots__ = ("_reply",)

    def reply(self, payload: Any) -> UUID:
        """Answer this message: to ``reply_to`` when it names a queue, else to the sender's inbox.

        :param payload: a JSON object, a model or a dataclass.
        :returns: the reply's message id.
        :raises MessageHubConfigurationError: the message was not received through a client.
        :raises MessageValidationError: the payload is not a JSON object.
        :raises MessageHubDeliveryError: nobody waits for the reply any more, or the hub did not take it.

        May be called from any thread.
        """
        reply: Callable[[Any, Any], UUID] | None = getattr(self, "_reply", None)
        if reply is None:
            raise MessageHubConfigurationError(
                "only a message received by a handler can be replied to; this one was made by hand"
            )
        return reply(self, payload)

    # The mapping, over the fixed fields of the wire.

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
        """The field of that name, or ``default``."""
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
        """Pairs of name and value."""
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
