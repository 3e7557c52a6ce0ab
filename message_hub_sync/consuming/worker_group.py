"""The consumer threads of one subscription. They serve all its queues, in turn."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Protocol

from message_hub_sync.runtime.deadlines import remaining, take
from message_hub_sync.runtime.locks import Lock, locked
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.real_time import time
from message_hub_sync.transport.base import Delivery

__all__ = ["ServedQueue", "Work", "WorkerGroup", "WorkerThread"]

logger = SafeLogger("message_hub_sync.subscription")


class ServedQueue(Protocol):
    """What a group needs of a queue that it serves."""

    def attend(self, worker: WorkerThread) -> None:
        """Do what is due besides handling deliveries."""


class WorkerThread(threading.Thread):
    """One thread of a group. Only this thread writes its fields."""

    def __init__(self, group: WorkerGroup, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.group = group
        #: The queue that it works on now. Set before it looks whether the queue stops, so that whoever stops the queue
        #: sees either a thread that works on it or one that will not begin.
        self.queue: ServedQueue | None = None
        #: The delivery whose handlers run now.
        self.delivery: Delivery | None = None
        #: What to do after the present delivery; its handler asked for it. Used by this thread only.
        self.afterwards: list[Callable[[], None]] = []

    def run(self) -> None:
        self.group._run(self)


#: One piece of work: it is called with the thread that does it.
Work = Callable[[WorkerThread], None]


class WorkerGroup:
    """The threads that run the callbacks of one subscription, for all its queues. Any thread may use it.

    A queue that has deliveries has one place in line, and takes a new place behind the others after each delivery. So
    the queues take turns, however many deliveries one of them has.

    :param owner: whose group it is.
    :param name: the start of the names of its threads.
    :param workers: how many threads it has.
    """

    def __init__(self, owner: object, name: str, workers: int) -> None:
        self.owner = owner
        self._name = name
        self._workers = workers
        self._line: SimpleQueue[Work | None] = SimpleQueue()
        #: Puts work in line. It never waits; the caller may hold any lock.
        self.put: Callable[[Work | None], None] = self._line.put
        self._lock = Lock(1)  # taken while the lock of the registry is held
        self._queues: tuple[ServedQueue, ...] = ()  # replaced as a whole under _lock, read without it
        self._threads: list[WorkerThread] = []  # each thread adds and removes itself
        self._begun: list[WorkerThread] = []  # for join(); guarded by _lock
        self._started = False  # set under _lock
        self._ended = False  # set under _lock
        # When a queue must be attended to, in monotonic seconds. Any thread writes it. If two do so at once, the later
        # time may win: both also put their work in line, and that work sets its time again.
        self._due = math.inf

    @property
    def threads(self) -> list[WorkerThread]:
        """The threads that run."""
        return list(self._threads)

    @property
    def running(self) -> bool:
        """Whether its threads were started and it has not ended."""
        return self._started and not self._ended

    @property
    def ended(self) -> bool:
        """Whether it serves no queue any more. It stays so."""
        return self._ended

    @locked
    def add(self, queue: ServedQueue) -> bool:
        """Serve a queue. Returns whether that is done; a group that has ended serves none."""
        if not self._ended:
            self._queues = (*self._queues, queue)
        return not self._ended

    @locked
    def remove(self, queue: ServedQueue) -> None:
        """Serve a queue no longer. With its last queue the group ends, and each thread after its present work."""
        self._queues = tuple(one for one in self._queues if one is not queue)
        if not self._queues:
            self._ended = True
            self.put(None)

    @locked
    def start(self) -> None:
        """Start the threads that do not run yet.

        :raises RuntimeError: no thread can be started: the process exits, or has too many.
        """
        if not self._ended:
            for number in range(len(self._threads) + 1, self._workers + 1):
                thread = WorkerThread(self, f"{self._name}-{number}")
                thread.start()
                self._begun.append(thread)
            self._started = True

    def attend_at(self, queue: ServedQueue, due: float) -> None:
        """Have a thread attend to ``queue`` at ``due``, in monotonic seconds."""
        if due < self._due:
            self._due = due
            self.put(queue.attend)  # a thread that waits without a limit must wait until then only

    def join(self, deadline: float) -> None:
        """Wait until the threads of a group that has ended are gone, except the calling one."""
        if self._ended:
            for thread in {*self._begun, *self._threads}:
                if thread is not threading.current_thread():
                    thread.join(remaining(deadline))

    # --- on a worker thread -----------------------------------------------------------------------

    def _run(self, worker: WorkerThread) -> None:
        # A start() that was interrupted may be repeated, which may start too many threads: those end here.
        self._threads.append(worker)
        try:
            if self._threads.index(worker) < self._workers:
                self._serve(worker)
        finally:
            self._threads.remove(worker)

    def _serve(self, worker: WorkerThread) -> None:
        line = self._line
        while (work := line.get() if self._due == math.inf else self._next()) is not None:
            try:
                work(worker)
                while worker.afterwards:
                    worker.afterwards.pop(0)()
            except BaseException:  # it would end the thread, and with it the subscription
                logger.exception("a consumer thread failed in an unexpected way; it goes on")
        line.put(None)  # for the next thread

    def _next(self) -> Work | None:
        """The next work, while something is due at a certain time."""
        left = self._due - time.monotonic()
        if left <= 0:
            return self._all_due()
        try:
            work = take(self._line, left)
        except Empty:
            return self._all_due()
        if work is not None and work is not _look:
            self.put(_look)  # this thread may be busy until then: another one must wait for that time
        return work

    def _all_due(self) -> Work:
        self._due = math.inf
        for queue in self._queues:
            self.put(queue.attend)
        return _look


def _look(worker: WorkerThread) -> None:
    """No work: the thread only looks when something is due."""
