"""Subscriptions, and the registry that shares one consumer for each queue among them."""

from __future__ import annotations

import functools
import threading
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
from message_hub_sync.runtime.real_time import time
from message_hub_sync.runtime.text import shown
from message_hub_sync.transport.topology import retry_queue

__all__ = ["Subscription", "SubscriptionRegistry"]

logger = SafeLogger("message_hub_sync.subscription")


class Subscription:
    """A subscription to event types, or to a service's inbox, until it is cancelled.

    Any thread may use it. In a forked child the parent's subscriptions are inactive until :meth:`start`: the state is
    in the registry of the client, and each process has its own registry.
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
        """The names of the queues it consumes, as declared."""
        return self._registry().queues(self)

    @property
    def active(self) -> bool:
        """Whether all its queues are consumed now."""
        return self._registry().is_active(self)

    def start(self) -> None:
        """Consume again, after :meth:`cancel` or in a forked child. Does nothing if the subscription is running.

        :raises MessageHubConnectionError: the queues were not consumed within ``connect_timeout``, or the client is
            closed.
        :raises MessageHubAuthorizationError: the broker does not let this user declare or consume a queue.
        :raises MessageHubConfigurationError: a queue is consumed already with other options, or a queue or exchange on
            the broker contradicts the settings.
        """
        self._registry().start(self, time.monotonic() + self._config.connect_timeout)

    def cancel(self, timeout: float | None = None) -> None:
        """Stop consuming, and wait for running handlers. A handler that calls this is not waited for.

        :param timeout: seconds, by default ``close_timeout``. A handler that needs longer still finishes.
        """
        self._registry().cancel(self, deadline_after(timeout, self._config.close_timeout))

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the subscription is cancelled or its client is closed.

        :param timeout: seconds; ``None`` waits without limit.
        :returns: whether it has ended; false after the timeout.
        """
        seconds = None if timeout is None else timeout_seconds(timeout, 0.0)
        return self._registry().ended(self).wait(seconds)

    def delete(self) -> None:
        """Cancel the subscription, and delete its durable queues and their retry queues with all messages in them.

        The dead-letter queues stay, because somebody must look at the messages in them.

        :raises MessageHubConfigurationError: another subscription of this client consumes one of the queues.
        :raises MessageHubError: a queue was not deleted within ``connect_timeout``.
        """
        self._registry().delete(self, time.monotonic() + self._config.connect_timeout)

    def __repr__(self) -> str:
        names = ", ".join(consumed.topology.queue.name for consumed in self._consumed_queues)
        return f"<Subscription to {names}>"


class SubscriptionRegistry:
    """The subscriptions of one client in one process, and one consumer for each of their queues.

    Any thread may use it. No call holds ``_lock`` while it waits for the broker.

    :param inherited: in a forked child, the subscriptions of the parent; they are inactive.
    """

    def __init__(self, context: ConsumerContext, inherited: Sequence[Subscription] = ()) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._consumers: dict[tuple[str, bool], QueueConsumer] = {}  # changed under _lock
        # Cancelled consumers of which a handler still runs.
        self._leaving: set[QueueConsumer] = set()  # changed under _lock, except for the atomic discard()
        # An event that is set means: not running.
        self._ended: dict[Subscription, threading.Event] = {}  # guarded by _lock
        self._closed = False  # guarded by _lock
        #: Whether stop() saw every handler end, except one that called it. Written by the thread that stops.
        self.drained = False
        for subscription in inherited:
            self._ended[subscription] = _set_event()
        context.transport.on_connected(self._connected)

    def _connected(self) -> None:
        # On an I/O thread: no lock, which a thread that waits for the broker may hold.
        for consumer in [*list(self._consumers.values()), *list(self._leaving)]:
            consumer.connected()

    # --- one subscription -------------------------------------------------------------------------

    def start(self, subscription: Subscription, deadline: float) -> None:
        """Consume the queues of a subscription. If one of them fails, consume none.

        If another thread starts it now, wait for the result.

        :param deadline: monotonic seconds.
        """
        parent = reloader_parent()
        with self._lock:
            if self._closed:
                raise MessageHubConnectionError(
                    "this client is closed, so nothing is consumed: create a new MessageHubClient"
                )
            ended = self._ended.get(subscription)
            mine = ended is None or ended.is_set()
            if not mine:
                found = [self._consumers.get(consumed.key) for consumed in subscription._consumed_queues]
                joined = [consumer for consumer in found if consumer is not None]
            else:
                joined = self._join(subscription) if parent is None else []
                self._ended[subscription] = threading.Event() if parent is None else _set_event()
        if parent is not None:
            logger.info("%r stays inactive: this process is the parent of the %s reloader", subscription, parent)
            return
        try:
            QueueConsumer.start_all(joined, deadline)
        except BaseException:
            if mine:
                self.cancel(subscription, deadline)
            raise

    def _join(self, subscription: Subscription) -> list[QueueConsumer]:
        """The consumers of its queues, with its callback attached. The caller holds ``_lock``."""
        for consumed in subscription._consumed_queues:
            there = self._consumers.get(consumed.key)
            if there is not None and subscription._options not in (there.options, ConsumeOptions()):
                raise MessageHubConfigurationError(
                    f"the queue {consumed.topology.queue.name} is already consumed with {_shown(there.options)}: "
                    "a second subscription to it must have the same options, or none"
                )
        joined = []
        for consumed in subscription._consumed_queues:
            consumer = self._consumers.get(consumed.key)
            if consumer is None:
                consumer = QueueConsumer(consumed, subscription._options, self._context)
                self._consumers[consumed.key] = consumer
            consumer.attach(subscription, subscription._handler)
            joined.append(consumer)
        return joined

    def cancel(self, subscription: Subscription, deadline: float) -> None:
        """Remove the callbacks of a subscription, and stop the consumers that have no other callback.

        :param deadline: how long to wait for running handlers, in monotonic seconds.
        """
        idle = []
        with self._lock:
            ended = self._ended.get(subscription)
            for consumed in subscription._consumed_queues:
                consumer = self._consumers.get(consumed.key)
                if consumer is not None and consumer.detach(subscription):
                    idle.append(self._consumers.pop(consumed.key))
            self._leaving.update(idle)
            # All of them first: no handler begins while another queue's broker is told.
            for consumer in idle:
                consumer.refuse()
        try:
            for consumer in idle:
                consumer.cancel(deadline)
            for consumer in idle:
                consumer.afterwards(functools.partial(self._leaving.discard, consumer))
                if not consumer.join(deadline):
                    consumer.give_back()
        finally:  # a signal handler may raise in the wait: the subscription has ended all the same
            if ended is not None:
                ended.set()
            with self._lock:
                if self._ended.get(subscription) is ended:  # else another thread has started it again
                    self._ended.pop(subscription, None)

    def delete(self, subscription: Subscription, deadline: float) -> None:
        """Cancel a subscription, and delete its durable queues and their retry queues."""
        self.cancel(subscription, deadline)
        with self._lock:
            shared = [consumed for consumed in subscription._consumed_queues if consumed.key in self._consumers]
        if shared:
            raise MessageHubConfigurationError(
                f"the queue {shared[0].topology.queue.name} was not deleted: another subscription consumes it, "
                "so cancel that one first"
            )
        durable = [each.name for each in subscription._consumed_queues if each.topology.queue.durable]
        retrying = [retry_queue(name, delay).name for name in durable for delay in RETRY_DELAYS_MS]
        # The retry queues last: until then the others may still get messages from them.
        self._context.transport.delete_many(durable + retrying, deadline)

    def queues(self, subscription: Subscription) -> tuple[str, ...]:
        """The names of its queues, as declared."""
        with self._lock:
            found = [(consumed, self._consumers.get(consumed.key)) for consumed in subscription._consumed_queues]
        return tuple(
            consumed.topology.queue.name if consumer is None else consumer.queue for consumed, consumer in found
        )

    def activity(self, subscription: Subscription) -> dict[str, bool]:
        """The names of its queues, as declared, and whether each of them is consumed for it."""
        with self._lock:
            ended = self._ended.get(subscription)
            found = [(consumed, self._consumers.get(consumed.key)) for consumed in subscription._consumed_queues]
        running = ended is not None and not ended.is_set()
        return {
            consumed.name if consumer is None else consumer.queue: running and consumer is not None and consumer.active
            for consumed, consumer in found
        }

    def is_active(self, subscription: Subscription) -> bool:
        """Whether it is running, and each of its queues is consumed."""
        return all(self.activity(subscription).values())

    def ended(self, subscription: Subscription) -> threading.Event:
        """An event that is set when the subscription is not running."""
        with self._lock:
            return self._ended.get(subscription) or _set_event()

    # --- all of them ------------------------------------------------------------------------------

    def known(self) -> list[Subscription]:
        """Every subscription that is running or was inherited from the parent process."""
        with self._lock:
            return list(self._ended)

    def known_unlocked(self) -> list[Subscription]:
        """The same subscriptions, read without the lock:

        in a forked child, a thread that does not exist may hold it.
        """
        return list(self._ended)

    def running(self) -> list[Subscription]:
        """The subscriptions that were started and not cancelled."""
        with self._lock:
            return [subscription for subscription, ended in self._ended.items() if not ended.is_set()]

    def any_running_unlocked(self) -> bool:
        """Whether a subscription is running. It takes no lock, so a change at the same moment may be missed."""
        return not all(ended.is_set() for ended in list(self._ended.values()))

    def consumers(self) -> list[QueueConsumer]:
        """The consumers, one for each consumed queue."""
        with self._lock:
            return list(self._consumers.values())

    def in_handler(self) -> bool:
        """Whether the calling thread is a worker of one of the consumers."""
        with self._lock:
            consumers = [*self._consumers.values(), *self._leaving]
        return any(consumer.is_current_thread for consumer in consumers)

    def stop_accepting(self) -> None:
        """From now on, :meth:`start` raises :class:`MessageHubConnectionError`."""
        with self._lock:
            self._closed = True

    def stop(self, deadline: float) -> QueueConsumer | None:
        """Stop all consumers and wait for running handlers.

        :param deadline: monotonic seconds.
        :returns: the consumer whose handler calls this, if any: it is not waited for.
        """
        began = time.monotonic()
        with self._lock:
            consumers = [*self._consumers.values(), *self._leaving]
        try:
            for consumer in consumers:
                consumer.refuse()
            for consumer in consumers:
                consumer.cancel(deadline)
            drained = True
            for consumer in consumers:
                if not consumer.join(deadline) and consumer.log_unfinished(time.monotonic() - began):
                    drained = False
            self.drained = drained
        finally:  # a signal handler may raise in the wait: nobody may wait for the end for ever
            with self._lock:
                ends = list(self._ended.values())
            for ended in ends:
                ended.set()
        return next((consumer for consumer in consumers if consumer.is_current_thread), None)


def _shown(options: ConsumeOptions) -> str:
    return (
        f"prefetch={options.prefetch}, workers={options.workers}, retry={options.retry}, "
        f"deduplicate={shown(options.deduplicate)}"
    )


def _set_event() -> threading.Event:
    event = threading.Event()
    event.set()
    return event
