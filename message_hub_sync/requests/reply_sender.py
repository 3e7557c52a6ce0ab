"""The side that answers a request."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from message_hub_sync.config import ClientConfig
from message_hub_sync.consuming.decoded_delivery import DecodedDelivery
from message_hub_sync.envelope.decode import source_of, ttl_of
from message_hub_sync.envelope.encode import encode_payload, message_properties
from message_hub_sync.envelope.header_names import ERROR_MESSAGE, ERROR_TYPE, IN_REPLY_TO
from message_hub_sync.envelope.ids import uuid_of
from message_hub_sync.envelope.values import InvalidMessage, Message
from message_hub_sync.errors import (
    MessageHubError,
    MessageHubRejectError,
    MessageValidationError,
)
from message_hub_sync.publishing.outgoing import DEFAULT_TTL
from message_hub_sync.publishing.publisher import Publisher
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.text import error_text, printable, shown
from message_hub_sync.transport.base import Outgoing
from message_hub_sync.transport.topology import (
    DEFAULT_EXCHANGE,
    DIRECT_REPLY_TO,
    inbox_name,
    may_receive_replies,
)

__all__ = ["MAX_ERROR_TEXT", "ReplySender"]

logger = SafeLogger("message_hub_sync.request_reply")

#: Characters of an error's text in a header. The log of the responder has the whole text.
MAX_ERROR_TEXT = 1_000


class ReplySender:
    """The side that replies. Immutable, so any thread may use it."""

    def __init__(self, config: ClientConfig, publisher: Publisher) -> None:
        self._config = config
        self._publisher = publisher

    def reply(self, message: Message[Any], payload: Any) -> UUID:
        """Reply to a received message: to its ``reply_to`` queue, else to the inbox of its sender.

        :param message: the received message.
        :param payload: a JSON object: a dict, a pydantic model or a dataclass.
        :returns: the message id of the reply.
        :raises MessageValidationError: the payload is not a JSON object, the message is itself a reply, or its
            ``reply_to`` is not a queue of its source.
        :raises MessageHubDeliveryError: the queue does not exist (the requester has stopped waiting or has ended), or
            the broker did not accept the reply.
        :raises MessageHubError: what :meth:`Publisher.hand_over` raises.
        """
        if IN_REPLY_TO in message.headers:
            raise MessageValidationError(
                f"message must not be a reply itself ({message.id}): two services that answer each other's replies "
                "never end. To go on with the conversation, call send_message or request"
            )
        body = encode_payload(payload, self._config.max_message_bytes, self._config.json_fallback)
        outgoing = self._reply(
            str(message.id), message.correlation_id, message.source, message.reply_to, message.ttl, body
        )
        self._publisher.hand_over(outgoing, self._config.delivery_timeout)
        return uuid_of(outgoing.properties.message_id)

    def answer(self, received: DecodedDelivery, payload: Any) -> None:
        """Send the result of a handler as the reply to its request. If sending fails, this logs a warning.

        :raises MessageValidationError: the payload is not a JSON object.
        """
        self._send(received, encode_payload(payload, self._config.max_message_bytes, self._config.json_fallback), {})

    def fail(self, received: DecodedDelivery, error: BaseException) -> None:
        """Send the class of an error as the reply to a request. Raises nothing: a failure is logged.

        Its text is sent only if it is meant for the caller: the reason of a :class:`MessageHubRejectError`, and what is
        wrong with the request itself. Any other text may contain what the caller must not see, such as a password.
        """
        headers = {ERROR_TYPE: type(error).__name__}
        if isinstance(error, (MessageHubRejectError, InvalidMessage)):
            headers[ERROR_MESSAGE] = printable(error_text(error), MAX_ERROR_TEXT)
        self._send(received, b"{}", headers)

    def _send(self, received: DecodedDelivery, body: bytes, headers: dict[str, str]) -> None:
        properties = received.delivery.properties
        source = source_of(properties) or "unknown"
        try:
            outgoing = self._reply(
                received.message_id, received.correlation_id, source, properties.reply_to, ttl_of(properties), body
            )
            outgoing.properties.headers.update(headers)
            self._publisher.hand_over(outgoing, self._config.delivery_timeout)
        except MessageHubError as error:
            # The request is acknowledged nevertheless: handling it again would not reach its caller either.
            logger.warning(
                "the reply to message %s was not delivered, and is not sent again: %s",
                printable(received.message_id),
                error,
            )
        except BaseException as error:
            # A middleware's error. The worker must go on, and the delivery must be acknowledged, as above.
            logger.error(
                "the reply to message %s was not delivered, as a middleware failed, and is not sent again",
                printable(received.message_id),
                exc_info=error,
            )

    def _reply(
        self, message_id: str, correlation_id: str, source: str, reply_to: str | None, ttl: float | None, body: bytes
    ) -> Outgoing:
        queue = reply_to or inbox_name(source)
        if not may_receive_replies(queue, source):
            raise MessageValidationError(
                f"reply_to must be a queue of {shown(source)}, which sent the request, not {shown(queue)}: "
                "nothing was sent"
            )
        # Nobody waits for the reply longer than the request lives.
        properties = message_properties(
            source=self._config.service_name, destination=source, ttl=DEFAULT_TTL if ttl is None else ttl
        )
        # Unchanged, even if this library would not accept such an id: the caller looks for exactly this one.
        properties.correlation_id = correlation_id
        if message_id:
            properties.headers[IN_REPLY_TO] = message_id
        # RabbitMQ 3.10 returns a mandatory message to a queue of direct reply-to, although it delivers it.
        mandatory = not queue.startswith(DIRECT_REPLY_TO)
        return Outgoing(DEFAULT_EXCHANGE, queue, body, properties, mandatory=mandatory)
