"""A dead letter, and the file in which it is stored, so that a failure in production becomes a regression test.

The file is JSON in UTF-8::

    {
      "format": "message-hub-dead-letter/1",
      "queue": "campaign-service.character.created",
      "exchange": "events",
      "routing_key": "character.created",
      "failure": {"reason": …, "error_type": …, "error_message": …, "error_traceback": …,
                  "attempts": 4, "first_failed_at": …, "service": "campaign-service"},
      "properties": {"message_id": …, "correlation_id": …, "type": "event", …},
      "headers": {"source": "character-service", …},
      "payload": {…}
    }

``queue``, ``exchange`` and ``routing_key`` have their values from before the failure. If the body is not a JSON object,
the file has ``body`` (base64) instead of ``payload``. Header values that JSON does not have are written as text.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from message_hub_sync.consuming.decoded_delivery import DecodedDelivery, Kind
from message_hub_sync.consuming.handlers import handler_for
from message_hub_sync.envelope.correlation import MessageContext, entered
from message_hub_sync.envelope.decode import decode_payload
from message_hub_sync.envelope.header_names import (
    ATTEMPTS,
    CRASHES,
    ERROR_MESSAGE,
    ERROR_TRACEBACK,
    ERROR_TYPE,
    FIRST_FAILED_AT,
    ORIGINAL_EXCHANGE,
    ORIGINAL_EXPIRATION,
    ORIGINAL_ROUTING_KEY,
    ORIGINAL_USER_ID,
    REASON,
    SERVICE,
    TTL_LEFT,
)
from message_hub_sync.envelope.values import InvalidMessage, Properties
from message_hub_sync.errors import MessageValidationError
from message_hub_sync.runtime.text import shown
from message_hub_sync.transport.base import Delivery
from message_hub_sync.transport.topology import DEAD_LETTER_SUFFIX, EVENTS

__all__ = ["DeadLetter", "dead_letter_json", "load_dead_letter", "save_dead_letter"]

FORMAT = "message-hub-dead-letter/1"

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
}
_MOVED = {*_FAILURE.values(), ORIGINAL_EXCHANGE, ORIGINAL_ROUTING_KEY, ORIGINAL_EXPIRATION, ORIGINAL_USER_ID, TTL_LEFT}
_PROPERTIES = [one.name for one in dataclasses.fields(Properties) if one.name != "headers"]


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
    def kind(self) -> Kind:
        """``"event"`` or ``"message"``."""
        return "event" if self.exchange == EVENTS or self.properties.type == "event" else "message"

    @property
    def payload(self) -> dict[str, Any]:
        """The decoded body.

        :raises MessageValidationError: the body is not a JSON object. That may be the reason of the failure.
        """
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
                headers={name: value for name, value in headers.items() if name not in _MOVED},
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


def dead_letter_json(letter: DeadLetter) -> str:
    """The content of a dead letter's file."""
    properties = {name: getattr(letter.properties, name) for name in _PROPERTIES}
    document = {
        "format": FORMAT,
        "queue": letter.queue,
        "exchange": letter.exchange,
        "routing_key": letter.routing_key,
        "failure": dict(letter.failure),
        "properties": {name: value for name, value in properties.items() if value is not None},
        "headers": letter.properties.headers,
    }
    try:
        document["payload"] = letter.payload
    except MessageValidationError:
        document["body"] = base64.b64encode(letter.body).decode()
    return json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n"


def save_dead_letter(letter: DeadLetter, file: str | os.PathLike[str]) -> Path:
    """Write a dead letter to a JSON file. An existing file is replaced.

    :param letter: the dead letter.
    :param file: the path of the file.
    :returns: the path.
    :raises OSError: the file cannot be written.
    """
    path = Path(file)
    path.write_text(dead_letter_json(letter), encoding="utf-8")
    return path


def load_dead_letter(file: str | os.PathLike[str]) -> DeadLetter:
    """Read a dead letter from a file of ``message-hub dead-letters export`` or :func:`save_dead_letter`.

    :param file: the path of the file.
    :returns: the dead letter.
    :raises MessageValidationError: the file does not hold a dead letter. The text says what is wrong or missing.
    :raises OSError: the file cannot be read.
    """
    path = Path(file)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MessageValidationError(f"{path} is not JSON in UTF-8: {error}") from None
    found = document.get("format") if isinstance(document, dict) else None
    if found != FORMAT:
        raise MessageValidationError(f"{path} is not a dead letter: format must be {FORMAT!r}, not {shown(found)}")
    try:
        if "payload" in document:
            body = json.dumps(document["payload"], ensure_ascii=False, separators=(",", ":")).encode()
        else:
            body = base64.b64decode(document["body"], validate=True)
        known = {name: value for name, value in document["properties"].items() if name in _PROPERTIES}
        # A property that the file does not name was not set. Properties' defaults are for messages that we publish.
        absent: dict[str, Any] = dict.fromkeys(_PROPERTIES)
        properties = Properties(**{**absent, **known}, headers=dict(document["headers"]))
        return DeadLetter(
            queue=document["queue"],
            exchange=document["exchange"],
            routing_key=document["routing_key"],
            body=body,
            properties=properties,
            failure=dict(document["failure"]),
        )
    except KeyError as error:
        raise MessageValidationError(f"{path} is not a complete dead letter: {error} is missing") from None
    except (TypeError, ValueError, AttributeError, binascii.Error):
        raise MessageValidationError(f"{path} is not a complete dead letter: a field has the wrong type") from None
