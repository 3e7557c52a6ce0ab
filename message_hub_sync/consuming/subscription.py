"""Subscriptions, and the registry that shares one consumer for each queue among them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from message_hub_sync.config import ClientConfig
from message_hub_sync.consuming.callbacks import limited, same_function
from message_hub_sync.consuming.consumed_queue import ConsumedQueue, ConsumeOptions, ConsumerContext
from message_hub_sync.consuming.handlers import Handler
from message_hub_sync.consuming.queue_consumer import QueueConsumer
from message_hub_sync.consuming.retry_policy import RETRY_DELAYS_MS
from message_hub_sync.consuming.stopping import Stop
from message_hub_sync.consuming.worker_group import WorkerGroup, WorkerThread
from message_hub_sync.errors import (
    MessageHubConfigurationError,
    MessageHubConnectionError,
)
from message_hub_sync.runtime.deadlines import deadline_after, remaining, timeout_seconds
from message_hub_sync.runtime.final_event import FinalEvent
from message_hub_sync.runtime.locks import Lock, locked, refuse_where_it_cannot_wait
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.process_kind import refuse_late_patch, reloader_parent
from message_hub_sync.runtime.real_time import time
from message_hub_sync.runtime.text import shown
from message_hub_sync.runtime.uninterrupted import start_uninterrupted
from message_hub_sync.transport.topology import retry_queue

__all__ = ["Subscription", "SubscriptionRegistry"]

logger = SafeLogger("message_hub_sync.subscription")

#: Seconds beyond the deadline that the last steps of stopping may take.
_STOP_GRACE = 5.0


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
    """The subscriptions of one client in one process, one consumer for each of their queues, and their threads.

    Any thread may use it. No call holds ``_lock`` while it waits for the broker.

    A subscription has a :class:`WorkerGroup`, which serves its queues. If another one consumes one of its queues
    already, the group of that one serves all its queues.

    :param inherited: in a forked child, the subscriptions of the parent; they are inactive.
    """

    def __init__(self, context: ConsumerContext, inherited: Sequence[Subscription] = ()) -> None:
        self._context = context
        self._lock = Lock()
        self._consumers: dict[tuple[str, bool], QueueConsumer] = {}  # changed under _lock
        # Cancelled consumers that had not ended when they were looked at last.
        self._leaving: tuple[QueueConsumer, ...] = ()  # replaced under _lock
        self._groups: dict[Subscription, WorkerGroup] = {}  # guarded by _lock
        # An event that is set means: not running.
        self._ended: dict[Subscription, FinalEvent] = {}  # guarded by _lock
        self._closed = False  # set under _lock
        #: Whether stop() saw every handler end, except one that called it. Written by the thread that stops.
        self.drained = False
        for subscription in inherited:
            self._ended[subscription] = FinalEvent(is_set=True)
        context.transport.on_connected(self._connected)

    def _connected(self) -> None:
        # On an I/O thread: no lock, which a thread that waits for the broker may hold.
        for consumer in [*list(self._consumers.values()), *self._leaving]:
            consumer.connected()

    # --- one subscription -------------------------------------------------------------------------

    def start(self, subscription: Subscription, deadline: float) -> None:
        """Consume the queues of a subscription: see :meth:`start_all`."""
        self.start_all([subscription], deadline)

    def start_all(self, subscriptions: Sequence[Subscription], deadline: float) -> None:
        """Consume the queues of subscriptions, all at once. If one of them fails, consume none.

        If another thread starts one now, wait for the result.

        :param deadline: monotonic seconds.
        """
        refuse_late_patch()
        parent = reloader_parent()
        started: list[Subscription] = []
        consumers: dict[QueueConsumer, None] = {}  # each once, in order
        try:
            for subscription in subscriptions:
                joined, mine, warning = self._join(subscription, parent is None)
                consumers.update(dict.fromkeys(joined))
                if parent is not None:
                    logger.info(
                        "%r stays inactive: this process is the parent of the %s reloader", subscription, parent
                    )
                elif mine:
                    started.append(subscription)
                if warning is not None:
                    logger.warning("%s", warning)
            QueueConsumer.start_all(list(consumers), deadline)
        except BaseException:
            with ExitStack() as undo:  # all of them, even if cancelling one is interrupted
                for subscription in started:
                    undo.callback(self.cancel, subscription, deadline)
            raise

    @locked
    def _join(self, subscription: Subscription, consume: bool) -> tuple[list[QueueConsumer], bool, str | None]:
        """Note that a subscription is started.

        :param consume: whether to attach its callback to the consumers of its queues.
        :returns: these consumers, whether they were attached by this call, and what to warn about.
        """
        if self._closed:
            raise MessageHubConnectionError(
                "this client is closed, so nothing is consumed: create a new MessageHubClient"
            )
        ended = self._ended.get(subscription)
        if ended is not None and not ended.is_set():
            return self._joined(subscription), False, None
        if not consume:
            self._ended[subscription] = FinalEvent(is_set=True)
            return [], True, None
        warning = self._same_name(subscription)
        joined = self._attach(subscription)
        self._ended[subscription] = FinalEvent()
        return joined, True, warning

    def _joined(self, subscription: Subscription) -> list[QueueConsumer]:
        """The consumers of its queues. The caller holds ``_lock``."""
        found = [self._consumers.get(consumed.key) for consumed in subscription._consumed_queues]
        return [consumer for consumer in found if consumer is not None]

    def _attach(self, subscription: Subscription) -> list[QueueConsumer]:
        """The consumers of its queues, with its callback attached. The caller holds ``_lock``."""
        there = self._joined(subscription)
        for consumer in there:
            if subscription._options not in (consumer.options, ConsumeOptions()):
                raise MessageHubConfigurationError(
                    f"the queue {consumer.consumed.name} is already consumed with {_shown(consumer.options)}: "
                    "a second subscription to it must have the same options, or none"
                )
        group = there[0].group if there else self._groups.get(subscription)
        for consumed in subscription._consumed_queues:
            if consumed.key not in self._consumers:
                group = self._add_consumer(consumed, subscription._options, group).group
        joined = self._joined(subscription)
        handler = subscription._handler
        if len({consumer.group for consumer in joined}) > 1:
            # Several groups run it: in no more of their threads at once than the subscription has workers.
            handler = limited(handler, max(consumer.options.workers for consumer in joined))
        for consumer in joined:
            consumer.attach(subscription, handler)
        if group is not None:
            # While a handler of it runs on after a cancel, this group is used again, so that no two groups run one
            # callback at once.
            self._groups[subscription] = group
        return joined

    def _add_consumer(
        self, consumed: ConsumedQueue, options: ConsumeOptions, group: WorkerGroup | None
    ) -> QueueConsumer:
        """A new consumer that ``group`` serves, or a new group if that one has ended. The caller holds ``_lock``."""
        while True:
            if group is None:
                name = f"message-hub-{self._context.config.service_name}-{consumed.name}"
                group = WorkerGroup(self, name, options.workers)
            consumer = QueueConsumer(consumed, options, self._context, group)
            if group.add(consumer):
                self._consumers[consumed.key] = consumer
                return consumer
            group = None

    def _same_name(self, subscription: Subscription) -> str | None:
        """What to warn about if a function of the same name is subscribed already. The caller holds ``_lock``."""
        for consumer in self._joined(subscription):
            for handler in consumer.handlers:
                if same_function(handler.callback, subscription._handler.callback):
                    return (
                        f"the queue {consumer.consumed.name} is consumed by a function named {handler.name} already, "
                        "and now by another one, too: both handle each message. If the same code was run twice, as in "
                        "a notebook, call cancel() of the earlier subscription"
                    )
        return None

    def cancel(self, subscription: Subscription, deadline: float) -> None:
        """Remove the callbacks of a subscription, and stop the consumers that have no other callback.

        It is completed even if the caller is interrupted.

        :param deadline: how long to wait for running handlers, in monotonic seconds.
        """
        self.uninterrupted(lambda caller: self._cancel(subscription, deadline, caller), deadline, "stop")

    def _cancel(self, subscription: Subscription, deadline: float, caller: WorkerThread | None) -> None:
        ended, stopping = self._detach(subscription)
        try:
            Stop(stopping, self._context.suspects, deadline, caller).run()
        finally:
            if ended is not None:
                ended.set()
            self._forget(subscription, ended)

    @locked
    def _detach(self, subscription: Subscription) -> tuple[FinalEvent | None, list[QueueConsumer]]:
        for consumer in self._joined(subscription):
            if consumer.detach(subscription):
                self._leaving = (*self._leaving, consumer)
                del self._consumers[consumer.consumed.key]
        keys = {consumed.key for consumed in subscription._consumed_queues}
        # Those of an earlier cancel, too: it may have given up waiting.
        stopping = [consumer for consumer in self._leaving if consumer.consumed.key in keys]
        return self._ended.get(subscription), stopping

    @locked
    def _forget(self, subscription: Subscription, ended: FinalEvent | None) -> None:
        if self._ended.get(subscription) is ended:  # else another thread has started it again
            self._ended.pop(subscription, None)
        self._leaving = tuple(consumer for consumer in self._leaving if not consumer.ended)
        self._groups = {one: group for one, group in self._groups.items() if not group.ended}

    def uninterrupted(self, work: Callable[[WorkerThread | None], None], deadline: float, what: str) -> None:
        """Run ``work`` where no signal handler interrupts it. Waits until the deadline, or until ``work`` has ended.

        :param work: called with the calling thread if that is a consumer thread, and on that thread then.
        :param deadline: monotonic seconds.
        :param what: what it does, for the name of its thread.
        """
        refuse_where_it_cannot_wait()
        caller = self.worker()
        if caller is not None:
            work(caller)
        else:
            name = f"message-hub-{self._context.config.service_name}-{what}"
            start_uninterrupted(lambda: work(None), name).wait(remaining(deadline) + _STOP_GRACE)

    def delete(self, subscription: Subscription, deadline: float) -> None:
        """Cancel a subscription, and delete its durable queues and their retry queues."""
        self.cancel(subscription, deadline)
        shared = self._lock.run(self._joined, subscription)
        if shared:
            raise MessageHubConfigurationError(
                f"the queue {shared[0].consumed.name} was not deleted: another subscription consumes it, "
                "so cancel that one first"
            )
        durable = [each.name for each in subscription._consumed_queues if each.topology.queue.durable]
        retrying = [retry_queue(name, delay).name for name in durable for delay in RETRY_DELAYS_MS]
        # The retry queues last: until then the others may still get messages from them.
        self._context.transport.delete_many(durable + retrying, deadline)

    def queues(self, subscription: Subscription) -> tuple[str, ...]:
        """The names of its queues, as declared."""
        return tuple(self.activity(subscription))

    @locked
    def activity(self, subscription: Subscription) -> dict[str, bool]:
        """The names of its queues, as declared, and whether each of them is consumed for it."""
        ended = self._ended.get(subscription)
        running = ended is not None and not ended.is_set()
        found = [(consumed, self._consumers.get(consumed.key)) for consumed in subscription._consumed_queues]
        return {
            consumed.name if consumer is None else consumer.queue: running and consumer is not None and consumer.active
            for consumed, consumer in found
        }

    def is_active(self, subscription: Subscription) -> bool:
        """Whether it is running, and each of its queues is consumed."""
        return all(self.activity(subscription).values())

    @locked
    def ended(self, subscription: Subscription) -> FinalEvent:
        """An event that is set when the subscription is not running."""
        return self._ended.get(subscription) or FinalEvent(is_set=True)

    # --- all of them ------------------------------------------------------------------------------

    @locked
    def known(self) -> list[Subscription]:
        """Every subscription that is running or was inherited from the parent process."""
        return list(self._ended)

    def known_unlocked(self) -> list[Subscription]:
        """The same subscriptions, read without the lock:

        in a forked child, a thread that does not exist may hold it.
        """
        return list(self._ended)

    @locked
    def running(self) -> list[Subscription]:
        """The subscriptions that were started and not cancelled."""
        return [subscription for subscription, ended in self._ended.items() if not ended.is_set()]

    def any_running_unlocked(self) -> bool:
        """Whether a subscription is running. It takes no lock, so a change at the same moment may be missed."""
        return not all(ended.is_set() for ended in list(self._ended.values()))

    @locked
    def consumers(self) -> list[QueueConsumer]:
        """The consumers, one for each consumed queue."""
        return list(self._consumers.values())

    def worker(self) -> WorkerThread | None:
        """The calling thread, if it is a worker of one of the consumers, that is, if a handler makes the call."""
        thread = threading.current_thread()
        return thread if isinstance(thread, WorkerThread) and thread.group.owner is self else None

    @locked
    def stop_accepting(self) -> None:
        """From now on, :meth:`start` raises :class:`MessageHubConnectionError`."""
        self._closed = True

    def stop(self, deadline: float, began: float | None = None) -> None:
        """Stop all consumers, and wait for running handlers, except the one that calls this.

        :param deadline: monotonic seconds.
        :param began: when closing began, in monotonic seconds; by default now.
        """
        began = time.monotonic() if began is None else began
        consumers, ends = self._lock.run(
            lambda: ([*self._consumers.values(), *self._leaving], list(self._ended.values()))
        )
        stop = Stop(consumers, self._context.suspects, deadline, self.worker())
        try:
            stop.run()
            self.drained = not stop.log_unfinished(began)
        finally:
            for ended in ends:
                ended.set()


def _shown(options: ConsumeOptions) -> str:
    return (
        f"prefetch={options.prefetch}, workers={options.workers}, retry={options.retry}, "
        f"deduplicate={shown(options.deduplicate)}"
    )
