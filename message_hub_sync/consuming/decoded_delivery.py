"""One delivery, decoded as far as its handlers ask."""

from __future__ import annotations

import typing
from typing import Any, Literal
from uuid import UUID

from message_hub_sync.consuming.moved_properties import attempts_made
from message_hub_sync.envelope.decode import checked_identity, decode_payload, event_from_wire, message_from_wire
from message_hub_sync.envelope.header_names import EVENT_TYPE, IN_REPLY_TO, ORIGINAL_ROUTING_KEY, UNDECODABLE
from message_hub_sync.envelope.values import EVENT, SERVICE_MESSAGE, Event, InvalidMessage, Message
from message_hub_sync.middleware import Received, SendingKind
from message_hub_sync.runtime.text import printable
from message_hub_sync.transport.base import Delivery

__all__ = ["DecodedDelivery", "Kind", "received_of"]

Kind = Literal["event", "message"]


class DecodedDelivery:
    """One delivery, decoded as far as its handlers ask, each step at most once.

    Handlers of one delivery share its envelopes (frozen, though a ``dict`` inside one is not); what a handler
    gets as a ``dict`` is its own. Mutable: the decoded payload, whether others hold it, and the envelopes
    made so far. Not thread-safe: it belongs to the worker thread that handles the delivery.
    Every decoding failure raises :class:`~message_hub_sync.envelope.values.InvalidMessage`.

    :param service: the receiving service, a message's destination where its header does not say.
    :param max_bytes: the largest body that is decoded.
    """

    __slots__ = ("_envelopes", "_identity", "_lent", "_max_bytes", "_payload", "_service", "delivery", "kind")

    def __init__(self, delivery: Delivery, kind: Kind, service: str, max_bytes: int) -> None:
        self.delivery = delivery
        self.kind: Kind = kind
        self._service = service
        self._max_bytes = max_bytes
        self._payload: dict[str, Any] | None = None
        self._identity: UUID | None = None
        self._lent = False
        self._envelopes: dict[Any, Any] = {}

    @property
    def message_id(self) -> str:
        """The message id as it came, empty where there is none."""
        return self.delivery.properties.message_id or ""

    @property
    def correlation_id(self) -> str:
        """The correlation id, else the message id, as the envelope has it."""
        return self.delivery.properties.correlation_id or self.message_id

    @property
    def event_type(self) -> str:
        """What was published. One that comes back from a retry queue has its queue's name as routing key."""
        headers = self.delivery.properties.headers
        for name in (EVENT_TYPE, ORIGINAL_ROUTING_KEY):
            found = headers.get(name)
            if isinstance(found, str) and found:
                return found
        return self.delivery.routing_key

    @property
    def is_request(self) -> bool:
        """Whether the sender waits for a reply in a queue of its own."""
        return self.kind == "message" and bool(self.delivery.properties.reply_to)

    @property
    def text(self) -> str:
        """The payload as JSON text, checked to be an object."""
        self._decoded()
        return self.delivery.body.decode("utf-8")

    @property
    def payload(self) -> dict[str, Any]:
        """The payload decoded, shared with whoever asks here or for an envelope: not to be changed."""
        self._lent = True
        return self._decoded()

    def own_payload(self) -> dict[str, Any]:
        """The payload decoded, for the caller alone to change; decoded anew only where others hold it."""
        if self._lent:
            return decode_payload(self.delivery.body, self._max_bytes)
        payload = self._decoded()
        self._payload = None
        return payload

    def event(self, model: Any = Event) -> Event[Any]:
        """The envelope of an event; ``model`` is ``Event`` or ``Event[Model]``."""
        if model not in self._envelopes:
            delivery = self.delivery
            self._envelopes[model] = event_from_wire(
                delivery.properties,
                self.event_type,
                self.payload,
                model,
                redelivered=delivery.redelivered,
                identity=self._identity,
            )
        return typing.cast("Event[Any]", self._envelopes[model])

    def message(self, model: Any = Message) -> Message[Any]:
        """The envelope of a message; ``model`` is ``Message`` or ``Message[Model]``."""
        if model not in self._envelopes:
            delivery = self.delivery
            self._envelopes[model] = message_from_wire(
                delivery.properties,
                self._service,
                self.payload,
                model,
                redelivered=delivery.redelivered,
                identity=self._identity,
            )
        return typing.cast("Message[Any]", self._envelopes[model])

    def envelope(self) -> Event[Any] | Message[Any]:
        """The envelope of whatever it is, checked as :meth:`check` does."""
        self.check()
        return self.event() if self.kind == "event" else self.message()

    def check(self) -> None:
        """Find out whether this is a message of the hub at all, whatever its handlers ask for.

        :raises InvalidMessage: headers that cannot be decoded, another type, no usable message id, or a body that is
            not a JSON object.
        """
        undecodable = self.delivery.properties.headers.get(UNDECODABLE)
        if undecodable is not None:
            # Without them it would pass for a message that never had any: another source, another tenant.
            raise InvalidMessage(f"its headers cannot be decoded: {printable(str(undecodable))}")
        self._identity = checked_identity(self.delivery.properties, EVENT if self.kind == "event" else SERVICE_MESSAGE)
        self._decoded()

    def _decoded(self) -> dict[str, Any]:
        if self._payload is None:
            self._payload = decode_payload(self.delivery.body, self._max_bytes)
        return self._payload


def received_of(decoded: DecodedDelivery, *, reply: bool = False) -> Received:
    """A delivery as middleware sees it.

    :param reply: it came to the queue for the replies of this client.
    """
    headers = decoded.delivery.properties.headers
    kind: SendingKind
    if decoded.kind == "event":
        kind = "event"
    elif reply or IN_REPLY_TO in headers:
        kind = "reply"
    else:
        kind = "request" if decoded.is_request else "message"
    return Received(
        decoded.delivery,
        kind=kind,
        event_type=decoded.event_type if kind == "event" else None,
        attempt=attempts_made(headers) + 1,
        decode=decoded.envelope,
    )
