"""The broker of the embedded hub: exchanges, queues, consumers, and the routing of messages between them."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from datetime import datetime, timezone

from message_hub_sync.errors import MessageHubConfigurationError
from message_hub_sync.runtime.locks import Lock, locked
from message_hub_sync.runtime.real_time import time
from message_hub_sync.transport.base import Delivery, PublishResult, QueueStats
from message_hub_sync.transport.memory.arguments import QueueArguments, difference
from message_hub_sync.transport.memory.clock import Clock
from message_hub_sync.transport.memory.dead_lettering import Reason, dead_letter, is_cycle
from message_hub_sync.transport.memory.lock_order import HUB
from message_hub_sync.transport.memory.queues import Entry, HubQueue, Subscriber
from message_hub_sync.transport.memory.routing import TopicExchange
from message_hub_sync.transport.memory.validation import StoredMessage, broker_refusal, short_text
from message_hub_sync.transport.threads import Condition
from message_hub_sync.transport.topology import DEFAULT_EXCHANGE, ExchangeSpec, QueueSpec, Topology

__all__ = ["Adopted", "Answer", "Hub"]

#: The answer to a publish: the arguments of :meth:`Receipt.resolve`.
Answer = tuple[PublishResult, str, int]
#: An entity that exists with other arguments than declared, and how they differ.
Adopted = tuple[str, str]

_CONFIRMED: Answer = (PublishResult.CONFIRMED, "", 0)
_NACKED: Answer = (PublishResult.NACKED, "", 0)
_NO_ROUTE: Answer = (PublishResult.RETURNED, "NO_ROUTE", 312)
#: Seconds after which an at-least-once queue dead-letters a message again that no queue has accepted (RabbitMQ 3.10,
#: ``dead_letter_worker_publisher_confirm_timeout``).
_DEAD_LETTER_RETRY = 180.0


class Hub:
    """A broker inside the process. Every method may be called from any thread, and none runs user code.

    Only :meth:`detach` and :meth:`wait_until_idle` wait. A ``client`` argument is any object that identifies a
    connected client: an exclusive queue belongs to one.
    """

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self.clock = clock
        # Deliveries are put to the consumers' SimpleQueues under this lock, which keeps their order. A put never
        # blocks: these queues are unbounded.
        self._lock = Lock(HUB)
        self._idle = Condition(self._lock)
        self._clients: set[object] = set()  # guarded by _lock
        self._exchanges: dict[str, TopicExchange] = {}  # guarded by _lock
        self._queues: dict[str, HubQueue] = {}  # guarded by _lock, with their subscribers and messages
        # A heap of time, number and queue. The numbers differ, so that two queues are never compared.
        self._alarms: list[tuple[float, int, HubQueue]] = []  # guarded by _lock
        self._alarm_numbers = itertools.count()  # guarded by _lock

    # --- clients ---------------------------------------------------------------------------------

    @locked
    def attach(self, client: object) -> None:
        """Connect a client. What fell due while no client was connected is done now."""
        self._clients.add(client)
        self._do_what_is_due()

    def detach(self, client: object, deadline: float) -> None:
        """Disconnect a client: its exclusive queues are deleted, the other queues stay.

        After the last client, no alarm is set; wait until the clock's thread has ended.

        :param deadline: how long to wait for that, in monotonic seconds.
        """
        self._forget(client)
        self.clock.rest(deadline)

    @locked
    def _forget(self, client: object) -> None:
        self._clients.discard(client)
        for queue in [queue for queue in self._queues.values() if queue.owner is client]:
            self._remove(queue)
        self._set_alarm()

    @locked
    def clear(self) -> None:
        """Delete all exchanges and queues. Clients stay connected; their consumers receive nothing more."""
        for queue in list(self._queues.values()):
            self._remove(queue)
        self._exchanges.clear()
        self._set_alarm()

    # --- publishing ------------------------------------------------------------------------------

    def publish(self, message: StoredMessage, mandatory: bool) -> Answer:
        """Route a message to its queues, and deliver it if a consumer has room.

        :param mandatory: return the message if no queue matches its routing key.
        """
        error = broker_refusal(message)
        if error is not None:
            return (PublishResult.CHANNEL_ERROR, error, 406)
        return self._publish(message, mandatory, self.clock.now())

    @locked
    def _publish(self, message: StoredMessage, mandatory: bool, now: float) -> Answer:
        targets = self._route(message.exchange, message.routing_key)
        if targets is None:
            return (PublishResult.CHANNEL_ERROR, f"NOT_FOUND - no exchange '{message.exchange}' in vhost '/'", 404)
        if not targets:
            return _NO_ROUTE if mandatory else _CONFIRMED
        taken = [self._enqueue(queue, message, now) for queue in targets]
        return _CONFIRMED if all(taken) else _NACKED

    def _route(self, exchange: str, key: str) -> list[HubQueue] | None:
        if exchange == DEFAULT_EXCHANGE:
            queue = self._queues.get(key)
            return [] if queue is None else [queue]
        found = self._exchanges.get(exchange)
        return None if found is None else [self._queues[name] for name in found.route(key)]

    def _enqueue(self, queue: HubQueue, message: StoredMessage, now: float) -> bool:
        """Append a message to a queue; false if the queue is full and rejects it (``reject-publish``)."""
        arguments = queue.arguments
        limit = arguments.max_length
        if limit is not None and arguments.reject_publish and queue.depth >= limit:
            return False
        queue.append(message, now, now + min(arguments.ttl, message.ttl))
        self._serve(queue, now)
        while limit is not None and queue.depth > limit:
            self._give_up(queue, queue.drop_head(), "maxlen", now)
        return True

    def _serve(self, queue: HubQueue, now: float) -> None:
        """Deliver messages while a consumer has room, dead-letter the expired ones, and set an alarm for the next."""
        while (entry := queue.head()) is not None:
            # Not <=: a message with a ttl of 0 still reaches a consumer that has room.
            if entry.expires_at < now:
                self._give_up(queue, queue.drop_head(), "expired", now)
                continue
            subscriber = queue.next_subscriber()
            if subscriber is None:
                break
            subscriber.deliver(entry)
            queue.drop_head()
        else:
            if not queue.holds:
                return  # no message is left that could expire
        due = queue.next_expiry()
        if due <= now:
            for expired in queue.take_expired(now):
                self._give_up(queue, expired, "expired", now)
            due = queue.next_expiry()
        if due < queue.alarm:
            queue.alarm = due
            heapq.heappush(self._alarms, (due, next(self._alarm_numbers), queue))
            if self._alarms[0][2] is queue:
                self._set_alarm()

    # --- dead-lettering --------------------------------------------------------------------------

    def _give_up(self, queue: HubQueue, entry: Entry, reason: Reason, now: float) -> None:
        """Dead-letter an entry that was removed from its queue. Drop it if the queue has no dead-letter exchange."""
        arguments = queue.arguments
        exchange = arguments.dead_letter_exchange
        if exchange is None:
            return
        when = datetime.fromtimestamp(time.time(), timezone.utc).replace(microsecond=0)
        message = dead_letter(entry.message, queue.name, reason, when, exchange, arguments.dead_letter_routing_key)
        targets = self._route(exchange, message.routing_key) or ()
        taken = [self._enqueue(target, message, now) for target in targets if not is_cycle(message, target.name)]
        if arguments.at_least_once and not any(taken):
            queue.hold(entry, now + _DEAD_LETTER_RETRY)

    @locked
    def run_due(self) -> None:
        """Do everything that is due. The clock calls this."""
        self._do_what_is_due()

    def _do_what_is_due(self) -> None:
        now = self.clock.now()
        while self._alarms and self._alarms[0][0] <= now:
            due, _, queue = heapq.heappop(self._alarms)
            if queue.expires_at <= due and not queue.subscribers:
                self._remove(queue)
                continue
            if queue.alarm == due:
                queue.alarm = math.inf
            # Use the time when it was due, not now: a delay that follows starts at that time.
            self._serve(queue, due)
        self._set_alarm()

    def _set_alarm(self) -> None:
        due = self._alarms[0][0] if self._alarms and self._clients else None
        self.clock.set_alarm(self.run_due, due)

    # --- declaring -------------------------------------------------------------------------------

    @locked
    def declare(self, topology: Topology, name: str, client: object) -> list[Adopted]:
        """Declare a queue with the name ``name``, its exchange and its bindings.

        :returns: the entities that exist with other arguments; they are used as they are.
        :raises MessageHubConfigurationError: an argument is invalid, the queue belongs to another client, the exchange
            of a binding does not exist, or the hub does not implement what is declared.
        """
        return self._declare(topology, name, client)

    @locked
    def declare_exchange(self, spec: ExchangeSpec) -> list[Adopted]:
        """Declare an exchange.

        :returns: the exchange, if it exists with other arguments; it is used as it is.
        :raises MessageHubConfigurationError: it is no topic exchange, or it has no name.
        """
        return self._declare_exchange(spec)

    def _declare(self, topology: Topology, name: str, client: object) -> list[Adopted]:
        adopted = []
        if topology.exchange is not None:
            adopted += self._declare_exchange(topology.exchange)
        adopted += self._declare_queue(topology.queue, name, client)
        for binding in topology.bindings:
            exchange = self._exchanges.get(binding.exchange)
            if exchange is None:
                raise MessageHubConfigurationError(
                    f"binding the queue {name!r} to the exchange {binding.exchange!r}: "
                    f"404 NOT_FOUND - no exchange '{binding.exchange}' in vhost '/'. Declare the exchange first"
                )
            exchange.bind(name, binding.routing_key)
        return adopted

    def _declare_exchange(self, spec: ExchangeSpec) -> list[Adopted]:
        if spec.kind != "topic" or spec.name == DEFAULT_EXCHANGE:
            raise MessageHubConfigurationError(
                f"exchange {spec.name!r} of type {spec.kind!r}: the embedded hub implements only topic exchanges with "
                "a name: use one, or use RabbitMQ"
            )
        short_text(spec.name, "the exchange's name")
        present = self._exchanges.setdefault(spec.name, TopicExchange(spec.name, spec.durable))
        if present.durable == spec.durable:
            return []
        text = (
            f"PRECONDITION_FAILED - inequivalent arg 'durable' for exchange '{spec.name}' in vhost '/': "
            f"received '{spec.durable}' but current is '{present.durable}'"
        )
        return [(f"exchange {spec.name!r}", text)]

    def _declare_queue(self, spec: QueueSpec, name: str, client: object) -> list[Adopted]:
        owner = client if spec.exclusive else None
        present = self._queues.get(name)
        if present is not None:
            if present.owner is not owner:
                raise _locked(f"declaring the queue {name!r}", name)
            self._used(present)
            if spec.passive:
                return []
            differs = difference(name, spec, present.spec)
            return [] if differs is None else [(f"queue {name!r}", differs)]
        if spec.passive:
            raise MessageHubConfigurationError(f"declaring the queue {name!r}: 404 NOT_FOUND - no queue '{name}'")
        short_text(name, "the queue's name")
        self._queues[name] = HubQueue(name, spec, QueueArguments.read(spec), owner)
        self._used(self._queues[name])
        return []

    def _used(self, queue: HubQueue) -> None:
        """A queue is declared, or has lost a consumer: its ``x-expires`` begins again."""
        if queue.arguments.expires < math.inf:
            queue.expires_at = self.clock.now() + queue.arguments.expires
            heapq.heappush(self._alarms, (queue.expires_at, next(self._alarm_numbers), queue))
            self._set_alarm()

    @locked
    def stats(self, name: str, client: object) -> QueueStats | None:
        """The number of ready messages and of consumers of a queue; ``None`` if it does not exist.

        :raises MessageHubConfigurationError: the queue belongs to another client.
        """
        queue = self._queues.get(name)
        if queue is None:
            return None
        _check_owner(queue, client, "reading the statistics of")
        return QueueStats(depth=queue.depth, consumers=len(queue.subscribers))

    @locked
    def delivery_limit(self, name: str) -> int | None:
        """How often a message of a queue may return before it is dropped; ``None``: without limit."""
        queue = self._queues.get(name)
        return None if queue is None else queue.arguments.delivery_limit

    def delete(self, name: str, client: object) -> None:
        """Delete a queue with its messages, then call ``lost`` of each of its consumers.

        :raises MessageHubConfigurationError: the queue belongs to another client.
        """
        for subscriber in self._delete(name, client):
            subscriber.lost()

    @locked
    def _delete(self, name: str, client: object) -> list[Subscriber]:
        queue = self._queues.get(name)
        if queue is None:
            return []
        _check_owner(queue, client, "deleting")
        subscribers = list(queue.subscribers)
        self._remove(queue)
        return subscribers

    def _remove(self, queue: HubQueue) -> None:
        del self._queues[queue.name]
        queue.gone = True
        queue.clear()
        queue.subscribers.clear()
        for exchange in self._exchanges.values():
            exchange.unbind(queue.name)
        if min(queue.alarm, queue.expires_at) < math.inf:
            self._alarms = [alarm for alarm in self._alarms if alarm[2] is not queue]
            heapq.heapify(self._alarms)
            self._set_alarm()

    # --- consuming -------------------------------------------------------------------------------

    @locked
    def subscribe(
        self,
        topology: Topology,
        name: str,
        client: object,
        put: Callable[[Delivery], None],
        *,
        prefetch: int,
        channel_generation: int,
        lost: Callable[[], None],
    ) -> tuple[Subscriber, list[Adopted]]:
        """Declare a queue with the name ``name`` and consume it, under one acquisition of the lock.

        :param put: takes the deliveries, in order. Called with the hub's lock held.
        :param prefetch: how many messages may be unacked at once; 0 is no limit.
        :param channel_generation: the number that each delivery carries.
        :param lost: called, without the lock, after the queue was deleted.
        :returns: the consumer, and the entities that exist with other arguments.
        :raises MessageHubConfigurationError: the topology cannot be declared (see :meth:`declare`).
        """
        adopted = self._declare(topology, name, client)
        queue = self._queues[name]
        subscriber = Subscriber(queue, put, prefetch, channel_generation, lost)
        queue.subscribers.append(subscriber)
        self._serve(queue, self.clock.now())
        return subscriber, adopted

    @locked
    def ack(self, subscriber: Subscriber, tag: int) -> None:
        """Acknowledge a message. One that is not unacked any more, or whose queue was deleted, is ignored."""
        if subscriber.unacked.pop(tag, None) is not None:
            self._serve(subscriber.queue, self.clock.now())
            self._idle.wake_all()

    @locked
    def waited(self, subscriber: Subscriber, tag: int) -> float | None:
        """Seconds since an unacked message came into its queue; ``None`` if it is not unacked any more."""
        entry = subscriber.unacked.get(tag)
        return None if entry is None else self.clock.now() - entry.since

    @locked
    def requeue(self, subscriber: Subscriber, tag: int) -> None:
        """Requeue a message at its old position. One that is not unacked any more is ignored."""
        entry = subscriber.unacked.pop(tag, None)
        if entry is not None:
            self._restore(subscriber.queue, [entry])

    @locked
    def cancel(self, subscriber: Subscriber) -> None:
        """Deliver nothing more to a consumer. An auto-delete queue is deleted with its last consumer."""
        self._cancel(subscriber)

    @locked
    def end(self, subscriber: Subscriber) -> None:
        """Cancel a consumer, and requeue its unacked messages."""
        returning = list(subscriber.unacked.values())
        subscriber.unacked.clear()
        self._cancel(subscriber)
        self._restore(subscriber.queue, returning)
        self._idle.wake_all()

    def wait_until_idle(self, deadline: float) -> bool:
        """Wait until every queue with a consumer is empty and has no unacked message. For tests.

        A message in a queue without a consumer, such as a retry queue, does not count.

        :param deadline: monotonic seconds.
        :returns: false if the deadline passes first.
        """
        return self._idle.wait_for(self._is_idle, deadline)

    def _is_idle(self) -> bool:
        consumed = [queue for queue in self._queues.values() if queue.subscribers]
        return not any(queue.depth or any(one.unacked for one in queue.subscribers) for queue in consumed)

    def _cancel(self, subscriber: Subscriber) -> None:
        queue = subscriber.queue
        if subscriber in queue.subscribers:
            queue.subscribers.remove(subscriber)
            self._used(queue)
            if queue.spec.auto_delete and not queue.subscribers:
                self._remove(queue)

    def _restore(self, queue: HubQueue, entries: list[Entry]) -> None:
        if queue.gone:
            return
        now = self.clock.now()
        limit = queue.arguments.delivery_limit
        for entry in entries:
            entry.failures += 1
        queue.restore(entry for entry in entries if limit is None or entry.failures <= limit)
        for entry in entries:
            if limit is not None and entry.failures > limit:
                self._give_up(queue, entry, "delivery_limit", now)
        self._serve(queue, now)


def _check_owner(queue: HubQueue, client: object, doing: str) -> None:
    if queue.owner is not None and queue.owner is not client:
        raise _locked(f"{doing} the queue {queue.name!r}", queue.name)


def _locked(what: str, name: str) -> MessageHubConfigurationError:
    return MessageHubConfigurationError(
        f"{what}: 405 RESOURCE_LOCKED - cannot obtain exclusive access to locked queue '{name}' in vhost '/'. "
        "The queue belongs to another client alone, or it exists and is not exclusive: choose another name"
    )
