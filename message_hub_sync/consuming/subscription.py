"""SubscriptionRegistry: what a user holds, and the registry that shares one consumer per queue among them."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Sequence

from message_hub_sync.config import ClientConfig
from message_hub_sync.consuming.consumed_queue import ConsumedQueue, ConsumeOptions, ConsumerContext
from message_hub_sync.consuming.handlers import Handler
from message_hub_sync.consuming.queue_consumer import QueueConsumer
from message_hub_sync.consuming.retry_policy import RETRY_DELAYS_MS
from message_hub_sync.errors import (
    MessageHubConfigurationError,
    MessageHubConnectionError,
)
from message_hub_sync.runtime.deadlines import deadline_after, timeout_seconds
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.process_kind import reloader_parent
from message_hub_sync.transport.topology import Topology, retry_queue

__all__ = ["Subscription", "SubscriptionRegistry"]

logger = SafeLogger("message_hub_sync.subscription")


class Subscription:
    """A subscription to event types, or to a service's inbox, until it is cancelled.

    Safe from any thread. Its state is kept by the client's registry; a forked child has one of its own, in
    which the parent's subscriptions are inactive until :meth:`start`.
    """

    def __init__(
        self,
        registry: Callable[[], SubscriptionRegistry],
        config: ClientConfig,
        consumed_queues: Sequence[ConsumedQueue],
        handler: Handler,
        options: ConsumeOptions,
    ) -> None:
        self._registry = registry
        self._config = config
        self._consumed_queues = tuple(consumed_queues)
        self._handler = handler
        self._options = options

    @property
    def event_types(self) -> tuple[str, ...]:
        """The event types and patterns subscribed to; empty for the inbox."""
        return tuple(consumed.event_type for consumed in self._consumed_queues if consumed.event_type is not None)

    @property
    def queues(self) -> tuple[str, ...]:
        """The queues it consumes, by their present names."""
        return self._registry().queues(self)

    @property
    def active(self) -> bool:
        """Whether every one of its queues is being consumed now."""
        return self._registry().is_active(self)

    def start(self) -> None:
        """Consume again: after :meth:`cancel`, or in a forked child. Does nothing where it runs.

        :raises MessageHubConnectionError: the queues were not consumed within ``connect_timeout``.
        """
        self._registry().start(self, time.monotonic() + self._config.connect_timeout)

    def cancel(self, timeout: float | None = None) -> None:
        """Stop. Waits for handlers that run now, but not for itself when one of them calls this.

        :param timeout: seconds, by default ``close_timeout``; a handler that needs longer finishes all the same.
        """
        self._registry().cancel(self, deadline_after(timeout, self._config.close_timeout))

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is cancelled or its client closed; whether it was.

        :param timeout: seconds, ``None`` for as long as it takes.
        """
        seconds = None if timeout is None else timeout_seconds(timeout, 0.0)
        return self._registry().ended(self).wait(seconds)

    def delete(self) -> None:
        """Cancel, and remove its queues with their bindings, their retry queues and all that is in them.

        The dead-letter queues stay: somebody has to look at what is in them.

        :raises MessageHubConfigurationError: another subscription of this client consumes one of them.
        """
        self._registry().delete(self, time.monotonic() + self._config.connect_timeout)

    def __repr__(self) -> str:
        names = ", ".join(consumed.topology.queue.name for consumed in self._consumed_queues)
        return f"<Subscription to {names}>"


class SubscriptionRegistry:
    """The subscriptions of one client in one process, and one consumer for each queue they name.

    Mutable, guarded by ``_lock``: the consumers by queue, those that stop while a handler still runs, the queues
    that others consumed before, every known subscription with the event that tells its end (set: not running),
    and whether new ones are refused. Round trips happen outside the lock.
    """

    def __init__(self, context: ConsumerContext, inherited: Sequence[Subscription] = ()) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._consumers: dict[tuple[str, bool], QueueConsumer] = {}
        self._leaving: set[QueueConsumer] = set()
        self._consumed: set[tuple[str, bool]] = set()
        self._ended: dict[Subscription, threading.Event] = {}
        self._closed = False
        for subscription in inherited:
            self._ended[subscription] = _set_event()

    # --- one subscription -------------------------------------------------------------------------

    def start(self, subscription: Subscription, deadline: float) -> None:
        """Consume its queues. All of them, or after an error none."""
        parent = reloader_parent()
        with self._lock:
            if self._closed:
                raise MessageHubConnectionError("this client is closed: nothing is consumed")
            ended = self._ended.get(subscription)
            if ended is not None and not ended.is_set():
                return
            joined = self._join(subscription) if parent is None else []
            self._ended[subscription] = threading.Event() if parent is None else _set_event()
        if parent is not None:
            logger.info("%r stays inactive: this is the parent of the %s reloader", subscription, parent)
            return
        try:
            for consumer in joined:
                consumer.start(deadline)
        except BaseException:
            self.cancel(subscription, deadline)
            raise

    def _join(self, subscription: Subscription) -> list[QueueConsumer]:
        """Under the lock: the consumers of its queues, each with its callback."""
        for consumed in subscription._consumed_queues:
            there = self._consumers.get(consumed.key)
            if there is not None and subscription._options not in (there.options, ConsumeOptions()):
                raise MessageHubConfigurationError(
                    f"the queue {consumed.topology.queue.name} is already consumed with {there.options}: "
                    "a second subscription to it takes the same options, or none"
                )
        joined = []
        for consumed in subscription._consumed_queues:
            consumer = self._consumers.get(consumed.key)
            if consumer is None:
                first_in_process = consumed.key not in self._consumed
                consumer = QueueConsumer(
                    consumed, subscription._options, self._context, first_in_process=first_in_process
                )
                self._consumers[consumed.key] = consumer
            consumer.attach(subscription, subscription._handler)
            joined.append(consumer)
        return joined

    def cancel(self, subscription: Subscription, deadline: float) -> None:
        """Remove its callbacks, and stop the consumers that have none left."""
        idle = []
        with self._lock:
            ended = self._ended.pop(subscription, None)
            for consumed in subscription._consumed_queues:
                consumer = self._consumers.get(consumed.key)
                if consumer is not None and consumer.detach(subscription):
                    idle.append(self._consumers.pop(consumed.key))
            self._leaving.update(idle)
            self._consumed.update(consumer.consumed.key for consumer in idle if consumer.consumer is not None)
        for consumer in idle:
            consumer.cancel(deadline)
        for consumer in idle:
            consumer.afterwards(functools.partial(self._leaving.discard, consumer))
            consumer.join(deadline)
        if ended is not None:
            ended.set()

    def delete(self, subscription: Subscription, deadline: float) -> None:
        """Cancel it and remove its queues."""
        self.cancel(subscription, deadline)
        with self._lock:
            shared = [consumed for consumed in subscription._consumed_queues if consumed.key in self._consumers]
        if shared:
            raise MessageHubConfigurationError(
                f"the queue {shared[0].topology.queue.name} is not removed: another subscription consumes it"
            )
        transport = self._context.transport
        for consumed in subscription._consumed_queues:
            queue = consumed.topology.queue
            if queue.durable:
                transport.delete(consumed.topology, queue.name, deadline)
                for delay in RETRY_DELAYS_MS:
                    spec = retry_queue(queue.name, delay)
                    transport.delete(Topology(spec), spec.name, deadline)

    def queues(self, subscription: Subscription) -> tuple[str, ...]:
        """The present names of its queues."""
        with self._lock:
            found = [(consumed, self._consumers.get(consumed.key)) for consumed in subscription._consumed_queues]
        return tuple(
            consumed.topology.queue.name if consumer is None else consumer.queue for consumed, consumer in found
        )

    def is_active(self, subscription: Subscription) -> bool:
        """Whether it runs, and each of its queues is being consumed."""
        with self._lock:
            ended = self._ended.get(subscription)
            if ended is None or ended.is_set():
                return False
            consumers = [self._consumers.get(consumed.key) for consumed in subscription._consumed_queues]
        return all(consumer is not None and consumer.active for consumer in consumers)

    def ended(self, subscription: Subscription) -> threading.Event:
        """What is set when it does not run."""
        with self._lock:
            return self._ended.get(subscription) or _set_event()

    # --- all of them ------------------------------------------------------------------------------

    def known(self) -> list[Subscription]:
        """Every subscription that runs, or was inherited through a fork."""
        with self._lock:
            return list(self._ended)

    def known_unlocked(self) -> list[Subscription]:
        """The same in a forked child, where a thread that does not exist there may hold the lock."""
        return list(self._ended)

    def running(self) -> list[Subscription]:
        """Those that were started and not cancelled."""
        with self._lock:
            return [subscription for subscription, ended in self._ended.items() if not ended.is_set()]

    def any_running_unlocked(self) -> bool:
        """Whether there is one of these, as far as can be told without the lock."""
        return not all(ended.is_set() for ended in list(self._ended.values()))

    def consumers(self) -> list[QueueConsumer]:
        """One for each queue being consumed."""
        with self._lock:
            return list(self._consumers.values())

    def in_handler(self) -> bool:
        """Whether the calling thread is one of the workers."""
        with self._lock:
            consumers = [*self._consumers.values(), *self._leaving]
        return any(consumer.is_current_thread for consumer in consumers)

    def refuse(self) -> None:
        """Take no new subscription from now on."""
        with self._lock:
            self._closed = True

    def stop(self, deadline: float) -> QueueConsumer | None:
        """Stop all consumers and wait for running handlers; returns the consumer whose handler calls this."""
        began = time.monotonic()
        with self._lock:
            consumers = [*self._consumers.values(), *self._leaving]
        for consumer in consumers:
            consumer.cancel(deadline)
        for consumer in consumers:
            if not consumer.join(deadline):
                consumer.tell_unfinished(time.monotonic() - began)
        with self._lock:
            ends = list(self._ended.values())
        for ended in ends:
            ended.set()
        return next((consumer for consumer in consumers if consumer.is_current_thread), None)


def _set_event() -> threading.Event:
    event = threading.Event()
    event.set()
    return event
