"""RequestCaller and their replies, for both sides: who waits for which reply, and how a request is answered."""

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

#: ReplySender the broker may hand over at once; a waiting caller takes its own out within microseconds.
PREFETCH = 256
#: An error's text in a header; what is longer belongs into the responder's log, where it is whole.
MAX_ERROR_TEXT = 1_000


@dataclass(eq=False, slots=True)
class _Waiter:
    """One caller waiting for its reply."""

    message_id: str
    correlation_id: str
    destination: str
    reply: Delivery | None = None
    #: Set after ``reply``. Not a SimpleQueue, whose timed get may never end before Python 3.13 (deadlines.take).
    answered: threading.Event = field(default_factory=threading.Event)

    def answer(self, reply: Delivery | None) -> None:
        """Wake the caller; ``None``: there will be no reply."""
        self.reply = reply
        self.answered.set()


class RequestCaller:
    """The calling side: one exclusive reply queue and one thread for however many callers.

    The queue is there from the first request on. Its name changes with each connection, so that the reply to a
    request in flight when the connection is lost does not arrive: that request times out. The next one waits
    for a queue that is there.

    Mutable, guarded by ``_lock``: the waiters, by message id and in order of arrival; the reply queue's consumer
    and its thread; its opening while somebody is at it, which the others await; whether this is closed.
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
        self._waiters: dict[str, _Waiter] = {}
        self._opening: Future[Consumer] | None = None
        self._consumer: Consumer | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def request(self, outgoing: Outgoing, timeout: float) -> Message[Any]:
        """Send a request, naming the queue for its reply, and wait for it.

        :param timeout: seconds for all of it.
        :raises MessageHubTimeoutError: it was delivered, and no reply came.
        :raises MessageHubRemoteError: the handler on the other side raised.
        """
        deadline = time.monotonic() + timeout
        consumer = self._opened(min(deadline, time.monotonic() + self._config.connect_timeout))
        properties = outgoing.properties
        properties.reply_to = consumer.queue
        waiter = _Waiter(
            str(properties.message_id), str(properties.correlation_id), str(properties.headers[DESTINATION])
        )
        with self._lock:
            self._refuse_when_closed()
            if waiter.message_id in self._waiters:
                raise MessageValidationError(
                    f"a request with the message_id {waiter.message_id} waits for its reply already: "
                    "repeat it when that one has ended"
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
                f"{waiter.correlation_id}): it may be slow, or not running, or its handler "
                f"returned None{uwsgi_hint()}"
            )
        if waiter.reply is None:
            raise MessageHubTimeoutError(f"the client was closed before {waiter.destination} replied")
        return self._understood(waiter.reply, waiter)

    def claim_reply(self, delivery: Delivery) -> bool:
        """Whether a message of the inbox is a reply that a caller here waits for; it is the caller's then.

        A reply of this library names its request. One of the guide's services has only its correlation id:
        the oldest caller waiting for that service with that id gets it.
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
        """Stop taking replies."""
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
        while True:
            with self._lock:
                self._refuse_when_closed()
                consumer, thread, opening = self._consumer, self._thread, self._opening
                if consumer is not None and consumer.active and thread is not None and thread.is_alive():
                    return consumer
                if opening is None:
                    mine = self._opening = Future()
                    self._consumer = self._thread = None
                    break
            try:
                return opening.result(timeout=remaining(deadline))
            except FutureTimeoutError:  # the builtin TimeoutError only from 3.11 on
                raise MessageHubConnectionError(
                    f"the reply queue was not there in time: nothing was sent{uwsgi_hint()}"
                ) from None
            except CancelledError:
                continue  # whoever was at it was interrupted
        return self._open(mine, consumer, thread, deadline)

    def _open(
        self,
        opening: Future[Consumer],
        consumer: Consumer | None,
        thread: threading.Thread | None,
        deadline: float,
    ) -> Consumer:
        """Instead of the consumer and the thread that there were, if any."""
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
                self._refuse_when_closed()
                self._opening, self._consumer, self._thread = None, consumer, thread
        except BaseException as error:
            with self._lock:
                self._opening = None  # the next request tries anew
            if consumer is not None:
                self._end(consumer, thread, deadline)
            if isinstance(error, RuntimeError):
                error = MessageHubConnectionError(f"no thread can be started any more: {error}")
            # A signal or a gevent timeout is this caller's own: the others open it without him.
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
            logger.debug("the reply queue was not closed in order: %s", error)
        finally:
            consumer.deliveries.put(None)
        if thread is not None and thread.ident is not None:
            thread.join(remaining(deadline))

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise MessageHubConnectionError("this client is closed: nothing was sent")

    def _take_replies(self, consumer: Consumer) -> None:
        while (delivery := consumer.deliveries.get()) is not None:
            try:
                if self._middleware.looks_at_arrivals and not self._accepted(delivery):
                    pass
                elif not self.claim_reply(delivery):
                    self._metrics.late_reply_dropped()
                    logger.info(
                        "a reply came when nobody waited for it any more (correlation id %s)",
                        printable(delivery.properties.correlation_id or "absent"),
                    )
                consumer.ack(delivery)
            except Exception:
                logger.exception("a reply could not be taken")

    def _accepted(self, delivery: Delivery) -> bool:
        """Whether the middleware lets a reply in. One that it does not let in is dropped and counted."""
        config = self._config
        decoded = DecodedDelivery(delivery, "message", config.service_name, config.max_message_bytes)
        try:
            # A context of its own, as each delivery of any other queue has.
            Context().run(self._middleware.arrived, decoded, reply=True)
        except Exception as error:
            # The reply queue has no dead-letter queue. Its name has a random part, so it is no label.
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

    # --- matching ---------------------------------------------------------------------------------

    def _waiter_for(self, delivery: Delivery) -> _Waiter | None:
        if not self._waiters:
            return None
        properties = delivery.properties
        request = properties.headers.get(IN_REPLY_TO)
        with self._lock:
            if request is not None:
                return self._waiters.pop(request, None) if isinstance(request, str) else None
            if properties.reply_to:
                return None  # a request of its own, in the course of the same conversation
            source = properties.headers.get(SOURCE) or properties.app_id
            for waiter in self._waiters.values():
                if waiter.correlation_id == properties.correlation_id and waiter.destination == source:
                    return self._waiters.pop(waiter.message_id)
        return None

    def _understood(self, reply: Delivery, waiter: _Waiter) -> Message[Any]:
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
                f"the reply of {waiter.destination} cannot be read: {error}",
                error_type="InvalidMessage",
                error_message=str(error),
            ) from None


class ReplySender:
    """The answering side. Nothing in it changes."""

    def __init__(self, config: ClientConfig, publisher: Publisher) -> None:
        self._config = config
        self._publisher = publisher

    def reply(self, message: Message[Any], payload: Any) -> UUID:
        """Answer a received message: to its ``reply_to``, else to its sender's inbox.

        :raises MessageValidationError: the payload is not a JSON object.
        :raises MessageHubDeliveryError: nobody waits for it any more, or the hub did not take it.
        """
        body = encode_payload(payload, self._config.max_message_bytes)
        outgoing = self._reply(str(message.id), message.correlation_id, message.source, message.reply_to, body)
        self._publisher.hand_over(outgoing, self._config.delivery_timeout)
        return uuid_of(outgoing.properties.message_id)

    def answer(self, received: DecodedDelivery, payload: Any) -> None:
        """Send what a handler returned. Raises only for a payload that cannot be sent."""
        self._send(received, encode_payload(payload, self._config.max_message_bytes), {})

    def fail(self, received: DecodedDelivery, error: BaseException) -> None:
        """Tell the caller that the handler raised. Raises nothing."""
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
            # The request is settled all the same: handling it again would not find its caller either.
            logger.warning("the reply to message %s was not delivered: %s", printable(received.message_id), error)

    def _reply(self, message_id: str, correlation_id: str, source: str, reply_to: str | None, body: bytes) -> Outgoing:
        properties = message_properties(source=self._config.service_name, destination=source)
        # As it came, even where this library would not make one like it: it is what the caller looks for.
        properties.correlation_id = correlation_id
        properties.headers[IN_REPLY_TO] = message_id
        return Outgoing(DEFAULT_EXCHANGE, reply_to or inbox_name(source), body, properties, mandatory=True)
