"""Tasks that other threads give to an I/O thread and wait for."""

from __future__ import annotations

import _thread
from collections import deque
from collections.abc import Callable
from typing import Any

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

__all__ = ["IOTask", "IOTaskQueue"]

logger = SafeLogger("message_hub_sync.rabbitmq")


class IOTask:
    """One task. The I/O thread writes ``result`` and ``error`` before it releases the waiter."""

    __slots__ = ("_done", "abandoned", "error", "result", "work")

    def __init__(self, work: Callable[[ThreadedConnection], Any]) -> None:
        self.work = work
        self.result: Any = None
        self.error: Exception | None = ConnectionEnded()  # the error of a task that never ran
        #: The caller stopped waiting: do not start the task any more.
        self.abandoned = False  # set by the caller
        self._done = _thread.allocate_lock()
        self._done.acquire()

    def wait(self, deadline: float) -> bool:
        """Wait until the task ran or failed.

        :param deadline: monotonic seconds.
        :returns: ``False`` if the deadline passes first.
        """
        return self._done.acquire(timeout=max(0.0, deadline - time.monotonic()))

    def run(self, connection: ThreadedConnection) -> None:
        """Run the task, on the I/O thread. ``error`` is never an error of pika, ssl or a socket."""
        try:
            self.result = self.work(connection)
            self.error = None
        except (ConnectionEnded, MessageHubError) as error:
            self.error = error
        except RpcTimedOut:
            self.error = MessageHubConnectionError("the broker did not answer before the deadline")
        except ChannelClosed as closed:
            self.error = entity_error(closed, "the call failed")
        except Exception as error:
            logger.exception("a call to the broker failed in an unexpected way; the caller gets the error")
            self.error = MessageHubConnectionError(f"a call to the broker failed: {describe(error)}")
        finally:
            self._done.release()

    def fail(self) -> None:
        """End the wait of the caller: the connection ended before the task ran."""
        self._done.release()


class IOTaskQueue:
    """The tasks of one I/O thread, in order."""

    def __init__(self) -> None:
        self._waiting: deque[IOTask] = deque()  # any thread appends, the I/O thread pops; a deque is thread-safe

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, task: IOTask) -> None:
        """Add a task. For any thread; the caller wakes the I/O thread afterwards."""
        self._waiting.append(task)

    def run(self, connection: ThreadedConnection) -> None:
        """Run the tasks while the connection is usable. The remaining tasks wait for the next connection."""
        while self._waiting and connection.usable:
            task = self._waiting.popleft()
            if not task.abandoned:
                task.run(connection)

    def fail(self) -> None:
        """Fail all tasks."""
        while self._waiting:
            self._waiting.popleft().fail()
