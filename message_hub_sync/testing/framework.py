"""The test framework: mock services on a separate hub, and checks of what happened to messages and events."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any
from uuid import UUID

from message_hub_sync.client.client import MessageHubClient
from message_hub_sync.config import MemoryAddress, parse_addresses
from message_hub_sync.dead_letters import DeadLetter, fetch_dead_letter, save_dead_letter, send_again
from message_hub_sync.envelope.names import validate_event_type, validate_service_name
from message_hub_sync.errors import MessageHubConfigurationError, MessageValidationError
from message_hub_sync.runtime.deadlines import deadline_after
from message_hub_sync.runtime.text import shown
from message_hub_sync.testing._hooks.cross_talk import cross_talk
from message_hub_sync.testing._hooks.transport_hooks import hooks_of
from message_hub_sync.testing.faults import Faults
from message_hub_sync.testing.framework_state import FrameworkState
from message_hub_sync.testing.mock_service import MockService, Script
from message_hub_sync.testing.targets import find_target
from message_hub_sync.testing.traffic import Traffic
from message_hub_sync.transport.topology import DEAD_LETTER_SUFFIX, dead_letter_queue

__all__ = ["MessageHubTestFramework"]

logger = logging.getLogger("message_hub_sync.testing")


class MessageHubTestFramework:
    """A hub for tests, with mock services. Thread-safe.

    ::

        with MessageHubTestFramework() as framework:
            campaign = framework.create_mock_service("campaign-service")
            campaign.subscribe_to_events(["character.created"])
            create_character(framework.client("character-service"))   # the code under test
            campaign.expect_event("character.created", where={"name": "Frodo"})

    :param url: ``memory://`` is an embedded hub for this framework alone; ``memory://name`` is the embedded hub of that
        name. ``amqp://host`` is RabbitMQ: if possible, a virtual host for this framework alone is created there,
        because a mock service would take messages away from a real service of the same name. That is possible on a
        :class:`RabbitMQNode` of this process, and on a broker whose management plugin allows it to the user. If the
        URL names a virtual host, that one is used. Connect the code under test to :attr:`url`.
    :param isolated: ``True``: use a hub or virtual host of its own, or raise. ``False``: use the one of the URL.
        ``None`` (the default): as described for ``url``.
    :param virtual_clock: on ``memory://`` only: the hub's time stands still until :meth:`advance` moves it.
    :param eager: on ``memory://`` only: handlers run in the thread that publishes, and its call returns when all of
        them have returned. Retries run in :meth:`advance`. It includes ``virtual_clock``.
    :raises MessageHubConfigurationError: the URL is invalid.

    A framework that is dropped without :meth:`stop` is stopped when it is garbage-collected, or at interpreter exit.
    """

    def __init__(
        self, url: str = "memory://", *, isolated: bool | None = None, virtual_clock: bool = False, eager: bool = False
    ) -> None:
        parse_addresses(url)
        self._eager = eager
        self._asked_url = url
        self._isolated = isolated
        self._virtual_clock = virtual_clock or eager
        self._lock = threading.RLock()
        self._state: FrameworkState | None = None  # guarded by _lock
        self._finalizer: weakref.finalize[..., MessageHubTestFramework] | None = None  # guarded by _lock
        self._names: set[str] = set()  # of mock services, also while they are created; checked and added under _lock
        self._mocks: dict[str, MockService] = {}  # replaced under _lock; single operations without
        self._clients: dict[str, MessageHubClient] = {}  # guarded by _lock
        self._faults: dict[MessageHubClient, Faults] = {}  # guarded by _lock

    def __enter__(self) -> MessageHubTestFramework:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<MessageHubTestFramework with {', '.join(self._mocks) or 'no services'}>"

    # --- start and stop ---------------------------------------------------------------------------

    def start(self) -> None:
        """Find or create the hub. Optional: every method that needs the hub calls it. Idempotent.

        :raises MessageHubConfigurationError: ``isolated``, ``virtual_clock`` or ``eager`` is not possible with this
            URL.
        """
        self._started()

    def stop(self) -> None:
        """Close all clients and mock services, and delete what the tests created. Idempotent.

        A hub or virtual host of the framework's own is deleted. On a shared one, the queues that did not exist before
        are deleted, with their retry and dead-letter queues; the exchange ``events`` stays, because others may use it.
        Closing the clients takes at most 5 s, deleting the queues at most 5 s.
        """
        with self._lock:
            state, self._state = self._state, None
            finalizer, self._finalizer = self._finalizer, None
            self._names = set()
            self._mocks = {}
            self._clients = {}
            self._faults = {}
        # Outside the lock: stopping closes clients and waits for their handlers.
        if state is not None and finalizer is not None:
            finalizer.detach()
            state.stop()

    def _started(self) -> FrameworkState:
        with self._lock:
            if self._state is None:
                if self._eager and not isinstance(parse_addresses(self._asked_url), MemoryAddress):
                    raise MessageHubConfigurationError("eager must be False on RabbitMQ, not True: use memory://")
                target = find_target(self._asked_url, isolated=self._isolated, virtual_clock=self._virtual_clock)
                state = self._state = FrameworkState(target, eager=self._eager)
                self._finalizer = weakref.finalize(self, state.stop_in_thread)
                self._finalizer.atexit = False  # the state has registered its stop() with atexit
            return self._state

    @property
    def url(self) -> str:
        """The ``rabbitmq_url`` for clients of the code under test. Starts the framework if needed."""
        return self._started().target.url

    # --- services ---------------------------------------------------------------------------------

    def create_mock_service(self, name: str, **options: Any) -> MockService:
        """Create a service that the test controls. It has an inbox. Starts the framework if needed.

        :param name: the service name, to which others send messages.
        :param options: options of :class:`MessageHubClient`, for example ``retry=RetryPolicy.none()``.
        :raises ValueError: ``name`` is not a service name, or this framework has a mock service of that name.
        :raises MessageHubConnectionError: the hub did not answer in time.
        """
        validate_service_name(name, what="name")
        with self._lock:
            state = self._started()
            if name in self._names:
                raise MessageValidationError(
                    f"name must be new in this framework, not {shown(name)}: that mock service exists already, use it"
                )
            self._names.add(name)
        try:
            mock = MockService(state.client(name, options), Script(), state.failures.latest)
        except BaseException:
            self._names.discard(name)
            raise
        self._mocks[name] = mock
        return mock

    def client(self, service_name: str, **options: Any) -> MessageHubClient:
        """Create a client for the code under test, connected to this hub. :meth:`stop` closes it.

        :param service_name: the name of the service under test.
        :param options: options of :class:`MessageHubClient`; used by the first call for this name only.
        :returns: the same client at each call with the same name.
        :raises ValueError: ``service_name`` is not a service name.
        :raises MessageHubConnectionError: the framework was stopped during the call.
        """
        validate_service_name(service_name)
        with self._lock:
            client = self._clients.get(service_name)
            if client is None:
                client = self._clients[service_name] = self._started().client(service_name, options)
            return client

    # --- deliveries -------------------------------------------------------------------------------

    def verify_message_delivery(
        self, source: str, destination: str, message_id: UUID | str, timeout: float = 5.0
    ) -> bool:
        """Wait until the mock service ``destination`` has received this message from ``source``.

        :param source: a mock service or client of this framework.
        :param destination: a mock service of this framework.
        :param message_id: the return value of ``send_message``.
        :param timeout: seconds to wait.
        :returns: true as soon as the message has arrived, false after the timeout.
        :raises ValueError: this framework does not know a name, or ``message_id`` is not a UUID.
        """
        wanted = _identity(message_id)
        self._check_source(source)
        received = self._mock(destination)._script.messages
        deadline = deadline_after(timeout, 5.0)
        return received.find(lambda one: one.id == wanted and one.source == source, deadline) is not None

    def verify_event_delivery(
        self,
        source: str,
        event_type: Any,
        event_id: UUID | str,
        subscribers: Iterable[str],
        timeout: float = 5.0,
    ) -> tuple[bool, list[str]]:
        """Wait until all ``subscribers`` have received this event from ``source``.

        :param source: a mock service or client of this framework.
        :param event_type: the event type's name, or an ``EventType``.
        :param event_id: the return value of ``publish_event``.
        :param subscribers: names of mock services of this framework.
        :param timeout: seconds to wait, for all of them together.
        :returns: whether all have received it, and the names of those that have.
        :raises ValueError: this framework does not know a name, ``event_type`` is not an event type, or ``event_id`` is
            not a UUID.
        """
        wanted, name = _identity(event_id), validate_event_type(event_type)
        self._check_source(source)
        if isinstance(subscribers, str):
            subscribers = [subscribers]
        mocks = [self._mock(subscriber) for subscriber in subscribers]
        deadline = deadline_after(timeout, 5.0)
        received_by = [
            mock.name
            for mock in mocks
            if mock._script.events.find(
                lambda one: one.id == wanted and one.source == source and one.event_type == name, deadline
            )
        ]
        return len(received_by) == len(mocks), received_by

    def verify_no_cross_talk(self, services: Iterable[str], timeout: float = 5.0) -> bool:
        """Check that each of these services receives everything that is addressed to it, and nothing else.

        A probe is published to each of their queues. When it arrives, everything before it in the queue has arrived,
        too, so the check need not wait until no more messages come.

        :param services: names of mock services of this framework.
        :param timeout: seconds to wait, for all of them together.
        :returns: false in three cases, each logged as a warning. 1: a probe did not arrive, because another client
            consumes the queue (for example a real service of that name) or a handler does not return. 2: a service
            received a message to another service. 3: it received an event to which it is not subscribed.
        :raises ValueError: a name is not a mock service of this framework.
        """
        if isinstance(services, str):
            services = [services]
        mocks = [self._mock(name) for name in services]
        deadline = deadline_after(timeout, 5.0)
        findings = cross_talk(self._started().transport(), mocks, deadline)
        for finding in findings:
            logger.warning("cross-talk: %s", finding)
        return not findings

    # --- the client under test --------------------------------------------------------------------

    @contextmanager
    def intercept(self, client: MessageHubClient | MockService) -> Iterator[Traffic]:
        """Record what a client publishes, sends and handles during the ``with`` block.

        ::

            with framework.intercept(client) as traffic:
                create_character(client)
            traffic.published(CharacterCreated, where={"name": "Frodo"})

        The client needs no change: the hooks are in its transport. The recorded traffic can be read after the block.

        :param client: any client of this process, connected to any hub, or a mock service.
        :returns: a context manager that gives the :class:`Traffic`.
        :raises MessageValidationError: ``client`` is neither of them.
        """
        real = _client_of(client)
        hooks = hooks_of(real)
        traffic = Traffic(real.service_name, self._started().failures.latest)
        hooks.add_listener(traffic.listener)
        try:
            yield traffic
        finally:
            hooks.remove_listener(traffic.listener)

    def faults(self, client: MessageHubClient | MockService) -> Faults:
        """Plan faults between a client and its hub.

        :param client: any client of this process, connected to any hub, or a mock service.
        :returns: the same :class:`Faults` at each call for the same client, until :meth:`stop`.
        :raises MessageValidationError: ``client`` is neither of them.
        """
        real = _client_of(client)
        with self._lock:
            state = self._started()
            faults = self._faults.get(real)
            if faults is None:
                hooks = hooks_of(real)
                faults = self._faults[real] = Faults(hooks)
                state.at_end(faults.clear)
                state.at_end(lambda: hooks.set_interference(None))
            return faults

    # --- time -------------------------------------------------------------------------------------

    def advance(self, seconds: float, timeout: float = 5.0) -> None:
        """Move the hub's virtual clock forward. A retry that waits for 30 s is due after ``advance(30)``.

        It first waits until every message has been handled or moved to a retry queue. Then everything that becomes due
        in these seconds happens, in the order of its due time. Time goes on only when its handlers have returned, so
        ``advance(3600)`` runs all attempts of a message that are due within the hour.

        :param seconds: seconds of the virtual clock.
        :param timeout: real seconds to wait for the handlers, in all.
        :raises MessageHubConfigurationError: this framework was created without ``virtual_clock=True``.
        :raises AssertionError: a handler did not return, or a queue was not emptied, within ``timeout``.
        """
        state = self._started()
        target, eager = state.target, state.eager
        if target.clock is None or target.hub is None:
            raise MessageHubConfigurationError(
                "advance() needs a virtual clock: create the framework with virtual_clock=True and a memory:// URL"
            )
        hub, deadline = target.hub, deadline_after(timeout, 5.0)

        def settle() -> None:
            if not hub.wait_until_idle(deadline):
                raise AssertionError(
                    f"a message was still being handled after {timeout:g} s, so the clock was not moved further: "
                    "let the handlers return, or raise timeout"
                )

        if eager is None:
            settle()
            target.clock.advance(seconds, settle)
            return
        with eager.until_rest():
            eager.run_until_rest()
            target.clock.advance(seconds, eager.run_until_rest)

    # --- dead letters -----------------------------------------------------------------------------

    def export_dead_letter(
        self,
        queue: str,
        file: str | os.PathLike[str] | None = None,
        message_id: UUID | str | None = None,
        *,
        remove: bool = False,
        timeout: float = 5.0,
    ) -> DeadLetter:
        """Wait for a dead letter, and read it.

        :param queue: the queue in which the message failed: ``{service}.{event_type}`` or ``{service}.messages``.
        :param file: the file to write, as JSON that :func:`load_dead_letter` reads; ``None`` writes no file.
        :param message_id: the message's id; ``None`` means the oldest dead letter.
        :param remove: remove it from the dead-letter queue.
        :param timeout: seconds to wait.
        :returns: the dead letter.
        :raises MessageValidationError: the message was not dead-lettered in time.
        :raises OSError: the file cannot be written; the dead letter stays in its queue.
        """
        state = self._started()
        deadline = deadline_after(timeout, 5.0)
        if not state.target.own:
            state.before_declare(dead_letter_queue(queue.removesuffix(DEAD_LETTER_SUFFIX)).name)

        def save(letter: DeadLetter) -> None:
            if file is not None:
                save_dead_letter(letter, file)

        return fetch_dead_letter(
            state.transport(), queue, message_id, save, remove=remove, wait=True, deadline=deadline, force=True
        )

    def replay(self, letter: DeadLetter, timeout: float = 5.0) -> None:
        """Publish a dead letter to the queue in which it failed, for a service that consumes it now.

        To call a handler without a hub, use :meth:`DeadLetter.replay`.

        :param letter: the dead letter, from :meth:`export_dead_letter` or :func:`load_dead_letter`.
        :param timeout: seconds to wait for the hub's confirm.
        :raises MessageHubDeliveryError: the queue does not exist, or the hub did not confirm in time.
        """
        send_again(self._started().transport(), letter, deadline_after(timeout, 5.0))

    # --- inside -----------------------------------------------------------------------------------

    def _mock(self, name: str) -> MockService:
        mock = self._mocks.get(name)
        if mock is None:
            raise MessageValidationError(
                f"the service must be a mock service of this framework, not {shown(name)}; it has "
                f"{', '.join(self._mocks) or 'none'}; create_mock_service() creates one"
            )
        return mock

    def _check_source(self, name: str) -> None:
        if name not in self._mocks and name not in self._clients:
            raise MessageValidationError(
                f"source must be a service of this framework, not {shown(name)}; it has "
                f"{', '.join([*self._mocks, *self._clients]) or 'none'}; create_mock_service() or client() creates one"
            )


def _client_of(client: Any) -> MessageHubClient:
    if isinstance(client, MockService):
        return client.client
    if isinstance(client, MessageHubClient):
        return client
    raise MessageValidationError(f"client must be a MessageHubClient or a MockService, not {shown(client)}")


def _identity(value: Any) -> UUID:
    if isinstance(value, UUID):
        return value
    try:
        return UUID(value)
    except (ValueError, TypeError, AttributeError):
        raise MessageValidationError(
            f"the id must be the UUID that send_message or publish_event returned, not {shown(value)}"
        ) from None
