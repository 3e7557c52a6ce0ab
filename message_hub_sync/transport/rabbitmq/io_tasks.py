"""Work that other threads hand to an I/O thread, and the place where they wait for it."""

from __future__ import annotations

import _thread
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from message_hub_sync.errors import MessageHubConnectionError, MessageHubError
from message_hub_sync.runtime.log import SafeLogger
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
    """One piece of work. ``result`` and ``error`` are written before the waiter is released."""

    __slots__ = ("_done", "abandoned", "error", "result", "work")

    def __init__(self, work: Callable[[ThreadedConnection], Any]) -> None:
        self.work = work
        self.result: Any = None
        self.error: Exception | None = ConnectionEnded()  # until it was done
        #: Set by a caller who gave up: work not begun yet is not done any more.
        self.abandoned = False
        self._done = _thread.allocate_lock()
        self._done.acquire()

    def wait(self, deadline: float) -> bool:
        """Whether it is over, one way or the other, by ``deadline`` (monotonic seconds)."""
        return self._done.acquire(timeout=max(0.0, deadline - time.monotonic()))

    def run(self, connection: ThreadedConnection) -> None:
        """On the I/O thread. No error of a foreign library comes out."""
        try:
            self.result = self.work(connection)
            self.error = None
        except (ConnectionEnded, MessageHubError) as error:
            self.error = error
        except RpcTimedOut:
            self.error = MessageHubConnectionError("the broker did not answer in time")
        except ChannelClosed as closed:
            self.error = entity_error(closed, "the call failed")
        except Exception as error:
            logger.exception("the broker could not be asked")
            self.error = MessageHubConnectionError(f"the broker could not be asked: {describe(error)}")
        finally:
            self._done.release()

    def fail(self) -> None:
        """The connection ended before it was begun."""
        self._done.release()


class IOTaskQueue:
    """The tasks of one I/O thread, in order. Mutable: a deque, atomic by itself."""

    def __init__(self) -> None:
        self._waiting: deque[IOTask] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, task: IOTask) -> None:
        """For any thread, which wakes the I/O thread afterwards."""
        self._waiting.append(task)

    def run(self, connection: ThreadedConnection) -> None:
        """Do what waits, for as long as the connection can be used; the rest is for the next one."""
        while self._waiting and connection.usable:
            task = self._waiting.popleft()
            if not task.abandoned:
                task.run(connection)

    def fail(self) -> None:
        """Nobody will do them."""
        while self._waiting:
            self._waiting.popleft().fail()
