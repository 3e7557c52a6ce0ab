"""Tasks of an I/O thread. Each is a generator that runs until it must wait for the broker, so that none delays another.

A task yields an :class:`Answer` and continues when it is there. Any number of tasks wait at the same time: 200 queues
are declared in as many round trips as one queue, and one that the broker does not answer for holds up only itself.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Any, TypeAlias, TypeVar

from message_hub_sync.errors import MessageHubConnectionError, MessageHubError
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.real_time import time
from message_hub_sync.transport.rabbitmq.connection import ThreadedConnection
from message_hub_sync.transport.rabbitmq.translation import (
    ChannelClosed,
    ConnectionEnded,
    RpcTimedOut,
    describe,
    entity_error,
)

__all__ = ["Answer", "IOTask", "IOTasks", "Steps", "Work"]

logger = SafeLogger("message_hub_sync.rabbitmq")

T = TypeVar("T")

#: Seconds in which tasks run one by one after the broker has closed a connection because of one of several.
_ONE_BY_ONE_SECONDS = 30.0


class Answer:
    """Something that tasks wait for. It comes once: a value or an error. I/O thread only."""

    __slots__ = ("_error", "_there", "_value", "_waiting", "connection")

    def __init__(self, connection: ThreadedConnection) -> None:
        self.connection = connection
        self._there = False
        self._value: Any = None
        self._error: Exception | None = None
        self._waiting: list[IOTask] = []

    def set(self, value: Any = None) -> None:
        """It is there: the waiting tasks continue once the lock is released. The caller holds the connection's lock."""
        if not self._there:
            self._there, self._value = True, value
            self._continue()

    def fail(self, error: Exception) -> None:
        """It will not come: raise ``error`` in the waiting tasks. The caller holds the connection's lock."""
        if not self._there:
            self._there, self._error = True, error
            self._continue()

    def wait(self) -> Steps[Any]:
        """Wait for it, in a task.

        :returns: its value.
        :raises Exception: its error.
        """
        if not self._there:
            yield self
        if self._error is not None:
            raise self._error
        return self._value

    def _continue(self) -> None:
        for task in self._waiting:
            self.connection.after_unlock.append(task.resumed_by(self))
        self._waiting.clear()


#: What a task does: it yields what it waits for, and returns its result. It may be thrown ``RpcTimedOut`` or
#: ``ConnectionEnded`` while it waits. It cleans up in ``except Exception``, never in ``finally``: in a forked child,
#: the garbage collector ends generators of the parent, and they must not take a lock there.
Steps: TypeAlias = Generator[Answer, None, T]
#: Starts a task on a connection.
Work: TypeAlias = Callable[[ThreadedConnection], Steps[T]]


class IOTask:
    """One task.

    :param work: what it does. Called on the I/O thread.
    :param deadline: when it is thrown ``RpcTimedOut``, in monotonic seconds.
    :param ended: called once with this task, on the I/O thread, no lock held, after ``result`` and ``error`` were set.
    """

    def __init__(self, work: Work[Any], deadline: float, ended: Callable[[IOTask], object]) -> None:
        self._work = work
        self.deadline = deadline
        self._ended = ended
        self.result: Any = None
        self.error: Exception | None = ConnectionEnded()  # the error of a task that never ran
        #: The caller stopped waiting: do not start the task any more.
        self.abandoned = False  # set by the caller
        self._steps: Steps[Any] | None = None  # I/O thread only, as all below
        self._awaited: Answer | None = None
        self._left: Callable[[IOTask], object]

    def start(self, connection: ThreadedConnection, left: Callable[[IOTask], object]) -> None:
        """Run it until it waits for the first time.

        :param left: called with this task when it waits for nothing any more, before ``ended``.
        """
        self._left = left
        try:
            self._steps = self._work(connection)
        except Exception as error:
            self._end(None, error)
        else:
            self._step(None)

    def resumed_by(self, answer: Answer) -> Callable[[], None]:
        """A call that continues the task if it still waits for ``answer``."""

        def resume() -> None:
            if self._awaited is answer:
                self._step(None)

        return resume

    def interrupt(self, error: Exception) -> None:
        """Raise ``error`` where the task waits. Nothing happens if it has ended."""
        if self._awaited is not None:
            self._step(error)

    def fail(self) -> None:
        """It was never started, and will not be."""
        self._ended(self)

    def _step(self, error: Exception | None) -> None:
        self._awaited = None
        try:
            steps = self._steps
            assert steps is not None
            self._awaited = steps.send(None) if error is None else steps.throw(error)
        except StopIteration as stop:
            self._end(stop.value, None)
        except Exception as failed:
            self._end(None, failed)
        else:
            self._awaited._waiting.append(self)

    def _end(self, result: Any, error: Exception | None) -> None:
        """Record how it ended. ``error`` becomes one that is never an error of pika, ssl or a socket."""
        self._steps = None
        self._left(self)
        self.result = result
        if error is None or isinstance(error, (ConnectionEnded, MessageHubError)):
            self.error = error
        elif isinstance(error, RpcTimedOut):
            self.error = MessageHubConnectionError("the broker did not answer before the deadline")
        elif isinstance(error, ChannelClosed):
            self.error = entity_error(error, "the call failed")
        else:
            logger.error("a call to the broker failed in an unexpected way; the caller gets the error", exc_info=error)
            self.error = MessageHubConnectionError(f"a call to the broker failed: {describe(error)}")
        self._ended(self)


class IOTasks:
    """The tasks of one I/O thread."""

    def __init__(self) -> None:
        self._waiting: deque[IOTask] = deque()  # any thread appends, the I/O thread pops; a deque is thread-safe
        # I/O thread only, as all below.
        self._running: set[IOTask] = set()  # those that wait for the broker
        self._held: deque[IOTask] = deque()  # those that are started when no other one runs
        self._one_by_one_until = 0.0  # monotonic seconds
        self._connection: ThreadedConnection | None = None
        self._next_check = math.inf  # when a timer of that connection looks at the deadlines; monotonic seconds

    @property
    def waiting(self) -> bool:
        """Whether there are tasks that were not started yet."""
        return bool(self._waiting)

    def add(self, tasks: Iterable[IOTask]) -> None:
        """Add tasks. For any thread; the caller wakes the I/O thread afterwards."""
        self._waiting.extend(tasks)

    def run(self, connection: ThreadedConnection) -> None:
        """Start the tasks that were added. If the connection ends, the remaining ones wait for the next one."""
        while self._waiting and connection.usable:
            task = self._waiting.popleft()
            if not task.abandoned:
                self.start(task, connection)

    def start(self, task: IOTask, connection: ThreadedConnection) -> None:
        """Start one task; later, if another one runs and the broker may refuse one of them."""
        if connection is not self._connection:
            self._connection, self._next_check = connection, math.inf
        if self._running and time.monotonic() < self._one_by_one_until:
            self._held.append(task)
            return
        self._running.add(task)
        task.start(connection, lambda task: self._ended(task, connection))
        if task in self._running:
            self._check_at(task.deadline, connection)

    def _ended(self, task: IOTask, connection: ThreadedConnection) -> None:
        self._running.discard(task)
        if self._held and not self._running:
            connection.lock.run(connection.after_unlock.append, lambda: self._start_held(connection))

    def _start_held(self, connection: ThreadedConnection) -> None:
        while self._held and not self._running and connection.usable:
            task = self._held.popleft()
            if not task.abandoned:
                self.start(task, connection)

    def refused(self, reason: Exception) -> bool:
        """The broker closed the connection because of a method. Call it before the tasks get ``ConnectionEnded``.

        If one task runs, it is the one: ``reason`` is raised in it. Otherwise the tasks of the next connections run one
        by one for a while, so that only the one that is refused fails.

        :returns: whether it was one task.
        """
        if len(self._running) == 1:
            next(iter(self._running)).interrupt(reason)
            return True
        if self._running:
            self._one_by_one_until = time.monotonic() + _ONE_BY_ONE_SECONDS
        return False

    def end_running(self) -> None:
        """Raise ``ConnectionEnded`` in all tasks that wait for the broker, or for another task."""
        while self._held:
            self._held.popleft().fail()
        for task in list(self._running):
            task.interrupt(ConnectionEnded())

    def fail(self) -> None:
        """Fail the tasks that were not started."""
        while self._waiting:
            self._waiting.popleft().fail()

    def _check_at(self, moment: float, connection: ThreadedConnection) -> None:
        # One timer for the earliest deadline, not one for each task: a timer that is not needed any more stays in the
        # connection's heap until it is due.
        if moment < self._next_check:
            self._next_check = moment
            connection.lock.run(
                connection.call_later,
                moment - time.monotonic(),
                lambda: connection.after_unlock.append(lambda: self._check_deadlines(connection)),
            )

    def _check_deadlines(self, connection: ThreadedConnection) -> None:
        self._next_check = math.inf
        now = time.monotonic()
        for task in list(self._running):
            if task.deadline <= now:
                task.interrupt(RpcTimedOut())
        if self._running:
            self._check_at(min(task.deadline for task in self._running), connection)
