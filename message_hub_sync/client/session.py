"""The session: what one client has of threads, locks and sockets in one process. A forked child creates its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from message_hub_sync.config import ClientConfig, MemoryAddress
from message_hub_sync.consuming.consumed_queue import ConsumerContext
from message_hub_sync.consuming.retry_policy import RetryPolicy
from message_hub_sync.consuming.subscription import Subscription, SubscriptionRegistry
from message_hub_sync.consuming.suspects import Suspects
from message_hub_sync.consuming.worker_group import WorkerThread
from message_hub_sync.errors import MessageHubConnectionError
from message_hub_sync.metrics import ServiceMetrics
from message_hub_sync.middleware import Middleware
from message_hub_sync.middleware.checking import overriding
from message_hub_sync.publishing.circuit_breaker import CircuitBreakers
from message_hub_sync.publishing.middleware_publisher import MiddlewarePublisher
from message_hub_sync.publishing.publisher import Publisher
from message_hub_sync.requests.reply_sender import ReplySender
from message_hub_sync.requests.request_caller import RequestCaller
from message_hub_sync.runtime.deadlines import remaining
from message_hub_sync.runtime.final_event import FinalEvent
from message_hub_sync.runtime.locks import Lock
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.real_time import time
from message_hub_sync.transport.base import Transport

__all__ = ["Session", "around_hub", "prepare"]

logger = SafeLogger("message_hub_sync.client")

#: The outermost middleware of each client of an embedded hub, by the hub's name. For the test framework, as the
#: code under test creates the clients. No lock: single operations.
around_hub: dict[str, Middleware] = {}


class Session:
    """One transport, with the objects that publish, consume and request over it. Any thread may use it.

    :param config: the configuration of the client.
    :param retry: the policy of subscriptions without one of their own.
    :param middleware: the middleware of the client, the outermost first.
    :param inherited: in a forked child, the subscriptions of the parent; they are inactive.
    """

    def __init__(
        self,
        config: ClientConfig,
        retry: RetryPolicy,
        middleware: tuple[Middleware, ...] = (),
        inherited: Sequence[Subscription] = (),
    ) -> None:
        self.config = config
        if isinstance(config.address, MemoryAddress) and config.address.name in around_hub:
            middleware = (around_hub[config.address.name], *middleware)
        metrics = ServiceMetrics(config.service_name)
        self.breakers = CircuitBreakers(
            config.circuit_breaker,
            config.service_name,
            on_change=metrics.circuit_state,
            on_new=metrics.circuit_made,
        )
        self.transport = _transport(config)
        self._connected = False  # set by the thread that connects first
        self.transport.on_connected(self._note_connection)
        self.transport.on_connected(self.breakers.connection_restored)
        self.publisher = _publisher(self.transport, config, self.breakers, metrics, middleware)
        self.requests = RequestCaller(self.transport, config, self.publisher, metrics, middleware)
        self.replies = ReplySender(config, self.publisher)
        self.suspects = Suspects(self.transport, config.service_name)
        context = ConsumerContext(
            self.transport,
            config,
            metrics,
            retry,
            claim_reply=self.requests.claim_reply,
            send_reply=self.replies.answer,
            send_error=self.replies.fail,
            suspects=self.suspects,
            middleware=middleware,
        )
        self.subscriptions = SubscriptionRegistry(context, inherited)
        self.closed = FinalEvent()  # set at the end of close()
        self._lock = Lock()
        self._closing = False  # set under _lock
        self._on_close: list[Callable[[], None]] = []  # guarded by _lock

    def admit(self) -> None:
        """Check that a call may be made now. While the session closes, only running handlers may make calls.

        :raises MessageHubConnectionError: the session is closed or closing.
        """
        if self._closing and (self.closed.is_set() or self.subscriptions.worker() is None):
            raise MessageHubConnectionError(
                "this client is closed, so the call did nothing: create a new MessageHubClient"
            )

    @property
    def left_open(self) -> bool:
        """Whether it is connected, not closing, and has no running subscription. Such a session is useless without its
        client.

        It takes no lock: a garbage collection may call it in a thread that holds any lock.
        """
        return self._connected and not self._closing and not self.subscriptions.any_running_unlocked()

    @property
    def drained(self) -> bool:
        """Whether it is closed, and every handler ended before that."""
        return self.closed.is_set() and self.subscriptions.drained

    def _note_connection(self) -> None:
        self._connected = True

    def on_close(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` when closing begins; at once if it has begun."""
        if not self._lock.run(self._listen, listener):
            listener()

    def _listen(self, listener: Callable[[], None]) -> bool:
        if not self._closing:
            self._on_close.append(listener)
        return not self._closing

    def close(self, deadline: float) -> None:
        """Close in order. It waits for nothing after the deadline. Idempotent: a second caller waits for the first.

        It is completed even if the caller is interrupted.

        :param deadline: monotonic seconds.
        """
        if self.closed.is_set():
            return
        began = time.monotonic()
        self.subscriptions.uninterrupted(lambda caller: self._close(began, deadline, caller), deadline, "close")
        if self.subscriptions.worker() is None:  # else it is closed after the handler
            self.closed.wait(remaining(deadline))  # another caller closes it

    def _close(self, began: float, deadline: float, caller: WorkerThread | None) -> None:
        listeners = self._lock.run(self._begin_closing)
        if listeners is None:
            return
        with contextlib.ExitStack() as steps:  # every step runs even if another raised, the last one first
            # The connections are closed last: handlers that finish may still send, and must acknowledge.
            if caller is None:
                steps.callback(self._finish, deadline)
            else:
                # A handler called close(): its own message can be acknowledged only after the handler has returned.
                caller.afterwards.append(lambda: self._finish(max(deadline, time.monotonic() + 1.0)))
            steps.callback(self.subscriptions.stop, deadline, began)
            steps.callback(self.subscriptions.stop_accepting)
            for listener in listeners:
                steps.callback(listener)

    def _begin_closing(self) -> list[Callable[[], None]] | None:
        if self._closing:
            return None
        self._closing = True
        return self._on_close

    def _finish(self, deadline: float) -> None:
        try:
            # Every step runs even if another raised. ExitStack runs them bottom up: requests, the marks of
            # suspects, transport, breakers.
            with contextlib.ExitStack() as steps:
                steps.callback(self.closed.set)
                steps.callback(self.breakers.close)
                steps.callback(self.transport.close, deadline)
                steps.callback(self.suspects.close, deadline)
                steps.callback(self.requests.close, deadline)
        except Exception:
            logger.exception("a step of closing the client failed; all other steps were done")


def prepare(config: ClientConfig) -> None:
    """Import now what a session needs, on the thread that creates the client, instead of at its first use.

    If one thread forks while another one imports, the import lock stays held in the child for ever.
    """
    from message_hub_sync.catalogue import catalogue  # noqa: F401  # imports all modules of the catalogue

    _transport_class(config)


def _publisher(
    transport: Transport,
    config: ClientConfig,
    breakers: CircuitBreakers,
    metrics: ServiceMetrics,
    middleware: tuple[Middleware, ...],
) -> Publisher:
    # Decided once here, so that sending costs nothing more if no middleware overrides send().
    if overriding(middleware, "send"):
        return MiddlewarePublisher(transport, config, breakers, metrics, middleware)
    return Publisher(transport, config, breakers, metrics)


def _transport(config: ClientConfig) -> Transport:
    return _transport_class(config)(config)


def _transport_class(config: ClientConfig) -> Callable[[ClientConfig], Transport]:
    # Import only the transport that is used: a test with memory:// does not load pika, and production does not load the
    # embedded hub.
    if isinstance(config.address, MemoryAddress):
        from message_hub_sync.transport.memory import MemoryTransport

        return MemoryTransport
    from message_hub_sync.transport.rabbitmq import RabbitMQTransport

    return RabbitMQTransport
