"""A dead letter: a message as it was before it failed, and what is known about its failure."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from message_hub_sync.consuming.decoded_delivery import DecodedDelivery, Kind
from message_hub_sync.consuming.handlers import handler_for
from message_hub_sync.envelope.correlation import MessageContext, entered
from message_hub_sync.envelope.decode import decode_payload
from message_hub_sync.envelope.header_names import (
    ATTEMPTS,
    BODY_BYTES,
    CRASHES,
    ERROR_MESSAGE,
    ERROR_TRACEBACK,
    ERROR_TYPE,
    FIRST_FAILED_AT,
    LEFT_OUT,
    ORIGINAL_EXCHANGE,
    ORIGINAL_EXPIRATION,
    ORIGINAL_ROUTING_KEY,
    ORIGINAL_USER_ID,
    REASON,
    SERVICE,
    TTL_LEFT,
    UNDECODABLE,
)
from message_hub_sync.envelope.values import InvalidMessage, Properties
from message_hub_sync.errors import MessageValidationError
from message_hub_sync.runtime.text import shown
from message_hub_sync.transport.base import Delivery
from message_hub_sync.transport.topology import DEAD_LETTER_SUFFIX, EVENTS

__all__ = ["DeadLetter", "why_incomplete"]

#: Headers that the consumer added when it dead-lettered the message, by their names in the file.
_FAILURE = {
    "reason": REASON,
    "error_type": ERROR_TYPE,
    "error_message": ERROR_MESSAGE,
    "error_traceback": ERROR_TRACEBACK,
    "attempts": ATTEMPTS,
    "crashes": CRASHES,
    "first_failed_at": FIRST_FAILED_AT,
    "service": SERVICE,
    "left_out": LEFT_OUT,
}
#: Headers in which a quorum queue counts: they change while the letter stays the same.
_COUNTS = {"x-delivery-count", "x-acquired-count"}
_ORIGINAL = {ORIGINAL_EXCHANGE, ORIGINAL_ROUTING_KEY, ORIGINAL_EXPIRATION, ORIGINAL_USER_ID}
_NOT_THE_SENDERS = {*_FAILURE.values(), *_ORIGINAL, *_COUNTS, TTL_LEFT}


@dataclass(frozen=True)
class DeadLetter:
    """A dead-lettered message as it was before it failed.

    :param queue: the queue in which it failed, without ``.dead``.
    :param exchange: the exchange to which it was published.
    :param routing_key: the routing key with which it was published.
    :param body: its body, not decoded.
    :param properties: its AMQP properties and headers, without the headers that describe the failure.
    :param failure: what is known about the failure, by the names of the file format.
    """

    queue: str
    exchange: str
    routing_key: str
    body: bytes = field(repr=False)
    properties: Properties = field(repr=False)
    failure: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def message_id(self) -> str | None:
        """The message id."""
        return self.properties.message_id

    @property
    def key(self) -> str:
        """Twelve characters that stay the same while the letter is in its queue. Equal letters have equal keys."""
        described = dataclasses.astuple(dataclasses.replace(self.properties, headers={}))
        headers = sorted(self.properties.headers.items())
        content = (self.queue, self.exchange, self.routing_key, described, headers, sorted(self.failure.items()))
        digest = hashlib.blake2b(repr(content).encode("utf-8", "backslashreplace"), digest_size=6)
        digest.update(self.body)
        return digest.hexdigest()

    @property
    def kind(self) -> Kind:
        """``"event"`` or ``"message"``."""
        return "event" if self.exchange == EVENTS or self.properties.type == "event" else "message"

    @property
    def payload(self) -> dict[str, Any]:
        """The decoded body.

        :raises MessageValidationError: the body is not a JSON object. That may be the reason of the failure.
        """
        if not self.body and (lost := why_incomplete(self)):
            raise MessageValidationError(f"the dead letter {self.message_id} has no payload: {lost}")
        try:
            return decode_payload(self.body, max(1, len(self.body)))
        except InvalidMessage as error:
            raise MessageValidationError(f"the dead letter {self.message_id} has no payload: {error}") from None

    def replay(self, handler: Callable[..., Any]) -> Any:
        """Call ``handler`` with this message in the caller's thread, without a hub.

        :param handler: a handler as for ``subscribe`` or ``subscribe_messages``. The annotation of its first parameter
            decides what it gets, as in a client. It cannot reply to a ``Message``.
        :returns: the return value of the handler.
        :raises MessageValidationError: the handler's signature is invalid, the message cannot be decoded, or it does
            not fit the handler's model.
        :raises Exception: any exception of the handler.
        """
        wanted = handler_for(handler, self.kind)
        if lost := why_incomplete(self):
            raise MessageValidationError(f"{wanted.name} does not get {self.message_id}: {lost}")
        service = str(self.failure.get("service") or self.queue.partition(".")[0])
        received = DecodedDelivery(self._delivery(), kind=self.kind, service=service, max_bytes=max(1, len(self.body)))
        try:
            received.check()
            arguments = wanted.arguments(received)
        except InvalidMessage as error:
            raise MessageValidationError(f"{wanted.name} does not get {self.message_id}: {error}") from None
        event_type = received.event_type if self.kind == "event" else None
        with entered(MessageContext(received.correlation_id, received.message_id, event_type, service)):
            return wanted(arguments)

    def without_ttl(self) -> DeadLetter:
        """A copy that does not expire."""
        return dataclasses.replace(self, properties=dataclasses.replace(self.properties, expiration=None))

    @classmethod
    def of(cls, delivery: Delivery) -> DeadLetter:
        """Convert a delivery from a dead-letter queue. Headers that describe the failure go to ``failure``."""
        headers = delivery.properties.headers
        expiration, user_id = headers.get(ORIGINAL_EXPIRATION), headers.get(ORIGINAL_USER_ID)
        return cls(
            queue=delivery.queue.removesuffix(DEAD_LETTER_SUFFIX),
            exchange=str(headers.get(ORIGINAL_EXCHANGE, delivery.exchange)),
            routing_key=str(headers.get(ORIGINAL_ROUTING_KEY, delivery.routing_key)),
            body=delivery.body,
            properties=dataclasses.replace(
                delivery.properties,
                expiration=None if expiration is None else str(expiration),
                user_id=None if user_id is None else str(user_id),
                headers={name: value for name, value in headers.items() if name not in _NOT_THE_SENDERS},
            ),
            failure={name: headers[header] for name, header in _FAILURE.items() if header in headers},
        )

    def _delivery(self) -> Delivery:
        properties = dataclasses.replace(self.properties, headers=dict(self.properties.headers))
        return Delivery(
            body=self.body,
            properties=properties,
            exchange=self.exchange,
            routing_key=self.routing_key,
            queue=self.queue,
            redelivered=False,
            delivery_tag=0,
            channel_generation=0,
            origin=None,
        )


def why_incomplete(letter: DeadLetter) -> str | None:
    """What was lost before the message was dead-lettered, so that it cannot be handled again; ``None`` if nothing."""
    headers = letter.properties.headers
    if UNDECODABLE in headers:
        return "its headers cannot be read, and would be lost"
    if BODY_BYTES in headers and not letter.body:
        size = shown(headers[BODY_BYTES])
        return f"its body of {size} bytes was larger than max_message_bytes, and was not kept"
    return None
