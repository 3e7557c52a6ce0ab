"""The side that asks: it publishes a request and waits for its reply."""

from __future__ import annotations

import threading
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
    MessageHubReentryError,
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
from message_hub_sync.runtime.locks import Lock, locked, refuse_to_wait_for
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.process_kind import uwsgi_hint
from message_hub_sync.runtime.real_time import time
from message_hub_sync.runtime.text import error_text, printable
from message_hub_sync.transport.base import Consumer, Delivery, Outgoing, Transport
from message_hub_sync.transport.threads import Waiter, Waiters
from message_hub_sync.transport.topology import reply_topology

__all__ = ["RequestCaller"]

logger = SafeLogger("message_hub_sync.request_reply")

_ON_REPLIES_THREAD = (
    "this request was made on the thread that receives the replies, for example in arrived() of a middleware; it would "
    "wait for itself, so it was refused and nothing was sent: make the request in another thread"
)

#: Replies that the broker delivers ahead, at most. A reply reaches its waiting caller within microseconds.
PREFETCH = 256


@dataclass(eq=False, slots=True)
class _Waiter:
    """One caller waiting for its reply."""

    message_id: str
    correlation_id: str
    destination: str
    reply: Delivery | None = None
    #: Set after ``reply``.
    answered: bool = False
    waiter: Waiter = field(default_factory=Waiter)
    #: Ends the wait for the confirm if the reply comes first.
    acceptance: Acceptance = field(default_factory=Acceptance)

    def answer(self, reply: Delivery | None) -> None:
        """Wake the caller; ``None``: there will be no reply. The thread calls this that took it out of the waiters."""
        self.reply = reply
        self.answered = True
        self.waiter.wake()
        if reply is not None:
            self.acceptance.prove()  # last: the caller runs at once


@dataclass(eq=False, slots=True)
class _Opening:
    """One caller opens the reply queue; the others wait until it has ended."""

    thread: int = field(default_factory=threading.get_ident)
    waiter: Waiter = field(default_factory=Waiter)  # of the caller that this object belongs to
    waiting: Waiters = field(default_factory=Waiters)  # guarded by the lock of the RequestCaller
    previous: tuple[Consumer | None, threading.Thread | None] = (None, None)
    ended: bool = False
    #: Why it failed, for those that wait. ``None`` if it did not, or was interrupted: then another one opens the queue.
    error: MessageHubError | None = None


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
        self._lock = Lock()
        self._waiters: dict[str, _Waiter] = {}  # guarded by _lock; by message id, in order of their requests
        # Set while a caller opens the reply queue; the other callers wait for it.
        self._opening: _Opening | None = None  # guarded by _lock
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
        try:
            self._add(waiter)
            seconds = min(max(remaining(deadline), 0.001), self._config.delivery_timeout)
            self._publisher.publish(outgoing, seconds, waiter.acceptance)
            waiter.waiter.wait(remaining(deadline))
        finally:
            self._remove(waiter)
        if not waiter.answered:
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
        waiter, contradicts = self._take_waiter_for(properties, source, own_queue)
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
        consumer, thread, waiters = self._begin_closing()
        for waiter in waiters:
            waiter.answer(None)
        if consumer is not None:
            self._end(consumer, thread, deadline)

    # --- the callers that wait --------------------------------------------------------------------

    @locked
    def _add(self, waiter: _Waiter) -> None:
        self._check_not_closed()
        if waiter.message_id in self._waiters:
            raise MessageValidationError(
                f"message_id must not be that of another request in progress ({waiter.message_id}): "
                "repeat the request after the other one has ended"
            )
        self._waiters[waiter.message_id] = waiter

    @locked
    def _remove(self, waiter: _Waiter) -> None:
        # Not that of another request with the same message id: it may have begun when this one was answered.
        if self._waiters.get(waiter.message_id) is waiter:
            del self._waiters[waiter.message_id]

    @locked
    def _take_waiter_for(
        self, properties: Properties, source: str | None, own_queue: bool
    ) -> tuple[_Waiter | None, bool]:
        """The caller for which this is the reply, taken out; or true if another service sent it: then it waits on."""
        waiter = self._waiter_for(properties, source, own_queue)
        contradicts = waiter is not None and source is not None and source != waiter.destination
        if waiter is not None and not contradicts:
            del self._waiters[waiter.message_id]
        return waiter, contradicts

    @locked
    def _begin_closing(self) -> tuple[Consumer | None, threading.Thread | None, list[_Waiter]]:
        self._closed = True
        waiters = list(self._waiters.values())
        self._waiters.clear()  # so that no reply is given to a waiter that is woken here
        return self._consumer, self._thread, waiters

    # --- the reply queue --------------------------------------------------------------------------

    def _opened(self, deadline: float) -> Consumer:
        """The consumer of the reply queue. The first caller opens the queue; the others wait for it."""
        if threading.current_thread() is self._thread:
            raise MessageHubReentryError(_ON_REPLIES_THREAD)
        while True:
            mine = _Opening()
            try:
                found = self._ready_or_opening(mine)
                if found is mine:
                    return self._open(mine, deadline)
            except BaseException as error:
                # The next request tries again. Interrupted by a signal or a gevent timeout: one that waits does so now.
                self._end_opening(mine, error if isinstance(error, MessageHubError) else None)
                raise
            if not isinstance(found, _Opening):
                return found
            refuse_to_wait_for(found.thread)
            mine.waiter.wait(remaining(deadline))
            if found.error is not None:
                raise found.error
            if not found.ended:
                raise MessageHubConnectionError(
                    f"the reply queue was not declared in time, so nothing was sent{uwsgi_hint()}"
                )

    @locked
    def _ready_or_opening(self, mine: _Opening) -> Consumer | _Opening:
        """The consumer if it is ready, else the opening in progress: ``mine``, if there was none."""
        self._check_not_closed()
        if self._opening is not None:
            self._opening.waiting.add(mine.waiter)
            return self._opening
        consumer, thread = self._consumer, self._thread
        if consumer is not None and consumer.active and thread is not None and thread.is_alive():
            return consumer
        mine.previous = consumer, thread
        self._consumer = self._thread = None
        self._opening = mine
        return mine

    def _open(self, opening: _Opening, deadline: float) -> Consumer:
        """Open a new reply queue; first end the previous one, if any."""
        consumer, thread = opening.previous
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
            self._opened_with(opening, consumer, thread)
        except BaseException as error:
            if consumer is not None:
                self._end(consumer, thread, deadline)
            if isinstance(error, RuntimeError):
                raise MessageHubConnectionError(f"no thread can be started: {error}") from None
            raise error from None
        return consumer

    @locked
    def _opened_with(self, opening: _Opening, consumer: Consumer, thread: threading.Thread) -> None:
        self._check_not_closed()
        self._consumer, self._thread = consumer, thread
        self._conclude(opening)

    @locked
    def _end_opening(self, opening: _Opening, error: MessageHubError | None) -> None:
        """It failed. Does nothing if it has not begun."""
        if self._opening is opening:
            opening.error = error
            self._conclude(opening)

    def _conclude(self, opening: _Opening) -> None:
        """End an opening and wake those that wait for it. The caller of this method holds the lock."""
        self._opening = None
        opening.ended = True
        opening.waiting.wake_all()

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
