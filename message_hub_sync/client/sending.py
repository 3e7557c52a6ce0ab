"""The calls that send: messages, events, many of them at once, requests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from message_hub_sync.client.calls import ClientCalls
from message_hub_sync.envelope.values import Message
from message_hub_sync.publishing.outgoing import (
    DEFAULT_TTL,
    outgoing_event,
    outgoing_events,
    outgoing_message,
    outgoing_messages,
)
from message_hub_sync.runtime.deadlines import timeout_seconds

__all__ = ["SendingCalls"]

#: A bulk call gets ``delivery_timeout`` for each group of this number of messages, rounded up.
_MESSAGES_PER_TIMEOUT = 1_000


class SendingCalls(ClientCalls):
    """The part of the client that sends. Any thread may call it."""

    def send_message(
        self,
        destination: str | Message[Any],
        payload: Any = None,
        correlation_id: UUID | str | None = None,
        ttl: float | None = DEFAULT_TTL,
        priority: int = 0,
        *,
        message_id: UUID | None = None,
        headers: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> UUID:
        """Send a message to the inbox of a service. Once this returns, the hub has it.

        :param destination: the service. Or, without ``payload``: a ``Message``.
        :param payload: a JSON object: a dict, a pydantic model or a dataclass.
        :param correlation_id: a UUID or printable text; by default that of the message being handled, else new.
        :param ttl: seconds after which the broker drops the message, unhandled and silently; ``None``: never.
        :param priority: 0 to 9; 9 is the most urgent.
        :param message_id: to repeat a call that ended ``unknown``: the message id of that call. By default a new id.
        :param headers: additional headers: ``str``, 64-bit whole numbers, ``bool`` or ``None`` by name.
        :param timeout: seconds for the whole call, by default ``delivery_timeout``.
        :returns: the message's id.
        :raises MessageValidationError: a value is invalid; nothing was sent.
        :raises MessageHubConnectionError: no connection in time, or the client is closed; nothing was sent.
        :raises MessageHubCircuitBreakerError: the destination's circuit is open; nothing was sent.
        :raises MessageHubAuthorizationError: the broker user lacks the permission.
        :raises MessageHubConfigurationError: a queue or exchange on the broker contradicts the settings, or a
            middleware did not call ``call_next``.
        :raises MessageHubDeliveryError: rejected (the service has no inbox), or unknown.
        """
        session = self._publishing()
        seconds = timeout_seconds(timeout, self._config.delivery_timeout)
        outgoing = outgoing_message(
            self._config,
            destination,
            payload,
            correlation_id=correlation_id,
            ttl=ttl,
            priority=priority,
            message_id=message_id,
            headers=headers,
        )
        self._warn_of_priority(outgoing.properties.priority)
        return session.publisher.publish(outgoing, seconds)

    def publish_event(
        self,
        event_type: str | BaseModel,
        payload: Any = None,
        correlation_id: UUID | str | None = None,
        *,
        message_id: UUID | None = None,
        headers: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> UUID:
        """Publish an event to all that subscribe to it. Once this returns, the hub has it.

        An event that nobody subscribes to is accepted and dropped by the broker.

        :param event_type: the name or an ``EventType``. Or, without ``payload``: an ``Event`` or a catalogued payload
            (``CharacterCreated(…)``).
        :param payload: a JSON object: a dict, a pydantic model or a dataclass.
        :param correlation_id: a UUID or printable text; by default that of the message being handled, else new.
        :param message_id: to repeat a call that ended ``unknown``: the message id of that call. By default a new id.
        :param headers: additional headers: ``str``, 64-bit whole numbers, ``bool`` or ``None`` by name.
        :param timeout: seconds for the whole call, by default ``delivery_timeout``.
        :returns: the event's id.
        :raises MessageValidationError: a value is invalid; nothing was sent.
        :raises MessageHubConnectionError: no connection in time, or the client is closed; nothing was sent.
        :raises MessageHubCircuitBreakerError: the circuit of the events is open; nothing was sent.
        :raises MessageHubAuthorizationError: the broker user lacks the permission.
        :raises MessageHubConfigurationError: a queue or exchange on the broker contradicts the settings, or a
            middleware did not call ``call_next``.
        :raises MessageHubDeliveryError: rejected, or unknown.
        """
        session = self._publishing()
        seconds = timeout_seconds(timeout, self._config.delivery_timeout)
        outgoing = outgoing_event(
            self._config,
            event_type,
            payload,
            correlation_id=correlation_id,
            message_id=message_id,
            headers=headers,
        )
        return session.publisher.publish(outgoing, seconds)

    def send_messages(
        self, messages: Iterable[tuple[str, Any] | Message[Any]], *, timeout: float | None = None
    ) -> list[UUID]:
        """Send many messages, pipelined: all are checked first, then all are sent, then all are awaited.

        After a lost connection, a repeated message may arrive after later messages of the call.

        :param messages: pairs of destination and payload, or ``Message`` envelopes.
        :param timeout: seconds for the whole call, by default ``delivery_timeout`` for each 1,000 messages, rounded up.
        :returns: their ids, in order.
        :raises MessageValidationError: a value is invalid; the text names the item; nothing was sent.
        :raises MessageHubConnectionError: no connection in time, or the client is closed; nothing was sent.
        :raises MessageHubCircuitBreakerError: the circuits of all destinations are open; nothing was sent.
        :raises MessageHubAuthorizationError: the broker user lacks the permission.
        :raises MessageHubConfigurationError: a queue or exchange on the broker contradicts the settings, or a
            middleware did not call ``call_next``.
        :raises MessageHubDeliveryError: some were not confirmed. ``failures`` names each of them: its index, its id,
            and whether it was rejected or is unknown. The others were sent.
        """
        session = self._publishing()
        batch = outgoing_messages(self._config, messages)
        for outgoing in batch:
            self._warn_of_priority(outgoing.properties.priority)
        return session.publisher.publish_many(batch, self._bulk_timeout(timeout, len(batch)))

    def publish_events(
        self, events: Iterable[tuple[str, Any] | BaseModel], *, timeout: float | None = None
    ) -> list[UUID]:
        """Publish many events, pipelined: all are checked first, then all are sent, then all are awaited.

        After a lost connection, a repeated event may arrive after later events of the call.

        :param events: pairs of event type and payload, ``Event`` envelopes or catalogued payloads.
        :param timeout: seconds for the whole call, by default ``delivery_timeout`` for each 1,000 events, rounded up.
        :returns: their ids, in order.
        :raises MessageValidationError: a value is invalid; the text names the item; nothing was sent.
        :raises MessageHubConnectionError: no connection in time, or the client is closed; nothing was sent.
        :raises MessageHubCircuitBreakerError: the circuit of the events is open; nothing was sent.
        :raises MessageHubAuthorizationError: the broker user lacks the permission.
        :raises MessageHubConfigurationError: a queue or exchange on the broker contradicts the settings, or a
            middleware did not call ``call_next``.
        :raises MessageHubDeliveryError: some were not confirmed. ``failures`` names each of them: its index, its id,
            and whether it was rejected or is unknown. The others were sent.
        """
        session = self._publishing()
        batch = outgoing_events(self._config, events)
        return session.publisher.publish_many(batch, self._bulk_timeout(timeout, len(batch)))

    def request(
        self,
        destination: str,
        payload: Any = None,
        timeout: float = 5,
        *,
        correlation_id: UUID | str | None = None,
        priority: int = 0,
        message_id: UUID | None = None,
        headers: Mapping[str, Any] | None = None,
    ) -> Message[Any]:
        """Send a message and wait for its reply: what the handler on the other side returns.

        A service of the integration guide replies with a message to this service's inbox, with the same correlation
        id. Such a reply is accepted if this process has called ``subscribe_messages``. If a handler of the inbox makes
        the request, the subscription needs at least ``workers=2``.

        :param destination: the service.
        :param payload: a JSON object: a dict, a pydantic model or a dataclass.
        :param timeout: seconds for all of it. The request expires with it.
        :param correlation_id: a UUID or printable text; by default that of the message being handled, else new.
        :param priority: 0 to 9; 9 is the most urgent.
        :param message_id: to repeat a call that ended ``unknown``: the message id of that call. By default a new id.
        :param headers: additional headers: ``str``, 64-bit whole numbers, ``bool`` or ``None`` by name.
        :returns: the envelope of the reply; its ``payload`` is the answer.
        :raises MessageValidationError: a value is invalid; nothing was sent.
        :raises MessageHubConnectionError: no connection in time, or the client is closed; nothing was sent.
        :raises MessageHubCircuitBreakerError: the destination's circuit is open; nothing was sent.
        :raises MessageHubAuthorizationError: the broker user lacks the permission.
        :raises MessageHubConfigurationError: a queue or exchange on the broker contradicts the settings, or a
            middleware did not call ``call_next``.
        :raises MessageHubDeliveryError: rejected (the service has no inbox), or unknown.
        :raises MessageHubTimeoutError: no reply came in time, also because the handler returned ``None``.
        :raises MessageHubRemoteError: the handler on the other side raised; with the type and text of its error.
        """
        session = self._publishing()
        seconds = timeout_seconds(timeout, self._config.delivery_timeout)
        # Check the values before a reply queue is declared for the request.
        outgoing = outgoing_message(
            self._config,
            destination,
            payload,
            correlation_id=correlation_id,
            ttl=seconds,
            priority=priority,
            message_id=message_id,
            headers=headers,
        )
        self._warn_of_priority(priority)
        return session.requests.request(outgoing, seconds)

    send = send_message
    publish = publish_event

    def _bulk_timeout(self, timeout: float | None, count: int) -> float:
        rounded_up = max(1, -(-count // _MESSAGES_PER_TIMEOUT))
        return timeout_seconds(timeout, self._config.delivery_timeout * rounded_up)

    def _warn_of_priority(self, priority: int | None) -> None:
        if priority and not self._config.message_priorities:
            self._warn_once(
                "priority",
                "a priority is sent, but has no effect in queues that were declared without message_priorities=True",
            )
