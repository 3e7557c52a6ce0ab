"""Requests and replies: the side that waits for a reply (RequestCaller), and the side that sends it (ReplySender)."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from message_hub_sync.config import ClientConfig
from message_hub_sync.consuming.decoded_delivery import DecodedDelivery
from message_hub_sync.consuming.handler_middleware import HandlerMiddleware
from message_hub_sync.envelope.correlation import MessageContext, enter
from message_hub_sync.envelope.decode import decode_payload, message_from_wire
from message_hub_sync.envelope.encode import encode_payload, message_properties
from message_hub_sync.envelope.header_names import DESTINATION, ERROR_MESSAGE, ERROR_TYPE, IN_REPLY_TO, SOURCE
from message_hub_sync.envelope.ids import uuid_of
from message_hub_sync.envelope.values import InvalidMessage, Message
from message_hub_sync.errors import (
    MessageHubConnectionError,
    MessageHubError,
    MessageHubRejectError,
    MessageHubRemoteError,
    MessageHubTimeoutError,
    MessageValidationError,
)
from message_hub_sync.metrics import ServiceMetrics
from message_hub_sync.middleware import Middleware
from message_hub_sync.publishing.publisher import Publisher
from message_hub_sync.runtime.deadlines import remaining
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.process_kind import uwsgi_hint
from message_hub_sync.runtime.text import error_text, printable
from message_hub_sync.transport.base import Consumer, Delivery, Outgoing, Transport
from message_hub_sync.transport.topology import DEFAULT_EXCHANGE, inbox_name, reply_topology

__all__ = ["ReplySender", "RequestCaller"]

logger = SafeLogger("message_hub_sync.request_reply")

#: Replies that the broker delivers ahead, at most. A reply reaches its waiting caller within microseconds.
PREFETCH = 256
#: Characters of an error's text in a header. The log of the responder has the whole text.
MAX_ERROR_TEXT = 1_000


@dataclass(eq=False, slots=True)
class _Waiter:
    """One caller waiting for its reply."""

    message_id: str
    correlation_id: str
    destination: str
    reply: Delivery | None = None
    #: Set after ``reply``. Not a SimpleQueue: before Python 3.13 its get() with a timeout may never end
    #: (deadlines.take).
    answered: threading.Event = field(default_factory=threading.Event)

    def answer(self, reply: Delivery | None) -> None:
        """Wake the caller; ``None``: there will be no reply."""
        self.reply = reply
        self.answered.set()


class RequestCaller:
    """The calling side: one exclusive reply queue and one thread for all callers. Any thread may use it.

    The first request declares the reply queue. The queue has another name on each connection. So if the connection is
    lost while a request is in flight, its reply does not arrive and the request times out. The next request waits until
    the new queue is declared.
    """

    def __init__(
        self,
        transport: Transport,
        config: ClientConfig,
        publisher: Publisher,
        metrics: ServiceMetrics,
        middleware: tuple[Middleware, ...] = (),
    ) -> None:
        self._transport = transport
        self._config = config
        self._publisher = publisher
        self._metrics = metrics
        self._middleware = HandlerMiddleware(middleware)
        self._lock = threading.Lock()
        self._waiters: dict[str, _Waiter] = {}  # guarded by _lock; by message id, in order of their requests
        # Set while a caller opens the reply queue; the other callers wait for it.
        self._opening: Future[Consumer] | None = None  # guarded by _lock
        self._consumer: Consumer | None = None  # guarded by _lock
        self._thread: threading.Thread | None = None  # guarded by _lock
        self._closed = False  # guarded by _lock

    def request(self, outgoing: Outgoing, timeout: float) -> Message[Any]:
        """Send a request with the name of the reply queue, and wait for the reply.

        :param outgoing: the request; its ``reply_to`` is set here.
        :param timeout: seconds for all of it.
        :returns: the envelope of the reply.
        :raises MessageHubTimeoutError: the request was delivered, and no reply came in time.
        :raises MessageHubRemoteError: the handler on the other side raised, or the reply cannot be decoded.
        :raises MessageValidationError: a request with the same message id still waits for its reply.
        :raises MessageHubError: the reply queue could not be opened, or what :meth:`Publisher.publish` raises.
        """
        deadline = time.monotonic() + timeout
        consumer = self._opened(min(deadline, time.monotonic() + self._config.connect_timeout))
        properties = outgoing.properties
        properties.reply_to = consumer.queue
        waiter = _Waiter(
            str(properties.message_id), str(properties.correlation_id), str(properties.headers[DESTINATION])
        )
        with self._lock:
            self._check_not_closed()
            if waiter.message_id in self._waiters:
                raise MessageValidationError(
                    f"message_id must not be that of another request in progress ({waiter.message_id}): "
                    "repeat the request after the other one has ended"
                )
            self._waiters[waiter.message_id] = waiter
        try:
            self._publisher.publish(outgoing, min(max(remaining(deadline), 0.001), self._config.delivery_timeout))
            answered = waiter.answered.wait(remaining(deadline))
        finally:
            with self._lock:
                self._waiters.pop(waiter.message_id, None)
        if not answered:
            raise MessageHubTimeoutError(
                f"no reply from {waiter.destination} within {timeout:g} s (correlation id "
                f"{waiter.correlation_id}): it may be slow, or not running, its handler may have returned None, or a "
                f"middleware of it may have rejected the request{uwsgi_hint()}"
            )
        if waiter.reply is None:
            raise MessageHubTimeoutError(f"the client was closed before {waiter.destination} replied")
        return self._decoded(waiter.reply, waiter)

    def claim_reply(self, delivery: Delivery) -> bool:
        """Hand a message to the caller that waits for it as a reply. Returns whether there is such a caller.

        A reply of this library names the message id of its request. A reply of another service of the integration
        guide has only the correlation id: the caller that has waited longest for that service with that id gets it.
        """
        waiter = self._waiter_for(delivery)
        if waiter is None:
            return False
        waiter.answer(delivery)
        return True

    @property
    def waiting(self) -> int:
        """How many callers wait for a reply."""
        return len(self._waiters)

    def close(self, deadline: float) -> None:
        """Stop taking replies. Callers that still wait get a :class:`MessageHubTimeoutError`.

        :param deadline: how long to wait for the broker and for the thread, in monotonic seconds.
        """
        with self._lock:
            self._closed = True
            consumer, thread = self._consumer, self._thread
            waiters = list(self._waiters.values())
        for waiter in waiters:
            waiter.answer(None)
        if consumer is not None:
            self._end(consumer, thread, deadline)

    # --- the reply queue --------------------------------------------------------------------------

    def _opened(self, deadline: float) -> Consumer:
        """The consumer of the reply queue. The first caller opens the queue; the others wait for it."""
        while True:
            with self._lock:
                self._check_not_closed()
                consumer, thread, opening = self._consumer, self._thread, self._opening
                if consumer is not None and consumer.active and thread is not None and thread.is_alive():
                    return consumer
                if opening is None:
                    mine = self._opening = Future()
                    self._consumer = self._thread = None
                    break
            try:
                return opening.result(timeout=remaining(deadline))
            except FutureTimeoutError:  # before Python 3.11 another class than the builtin TimeoutError
                raise MessageHubConnectionError(
                    f"the reply queue was not declared in time, so nothing was sent{uwsgi_hint()}"
                ) from None
            except CancelledError:
                continue  # the caller that opened it was interrupted: try it here
        return self._open(mine, consumer, thread, deadline)

    def _open(
        self,
        opening: Future[Consumer],
        consumer: Consumer | None,
        thread: threading.Thread | None,
        deadline: float,
    ) -> Consumer:
        """Open a new reply queue; first end the previous ``consumer`` and its ``thread``, if any."""
        try:
            if consumer is not None:
                self._end(consumer, thread, deadline)
                consumer = thread = None
            topology = reply_topology(self._config.service_name, uuid4().hex[:8])
            consumer = self._transport.consume(topology, prefetch=PREFETCH, deadline=deadline)
            thread = threading.Thread(
                target=self._take_replies,
                args=(consumer,),
                name=f"message-hub-{self._config.service_name}-replies",
                daemon=True,
            )
            thread.start()
            with self._lock:
                self._check_not_closed()
                self._opening, self._consumer, self._thread = None, consumer, thread
        except BaseException as error:
            with self._lock:
                self._opening = None  # the next request tries again
            if consumer is not None:
                self._end(consumer, thread, deadline)
            if isinstance(error, RuntimeError):
                error = MessageHubConnectionError(f"no thread can be started: {error}")
            # Interrupted by a signal or a gevent timeout: cancel the future, so that a waiting caller opens the queue.
            if isinstance(error, MessageHubError):
                opening.set_exception(error)
            else:
                opening.cancel()
            raise error from None
        opening.set_result(consumer)
        return consumer

    def _end(self, consumer: Consumer, thread: threading.Thread | None, deadline: float) -> None:
        try:
            consumer.cancel(deadline)
            consumer.close(deadline)
        except MessageHubError as error:
            logger.debug("closing the reply queue failed: %s", error)
        finally:
            consumer.deliveries.put(None)  # ends the thread
        if thread is not None and thread.ident is not None:
            thread.join(remaining(deadline))

    def _check_not_closed(self) -> None:
        if self._closed:
            raise MessageHubConnectionError("this client is closed, so nothing was sent: create a new MessageHubClient")

    def _take_replies(self, consumer: Consumer) -> None:
        while (delivery := consumer.deliveries.get()) is not None:
            try:
                if self._middleware.overrides_arrived and not self._accepted(delivery):
                    pass
                elif not self.claim_reply(delivery):
                    self._metrics.late_reply_dropped()
                    logger.info(
                        "a reply came too late and was dropped: no caller waits for it (correlation id %s)",
                        printable(delivery.properties.correlation_id or "absent"),
                    )
                consumer.ack(delivery)
            except Exception:
                logger.exception("processing a reply failed; the reply stays unacked")

    def _accepted(self, delivery: Delivery) -> bool:
        """Call ``arrived`` of the middleware with a reply.

        Returns whether it was accepted; a rejected reply is counted.
        """
        config = self._config
        decoded = DecodedDelivery(delivery, "message", config.service_name, config.max_message_bytes)
        try:
            # A new, empty context, as for each delivery of any other queue.
            Context().run(self._show_arrival, decoded)
        except BaseException as error:  # a middleware's sys.exit() must not end the thread of all replies either
            # The reply queue has no dead-letter queue. Its real name has a random part, so it cannot be a label.
            self._metrics.dead_lettered(f"{config.service_name}.replies")
            decided = isinstance(error, MessageHubRejectError)
            logger.error(
                "reply %s was rejected on arrival and is dropped: %s",
                printable(delivery.properties.message_id or "without an id"),
                printable(error_text(error)),
                exc_info=None if decided else error,
            )
            return False
        return True

    def _show_arrival(self, decoded: DecodedDelivery) -> None:
        enter(MessageContext(decoded.correlation_id, decoded.message_id, None, self._config.service_name))
        self._middleware.arrived(decoded, reply=True)

    # --- matching ---------------------------------------------------------------------------------

    def _waiter_for(self, delivery: Delivery) -> _Waiter | None:
        # 1: it names its request: only that caller. 2: it has a reply_to, so it is a request itself. 3: by correlation
        # id and sender.
        if not self._waiters:
            return None
        properties = delivery.properties
        request = properties.headers.get(IN_REPLY_TO)
        with self._lock:
            if request is not None:
                return self._waiters.pop(request, None) if isinstance(request, str) else None
            if properties.reply_to:
                return None  # it may have the correlation id of the request, but it is a new one
            source = properties.headers.get(SOURCE) or properties.app_id
            for waiter in self._waiters.values():
                if waiter.correlation_id == properties.correlation_id and waiter.destination == source:
                    return self._waiters.pop(waiter.message_id)
        return None

    def _decoded(self, reply: Delivery, waiter: _Waiter) -> Message[Any]:
        headers = reply.properties.headers
        if ERROR_TYPE in headers:
            kind = printable(str(headers[ERROR_TYPE]))
            text = str(headers.get(ERROR_MESSAGE, ""))
            raise MessageHubRemoteError(
                f"{waiter.destination} failed: {kind}: {printable(text, MAX_ERROR_TEXT)}",
                error_type=kind,
                error_message=text,
            )
        try:
            payload = decode_payload(reply.body, self._config.max_message_bytes)
            return message_from_wire(reply.properties, self._config.service_name, payload)
        except InvalidMessage as error:
            raise MessageHubRemoteError(
                f"the reply of {waiter.destination} cannot be decoded: {error}",
                error_type="InvalidMessage",
                error_message=str(error),
            ) from None


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
        :raises MessageValidationError: the payload is not a JSON object.
        :raises MessageHubDeliveryError: the queue does not exist (the requester has stopped waiting or has ended), or
            the broker did not accept the reply.
        :raises MessageHubError: what :meth:`Publisher.hand_over` raises.
        """
        body = encode_payload(payload, self._config.max_message_bytes, self._config.json_encoder)
        outgoing = self._reply(str(message.id), message.correlation_id, message.source, message.reply_to, body)
        self._publisher.hand_over(outgoing, self._config.delivery_timeout)
        return uuid_of(outgoing.properties.message_id)

    def answer(self, received: DecodedDelivery, payload: Any) -> None:
        """Send the result of a handler as the reply to its request. If sending fails, this logs a warning.

        :raises MessageValidationError: the payload is not a JSON object.
        """
        self._send(received, encode_payload(payload, self._config.max_message_bytes, self._config.json_encoder), {})

    def fail(self, received: DecodedDelivery, error: BaseException) -> None:
        """Send type and text of an error as the reply to a request. Raises nothing: a failure is logged."""
        try:
            text = str(error)
        except Exception:
            text = ""
        headers = {ERROR_TYPE: type(error).__name__, ERROR_MESSAGE: printable(text, MAX_ERROR_TEXT)}
        self._send(received, b"{}", headers)

    def _send(self, received: DecodedDelivery, body: bytes, headers: dict[str, str]) -> None:
        properties = received.delivery.properties
        source = properties.headers.get(SOURCE) or properties.app_id or "unknown"
        try:
            outgoing = self._reply(received.message_id, received.correlation_id, str(source), properties.reply_to, body)
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

    def _reply(self, message_id: str, correlation_id: str, source: str, reply_to: str | None, body: bytes) -> Outgoing:
        properties = message_properties(source=self._config.service_name, destination=source)
        # Unchanged, even if this library would not accept such an id: the caller looks for exactly this one.
        properties.correlation_id = correlation_id
        properties.headers[IN_REPLY_TO] = message_id
        return Outgoing(DEFAULT_EXCHANGE, reply_to or inbox_name(source), body, properties, mandatory=True)
