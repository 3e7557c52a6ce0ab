"""The consumer of one queue, from the first delivery to the last acknowledgement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from queue import Empty, SimpleQueue

from message_hub_sync.consuming.consumed_queue import ConsumedQueue, ConsumeOptions, ConsumerContext
from message_hub_sync.consuming.delivery_limit import DeliveryLimit
from message_hub_sync.consuming.delivery_processor import DeliveryProcessor
from message_hub_sync.consuming.handlers import Handler
from message_hub_sync.consuming.incoming import IncomingDeliveries
from message_hub_sync.consuming.republishing import Republisher
from message_hub_sync.consuming.unprocessed import UnprocessedDeliveries
from message_hub_sync.consuming.worker_group import WorkerGroup, WorkerThread
from message_hub_sync.errors import MessageHubConnectionError, MessageHubError
from message_hub_sync.runtime.deadlines import remaining, take
from message_hub_sync.runtime.locks import Lock, locked
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.process_kind import became_reloader_parent, uwsgi_hint
from message_hub_sync.runtime.real_time import time
from message_hub_sync.runtime.text import printable
from message_hub_sync.transport.base import Consumer, Delivery

__all__ = ["QueueConsumer"]

logger = SafeLogger("message_hub_sync.subscription")

#: Seconds for the last acknowledgements if a handler returns after the deadline for stopping.
CLOSE_TIMEOUT = 1.0


class QueueConsumer:
    """Consumes one queue for all subscriptions to it. Any thread may use it.

    ``stopping.py`` stops it, in steps that may be repeated. After the first one, :meth:`refuse`, no handler begins.

    :param consumed: the queue.
    :param options: how it is consumed.
    :param context: what all consumers of the client share.
    :param group: the threads that serve it.
    """

    def __init__(
        self, consumed: ConsumedQueue, options: ConsumeOptions, context: ConsumerContext, group: WorkerGroup
    ) -> None:
        self.consumed = consumed
        self.options = options
        self.group = group
        #: Whether it was stopped completely: no worker serves it, and what was unacked goes back to its queue.
        self.ended = False  # any thread sets it to True, and it stays so
        self._context = context
        # Replaced as a whole under the lock of the registry that owns this; workers read it without a lock.
        self._handlers: tuple[tuple[object, Handler], ...] = ()
        self._limit = DeliveryLimit(consumed.topology.queue)
        self._processor = DeliveryProcessor(
            consumed,
            options,
            context,
            lambda: [handler for _, handler in self._handlers],
            stopping=lambda: self._stopping,
            limit=self._limit,
        )
        self._incoming = IncomingDeliveries(group, self._handle_next)
        self._lock = Lock()
        self._opening: Future[None] | None = None  # set under _lock; the caller that opens resets it after an error
        # Set by the caller that opens, the last two before the first.
        self.consumer: Consumer | None = None
        self._moves: Republisher
        self._unprocessed: UnprocessedDeliveries
        self._stopping = False  # any thread sets it to True, and it stays so
        self._left_to_workers = False  # any thread sets it to True, and it stays so
        self._watchers: list[SimpleQueue[None]] = []  # any thread appends
        self._attend_in_line = False  # single operations only

    # --- callbacks and state ----------------------------------------------------------------------

    def attach(self, owner: object, handler: Handler) -> None:
        """Add a subscription's callback. The caller holds the registry's lock."""
        self._handlers = (*self._handlers, (owner, handler))

    def detach(self, owner: object) -> bool:
        """Remove a subscription's callback. Returns whether it was the last. The caller holds the registry's lock."""
        others = tuple(pair for pair in self._handlers if pair[0] is not owner)
        # Keep the last callback until the consumer is cancelled: without it a delivery would be acked unhandled.
        self._handlers = others or self._handlers
        return not others

    @property
    def handlers(self) -> list[Handler]:
        """The callbacks of all its subscriptions."""
        return [handler for _, handler in self._handlers]

    @property
    def queue(self) -> str:
        """The queue's name as declared: with the random part, if it has one."""
        consumer = self.consumer
        return self.consumed.topology.queue.name if consumer is None else consumer.queue

    @property
    def active(self) -> bool:
        """Whether the broker delivers and a worker handles deliveries."""
        consumer = self.consumer
        return consumer is not None and consumer.active and self.group.running and not self._stopping

    @property
    def error(self) -> str | None:
        """Why the queue is not consumed, or why messages stay unacked and take up the prefetch."""
        consumer = self.consumer
        if consumer is None:
            return None
        if consumer.error is not None:
            return f"it is not consumed: {printable(consumer.error, 500)}"
        stuck = self._moves.stuck()
        if not stuck:
            return self._unprocessed.error
        ((queue, why), count), *_ = stuck.most_common(1)
        return f"{count} message{'s' * (count > 1)} cannot be moved to {queue}: {printable(why, 500)}"

    @property
    def possibly_limited(self) -> bool:
        """Whether the broker may give up messages that came back too often."""
        return self._limit.possible(self.consumer)

    @property
    def workers(self) -> list[WorkerThread]:
        """The threads that work on it now."""
        return [worker for worker in self.group.threads if worker.queue is self]

    # --- start ------------------------------------------------------------------------------------

    @staticmethod
    def start_all(consumers: Sequence[QueueConsumer], deadline: float) -> None:
        """Declare and consume the queues, all at once, and start the workers.

        A second caller waits for the first one's result.

        :param consumers: of one client.
        :param deadline: monotonic seconds.
        :raises MessageHubError: a queue could not be declared and consumed in time. Others may be consumed.
        """
        waiting = list(consumers)
        while waiting:
            mine = {consumer: future for consumer in waiting if (future := consumer._claim()) is not None}
            if mine:
                QueueConsumer._open_all(mine, deadline)
            waiting = [each for each in waiting if each not in mine and not each._opened_elsewhere(deadline)]

    @locked
    def _claim(self) -> Future[None] | None:
        """The future to complete, if the caller must open the queue."""
        if self._opening is not None:
            return None
        self._opening = Future()
        return self._opening

    def _opened_elsewhere(self, deadline: float) -> bool:
        """Wait for the caller that opens the queue. False if that one was interrupted: it must be opened here."""
        opening = self._opening
        if opening is None:
            return False
        try:
            opening.result(timeout=remaining(deadline))
        except FutureTimeoutError:  # before Python 3.11 another class than the builtin TimeoutError
            raise MessageHubConnectionError(
                f"the queue {self.consumed.topology.queue.name} was not consumed in time{uwsgi_hint()}"
            ) from None
        except CancelledError:
            return False
        return True

    @staticmethod
    def _open_all(opening: Mapping[QueueConsumer, Future[None]], deadline: float) -> None:
        transport = next(iter(opening))._context.transport
        try:
            wanted = [(each.consumed.topology, each.options.prefetch) for each in opening]
            consumers = transport.consume_many(wanted, deadline, [each._incoming for each in opening])
            try:
                for each, consumer in zip(opening, consumers, strict=True):
                    each._begin(consumer)
            except BaseException:
                for each, consumer in zip(opening, consumers, strict=True):
                    each.consumer = None  # so that another caller may open it
                    consumer.close(deadline)
                raise
        except BaseException as error:
            for each, future in opening.items():
                each._opening = None
                # Interrupted by a signal or a gevent timeout: cancel the future, so that a waiting caller opens it.
                if isinstance(error, MessageHubError):
                    future.set_exception(error)
                else:
                    future.cancel()
            raise
        for future in opening.values():
            future.set_result(None)

    def _begin(self, consumer: Consumer) -> None:
        """Have the workers handle its deliveries."""
        self._limit.consumed(consumer)
        self._moves = Republisher(self._context.transport, consumer, self._attend_soon, self._attend_at)
        self._unprocessed = UnprocessedDeliveries(consumer, self._attend_at)
        self.consumer = consumer
        try:
            if self._stopping:  # whoever stopped it may have seen no consumer
                raise MessageHubConnectionError("the subscription was cancelled meanwhile")
            self.group.start()
        except (RuntimeError, MessageHubConnectionError) as error:
            # RuntimeError: Python cannot start a thread, because the process exits or has too many.
            raise MessageHubConnectionError(f"the queue {consumer.queue} is not consumed: {error}") from None
        self._incoming.queue_up()  # a worker of the group may have found no consumer

    def connected(self) -> None:
        """The broker accepts messages again: have the messages moved that could not be moved. Does not wait."""
        if self.consumer is not None:
            self._moves.connected()

    # --- stop: any thread may make each step, and repeat it -----------------------------------------

    def refuse(self) -> None:
        """Begin no handler any more. The first step; it is a single operation."""
        self._stopping = True

    def tell_broker(self) -> None:
        """Ask the broker for no more deliveries. This does not wait for its answer: it may not answer."""
        consumer = self.consumer
        if consumer is not None:
            try:
                consumer.cancel(0.0)
            except MessageHubError as error:
                logger.debug("cancelling the consumer of %s failed: %s", consumer.queue, error)

    def wait_idle(self, deadline: float, apart: WorkerThread | None) -> bool:
        """Wait until no worker works on it, and each message that is being moved is settled.

        :param deadline: monotonic seconds.
        :param apart: a worker that is not waited for.
        :returns: whether no other worker works on it.
        """
        left: SimpleQueue[None] = SimpleQueue()
        self._watchers.append(left)
        while True:
            if any(worker is not apart for worker in self.workers):
                try:
                    take(left, remaining(deadline))
                except Empty:
                    return False
            elif self.consumer is None or not self._moves.in_flight or not remaining(deadline):
                return True
            else:
                self._moves.finish(deadline)

    def give_back(self) -> None:
        """Requeue the deliveries that no worker has taken, because a handler of it runs on. Does not wait."""
        consumer = self.consumer
        if consumer is not None:
            try:
                consumer.give_back()
                self._unprocessed.give_back()
            except MessageHubError as error:
                logger.debug("giving back deliveries of %s failed: %s", consumer.queue, error)

    def leave_to_workers(self) -> None:
        """Have the last worker that works on it end it; end it here if none does."""
        self._left_to_workers = True
        if not self.workers:
            self.end(time.monotonic() + CLOSE_TIMEOUT)

    def end(self, deadline: float) -> None:
        """Acknowledge what is confirmed, and requeue what is unacked.

        :param deadline: how long to wait for the broker, in monotonic seconds.
        """
        consumer = self.consumer
        if consumer is not None:
            try:
                self._moves.finish(deadline)
                consumer.close(deadline)
            except MessageHubError as error:
                logger.debug("closing the consumer of %s failed: %s", consumer.queue, error)
        self.group.remove(self)
        self.ended = True

    # --- on a worker thread -----------------------------------------------------------------------

    def _handle_next(self, worker: WorkerThread) -> None:
        worker.queue = self
        try:
            if self.consumer is not None and not self._stopping:
                delivery = self._incoming.take()
                if delivery is not None:
                    worker.delivery = delivery
                    self._process(delivery, self.consumer)
        finally:
            worker.queue = worker.delivery = None
            if self._stopping:
                self._leave()

    def _process(self, delivery: Delivery, consumer: Consumer) -> None:
        if became_reloader_parent():
            # The script called app.run(debug=True) after it subscribed: its child process serves, and this one only
            # watches files.
            logger.info("%s is no longer consumed: this process is the parent of werkzeug's reloader", consumer.queue)
            self.refuse()
            self.tell_broker()
            self.leave_to_workers()
            return
        try:
            self._processor.process(delivery, consumer, self._moves)
        except BaseException as error:
            self._unprocessed.add(delivery, error)
        else:
            if self._unprocessed.failing:
                self._unprocessed.processed()

    def attend(self, worker: WorkerThread) -> None:
        """Deal with the answers to moves, and with what is due."""
        self._attend_in_line = False  # first: an answer that comes from here on has it attended to again
        if self.consumer is None:
            return
        worker.queue = self
        incoming = self._incoming
        incoming.acknowledging = True
        try:
            self._moves.advance()
            self._unprocessed.give_back(time.monotonic())
        finally:
            incoming.acknowledging = False
            if incoming.empty():
                self.consumer.flush()
            worker.queue = None
            if self._stopping:
                self._leave()

    def _leave(self) -> None:
        for left in list(self._watchers):
            left.put(None)
        if self._left_to_workers and not self.workers:
            self.end(time.monotonic() + CLOSE_TIMEOUT)

    def _attend_soon(self) -> None:
        if not self._attend_in_line:
            self._attend_in_line = True
            self.group.put(self.attend)

    def _attend_at(self, due: float) -> None:
        self.group.attend_at(self, due)
