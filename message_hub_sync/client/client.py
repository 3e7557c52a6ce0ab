"""The client: what a service imports. It wires the rest together and decides nothing itself."""

from __future__ import annotations

import ssl
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, TypeVar, overload
from uuid import UUID

from pydantic import BaseModel

from message_hub_sync import catalogue
from message_hub_sync.client.health import health_status, queue_stats
from message_hub_sync.client.lifecycle import Lifecycle
from message_hub_sync.client.session import Session
from message_hub_sync.config import CircuitBreakerConfig, ClientConfig, QueueType, parse_addresses
from message_hub_sync.consuming.decoded_delivery import Kind
from message_hub_sync.consuming.deduplication import DeduplicationStore
from message_hub_sync.consuming.handlers import handler_for
from message_hub_sync.consuming.queue_consumer import ConsumedQueue, ConsumeOptions
from message_hub_sync.consuming.retry_policy import RetryPolicy
from message_hub_sync.consuming.subscription import (
    Subscription,
    consume_options,
    event_queues,
    inbox_queues,
)
from message_hub_sync.envelope.values import Message
from message_hub_sync.errors import (
    MessageHubConfigurationError,
    MessageHubConnectionError,
    MessageValidationError,
)
from message_hub_sync.publishing.outgoing import (
    DEFAULT_TTL,
    outgoing_event,
    outgoing_events,
    outgoing_message,
    outgoing_messages,
)
from message_hub_sync.runtime.deadlines import deadline_after, timeout_seconds
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.process_kind import has_running_loop, reloader_parent, uwsgi_hint
from message_hub_sync.runtime.signals import StopSignals

__all__ = ["MessageHubClient"]

logger = SafeLogger("message_hub_sync.client")

#: For each so many messages of a bulk call, begun, it gets the time of a single one.
_TIMED_TOGETHER = 1_000

C = TypeVar("C", bound=Callable[..., Any])


class MessageHubClient:
    """A service's connection to the Message Hub. One per process is enough: any thread may use it.

    :param service_name: this service's name, as others send messages to it (``character-service``).
    :param rabbitmq_url: ``amqp://user:password@host:port/vhost``, ``amqps://…``, several of either for
        failover (a list, or hosts separated by commas), or ``memory://name`` for a hub inside this process.
    :param auth_key: kept for the service's own use; never sent, logged or shown.
    :param circuit_breaker_config: when a destination's circuit opens.
    :param connect_timeout: seconds for a connection, or for consuming the queues of one ``subscribe``.
    :param delivery_timeout: seconds for a send or publish in all: connection, repeated attempts, confirm.
    :param close_timeout: seconds for an orderly end.
    :param heartbeat: seconds of silence after which a connection is probed.
    :param message_priorities: create the inbox so that the broker delivers by ``priority``.
    :param queue_type: ``"classic"`` or ``"quorum"``, for queues that do not exist yet.
    :param max_message_bytes: the largest body sent or handled.
    :param strict_catalogue: refuse events that the catalogue does not know, or gives to another service.
    :param settle_each: acknowledge each message by itself: slower, and a killed process that consumes with
        ``prefetch=1`` repeats at most one.
    :param retry: what becomes of messages whose handler fails; by default four attempts, after 1, 5 and 30 s.
    :param ssl_context: for ``amqps://``, instead of the system's trust store.
    :raises MessageHubConfigurationError: which value is not usable, and what is.

    Nothing connects before it is needed. A client that is dropped without :meth:`close` keeps its connections and
    their threads until the process ends; unless a subscription of it goes on, a ``ResourceWarning`` says so. A
    closed client stays closed. In a forked child the client starts anew on first use, and the parent's
    subscriptions are inactive there until their ``start()``.
    """

    def __init__(
        self,
        service_name: str,
        rabbitmq_url: str | Iterable[str] = "amqp://localhost:5672",
        auth_key: str | None = None,
        circuit_breaker_config: CircuitBreakerConfig | None = None,
        *,
        connect_timeout: float = 5.0,
        delivery_timeout: float = 5.0,
        close_timeout: float = 5.0,
        heartbeat: int = 10,
        message_priorities: bool = False,
        queue_type: QueueType = "classic",
        max_message_bytes: int = 16 * 1024 * 1024,
        strict_catalogue: bool = False,
        settle_each: bool = False,
        retry: RetryPolicy | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        if retry is not None and not isinstance(retry, RetryPolicy):
            raise MessageHubConfigurationError(f"retry of type {type(retry).__name__} is not usable: a RetryPolicy is")
        self._config = ClientConfig(
            service_name=service_name,
            address=parse_addresses(rabbitmq_url, ssl_context=ssl_context),
            auth_key=auth_key,
            circuit_breaker=CircuitBreakerConfig() if circuit_breaker_config is None else circuit_breaker_config,
            connect_timeout=connect_timeout,
            delivery_timeout=delivery_timeout,
            close_timeout=close_timeout,
            heartbeat=heartbeat,
            message_priorities=message_priorities,
            queue_type=queue_type,
            max_message_bytes=max_message_bytes,
            strict_catalogue=strict_catalogue,
            settle_each=settle_each,
        )
        self._lifecycle = Lifecycle(self._config, RetryPolicy() if retry is None else retry)
        # It keeps the lifecycle, and with that handlers that may refer to this client: taken away by close().
        self._finalizer = weakref.finalize(self, self._lifecycle.dropped)
        # At the interpreter's end the lifecycle closes what is open, and nothing was dropped.
        self._finalizer.atexit = False
        # Mutable: what was warned about once; setdefault, which is atomic, decides who does.
        self._told: dict[str, object] = {}

    @property
    def service_name(self) -> str:
        """This service's name."""
        return self._config.service_name

    def __repr__(self) -> str:
        closed = " (closed)" if self._lifecycle.closed else ""
        return f"<MessageHubClient {self._config.service_name}{closed}>"

    def __enter__(self) -> MessageHubClient:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # --- connection -------------------------------------------------------------------------------

    def connect(self) -> None:
        """Open the connection that publishes. Optional, since the first use connects; idempotent.

        :raises MessageHubConnectionError: there was none within ``connect_timeout``, or the client is closed.
        :raises MessageHubAuthorizationError: the broker refused the user or the vhost.
        """
        session = self._entered()
        parent = reloader_parent()
        if parent is not None:
            logger.info("not connecting: this is the parent of the %s reloader, its child will", parent)
            return
        try:
            session.transport.connect(time.monotonic() + self._config.connect_timeout)
        except MessageHubConnectionError as error:
            raise MessageHubConnectionError(f"{error}{uwsgi_hint()}") from None

    def close(self, timeout: float | None = None) -> None:
        """End in order: no new work, consumers cancelled, running handlers finished, confirms awaited. Idempotent.

        :param timeout: seconds for all of it, by default ``close_timeout``; what is not done by then is cut off,
            and delivered again by the broker.

        Called by a handler it does not wait for that handler; the connections end when it has returned.
        """
        deadline = deadline_after(timeout, self._config.close_timeout)
        self._finalizer.detach()
        self._lifecycle.session().close(deadline)

    def run_forever(self) -> None:
        """Block until SIGTERM, SIGINT or :meth:`close`; then end in order, and return.

        On the main thread it handles both signals, and puts the earlier handlers back when it returns; on
        another thread it leaves signals alone, and only :meth:`close` ends it. A client closed already: it returns.
        """
        session = self._lifecycle.session()
        self._mention_loop()
        if not session.subscriptions.known():
            logger.warning(
                "run_forever() of %s waits, but nothing is subscribed to: subscribe before it, or from another thread",
                self._config.service_name,
            )
        with StopSignals() as signals:
            session.on_close(signals.wake)
            signals.wait()
            self.close()

    # --- sending ----------------------------------------------------------------------------------

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
        """Send a message to a service's inbox; once this returns, the hub has it.

        :param destination: the service, or a ``Message`` given alone.
        :param payload: a JSON object: a dict, a pydantic model or a dataclass.
        :param correlation_id: a UUID or printable text; by default that of the message being handled, else new.
        :param ttl: seconds after which the broker drops the message, unhandled and silently; ``None``: never.
        :param priority: 0 to 9, 9 the most urgent.
        :param message_id: of a call that ended ``unknown`` and is repeated.
        :param headers: additional ones: texts, whole numbers, bools.
        :param timeout: seconds for the whole call, by default ``delivery_timeout``.
        :returns: the message's id.
        :raises MessageValidationError: which value is not usable; nothing was sent.
        :raises MessageHubConnectionError: no connection in time; nothing was sent.
        :raises MessageHubCircuitBreakerError: the destination's circuit is open; nothing was sent.
        :raises MessageHubDeliveryError: rejected (no such inbox), or unknown.
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
        self._mention_priority(outgoing.properties.priority)
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
        """Publish an event to whoever subscribes to it; once this returns, the hub has it.

        :param event_type: its name, an ``EventType``; or, given alone, an ``Event`` or a catalogued payload
            (``CharacterCreated(…)``).
        :param payload: a JSON object: a dict, a pydantic model or a dataclass.

        Everything else as with :meth:`send_message`. An event that nobody subscribes to is fine.
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

        :param messages: pairs of destination and payload, or ``Message`` envelopes.
        :param timeout: seconds for the whole call, by default ``delivery_timeout`` for each 1,000 begun.
        :returns: their ids, in order.
        :raises MessageHubDeliveryError: ``failures`` names each one that was not confirmed: its index, its id
            and whether it was rejected or is unknown. The others were sent.

        Other errors as with :meth:`send_message`. A message repeated after a lost connection may come later than
        those behind it.
        """
        session = self._publishing()
        batch = outgoing_messages(self._config, messages)
        for outgoing in batch:
            self._mention_priority(outgoing.properties.priority)
        return session.publisher.publish_many(batch, self._bulk_timeout(timeout, len(batch)))

    def publish_events(
        self, events: Iterable[tuple[str, Any] | BaseModel], *, timeout: float | None = None
    ) -> list[UUID]:
        """Publish many events, pipelined, as :meth:`send_messages` does messages.

        :param events: pairs of event type and payload, ``Event`` envelopes or catalogued payloads.
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

        :param timeout: seconds for all of it; the request expires with it.
        :returns: the reply's envelope; its ``payload`` is the answer.
        :raises MessageHubTimeoutError: no reply came in time, also because the handler returned ``None``.
        :raises MessageHubRemoteError: the handler on the other side raised; with its error's type and text.

        Other errors as with :meth:`send_message`. A service that answers as the integration guide does, with a
        message to this service's inbox bearing the same correlation id, is understood where this process has
        called ``subscribe_messages``; called inside that inbox's own handler, that takes ``workers=2``.
        """
        session = self._publishing()
        seconds = timeout_seconds(timeout, self._config.delivery_timeout)
        # Checked before a reply queue is made for it.
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
        self._mention_priority(priority)
        return session.requests.request(outgoing, seconds)

    send = send_message
    publish = publish_event

    # --- receiving --------------------------------------------------------------------------------

    def subscribe(
        self,
        event_types: Iterable[str],
        callback: Callable[..., Any],
        durable: bool = True,
        *,
        prefetch: int = 64,
        workers: int = 1,
        retry: RetryPolicy | None = None,
        deduplicate: DeduplicationStore | None = None,
    ) -> Subscription:
        """Have ``callback`` called with each event of these types. Processes of one service share them.

        :param event_types: names, ``EventType`` objects or patterns (``character.*``, ``#``).
        :param callback: gets what its first parameter's annotation asks for: without one the payload as JSON
            text, else ``dict``, ``Event``, ``Event[Model]``, a model or ``bytes``. Returning settles the event;
            raising has it retried, then dead-lettered.
        :param durable: whether the queues outlive this process. ``False``: a queue of this client alone, without
            retries, gone with its connection.
        :param prefetch: events handed out ahead of the handler, at most.
        :param workers: threads per queue; with more than one, order is not kept.
        :param retry: instead of the client's policy.
        :param deduplicate: a store that remembers what was handled, to drop repeated deliveries.
        :raises MessageValidationError: a value, or the callback's signature, is not usable.
        :raises MessageHubConnectionError: the queues were not consumed within ``connect_timeout``.
        """
        self._entered()
        options = consume_options(prefetch, workers, retry, deduplicate)
        consumed_queues = event_queues(self._config, event_types, durable=durable)
        subscription = self._subscribed("event", consumed_queues, callback, options)
        for pattern in subscription.event_types:
            catalogue.check_subscribe(pattern)
        return subscription

    def subscribe_messages(
        self,
        callback: Callable[..., Any],
        *,
        prefetch: int = 64,
        workers: int = 1,
        retry: RetryPolicy | None = None,
        deduplicate: DeduplicationStore | None = None,
    ) -> Subscription:
        """Have ``callback`` called with each message sent to this service. This makes its inbox.

        :param callback: gets the ``Message`` envelope, or what its annotation asks for. What it returns is the
            reply to a request (``None`` sends none, so that the caller waits until its timeout); what it raises
            reaches the caller of a request at once, and is not retried then.

        Everything else as with :meth:`subscribe`.
        """
        self._entered()
        options = consume_options(prefetch, workers, retry, deduplicate)
        return self._subscribed("message", inbox_queues(self._config), callback, options)

    def on_event(
        self,
        *event_types: str,
        durable: bool = True,
        prefetch: int = 64,
        workers: int = 1,
        retry: RetryPolicy | None = None,
        deduplicate: DeduplicationStore | None = None,
    ) -> Callable[[C], C]:
        """:meth:`subscribe` as a decorator: ``@client.on_event("character.created")``."""
        if len(event_types) == 1 and callable(event_types[0]):
            raise MessageValidationError(
                "on_event was given a function instead of event types: "
                'name them in parentheses, @client.on_event("character.created")'
            )
        event_queues(self._config, event_types, durable=durable)  # now: the decorator's own call may never come

        def decorate(callback: C) -> C:
            self.subscribe(
                event_types,
                callback,
                durable,
                prefetch=prefetch,
                workers=workers,
                retry=retry,
                deduplicate=deduplicate,
            )
            return callback

        return decorate

    @overload
    def on_message(self, callback: C) -> C: ...

    @overload
    def on_message(
        self,
        *,
        prefetch: int = 64,
        workers: int = 1,
        retry: RetryPolicy | None = None,
        deduplicate: DeduplicationStore | None = None,
    ) -> Callable[[C], C]: ...

    def on_message(
        self,
        callback: Any = None,
        *,
        prefetch: int = 64,
        workers: int = 1,
        retry: RetryPolicy | None = None,
        deduplicate: DeduplicationStore | None = None,
    ) -> Any:
        """:meth:`subscribe_messages` as a decorator: ``@client.on_message``, or with options in parentheses."""

        def decorate(callback: C) -> C:
            self.subscribe_messages(callback, prefetch=prefetch, workers=workers, retry=retry, deduplicate=deduplicate)
            return callback

        return decorate if callback is None else decorate(callback)

    # --- looking at it ----------------------------------------------------------------------------

    def get_health_status(self) -> dict[str, Any]:
        """How the client is now; asks nobody, so it never blocks.

        ``connected``: every connection needed so far is open, and the client is not closed. ``subscriptions``:
        their event types. ``circuit_breaker_state``: the worst of all. ``service_name``. ``status``: ``ok``,
        ``idle`` (no connection was needed so far), ``degraded``, ``blocked``, ``disconnected``.
        ``circuit_breakers``, ``connections``, ``queues``: each by itself, a queue with the ``error`` for which failed
        messages cannot leave it. ``last_error``: what ended a connection or kept it from being made, whichever came
        last; it stays when the connection is back. What the broker refuses a single call is told to its caller alone.
        ``last_error_at``: when, ISO 8601 in UTC.
        """
        session = self._lifecycle.session()
        return health_status(
            self._config.service_name,
            session.transport,
            session.breakers,
            session.subscriptions,
            closed=session.closed.is_set(),
        )

    def get_queue_stats(self, *, timeout: float | None = None) -> dict[str, dict[str, int]]:
        """``depth`` (messages ready) and ``consumers`` of this client's queues and their dead-letter queues.

        :param timeout: seconds, by default ``connect_timeout``.
        :raises MessageHubConnectionError: the hub did not answer in time.
        """
        session = self._publishing()
        deadline = deadline_after(timeout, self._config.connect_timeout)
        return queue_stats(session.transport, session.subscriptions, deadline)

    # --- inside -----------------------------------------------------------------------------------

    def _entered(self) -> Session:
        session = self._lifecycle.session()
        session.admit()
        self._mention_loop()
        return session

    def _mention_loop(self) -> None:
        if has_running_loop():
            self._tell_once(
                "loop",
                "a blocking call is made inside a running asyncio event loop, which stands still meanwhile: "
                "call it in a thread (asyncio.to_thread), or use the asynchronous client",
            )

    def _publishing(self) -> Session:
        session = self._entered()
        parent = reloader_parent()
        if parent is not None:
            raise MessageHubConnectionError(
                f"nothing was sent: this process is the parent of the {parent} reloader, which only watches "
                "files; its child serves and sends"
            )
        return session

    def _subscribed(
        self,
        kind: Kind,
        consumed_queues: tuple[ConsumedQueue, ...],
        callback: Callable[..., Any],
        options: ConsumeOptions,
    ) -> Subscription:
        def reply(message: Message[Any], payload: Any) -> UUID:
            return self._publishing().replies.reply(message, payload)

        handler = handler_for(callback, kind, reply if kind == "message" else None)
        subscription = Subscription(self._lifecycle.subscriptions, self._config, consumed_queues, handler, options)
        subscription.start()
        return subscription

    def _bulk_timeout(self, timeout: float | None, count: int) -> float:
        begun = max(1, -(-count // _TIMED_TOGETHER))
        return timeout_seconds(timeout, self._config.delivery_timeout * begun)

    def _mention_priority(self, priority: int | None) -> None:
        if priority and not self._config.message_priorities:
            self._tell_once(
                "priority",
                "a priority is carried along, but has no effect on queues made without message_priorities=True",
            )

    def _tell_once(self, what: str, text: str) -> None:
        mine = object()
        if self._told.setdefault(what, mine) is mine:
            logger.warning("%s", text)
