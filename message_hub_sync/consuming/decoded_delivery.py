"""One delivery, decoded only as far as its handlers need it."""

from __future__ import annotations

import typing
from typing import Any, Literal
from uuid import UUID

from message_hub_sync.consuming.republished_properties import attempts_made
from message_hub_sync.envelope.decode import (
    check_body_kept,
    checked_identity,
    decode_payload,
    event_from_wire,
    message_from_wire,
    source_of,
)
from message_hub_sync.envelope.header_names import EVENT_TYPE, IN_REPLY_TO, ORIGINAL_ROUTING_KEY, UNDECODABLE
from message_hub_sync.envelope.ids import new_id, uuid_of
from message_hub_sync.envelope.topic_patterns import matches, words
from message_hub_sync.envelope.values import EVENT, SERVICE_MESSAGE, Event, InvalidMessage, Message, Properties
from message_hub_sync.middleware.sending import SendingKind
from message_hub_sync.runtime.text import printable, shown
from message_hub_sync.transport.base import Delivery
from message_hub_sync.transport.topology import DEFAULT_EXCHANGE, may_receive_replies

__all__ = ["DecodedDelivery", "Kind"]

Kind = Literal["event", "message"]


class DecodedDelivery:
    """One delivery, decoded only as far as its handlers need it, each step at most once.

    The handlers of one delivery share its envelopes. An envelope is frozen, but a ``dict`` inside it is not. A handler
    that gets a ``dict`` gets one of its own. Not thread-safe: only the worker thread that handles the delivery uses it.
    Every decoding failure raises :class:`~message_hub_sync.envelope.values.InvalidMessage`.

    :param delivery: the delivery as the transport received it.
    :param kind: what its queue carries, ``"event"`` or ``"message"``.
    :param service: the receiving service. It is the destination of a message without that header.
    :param max_bytes: the largest body that is decoded, in bytes.
    :param pattern: the event type or pattern that binds its queue; ``None`` if that is not known.
    """

    __slots__ = (
        "_envelopes",
        "_identity",
        "_max_bytes",
        "_pattern",
        "_payload",
        "_payload_shared",
        "_service",
        "delivery",
        "kind",
    )

    def __init__(
        self, delivery: Delivery, kind: Kind, service: str, max_bytes: int, pattern: str | None = None
    ) -> None:
        self.delivery = delivery
        self.kind: Kind = kind
        self._service = service
        self._max_bytes = max_bytes
        self._pattern = pattern
        self._payload: dict[str, Any] | None = None  # worker thread only
        self._identity: UUID | None = None  # worker thread only; set by check(), or made where there is none
        self._payload_shared = False  # worker thread only
        self._envelopes: dict[Any, Any] = {}  # worker thread only; by model

    def check_kept(self) -> None:
        """:raises InvalidMessage: its body was too large, so it was not kept."""
        if not self.delivery.body:
            check_body_kept(self.delivery.properties.headers, self._max_bytes)

    @property
    def message_id(self) -> str:
        """The message id as it came; empty if there is none."""
        return self.delivery.properties.message_id or ""

    @property
    def correlation_id(self) -> str:
        """The correlation id, or the message id if there is none. The envelope has the same."""
        return self.delivery.properties.correlation_id or self.message_id or str(self._made_identity())

    @property
    def source(self) -> str:
        """The service that sent it, as the envelope has it."""
        return source_of(self.delivery.properties) or "unknown"

    @property
    def event_type(self) -> str:
        """The event type that was published. :meth:`check` tells whether its queue can have received it."""
        # The routing key decides, because the broker's permissions hold for it. The sender writes the headers.
        delivery = self.delivery
        if delivery.exchange != DEFAULT_EXCHANGE:
            return delivery.routing_key
        # It came from a retry queue, or somebody put it into the queue: the routing key is the name of the queue.
        headers = delivery.properties.headers
        for name in (ORIGINAL_ROUTING_KEY, EVENT_TYPE):
            found = headers.get(name)
            if isinstance(found, str) and found:
                return found
        return self._pattern or delivery.routing_key

    @property
    def is_request(self) -> bool:
        """Whether its sender waits for a reply in a queue that this service may write to.

        A reply is no request, even if it names a queue for a reply: two services would answer each other for ever.
        """
        properties = self.delivery.properties
        if self.kind != "message" or not properties.reply_to or IN_REPLY_TO in properties.headers:
            return False
        return may_receive_replies(properties.reply_to, source_of(properties))

    @property
    def text(self) -> str:
        """The payload as JSON text, checked to be an object."""
        self._decoded()
        return self.delivery.body.decode("utf-8")

    @property
    def payload(self) -> dict[str, Any]:
        """The decoded payload. It is shared with the envelopes, so it must not be changed."""
        self._payload_shared = True
        return self._decoded()

    def own_payload(self) -> dict[str, Any]:
        """A decoded payload that the caller may change. Decoded again only if the first one is shared."""
        if self._payload_shared:
            return decode_payload(self.delivery.body, self._max_bytes, self.delivery.properties.headers)
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
                body=delivery.body,
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
                body=delivery.body,
            )
        return typing.cast("Message[Any]", self._envelopes[model])

    @property
    def sending_kind(self) -> SendingKind:
        """What it is for middleware. It is a reply if it names a request, and a request if it names a reply queue."""
        if self.kind == "event":
            return "event"
        if IN_REPLY_TO in self.delivery.properties.headers:
            return "reply"
        return "request" if self.delivery.properties.reply_to else "message"

    @property
    def attempt(self) -> int:
        """1 for the first run of the handler, counted by the message's own header."""
        return attempts_made(self.delivery.properties.headers) + 1

    def envelope(self) -> Event[Any] | Message[Any]:
        """The envelope: an ``Event`` or a ``Message``, according to ``kind``. Calls :meth:`check` first."""
        self.check()
        return self.event() if self.kind == "event" else self.message()

    def check(self) -> None:
        """Check that this is a message of the hub. This does not depend on what its handlers get.

        :raises InvalidMessage: its headers cannot be decoded, its type is another one, its message id is
            invalid, its ``reply_to`` is not a queue of its source, its event type is not the one of its routing key, or
            its body is not a JSON object.
        """
        undecodable = self.delivery.properties.headers.get(UNDECODABLE)
        if undecodable is not None:
            # Without its headers it would look like a message of another source or another tenant.
            raise InvalidMessage(f"its headers cannot be decoded: {printable(str(undecodable))}")
        properties = self.delivery.properties
        if self.kind == "event":
            identity = checked_identity(properties, EVENT)
            self._check_event_type(properties)
        else:
            identity = checked_identity(properties, SERVICE_MESSAGE)
            if properties.reply_to:
                _check_reply_to(properties.reply_to, source_of(properties))
        self._identity = self._identity or identity
        self._decoded()

    def _made_identity(self) -> UUID:
        """A new id for a message that has neither a message id nor a correlation id."""
        if self._identity is None:
            self._identity = uuid_of(new_id())
        return self._identity

    def _check_event_type(self, properties: Properties) -> None:
        event_type = self.event_type
        named = properties.headers.get(EVENT_TYPE)
        if isinstance(named, str) and named and named != event_type:
            raise InvalidMessage(
                f"its header event_type must be its routing key {shown(event_type)}, not {shown(named)}"
            )
        if self._pattern is None or self.delivery.exchange != DEFAULT_EXCHANGE:
            return  # the broker has matched the routing key
        if not matches(words(self._pattern), words(event_type)):
            raise InvalidMessage(
                f"its event type must match the binding {shown(self._pattern)} of its queue, not be {shown(event_type)}"
            )

    def _decoded(self) -> dict[str, Any]:
        if self._payload is None:
            delivery = self.delivery
            self._payload = decode_payload(delivery.body, self._max_bytes, delivery.properties.headers)
        return self._payload


def _check_reply_to(queue: str, source: str | None) -> None:
    if not may_receive_replies(queue, source):
        raise InvalidMessage(
            "its reply_to must be a reply queue or the inbox of its source, or a queue that the broker named "
            f"(amq.gen-…, amq.rabbitmq.reply-to.…), not {shown(queue)} (its source: {shown(source)})"
        )
