"""The test framework: mock services on a hub of their own, and what became of their messages."""

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
from message_hub_sync.config import parse_addresses
from message_hub_sync.dead_letters import DeadLetter, fetch_dead_letter, save_dead_letter, send_again
from message_hub_sync.envelope.names import validate_event_type, validate_service_name
from message_hub_sync.errors import MessageHubConfigurationError, MessageValidationError
from message_hub_sync.runtime.deadlines import deadline_after
from message_hub_sync.testing._hooks.cross_talk import cross_talk
from message_hub_sync.testing._hooks.transport_hooks import hooks_of
from message_hub_sync.testing.faults import Faults
from message_hub_sync.testing.framework_state import FrameworkState
from message_hub_sync.testing.mock_service import MockService, Script
from message_hub_sync.testing.targets import find_place
from message_hub_sync.testing.traffic import Traffic
from message_hub_sync.transport.topology import DEAD_LETTER_SUFFIX, dead_letter_queue

__all__ = ["MessageHubTestFramework"]

logger = logging.getLogger("message_hub_sync.testing")


class MessageHubTestFramework:
    """A hub to test on, with mock services. Any thread may use it.

    ::

        with MessageHubTestFramework() as framework:
            campaign = framework.create_mock_service("campaign-service")
            campaign.subscribe_to_events(["character.created"])
            create_character(framework.client("character-service"))   # the code under test
            campaign.expect_event("character.created", where={"name": "Frodo"})

    :param url: ``memory://`` is a hub of this framework alone, ``memory://name`` the one of that name.
        ``amqp://host`` is RabbitMQ; a virtual host of this framework alone is made there where that is possible (a
        :class:`RabbitMQNode` of this process, or a broker with the management plugin whose user may), because mock
        services would share the messages of real ones of their name. A URL that names a virtual host means that
        one. Connect the code under test to :attr:`url`.
    :param isolated: ``True``: a hub or virtual host of its own, or an error; ``False``: the one of the URL.
    :param virtual_clock: on ``memory://``, the hub's time stands still, and :meth:`advance` moves it.
    :raises MessageHubConfigurationError: the URL is not usable.

    A framework that is dropped without :meth:`stop` is stopped when it is collected, or at the interpreter's exit.

    Mutable, guarded by ``_lock``: what runs, its mock services (their names taken
    before they are there) and clients by name, and the faults by client.
    """

    def __init__(self, url: str = "memory://", *, isolated: bool | None = None, virtual_clock: bool = False) -> None:
        parse_addresses(url)
        self._asked_url = url
        self._isolated = isolated
        self._virtual_clock = virtual_clock
        self._lock = threading.RLock()
        self._state: FrameworkState | None = None
        self._finalizer: weakref.finalize[..., MessageHubTestFramework] | None = None
        self._names: set[str] = set()
        self._mocks: dict[str, MockService] = {}
        self._clients: dict[str, MessageHubClient] = {}
        self._faults: dict[MessageHubClient, Faults] = {}

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
        """Make the hub, or find it. Optional: whatever needs it starts it. Idempotent.

        :raises MessageHubConfigurationError: ``isolated`` or ``virtual_clock`` cannot be had at this URL.
        """
        self._started()

    def stop(self) -> None:
        """Close all clients and services, and remove what was declared: the hub or virtual host where it is the
        framework's own, else the queues that were not there before. Takes 5 s at most for each. Idempotent.

        The event exchange stays on a broker that is shared, since others may use it.
        """
        with self._lock:
            running, self._state = self._state, None
            finalizer, self._finalizer = self._finalizer, None
            self._names = set()
            self._mocks = {}
            self._clients = {}
            self._faults = {}
        if running is not None and finalizer is not None:
            finalizer.detach()
            running.stop()

    def _started(self) -> FrameworkState:
        with self._lock:
            if self._state is None:
                target = find_place(self._asked_url, isolated=self._isolated, virtual_clock=self._virtual_clock)
                running = self._state = FrameworkState(target)
                self._finalizer = weakref.finalize(self, running.stop_elsewhere)
                self._finalizer.atexit = False  # running.stop is registered there itself
            return self._state

    @property
    def url(self) -> str:
        """Where the code under test connects to: a ``rabbitmq_url``. Starts the framework when it is not."""
        return self._started().target.url

    # --- services ---------------------------------------------------------------------------------

    def create_mock_service(self, name: str, **options: Any) -> MockService:
        """A service for the test to play, with an inbox. Starts the framework when it is not.

        :param name: the service's name, as others send messages to it.
        :param options: those of :class:`MessageHubClient`, for instance ``retry=RetryPolicy.none()``.
        :raises ValueError: it is not a service name, or this framework has a service of that name.
        :raises MessageHubConnectionError: the hub did not answer in time.
        """
        validate_service_name(name, what="name")
        with self._lock:
            running = self._started()
            if name in self._names:
                raise MessageValidationError(f"there is a mock service {name} already: use that one")
            self._names.add(name)
        try:
            mock = MockService(running.client(name, options), Script(), running.failures.latest)
        except BaseException:
            self._names.discard(name)
            raise
        self._mocks[name] = mock
        return mock

    def client(self, service_name: str, **options: Any) -> MessageHubClient:
        """A client for the code under test, connected to this hub and closed by :meth:`stop`.

        :param service_name: the service that the code under test is.
        :param options: those of :class:`MessageHubClient`.
        :returns: the same client for the same name.
        """
        validate_service_name(service_name)
        with self._lock:
            client = self._clients.get(service_name)
            if client is None:
                client = self._clients[service_name] = self._started().client(service_name, options)
            return client

    # --- what became of it ------------------------------------------------------------------------

    def verify_message_delivery(
        self, source: str, destination: str, message_id: UUID | str, timeout: float = 5.0
    ) -> bool:
        """Whether the mock service ``destination`` received this message from ``source``; waits for it.

        :param source: a service or client of this framework.
        :param destination: a mock service of this framework.
        :param message_id: what ``send_message`` returned.
        :param timeout: seconds to wait; returns as soon as it is there.
        :raises ValueError: a name that this framework does not know, or no message id.
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
        """Whether every one of ``subscribers`` received this event from ``source``; waits for them.

        :param source: a service or client of this framework.
        :param event_id: what ``publish_event`` returned.
        :param subscribers: mock services of this framework.
        :param timeout: seconds to wait, for all of them together.
        :returns: whether all did, and the names of those that did.
        :raises ValueError: a name that this framework does not know, no event type, or no event id.
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
        """Whether each of these services gets what is addressed to it, all of it, and nothing else.

        A probe goes through each of their queues. What was there before it has been received when it arrives, so
        that nothing is waited for that may not come. False when a probe does not arrive, because somebody else
        consumes from that queue (a real service of that name) or the handler stands still, and when a service has
        received a message to another one, or an event that it is not subscribed to. Why is logged as a warning.

        :param services: mock services of this framework.
        :param timeout: seconds to wait, for all of them together.
        :raises ValueError: a name that is no mock service of this framework.
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
        """Listen to what a client publishes, sends and handles, while the ``with`` block lasts.

        ::

            with framework.intercept(client) as traffic:
                create_character(client)
            traffic.published(CharacterCreated, where={"name": "Frodo"})

        The client needs no change, and notices nothing: it is listened to at its transport. What was seen can be
        asked for after the block too.

        :param client: any client of this process, connected anywhere.
        """
        real = _client_of(client)
        hooks = hooks_of(real)
        traffic = Traffic(real.service_name, self._started().failures.latest)
        hooks.listen(traffic.listener)
        try:
            yield traffic
        finally:
            hooks.leave(traffic.listener)

    def faults(self, client: MessageHubClient | MockService) -> Faults:
        """What is to go wrong between a client and its hub: the same object at each call, until :meth:`stop`.

        :param client: any client of this process, connected anywhere.
        """
        real = _client_of(client)
        with self._lock:
            running = self._started()
            faults = self._faults.get(real)
            if faults is None:
                hooks = hooks_of(real)
                faults = self._faults[real] = Faults(hooks)
                running.at_end(faults.clear)
                running.at_end(lambda: hooks.interfere(None))
            return faults

    # --- time -------------------------------------------------------------------------------------

    def advance(self, seconds: float, timeout: float = 5.0) -> None:
        """Let time pass on the hub, of a framework with ``virtual_clock=True``: a retry after 30 s is due at once.

        Waits first until all that was sent has been handled, or moved to where it waits for its next attempt; then
        everything that falls due happens, in order, each at its own moment.

        :param seconds: how many of the hub's seconds.
        :param timeout: real seconds to wait for the handlers.
        :raises MessageHubConfigurationError: the clock of this framework is the real one.
        :raises AssertionError: a handler stood still, or a queue was never emptied.
        """
        target = self._started().target
        if target.clock is None or target.hub is None:
            raise MessageHubConfigurationError(
                "this framework's clock is the real one: make it with virtual_clock=True, on memory://"
            )
        if not target.hub.wait_until_idle(deadline_after(timeout, 5.0)):
            raise AssertionError(f"after {timeout:g} s there is still something being handled: time cannot pass")
        target.clock.advance(seconds)

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
        """A message that was given up; waits for it.

        :param queue: the queue that it failed in: ``{service}.{event_type}`` or ``{service}.messages``.
        :param file: where to write it, as JSON that :func:`load_dead_letter` reads; ``None``: nowhere.
        :param message_id: which one; ``None``: the oldest.
        :param remove: take it out of the dead-letter queue.
        :param timeout: seconds to wait.
        :raises MessageValidationError: it was not dead-lettered in time.
        """
        running = self._started()
        deadline = deadline_after(timeout, 5.0)
        if not running.target.own:
            running.declares(dead_letter_queue(queue.removesuffix(DEAD_LETTER_SUFFIX)).name)

        def save(letter: DeadLetter) -> None:
            if file is not None:
                save_dead_letter(letter, file)

        return fetch_dead_letter(
            running.transport(), queue, message_id, save, remove=remove, wait=True, deadline=deadline
        )

    def replay(self, letter: DeadLetter, timeout: float = 5.0) -> None:
        """Put a dead letter into the queue that it failed in, for a service that consumes it now.

        To call a handler alone, without a hub, there is :meth:`DeadLetter.replay`.

        :param timeout: seconds for the hub to take it.
        :raises MessageHubDeliveryError: nobody has made that queue, or the hub did not confirm.
        """
        send_again(self._started().transport(), letter, deadline_after(timeout, 5.0))

    # --- inside -----------------------------------------------------------------------------------

    def _mock(self, name: str) -> MockService:
        mock = self._mocks.get(name)
        if mock is None:
            raise MessageValidationError(
                f"{str(name)[:80]!r} is no mock service of this framework; it has "
                f"{', '.join(self._mocks) or 'none'} (create_mock_service makes one)"
            )
        return mock

    def _check_source(self, name: str) -> None:
        if name not in self._mocks and name not in self._clients:
            raise MessageValidationError(
                f"{str(name)[:80]!r} is no service of this framework; it has "
                f"{', '.join([*self._mocks, *self._clients]) or 'none'} (create_mock_service and client make one)"
            )


def _client_of(client: Any) -> MessageHubClient:
    if isinstance(client, MockService):
        return client.client
    if isinstance(client, MessageHubClient):
        return client
    raise MessageValidationError(f"a {type(client).__name__} is no client: a MessageHubClient or a MockService is")


def _identity(value: Any) -> UUID:
    if isinstance(value, UUID):
        return value
    try:
        return UUID(value)
    except (ValueError, TypeError, AttributeError):
        raise MessageValidationError(
            f"the id of type {type(value).__name__} is not usable: what send_message or publish_event returned is"
        ) from None
