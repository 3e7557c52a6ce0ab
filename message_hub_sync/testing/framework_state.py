"""The resources of a started framework: its clients, its queues and its hub. Stopping releases them."""

from __future__ import annotations

import _thread
import atexit
import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any

from message_hub_sync.client.client import MessageHubClient
from message_hub_sync.client.session import _transport, around_hub
from message_hub_sync.config import ClientConfig, parse_addresses
from message_hub_sync.consuming.retry_policy import RETRY_DELAYS_MS
from message_hub_sync.errors import MessageHubConnectionError, MessageHubError
from message_hub_sync.runtime.deadlines import remaining
from message_hub_sync.runtime.real_time import time
from message_hub_sync.testing._hooks.eager import EagerHandling
from message_hub_sync.testing._hooks.handler_failures import HandlerFailures
from message_hub_sync.testing._hooks.transport_hooks import hooks_of
from message_hub_sync.testing.targets import Target
from message_hub_sync.transport.base import LARGEST_BODY, Delivery, Outgoing, Receipt, Transport
from message_hub_sync.transport.topology import DEAD_LETTER_SUFFIX, QueueSpec, Topology, retry_queue

__all__ = ["FrameworkState"]

logger = logging.getLogger("message_hub_sync.testing")

#: Seconds for the framework's own requests to the hub.
TIMEOUT = 5.0
#: The framework's own service name on a hub.
SERVICE_NAME = "message-hub-test-framework"


class FrameworkState:
    """All that exists between start and stop of one framework. Thread-safe.

    It holds no reference to the framework, so that a framework that the test drops can be garbage-collected.
    """

    def __init__(self, target: Target, *, eager: bool = False) -> None:
        self.target = target
        self.eager = EagerHandling(target.hub) if eager and target.hub is not None else None
        if self.eager is not None and target.hub is not None:
            around_hub[target.hub.name] = self.eager
        self.failures = HandlerFailures()
        self._lock = threading.RLock()
        self._clients: list[MessageHubClient] = []  # guarded by _lock
        self._new_queues: dict[str, None] = {}  # queues that did not exist before; guarded by _lock
        self._transport: Transport | None = None  # the framework's own; guarded by _lock
        self._at_end: list[Callable[[], object]] = []  # guarded by _lock
        self._stopping = False  # guarded by _lock
        self.stopped = threading.Event()  # set at the end of stop()
        self.failures.start()
        atexit.register(self.stop)

    def client(self, service_name: str, options: dict[str, Any]) -> MessageHubClient:
        """Create a client on this hub. :meth:`stop` closes it.

        :raises MessageHubConnectionError: the framework is stopping.
        """
        client = MessageHubClient(service_name, self.target.url, **options)
        with self._lock:
            if self._stopping:
                raise MessageHubConnectionError(
                    "the test framework was stopped while it created a client: call start() again"
                )
            self._clients.append(client)
        if not self.target.own:
            hooks_of(client).add_listener(_NewQueues(self))
        return client

    def transport(self) -> Transport:
        """The framework's own transport, created at the first call."""
        with self._lock:
            if self._transport is None:
                addresses = parse_addresses(self.target.url)
                # A dead letter is read with its whole body, so that it can be put back.
                self._transport = _transport(ClientConfig(SERVICE_NAME, addresses, max_message_bytes=LARGEST_BODY))
            return self._transport

    def before_declare(self, queue: str) -> None:
        """A queue is about to be declared. If it does not exist yet, :meth:`stop` deletes it."""
        stats = self.transport().queue_stats([queue], time.monotonic() + TIMEOUT)
        if stats[queue] is None:
            with self._lock:
                self._new_queues[queue] = None

    def at_end(self, action: Callable[[], object]) -> None:
        """Call ``action`` when the framework stops, before the clients are closed."""
        with self._lock:
            self._at_end.append(action)

    def stop(self) -> None:
        """Close the clients, delete the new queues, and remove the hub if it is the framework's own. Idempotent."""
        with self._lock:
            first = not self._stopping
            self._stopping = True
            clients, actions, transport = self._clients, self._at_end, self._transport
        if not first:
            # Another thread is stopping: wait for it. At interpreter exit, returning now would kill that thread.
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
        if self.target.hub is not None:
            around_hub.pop(self.target.hub.name, None)
        self._tried(self.target.remove)
        self.failures.stop()
        self.stopped.set()
        atexit.unregister(self.stop)

    def stop_in_thread(self) -> None:
        """Call :meth:`stop` in a new thread, without taking a lock.

        For the finalizer: garbage collection can run in a thread that holds any lock.
        """
        # Thread.start() takes locks of threading, too. The raw thread takes none; it starts the named one.
        name = f"{SERVICE_NAME}-stop"
        thread = threading.Thread(target=self.stop, name=name, daemon=True)
        try:
            _thread.start_new_thread(_start, (thread,))
        except RuntimeError:  # the interpreter is exiting: the atexit handler calls stop()
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
            logger.warning("the test framework could not release a resource and continues to stop: %s", error)
        except Exception:
            logger.exception("the test framework could not release a resource and continues to stop")


class _NewQueues:
    """Reports the durable queues that a client declares. Methods: see :class:`Listener`."""

    def __init__(self, state: FrameworkState) -> None:
        self._state = state

    def consuming(self, topology: Topology) -> None:
        if topology.queue.durable:
            self._state.before_declare(topology.queue.name)

    def published(self, outgoing: Outgoing, receipt: Receipt) -> None: ...

    def acknowledged(self, delivery: Delivery) -> None: ...


def _start(thread: threading.Thread) -> None:
    # An exiting interpreter starts no thread; since Python 3.12 even if this raw thread was still started. Then the
    # atexit handler calls stop().
    with contextlib.suppress(RuntimeError):
        thread.start()
