"""What one client has in one process: everything with threads, locks and sockets. A forked child gets another."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence

from message_hub_sync.config import ClientConfig, MemoryAddress
from message_hub_sync.consuming.consumed_queue import ConsumerContext
from message_hub_sync.consuming.retry_policy import RetryPolicy
from message_hub_sync.consuming.subscription import Subscription, SubscriptionRegistry
from message_hub_sync.errors import MessageHubConnectionError
from message_hub_sync.metrics import ServiceMetrics
from message_hub_sync.middleware import Middleware, overriding
from message_hub_sync.publishing.circuit_breaker import CircuitBreakers
from message_hub_sync.publishing.middleware_publisher import MiddlewarePublisher
from message_hub_sync.publishing.publisher import Publisher
from message_hub_sync.requests import ReplySender, RequestCaller
from message_hub_sync.runtime.deadlines import remaining
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.transport.base import Transport

__all__ = ["Session", "prepare"]

logger = SafeLogger("message_hub_sync.client")


class Session:
    """One transport with what publishes, consumes and requests over it.

    Mutable, guarded by ``_lock``: whether it is closing, and by whom. ``closed`` is set at its end, ``_connected``
    by whichever thread connects first.
    """

    def __init__(
        self,
        config: ClientConfig,
        retry: RetryPolicy,
        middleware: tuple[Middleware, ...] = (),
        inherited: Sequence[Subscription] = (),
    ) -> None:
        self.config = config
        metrics = ServiceMetrics(config.service_name)
        self.breakers = CircuitBreakers(
            config.circuit_breaker,
            config.service_name,
            on_change=metrics.circuit_state,
            on_new=metrics.circuit_made,
        )
        self.transport = _transport(config)
        self._connected = False
        self.transport.on_connected(self._note_connection)
        self.transport.on_connected(self.breakers.connection_restored)
        self.publisher = _publisher(self.transport, config, self.breakers, metrics, middleware)
        self.requests = RequestCaller(self.transport, config, self.publisher, metrics, middleware)
        self.replies = ReplySender(config, self.publisher)
        context = ConsumerContext(
            self.transport,
            config,
            metrics,
            retry,
            claim_reply=self.requests.claim_reply,
            send_reply=self.replies.answer,
            send_error=self.replies.fail,
            middleware=middleware,
        )
        self.subscriptions = SubscriptionRegistry(context, inherited)
        self.closed = threading.Event()
        self._lock = threading.Lock()
        self._closing = False
        self._on_close: list[Callable[[], None]] = []

    def admit(self) -> None:
        """Let a call through; once the session closes, only those of handlers that still run.

        :raises MessageHubConnectionError: it is closed, or closing.
        """
        if self._closing and (self.closed.is_set() or not self.subscriptions.in_handler()):
            raise MessageHubConnectionError(
                "this client is closed, and nothing was done: make another one to go on (a closed one stays closed)"
            )

    @property
    def left_open(self) -> bool:
        """Whether it would stay connected for nothing: to publish, with nobody to close it and no subscription.

        Takes no lock: it is asked where a garbage collection may run, in a thread that holds any of them.
        """
        return self._connected and not self._closing and not self.subscriptions.any_running_unlocked()

    def _note_connection(self) -> None:
        self._connected = True

    def on_close(self, listener: Callable[[], None]) -> None:
        """Have ``listener`` called when the session begins to close; at once where it has begun."""
        with self._lock:
            if not self._closing:
                self._on_close.append(listener)
                return
        listener()

    def close(self, deadline: float) -> None:
        """End in order, as far as the deadline allows; afterwards all at once. Idempotent."""
        with self._lock:
            first = not self._closing
            self._closing = True
            listeners, self._on_close = self._on_close, []
        if not first:
            if not self.subscriptions.in_handler():
                self.closed.wait(remaining(deadline))
            return
        try:
            for listener in listeners:
                listener()
            # Handlers may still send and settle while they finish: the connections end last.
            self.subscriptions.stop_accepting()
            mine = self.subscriptions.stop(deadline)
        except BaseException:  # a signal's, say: nobody would close the connections any more
            self._finish(deadline)
            raise
        if mine is None:
            self._finish(deadline)
        else:
            # Called by a handler: its own message can be settled only when it has returned.
            mine.afterwards(lambda: self._finish(max(deadline, time.monotonic() + 1.0)))

    def _finish(self, deadline: float) -> None:
        try:
            # Each step is taken, whatever the one before it raised; the last one named here is the first.
            with contextlib.ExitStack() as steps:
                steps.callback(self.closed.set)
                steps.callback(self.breakers.close)
                steps.callback(self.transport.close, deadline)
                steps.callback(self.requests.close, deadline)
                steps.callback(self.publisher.await_confirms, deadline)
        except Exception:
            logger.exception("closing did not go in order")


def prepare(config: ClientConfig) -> None:
    """Import what sessions need, where the client is made and not in whichever thread uses it first.

    A fork while another thread imports leaves the module's lock held in the child for ever.
    """
    from message_hub_sync.catalogue import catalogue  # noqa: F401  # and with it all that it is made of

    _transport_class(config)


def _publisher(
    transport: Transport,
    config: ClientConfig,
    breakers: CircuitBreakers,
    metrics: ServiceMetrics,
    middleware: tuple[Middleware, ...],
) -> Publisher:
    # Decided once: a client whose middleware does not look at what is sent takes no step more for each message.
    if overriding(middleware, "send"):
        return MiddlewarePublisher(transport, config, breakers, metrics, middleware)
    return Publisher(transport, config, breakers, metrics)


def _transport(config: ClientConfig) -> Transport:
    return _transport_class(config)(config)


def _transport_class(config: ClientConfig) -> Callable[[ClientConfig], Transport]:
    # Imported where it is needed: a service under test never loads pika, and one in production no embedded hub.
    if isinstance(config.address, MemoryAddress):
        from message_hub_sync.transport.memory import MemoryTransport

        return MemoryTransport
    from message_hub_sync.transport.rabbitmq import RabbitMQTransport

    return RabbitMQTransport
