"""What a started framework has to end: clients, queues, its hub."""

from __future__ import annotations

import _thread
import atexit
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from message_hub_sync.client.client import MessageHubClient
from message_hub_sync.client.session import _transport
from message_hub_sync.config import ClientConfig, parse_addresses
from message_hub_sync.consuming.retry_policy import RETRY_DELAYS_MS
from message_hub_sync.errors import MessageHubConnectionError, MessageHubError
from message_hub_sync.runtime.deadlines import remaining
from message_hub_sync.testing._hooks.handler_failures import HandlerFailures
from message_hub_sync.testing._hooks.transport_hooks import hooks_of
from message_hub_sync.testing.targets import Target
from message_hub_sync.transport.base import Delivery, Outgoing, Receipt, Transport
from message_hub_sync.transport.topology import DEAD_LETTER_SUFFIX, QueueSpec, Topology, retry_queue

__all__ = ["FrameworkState"]

logger = logging.getLogger("message_hub_sync.testing")

#: Seconds for the framework's own questions to the hub.
TIMEOUT = 5.0
#: The framework's own name on a hub.
SERVICE_NAME = "message-hub-test-framework"


class FrameworkState:
    """From start to stop of one framework. It knows nothing of the framework, which may be collected meanwhile.

    Mutable, guarded by ``_lock``: the clients, the queues that were not there before, the transport for questions
    and orders of the framework's own, the actions to be done at the end, and whether it is ending. ``stopped`` is
    set when all is done.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.failures = HandlerFailures()
        self._lock = threading.Lock()
        self._clients: list[MessageHubClient] = []
        self._new_queues: dict[str, None] = {}
        self._transport: Transport | None = None
        self._at_end: list[Callable[[], object]] = []
        self._stopping = False
        self.stopped = threading.Event()
        self.failures.start()
        atexit.register(self.stop)

    def client(self, service_name: str, options: dict[str, Any]) -> MessageHubClient:
        """A client on this hub, closed at the end.

        :raises MessageHubConnectionError: the framework is stopping.
        """
        client = MessageHubClient(service_name, self.target.url, **options)
        with self._lock:
            if self._stopping:
                raise MessageHubConnectionError("the test framework was stopped meanwhile: start it again")
            self._clients.append(client)
        if not self.target.own:
            hooks_of(client).listen(_NewQueues(self))
        return client

    def transport(self) -> Transport:
        """The framework's own way to the hub, made on first need."""
        with self._lock:
            if self._transport is None:
                self._transport = _transport(ClientConfig(SERVICE_NAME, parse_addresses(self.target.url)))
            return self._transport

    def declares(self, queue: str) -> None:
        """A queue is about to be declared: where it is not there yet, it is removed at the end."""
        stats = self.transport().queue_stats([queue], time.monotonic() + TIMEOUT)
        if stats[queue] is None:
            with self._lock:
                self._new_queues[queue] = None

    def at_end(self, action: Callable[[], object]) -> None:
        """Have ``action`` done first when the framework stops."""
        with self._lock:
            self._at_end.append(action)

    def stop(self) -> None:
        """Close the clients, remove what was declared, leave the hub. Idempotent."""
        with self._lock:
            first = not self._stopping
            self._stopping = True
            clients, actions, transport = self._clients, self._at_end, self._transport
        if not first:
            # At the interpreter's exit another thread may be at it: leaving now would cut it off.
            self.stopped.wait(4 * TIMEOUT)
            return
        deadline = time.monotonic() + TIMEOUT
        for action in actions:
            self._tried(action)
        for client in clients:
            self._tried(lambda client=client: client.close(max(0.1, remaining(deadline))))  # type: ignore[misc]
        if transport is not None:
            self._tried(self._delete_queues)
            self._tried(lambda: transport.close(time.monotonic() + TIMEOUT))
        self._tried(self.target.leave)
        self.failures.stop()
        self.stopped.set()
        atexit.unregister(self.stop)

    def stop_elsewhere(self) -> None:
        """Stop in a thread of its own: for whoever may hold any lock, as a garbage collection may.

        Not even threading's own are taken here: the raw thread starts the named one.
        """
        name = f"{SERVICE_NAME}-stop"
        thread = threading.Thread(target=self.stop, name=name, daemon=True)
        try:
            _thread.start_new_thread(_start, (thread,))
        except RuntimeError:  # the interpreter is ending: atexit does it
            return

    def _delete_queues(self) -> None:
        assert self._transport is not None
        deadline = time.monotonic() + TIMEOUT
        for queue in self._new_queues:
            names = [queue, queue + DEAD_LETTER_SUFFIX, *(retry_queue(queue, delay).name for delay in RETRY_DELAYS_MS)]
            for name in names:
                self._transport.delete(Topology(QueueSpec(name)), name, deadline)

    def _tried(self, action: Callable[[], object]) -> None:
        try:
            action()
        except MessageHubError as error:
            logger.warning("the test framework did not stop in order: %s", error)
        except Exception:
            logger.exception("the test framework did not stop in order")


class _NewQueues:
    """Listens to which queues a client makes."""

    def __init__(self, running: FrameworkState) -> None:
        self._running = running

    def consuming(self, topology: Topology) -> None:
        if topology.queue.durable:
            self._running.declares(topology.queue.name)

    def published(self, outgoing: Outgoing, receipt: Receipt) -> None:
        """What is sent does not matter here."""

    def settled(self, delivery: Delivery) -> None:
        """What is handled does not matter here."""


def _start(thread: threading.Thread) -> None:
    # Ending interpreters refuse new threads, from 3.12 on also where the raw one was still begun: atexit does it.
    with contextlib.suppress(RuntimeError):
        thread.start()
