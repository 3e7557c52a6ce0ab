"""The client, which a service creates: configuration, connection, closing and state. Its calls are in its bases."""

from __future__ import annotations

import os
import ssl
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from message_hub_sync.client.calls import ClientCalls
from message_hub_sync.client.health import HealthStatus, health_status, queue_stats
from message_hub_sync.client.lifecycle import Lifecycle
from message_hub_sync.client.receiving import ReceivingCalls
from message_hub_sync.client.sending import SendingCalls
from message_hub_sync.config import (
    CircuitBreakerConfig,
    ClientConfig,
    EnvironmentSettings,
    Login,
    QueueType,
    hub_addresses,
)
from message_hub_sync.consuming.retry_policy import RetryPolicy
from message_hub_sync.errors import MessageHubConfigurationError, MessageHubConnectionError
from message_hub_sync.middleware import Middleware
from message_hub_sync.middleware.checking import checked_middleware
from message_hub_sync.runtime.deadlines import deadline_after
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.process_kind import reloader_parent, uwsgi_hint
from message_hub_sync.runtime.real_time import time
from message_hub_sync.runtime.signals import StopSignals
from message_hub_sync.runtime.text import shown

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from message_hub_sync.client.settings import ClientSettings

__all__ = ["MessageHubClient"]

logger = SafeLogger("message_hub_sync.client")


class MessageHubClient(SendingCalls, ReceivingCalls):
    """A service's connection to the Message Hub. One client per process is enough: any thread may use it.

    The client connects when it is first used. A closed client stays closed. A client that is garbage-collected without
    :meth:`close` keeps its connections and their threads until the process ends. Python then issues a
    ``ResourceWarning``, unless one of the client's subscriptions is running. In a forked child the client connects
    again on first use. The parent's subscriptions are inactive there until their ``start()``.

    :param service_name: this service's name, as others send messages to it (``character-service``).
    :param rabbitmq_url: ``amqp://user:password@host:port/vhost``, ``amqps://…``, several of either for
        failover (a list, or hosts separated by commas), or ``memory://name`` for a hub inside this process. A
        ``pathlib.Path``: the file that holds the URL. Its user and password are read again for each connection.
    :param auth_key: kept for the service's own use; never sent, logged or shown.
    :param circuit_breaker_config: when a circuit opens; by default ``CircuitBreakerConfig()``.
    :param credentials: a function that returns user name and password, or a ``pathlib.Path`` of a file that holds the
        password of the URL's user. It is called or read for each connection, so that a new password needs no restart.
        The function runs on the connection's own thread, and no connection is made until it returns.
    :param connect_timeout: seconds for a connection, shared by all hosts and their IP addresses, or for consuming the
        queues of one ``subscribe``.
    :param delivery_timeout: seconds for a whole send or publish: connection, repeated attempts, confirm.
    :param close_timeout: seconds for :meth:`close`.
    :param heartbeat: the AMQP heartbeat timeout in seconds; a heartbeat is sent every half of it.
    :param message_priorities: declare the inbox so that the broker delivers by ``priority``.
    :param queue_type: ``"classic"`` or ``"quorum"``, for queues that do not exist yet.
    :param max_message_bytes: the largest body sent or handled, in bytes. A larger one that arrives is not kept: its
        message is dead-lettered without it. RabbitMQ has a limit too (``max_message_size``, 16 MiB from version 4 on).
    :param strict_catalogue: raise for events that the catalogue does not have, or has for another service. By default
        they are published; the first one with an unknown name is logged as a warning.
    :param settle_each: acknowledge each message by itself. This is slower; a killed process that consumes with
        ``prefetch=1`` repeats at most one message.
    :param retry: how messages are retried whose handler fails; by default four attempts, with 1, 5 and 30 s between.
    :param ssl_context: for ``amqps://``, instead of the system's trust store.
    :param hosts_in_order: try several hosts in the order of ``rabbitmq_url``. By default each connection tries them in
        a random order, so that clients spread over the nodes of a cluster.
    :param middleware: objects that are called around each send and each handled delivery; the first is the
        outermost. See :class:`Middleware`.
    :param json_encoder: called with each value in a payload that cannot be serialised; returns something that can be,
        or raises ``TypeError``. For example ``lambda value: value.to_dict()``.
    :raises MessageHubConfigurationError: a value is invalid; the text says which one and what is allowed.
    """

    def __init__(
        self,
        service_name: str,
        rabbitmq_url: str | Path | Iterable[str] = "amqp://localhost:5672",
        auth_key: str | None = None,
        circuit_breaker_config: CircuitBreakerConfig | None = None,
        *,
        credentials: Callable[[], Login] | Path | None = None,
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
        hosts_in_order: bool = False,
        middleware: Iterable[Middleware] = (),
        json_encoder: Callable[[Any], Any] | None = None,
    ) -> None:
        if retry is not None and not isinstance(retry, RetryPolicy):
            raise MessageHubConfigurationError(f"retry must be a RetryPolicy, not {shown(retry)}")
        config = ClientConfig(
            service_name=service_name,
            address=hub_addresses(rabbitmq_url, ssl_context=ssl_context, credentials=credentials),
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
            hosts_in_order=hosts_in_order,
            json_encoder=json_encoder,
        )
        lifecycle = Lifecycle(config, RetryPolicy() if retry is None else retry, checked_middleware(middleware))
        ClientCalls.__init__(self, config, lifecycle)
        # The finalizer keeps the lifecycle alive, and handlers that may refer to this client, until close() detaches
        # it.
        self._finalizer = weakref.finalize(self, lifecycle.dropped)
        # No warning at interpreter exit: there the lifecycle closes the client.
        self._finalizer.atexit = False

    @classmethod
    def from_env(cls, **settings: Unpack[ClientSettings]) -> Self:
        """Create a client with the settings that are in the environment.

        ``MESSAGE_HUB_SERVICE_NAME`` and ``MESSAGE_HUB_URL`` are read, and one variable for each keyword that is a text,
        a number or a flag. ``MESSAGE_HUB_URL_FILE`` names a file that holds the URL. ``docs/operating.md`` lists all of
        them. An unknown name that begins with ``MESSAGE_HUB_`` is logged as a warning.

        :param settings: the parameters of this class. An argument has precedence over its variable.
        :raises MessageHubConfigurationError: a value is invalid, there is no service name, or a secret and its file are
            both set; the text names the variable.
        """
        found = EnvironmentSettings(os.environ, settings)
        known: dict[str, Any] = {**found.settings, **settings}
        if "service_name" not in known:
            raise MessageHubConfigurationError(
                "MESSAGE_HUB_SERVICE_NAME must be set in the environment, or service_name= be given"
            )
        try:
            return cls(**known)
        except MessageHubConfigurationError as error:
            raise found.explained(error) from None

    @property
    def service_name(self) -> str:
        """This service's name."""
        return self._config.service_name

    def __repr__(self) -> str:
        if "_lifecycle" not in self.__dict__:
            return "<MessageHubClient (its constructor failed)>"
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
        """Open the connection that publishes. Optional, since the first use connects. Idempotent.

        :raises MessageHubConnectionError: no connection within ``connect_timeout``, or the client is closed.
        :raises MessageHubAuthorizationError: the login failed, or the user may not use the virtual host.
        """
        session = self._entered()
        parent = reloader_parent()
        if parent is not None:
            logger.info("not connecting: this process is the parent of the %s reloader; its child connects", parent)
            return
        try:
            session.transport.connect(time.monotonic() + self._config.connect_timeout)
        except MessageHubConnectionError as error:
            raise MessageHubConnectionError(f"{error}{uwsgi_hint()}") from None

    def close(self, timeout: float | None = None) -> None:
        """Close the client in order. Idempotent.

        It accepts no new calls, cancels the consumers, waits for running handlers and for confirms, then closes the
        connections. If a handler calls it, it does not wait for that handler; the connections are closed after the
        handler has returned. A bulk call of another thread writes nothing more: what it has written gets its confirm,
        and the rest is ``rejected``.

        :param timeout: seconds for all of it, by default ``close_timeout``. Messages whose handlers have not returned
            by then are delivered again by the broker.
        """
        deadline = deadline_after(timeout, self._config.close_timeout)
        self._finalizer.detach()
        self._lifecycle.session().close(deadline)

    def run_forever(self) -> bool:
        """Block until SIGTERM, SIGINT or :meth:`close`; then close the client, and return.

        On the main thread it installs handlers for both signals, and restores the previous ones when it returns. On
        another thread it does not touch signals, and only :meth:`close` ends it. If the client is closed already, it
        returns at once.

        :returns: whether all is closed and every running handler ended in time. If not, the log names the messages, and
            the broker delivers them again. A program can tell its supervisor:
            ``sys.exit(0 if client.run_forever() else 1)``.
        """
        session = self._lifecycle.session()
        self._warn_of_loop()
        if not session.subscriptions.known():
            logger.warning(
                "run_forever() of %s waits, but nothing is subscribed to: subscribe before it, or from another thread",
                self._config.service_name,
            )
        with StopSignals() as signals:
            session.on_close(signals.wake)
            signals.wait()
            self.close()
        return session.drained

    # --- state ------------------------------------------------------------------------------------

    def get_health_status(self) -> HealthStatus:
        """The state of the client now, as plain values. It asks the broker nothing, so it returns at once.

        * ``service_name``: the name of this service.
        * ``connected``: whether every connection needed so far is open, and the client is not closed.
        * ``subscriptions``: the event types subscribed to.
        * ``status``: ``ok``, ``idle`` (no connection was needed so far), ``degraded`` (a circuit is not closed, a
          subscription is inactive, a queue has an ``error``, or a heartbeat of the broker is overdue), ``blocked`` or
          ``disconnected``.
        * ``live``: false if only a new process can work again: the client is closed. For a liveness probe.
        * ``ready``: whether ``status`` is ``ok``, ``idle`` or ``degraded``. For a readiness probe.
        * ``reasons``: why ``status`` is not ``ok``, each with a ``code`` and a ``text``. The codes: ``closed``,
          ``login_refused`` (the broker is there, and refuses the user), ``disconnected``, ``blocked``, ``silent``,
          ``circuit_open``, ``subscription_inactive`` and ``queue_stuck``.
        * ``circuit_breaker_state``: the worst state of all circuits.
        * ``circuit_breakers``, ``connections``, ``queues``: the state of each one. Circuits are named by destination or
          event type, and ``*`` is that of the connection. A queue has an ``error`` if failed messages cannot be moved
          to its retry or dead-letter queue. It is ``possibly_limited`` if it was found to be a quorum queue with
          another delivery limit than this client declares: it may drop messages that came back often.
        * ``crash_loops_bounded``: false if crashes cannot be counted, so that a message whose handler ends its process
          is delivered again without limit. The log has the reason.
        * ``last_error``: the last error that ended a connection, or that an attempt to connect ended with. It stays
          after the connection is back. An error of a single call is not here: only its caller gets it.
        * ``last_error_at``: when that was, ISO 8601 in UTC.
        """
        session = self._lifecycle.session()
        return health_status(
            self._config.service_name,
            session.transport,
            session.breakers,
            session.subscriptions,
            closed=session.closed.is_set(),
            crash_loops_bounded=session.suspects.problem is None,
        )

    def get_queue_stats(self, *, timeout: float | None = None) -> dict[str, dict[str, int]]:
        """Ask the broker for the state of this client's queues and their dead-letter queues.

        :param timeout: seconds, by default ``connect_timeout``.
        :returns: by queue name, ``depth`` (messages ready) and ``consumers``.
        :raises MessageHubConnectionError: the broker did not answer in time, or the client is closed.
        """
        session = self._publishing()
        deadline = deadline_after(timeout, self._config.connect_timeout)
        return queue_stats(session.transport, session.subscriptions, deadline)
