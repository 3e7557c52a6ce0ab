"""The consumer of one queue with its worker threads, from the first delivery to the last acknowledgement."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from queue import Empty

from message_hub_sync.consuming.consumed_queue import ConsumedQueue, ConsumeOptions, ConsumerContext
from message_hub_sync.consuming.delivery_limit import DeliveryLimit
from message_hub_sync.consuming.delivery_processor import DeliveryProcessor
from message_hub_sync.consuming.handlers import Handler
from message_hub_sync.consuming.republishing import Republisher
from message_hub_sync.errors import MessageHubConnectionError, MessageHubError
from message_hub_sync.runtime.deadlines import remaining, take
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

    :param consumed: the queue.
    :param options: how it is consumed.
    :param context: what all consumers of the client share.
    """

    def __init__(
        self,
        consumed: ConsumedQueue,
        options: ConsumeOptions,
        context: ConsumerContext,
    ) -> None:
        self.consumed = consumed
        self.options = options
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
        self._lock = threading.Lock()
        self._opening: Future[None] | None = None  # set under _lock; the caller that opens resets it after an error
        self.consumer: Consumer | None = None  # set under _lock
        self._threads: list[threading.Thread] = []  # guarded by _lock; all that were started
        self._workers: list[threading.Thread] = []  # changed under _lock; those that still run
        self._taken: dict[threading.Thread, Delivery] = {}  # what each worker handles now; it sets its own
        self._republisher: Republisher | None = None  # set under _lock
        self._stopping = False  # any thread sets it to True, and it stays so
        self._cancelled = threading.Event()  # set under _lock
        self._stop_deadline = 0.0  # set under _lock
        self._afterwards: list[Callable[[], None]] = []  # guarded by _lock

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
    def queue(self) -> str:
        """The queue's name as declared: with the random part, if it has one."""
        consumer = self.consumer
        return self.consumed.topology.queue.name if consumer is None else consumer.queue

    @property
    def active(self) -> bool:
        """Whether the broker delivers and a worker handles deliveries."""
        consumer = self.consumer
        return consumer is not None and consumer.active and bool(self._workers) and not self._stopping

    @property
    def error(self) -> str | None:
        """Why failed messages stay unacked, so that they take up the prefetch; ``None`` if there are none."""
        republisher = self._republisher
        stuck = Counter[tuple[str, str]]() if republisher is None else republisher.stuck()
        if not stuck:
            return None
        ((queue, why), count), *_ = stuck.most_common(1)
        return f"{count} message{'s' * (count > 1)} cannot be moved to {queue}: {printable(why, 500)}"

    @property
    def possibly_limited(self) -> bool:
        """Whether the broker may give up messages that came back too often."""
        return self._limit.possible(self.consumer)

    @property
    def is_current_thread(self) -> bool:
        """Whether the calling thread is one of the workers, that is, whether a handler makes the call."""
        return threading.current_thread() in self._workers

    # --- start and stop ---------------------------------------------------------------------------

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

    def _claim(self) -> Future[None] | None:
        """The future to complete, if the caller must open the queue."""
        with self._lock:
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
            opened = list(transport.consume_many(wanted, deadline))
            try:
                for each in opening:
                    each._begin(opened.pop(0), deadline)
            except BaseException:
                for consumer in opened:  # those that have no workers yet
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

    def _begin(self, consumer: Consumer, deadline: float) -> None:
        """Start the workers."""
        context = self._context
        self._limit.consumed(consumer)
        name = f"message-hub-{context.config.service_name}-{self.consumed.topology.queue.name}"
        try:
            with self._lock:
                if self._stopping:
                    raise MessageHubConnectionError("the subscription was cancelled meanwhile")
                self.consumer = consumer
                self._republisher = republisher = Republisher(context.transport, consumer)
                # Start the threads under _lock: join() must not see one that has not started.
                for number in range(1, self.options.workers + 1):
                    worker = threading.Thread(
                        target=self._work, args=(consumer, republisher), name=f"{name}-{number}", daemon=True
                    )
                    worker.start()
                    self._threads.append(worker)
                    self._workers.append(worker)
        except BaseException as error:
            # The last worker closes the consumer. If no worker has started, close it here.
            self.cancel(deadline)
            if not self._workers:
                consumer.close(deadline)
            # RuntimeError: Python cannot start a thread, because the process exits or has too many.
            if isinstance(error, (RuntimeError, MessageHubConnectionError)):
                raise MessageHubConnectionError(f"the queue {consumer.queue} is not consumed: {error}") from None
            raise

    def refuse(self) -> None:
        """Begin no handler any more. The first step of stopping; it does not wait."""
        self._stopping = True

    def cancel(self, deadline: float) -> None:
        """Cancel the consumer. Each worker ends after its current message. This waits for nothing.

        :param deadline: how long the last worker may acknowledge, in monotonic seconds.
        """
        with self._lock:
            self._stopping = True
            if self._cancelled.is_set():
                return
            self._stop_deadline = deadline
            consumer = self.consumer
            if consumer is not None:
                self._cancelled.set()
        if consumer is None:
            return
        try:
            consumer.cancel(0.0)  # do not wait for the answer: there may be many consumers, and one may not answer
        except MessageHubError as error:
            logger.debug("cancelling the consumer of %s failed: %s", consumer.queue, error)
        finally:
            for _ in range(self.options.workers):
                consumer.deliveries.put(None)  # wakes one worker

    def join(self, deadline: float) -> bool:
        """Wait until the workers have ended, except the calling one. Returns whether all have ended."""
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(remaining(deadline))
        return not self._workers

    def give_back(self) -> None:
        """Requeue the deliveries that no worker has taken, if a handler runs on after :meth:`join`. Does not wait."""
        consumer = self.consumer
        if consumer is not None:
            try:
                consumer.give_back()
            except MessageHubError as error:
                logger.debug("giving back deliveries of %s failed: %s", consumer.queue, error)

    def connected(self) -> None:
        """The broker accepts messages again: have the messages moved that could not be moved. Does not wait."""
        republisher = self._republisher
        if republisher is not None:
            republisher.connected()

    def log_unfinished(self, seconds: float) -> bool:
        """Log the messages whose handlers still run, except the handler that calls this.

        :param seconds: how long closing waited for them.
        :returns: whether there are any.
        """
        workers = [worker for worker in list(self._workers) if worker is not threading.current_thread()]
        taken = [
            self._taken[worker].properties.message_id or "without an id" for worker in workers if worker in self._taken
        ]
        if taken:
            logger.warning(
                "%d handler%s of %s still ran after %.3g s: message %s %s",
                len(taken),
                "s" * (len(taken) > 1),
                self.queue,
                seconds,
                printable(", ".join(taken)),
                "will be delivered again" if self.consumed.topology.queue.durable else "is lost with its queue",
            )
        return bool(taken)

    def afterwards(self, action: Callable[[], None]) -> None:
        """Run ``action`` on the last worker after it has acknowledged its message; now if no worker runs."""
        with self._lock:
            if self._workers:
                self._afterwards.append(action)
                return
        action()

    # --- the workers ------------------------------------------------------------------------------

    def _work(self, consumer: Consumer, republisher: Republisher) -> None:
        me = threading.current_thread()
        try:
            # Not until _stopping: only cancel() knows how long the last worker may wait for confirms.
            while not self._cancelled.is_set():
                delivery = self._next(consumer, republisher)
                if delivery is None:
                    continue
                if self._stopping:
                    consumer.deliveries.put(delivery)  # for give_back()
                    self._cancelled.wait()
                    break
                self._taken[me] = delivery
                self._process(delivery, consumer, republisher)
                self._taken.pop(me, None)
        finally:
            self._leave(consumer, republisher)

    def _next(self, consumer: Consumer, republisher: Republisher) -> Delivery | None:
        """The next delivery. First deals with what is due for those that are being republished."""
        due = republisher.next_due()
        if due == 0:
            republisher.advance()
            due = republisher.next_due()
        try:
            return consumer.deliveries.get() if due is None else take(consumer.deliveries, due)
        except Empty:
            return None

    def _process(self, delivery: Delivery, consumer: Consumer, republisher: Republisher) -> None:
        if became_reloader_parent():
            # The script called app.run(debug=True) after it subscribed: its child process serves, and this one only
            # watches files.
            logger.info("%s is no longer consumed: this process is the parent of werkzeug's reloader", consumer.queue)
            self.cancel(time.monotonic() + CLOSE_TIMEOUT)
            return
        try:
            self._processor.process(delivery, consumer, republisher)
        except BaseException:
            logger.exception("a delivery of %s could not be processed and stays unacked", consumer.queue)

    def _leave(self, consumer: Consumer, republisher: Republisher) -> None:
        """End a worker. The last one closes the consumer, so that all handlers have acknowledged before that.

        It also waits for the confirms of what is being republished. Closing requeues what was not handled.
        """
        me = threading.current_thread()
        self._taken.pop(me, None)
        with self._lock:
            if len(self._workers) > 1:
                self._workers = [worker for worker in self._workers if worker is not me]
                return
        # The last one. It stays in _workers, so that whoever stops this consumer waits for it.
        try:
            republisher.finish(max(self._stop_deadline, time.monotonic() + CLOSE_TIMEOUT))
        except BaseException:
            logger.exception("waiting for the confirms of moved messages of %s failed", consumer.queue)
        with self._lock:
            self._workers = []
            actions, self._afterwards = self._afterwards, []
        try:
            consumer.close(max(self._stop_deadline, time.monotonic() + CLOSE_TIMEOUT))
        except MessageHubError as error:
            logger.debug("closing the consumer of %s failed: %s", consumer.queue, error)
        for action in actions:
            action()
