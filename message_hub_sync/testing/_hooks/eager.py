"""Handlers that run in the thread that publishes, for ``MessageHubTestFramework(eager=True)``."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from message_hub_sync.middleware import Middleware, Received, Sending
from message_hub_sync.runtime.real_time import time
from message_hub_sync.transport.memory.broker import Hub

__all__ = ["EagerHandling"]

#: Seconds until a hub is taken for one that never rests.
_PATIENCE = 60.0
#: Seconds for which a request inside a handler waits until its own delivery is there.
_GRACE = 5.0


class _Task:
    """The handlers of one delivery. A thread that publishes runs them, and the consumer thread waits for the result."""

    def __init__(self, run: Callable[[], Any], message_id: str | None) -> None:
        self.message_id = message_id
        self._run = run
        # With the context of the delivery: the correlation id, and what other middleware has set.
        self._context = contextvars.copy_context()
        self._done = threading.Event()
        self._result: Any = None  # written before _done is set
        self._error: BaseException | None = None  # written before _done is set
        self._given_back = False  # written before _done is set

    def run(self) -> None:
        """Run the handlers in this thread. What they raise goes to the consumer thread, as it always does."""
        try:
            self._result = self._context.run(self._run)
        except BaseException as error:
            self._error = error
            if not isinstance(error, Exception):  # Ctrl-C in the thread of the test ends the test, too
                raise
        finally:
            self._done.set()

    def give_back(self) -> None:
        """Let the consumer thread run the handlers."""
        self._given_back = True
        self._done.set()

    def result(self) -> Any:
        """Wait for the result."""
        self._done.wait()
        if self._given_back:
            return self._run()
        if self._error is not None:
            raise self._error
        return self._result


class _ThisThread(threading.local):
    #: How many deliveries this thread is handling, one inside the other.
    handling = 0


class EagerHandling(Middleware):
    """The outermost middleware of all clients of one embedded hub. Thread-safe.

    A thread that publishes returns from its call when the hub is at rest. Until then it runs the handlers of whatever
    is delivered. A delivery that comes while no thread publishes, for example at ``subscribe``, is handled in the
    consumer's thread.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._changed = threading.Condition()
        self._tasks: deque[_Task] = deque()  # guarded by _changed
        self._publishing = 0  # guarded by _changed; threads that run tasks now
        self._here = _ThisThread()

    def send(self, batch: Sequence[Sending], call_next: Callable[[], None]) -> None:
        kind = batch[0].kind if batch else "reply"
        if kind == "reply" or self._here.handling:
            # A reply is sent while its delivery is not acknowledged yet, so the hub cannot come to rest. And what a
            # handler publishes is handled after it, by the call that it runs in.
            call_next()
            if kind == "request":
                self._handle_own({str(sending.message_id) for sending in batch})
            return
        with self.until_rest():
            call_next()

    def handle(self, received: Received, call_next: Callable[[], Any]) -> Any:
        task = _Task(lambda: self._handled(call_next), received.properties.message_id)
        with self._changed:
            if self._publishing:
                self._tasks.append(task)
                self._changed.notify_all()
            else:
                task.give_back()
        return task.result()

    def _handled(self, call_next: Callable[[], Any]) -> Any:
        self._here.handling += 1
        try:
            return call_next()
        finally:
            self._here.handling -= 1

    @contextlib.contextmanager
    def until_rest(self) -> Iterator[None]:
        """At the end of the block, run the handlers of all that was delivered, until the hub is at rest.

        :raises AssertionError: a handler that runs in another thread did not return.
        """
        with self._changed:
            self._publishing += 1
        try:
            yield
            self.run_until_rest()
        finally:
            with self._changed:
                self._publishing -= 1
                left, self._tasks = (deque(), self._tasks) if self._publishing else (self._tasks, deque())
            for task in left:  # after an error of this thread: nobody else would run them
                task.give_back()

    def run_until_rest(self) -> None:
        """Run handlers until the hub is at rest. Inside :meth:`until_rest`."""
        rested = threading.Event()

        def wait() -> None:
            if self._hub.wait_until_idle(time.monotonic() + _PATIENCE):
                rested.set()
            with self._changed:
                self._changed.notify_all()

        watching = threading.Thread(target=wait, name="message-hub-test-rest", daemon=True)
        watching.start()
        while (task := self._next(lambda: rested.is_set() or not watching.is_alive())) is not None:
            task.run()
        watching.join(_PATIENCE)
        if not rested.is_set():
            raise AssertionError(f"the hub did not come to rest within {_PATIENCE:g} s: a handler did not return")

    def _handle_own(self, message_ids: set[str]) -> None:
        """Run handlers until those of these messages have run: a handler waits for their result."""
        until = time.monotonic() + _GRACE
        while message_ids and (task := self._next(lambda: time.monotonic() >= until, _GRACE)) is not None:
            task.run()
            message_ids.discard(task.message_id or "")

    def _next(self, ended: Callable[[], bool], timeout: float = _PATIENCE) -> _Task | None:
        """The next task, or ``None`` if ``ended()``."""
        with self._changed:
            self._changed.wait_for(lambda: self._tasks or ended(), timeout)
            return self._tasks.popleft() if self._tasks else None
