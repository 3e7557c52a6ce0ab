"""The side that asks: it publishes a request and waits for its reply."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from message_hub_sync.config import ClientConfig
from message_hub_sync.consuming.decoded_delivery import DecodedDelivery
from message_hub_sync.consuming.handler_middleware import HandlerMiddleware
from message_hub_sync.envelope.correlation import MessageContext, enter
from message_hub_sync.envelope.decode import decode_payload, message_from_wire, source_of
from message_hub_sync.envelope.header_names import DESTINATION, ERROR_MESSAGE, ERROR_TYPE, IN_REPLY_TO
from message_hub_sync.envelope.values import InvalidMessage, Message, Properties
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
from message_hub_sync.publishing.acceptance import Acceptance
from message_hub_sync.publishing.publisher import Publisher
from message_hub_sync.requests.reply_sender import MAX_ERROR_TEXT
from message_hub_sync.runtime.deadlines import remaining
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.process_kind import uwsgi_hint
from message_hub_sync.runtime.real_time import time
from message_hub_sync.runtime.text import error_text, printable
from message_hub_sync.transport.base import Consumer, Delivery, Outgoing, Transport
from message_hub_sync.transport.topology import (
    reply_topology,
)

__all__ = ["RequestCaller"]

logger = SafeLogger("message_hub_sync.request_reply")

#: Replies that the broker delivers ahead, at most. A reply reaches its waiting caller within microseconds.
PREFETCH = 256


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
    #: Ends the wait for the confirm if the reply comes first.
    acceptance: Acceptance = field(default_factory=Acceptance)

    def answer(self, reply: Delivery | None) -> None:
        """Wake the caller; ``None``: there will be no reply."""
        self.reply = reply
        self.answered.set()
        if reply is not None:
            self.acceptance.prove()  # last: the caller runs at once


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
            seconds = min(max(remaining(deadline), 0.001), self._config.delivery_timeout)
            self._publisher.publish(outgoing, seconds, waiter.acceptance)
            answered = waiter.answered.wait(remaining(deadline))
        finally:
            with self._lock:
                # Not that of a later request with the same message id: it may have begun when this one was answered.
                if self._waiters.get(waiter.message_id) is waiter:
                    del self._waiters[waiter.message_id]
        if not answered:
            raise MessageHubTimeoutError(
                f"no reply from {waiter.destination} within {timeout:g} s (correlation id "
                f"{waiter.correlation_id}): it may be slow, or not running, its handler may have returned None, or a "
                f"middleware of it may have rejected the request{uwsgi_hint()}"
            )
        if waiter.reply is None:
            raise MessageHubTimeoutError(f"the client was closed before {waiter.destination} replied")
        return self._decoded(waiter.reply, waiter)

    def claim_reply(self, delivery: Delivery, *, own_queue: bool = False) -> bool:
        """Hand a message to the caller that waits for it as a reply. Returns whether there is such a caller.

        A reply of this library names the message id of its request. A reply of another service of the integration
        guide has only the correlation id: the caller that has waited longest for that service with that id gets it.

        :param own_queue: it came through the reply queue of this client, not through the inbox of the service.
        """
        properties = delivery.properties
        source = source_of(properties)
        with self._lock:
            waiter = self._waiter_for(properties, source, own_queue)
            contradicts = waiter is not None and source is not None and source != waiter.destination
            if waiter is not None and not contradicts:
                del self._waiters[waiter.message_id]
        if waiter is None:
            return False
        if contradicts:
            # It knows the id of the request, but another service was asked: its answer must not be taken for the reply.
            logger.warning(
                "a reply to request %s of %s came from %s and is not taken for the reply; the caller waits on",
                waiter.message_id,
                waiter.destination,
                printable(source or ""),
            )
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
                elif not self.claim_reply(delivery, own_queue=True):
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
        decoded.check_kept()  # a middleware may judge the body, which is not there then
        self._middleware.arrived(decoded, reply=True)

    # --- matching ---------------------------------------------------------------------------------

    def _waiter_for(self, properties: Properties, source: str | None, own_queue: bool) -> _Waiter | None:
        """The caller for which this may be the reply. The caller of this method holds the lock."""
        # First match wins. 1: it names its request: only that caller. 2: it has a reply_to: it may have the correlation
        # id of the request, but it is a new request. 3: the caller that has waited longest for this source with this
        # correlation id. 4: it names neither request nor source, as replies of other clients do, and came through the
        # reply queue, whose name only the service asked knows: the caller with this correlation id, if there is one.
        request = properties.headers.get(IN_REPLY_TO)
        if request is not None:
            return self._waiters.get(request) if isinstance(request, str) else None
        if properties.reply_to:
            return None
        with_id = (each for each in self._waiters.values() if each.correlation_id == properties.correlation_id)
        if source is not None:
            return next((each for each in with_id if each.destination == source), None)
        candidates = list(with_id) if own_queue else []
        return candidates[0] if len(candidates) == 1 else None

    def _decoded(self, reply: Delivery, waiter: _Waiter) -> Message[Any]:
        headers = reply.properties.headers
        if ERROR_TYPE in headers:
            kind = printable(str(headers[ERROR_TYPE]))
            text = str(headers.get(ERROR_MESSAGE, ""))
            told = printable(text, MAX_ERROR_TEXT) or "its text is in the log there"
            raise MessageHubRemoteError(
                f"{waiter.destination} failed: {kind}: {told}",
                error_type=kind,
                error_message=text,
            )
        try:
            payload = decode_payload(reply.body, self._config.max_message_bytes, headers)
            return message_from_wire(reply.properties, self._config.service_name, payload)
        except InvalidMessage as error:
            raise MessageHubRemoteError(
                f"the reply of {waiter.destination} cannot be decoded: {error}",
                error_type="InvalidMessage",
                error_message=str(error),
            ) from None
