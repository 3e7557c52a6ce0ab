"""One queue being consumed: its worker threads, from the first delivery to the last settlement."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from queue import Empty

from message_hub_sync.consuming.consumed_queue import ConsumedQueue, ConsumeOptions, ConsumerContext
from message_hub_sync.consuming.delivery_processor import DeliveryProcessor
from message_hub_sync.consuming.handlers import Handler
from message_hub_sync.consuming.republishing import Republisher
from message_hub_sync.errors import MessageHubConnectionError, MessageHubError
from message_hub_sync.runtime.deadlines import remaining, take
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.process_kind import became_reloader_parent, uwsgi_hint
from message_hub_sync.runtime.text import printable
from message_hub_sync.transport.base import Consumer, Delivery

__all__ = ["QueueConsumer"]

logger = SafeLogger("message_hub_sync.subscription")

#: Seconds for the last acknowledgements of a handler that outlived the deadline of whoever stopped it.
CLOSE_TIMEOUT = 1.0


class QueueConsumer:
    """Consumes one queue for all subscriptions to it; the ``first_in_process`` one in this process, or a later one.

    Mutable: ``_handlers``, replaced as a whole by the registry that owns this under *its* lock, so that workers
    read it without; guarded by ``_lock``: the opening (done once, awaited by whoever else starts this) and the
    ``consumer`` it led to, the threads, the workers that still run, and whether they are to stop. ``_taken`` holds
    the delivery that each worker took last, ``_republishers`` what each cannot move yet; each writes its own.
    """

    def __init__(
        self,
        consumed: ConsumedQueue,
        options: ConsumeOptions,
        context: ConsumerContext,
        *,
        first_in_process: bool = True,
    ) -> None:
        self.consumed = consumed
        self.options = options
        self._context = context
        self._handlers: tuple[tuple[object, Handler], ...] = ()
        self._processor = DeliveryProcessor(
            consumed,
            options,
            context,
            lambda: [handler for _, handler in self._handlers],
            first_in_process=first_in_process,
        )
        self._lock = threading.Lock()
        self._opening: Future[None] | None = None
        self.consumer: Consumer | None = None
        self._threads: list[threading.Thread] = []
        self._workers: list[threading.Thread] = []
        self._taken: dict[threading.Thread, Delivery] = {}
        self._republishers: list[Republisher] = []
        self._stopping = False
        self._stop_deadline = 0.0
        self._afterwards: list[Callable[[], None]] = []

    # --- who handles ------------------------------------------------------------------------------

    def attach(self, owner: object, handler: Handler) -> None:
        """Add a subscription's callback. The caller holds the registry's lock."""
        self._handlers = (*self._handlers, (owner, handler))

    def detach(self, owner: object) -> bool:
        """Remove a subscription's callback; whether it was the last. The caller holds the registry's lock.

        The last one stays until this is cancelled: a delivery that is taken now would be settled unhandled.
        """
        others = tuple(pair for pair in self._handlers if pair[0] is not owner)
        self._handlers = others or self._handlers
        return not others

    @property
    def queue(self) -> str:
        """The queue's present name."""
        consumer = self.consumer
        return self.consumed.topology.queue.name if consumer is None else consumer.queue

    @property
    def active(self) -> bool:
        """Whether deliveries arrive and a worker takes them."""
        consumer = self.consumer
        return consumer is not None and consumer.active and bool(self._workers) and not self._stopping

    @property
    def error(self) -> str | None:
        """Why failed messages stay where they are and take up the prefetch; ``None``: none does."""
        stuck = sum(
            (Counter(republisher.stuck()) for republisher in list(self._republishers)), Counter[tuple[str, str]]()
        )
        if not stuck:
            return None
        ((queue, why), count), *_ = stuck.most_common(1)
        return f"{count} message{'s' * (count > 1)} cannot be moved to {queue}: {printable(why, 500)}"

    @property
    def is_current_thread(self) -> bool:
        """Whether the caller is one of the workers: a handler."""
        return threading.current_thread() in self._workers

    # --- start and stop ---------------------------------------------------------------------------

    def start(self, deadline: float) -> None:
        """Consume. Whoever comes second waits for the first one's result.

        :raises MessageHubError: it could not be declared and consumed in time.
        """
        while True:
            with self._lock:
                opening = self._opening
                if opening is None:
                    mine = self._opening = Future()
                    break
            try:
                opening.result(timeout=remaining(deadline))
            except FutureTimeoutError:  # the builtin TimeoutError only from 3.11 on
                raise MessageHubConnectionError(
                    f"the queue {self.consumed.topology.queue.name} was not consumed in time{uwsgi_hint()}"
                ) from None
            except CancelledError:
                continue  # whoever was at it was interrupted
            return
        try:
            self._open(deadline)
        except BaseException as error:
            self._opening = None
            # A signal or a gevent timeout is this caller's own: the others open it without him.
            if isinstance(error, MessageHubError):
                mine.set_exception(error)
            else:
                mine.cancel()
            raise
        mine.set_result(None)

    def _open(self, deadline: float) -> None:
        context = self._context
        consumer = context.transport.consume(self.consumed.topology, prefetch=self.options.prefetch, deadline=deadline)
        name = f"message-hub-{context.config.service_name}-{self.consumed.topology.queue.name}"
        try:
            with self._lock:
                if self._stopping:
                    raise MessageHubConnectionError("it was cancelled meanwhile")
                self.consumer = consumer
                # Under the lock, so that nobody joins a thread that has not started.
                for number in range(1, self.options.workers + 1):
                    worker = threading.Thread(target=self._work, args=(consumer,), name=f"{name}-{number}", daemon=True)
                    worker.start()
                    self._threads.append(worker)
                    self._workers.append(worker)
        except BaseException as error:
            # The last of the workers that have started closes it; there may be none.
            self.cancel(deadline)
            if not self._workers:
                consumer.close(deadline)
            # A RuntimeError: no thread starts in a process that is at its end, or at its limit.
            if isinstance(error, (RuntimeError, MessageHubConnectionError)):
                raise MessageHubConnectionError(f"the queue {consumer.queue} is not consumed: {error}") from None
            raise

    def cancel(self, deadline: float) -> None:
        """Stop the intake, and have each worker end after the message it is at. Does not wait for them."""
        with self._lock:
            if self._stopping:
                return
            self._stopping = True
            self._stop_deadline = deadline
            consumer = self.consumer
        if consumer is None:
            return
        try:
            consumer.cancel(deadline)
        except MessageHubError as error:
            logger.debug("the consumer of %s was not cancelled in order: %s", consumer.queue, error)
        finally:
            for _ in range(self.options.workers):
                consumer.deliveries.put(None)

    def join(self, deadline: float) -> bool:
        """Wait for the workers, but not for the calling one; whether they have ended."""
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(remaining(deadline))
        return not self._workers

    def tell_unfinished(self, seconds: float) -> None:
        """Log the messages whose handlers run on though they were waited for.

        :param seconds: how long they were.
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

    def afterwards(self, action: Callable[[], None]) -> None:
        """Have ``action`` run by the last worker when it has settled its message; at once if there is none."""
        with self._lock:
            if self._workers:
                self._afterwards.append(action)
                return
        action()

    # --- the workers ------------------------------------------------------------------------------

    def _work(self, consumer: Consumer) -> None:
        republisher = Republisher(self._context.transport, consumer)
        self._republishers.append(republisher)
        me = threading.current_thread()
        try:
            while not self._stopping:
                delivery = self._next(consumer, republisher)
                if delivery is not None and not self._stopping:
                    self._taken[me] = delivery
                    self._process(delivery, consumer, republisher)
        finally:
            self._leave(consumer)

    def _next(self, consumer: Consumer, republisher: Republisher) -> Delivery | None:
        due = republisher.next_due()
        try:
            return consumer.deliveries.get() if due is None else take(consumer.deliveries, due)
        except Empty:
            republisher.advance()
            return None

    def _process(self, delivery: Delivery, consumer: Consumer, republisher: Republisher) -> None:
        if became_reloader_parent():
            # A script's app.run(debug=True), seen only now: the child serves, this process watches files.
            logger.info("%s is consumed no more: this is the parent of werkzeug's reloader", consumer.queue)
            self.cancel(time.monotonic() + CLOSE_TIMEOUT)
            return
        try:
            republisher.drop_stale(delivery.origin)
            self._processor.process(delivery, consumer, republisher)
            # A stream of deliveries must not keep republisher from being tried again.
            if republisher.next_due() == 0:
                republisher.advance()
        except BaseException:
            logger.exception("a delivery of %s could not be processed and stays unsettled", consumer.queue)

    def _leave(self, consumer: Consumer) -> None:
        """The last worker to end gives back what nobody handled, so that running handlers settle before."""
        with self._lock:
            self._workers = [worker for worker in self._workers if worker is not threading.current_thread()]
            self._taken.pop(threading.current_thread(), None)
            if self._workers:
                return
            actions, self._afterwards = self._afterwards, []
        try:
            consumer.close(max(self._stop_deadline, time.monotonic() + CLOSE_TIMEOUT))
        except MessageHubError as error:
            logger.debug("the consumer of %s was not closed in order: %s", consumer.queue, error)
        for action in actions:
            action()
