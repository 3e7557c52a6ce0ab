"""Handles redelivered messages: each of them may be the one whose handler ended an earlier process."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar
from uuid import UUID

from message_hub_sync.consuming.crash_marks import CrashMarks
from message_hub_sync.consuming.decoded_delivery import DecodedDelivery
from message_hub_sync.runtime.deadlines import remaining
from message_hub_sync.runtime.locks import Lock
from message_hub_sync.runtime.real_time import time
from message_hub_sync.transport.base import Transport
from message_hub_sync.transport.threads import Waiter, Waiters
from message_hub_sync.transport.topology import QueueSpec, crash_mark_queue

__all__ = ["Suspects"]

#: Seconds for which a suspect waits until it may run. After that it runs beside others, so that a handler that hangs
#: does not hold up all redelivered messages of the process.
TURN_TIMEOUT = 60.0
#: Seconds before the last look at the marks. A process that lost its connection needs them to take its own mark back.
LAST_LOOK = 1.0
#: Seconds to take marks back after a reconnect, and at the end of a session.
TAKE_BACK_TIMEOUT, CLOSE_TIMEOUT = 5.0, 1.0


class Suspect(Protocol):
    """The part of a delivery in progress that is needed here."""

    decoded: DecodedDelivery

    @property
    def held(self) -> bool:
        """Whether it can still be acknowledged."""

    def flush(self) -> None:
        """Send its acknowledgement now."""

    def dead_letter_crashed(self, crashes: int, settled: Callable[[], None]) -> None:
        """Dead-letter it, because its handler has ended several processes."""


SuspectT = TypeVar("SuspectT", bound=Suspect)


class Suspects:
    """The redelivered messages that this process handles. Any thread may use it.

    The broker marks a message as redelivered if it was delivered before and not acknowledged: its handler may have
    ended the process, another message may have, or the process ended in order. So a redelivered message is a suspect,
    and is not yet guilty. Before its handler runs, a mark is added in the broker. See :class:`CrashMarks`.
    """

    def __init__(self, transport: Transport, service: str) -> None:
        self._service = service
        self._marks = CrashMarks(transport)
        self._lock = Lock()
        self._waiters = Waiters()  # those who wait for their turn, or for another mark; guarded by _lock
        self._beside = 0  # suspects that run beside others; guarded by _lock
        self._alone = 0  # suspects that run alone; guarded by _lock
        self._marked: dict[Suspect, QueueSpec] = {}  # the running handlers with a mark; guarded by _lock
        transport.on_connected(self._connected)

    @property
    def problem(self) -> str | None:
        """Why crashes cannot be counted now; ``None`` if they can."""
        return self._marks.problem

    def handle(
        self,
        work: SuspectT,
        attempts: int,
        handler: Callable[[SuspectT], None],
        stopping: Callable[[], bool],
    ) -> None:
        """Handle a redelivered message, or dead-letter it if its handler has ended too many processes.

        :param attempts: how many crashes are allowed. The first one has left no mark.
        :param handler: handles it.
        :param stopping: whether its consumer stops. Then the message stays unacked, and is delivered again.
        """
        most = max(1, attempts - 1)
        queue = self._queue(work.decoded)
        self._catch_up()
        count = self._marks.count(queue)
        if count is not None and count >= most:
            self._wait_for(stopping, LAST_LOOK)
            count = self._marks.count(queue)
        if count is not None and count >= most:
            if not stopping():
                work.dead_letter_crashed(count, lambda: self._marks.remove(queue))
        elif count is None:
            handler(work)
        else:
            # A message that was marked before may be guilty: it runs alone, so that no other one is counted for it. The
            # first mark may be the fault of another suspect, unless it would be enough to be dead-lettered.
            with self._turn(stopping, alone=count > 0 or most == 1) as mine:
                if mine and work.held:
                    self._run(work, queue, handler)

    def _run(self, work: SuspectT, queue: QueueSpec, handler: Callable[[SuspectT], None]) -> None:
        marked = self._marks.add(queue, self._service)
        if marked:
            self._lock.run(self._marked.__setitem__, work, queue)
        handler(work)
        # Here the handler has ended and the process has not, so the message is not guilty. Acknowledge it first: if
        # the process ends now, a message that comes again must find its marks.
        work.flush()
        mine = self._lock.run(self._marked.pop, work, None)
        if mine is not None or not marked:
            self._marks.remove(queue)

    @contextlib.contextmanager
    def _turn(self, stopping: Callable[[], bool], *, alone: bool) -> Iterator[bool]:
        """Wait until a suspect may run. Yields false if its consumer stops meanwhile."""

        def free() -> bool:
            return stopping() or not (self._alone or (alone and self._beside))

        def enter() -> None:
            self._beside += not alone
            self._alone += alone

        self._wait_for(free, TURN_TIMEOUT, enter)
        try:
            yield not stopping()
        finally:
            self._lock.run(self._leave, alone)

    def _leave(self, alone: bool) -> None:
        self._beside -= not alone
        self._alone -= alone
        self._waiters.wake_all()

    def wake(self) -> None:
        """A consumer stops: those who wait look again."""
        self._lock.run(self._waiters.wake_all)

    def _wait_for(self, condition: Callable[[], bool], seconds: float, then: Callable[[], None] | None = None) -> None:
        """Wait until ``condition`` or for ``seconds``, then call ``then`` under the same lock."""
        waiter = Waiter()
        deadline = time.monotonic() + seconds

        def look() -> bool:
            left = remaining(deadline)
            if left and not condition():
                self._waiters.add(waiter)
                return False
            self._waiters.remove(waiter)
            if then is not None:
                then()
            return True

        while not self._lock.run(look):
            waiter.wait(remaining(deadline))

    # --- taking marks back ------------------------------------------------------------------------

    def _connected(self) -> None:
        """The connection is back. This may run on an I/O thread, so another thread does what waits for the broker."""
        if self._marked or self._marks.any_left:
            name = f"message-hub-{self._service}-marks"
            threading.Thread(target=self._catch_up, name=name, daemon=True).start()

    def _catch_up(self) -> None:
        """Remove what a lost connection left: the process lives, so no handler of it has crashed."""

        def take_stale() -> list[QueueSpec]:
            return [self._marked.pop(work) for work in list(self._marked) if not work.held]

        self._take_back(self._lock.run(take_stale), time.monotonic() + TAKE_BACK_TIMEOUT)

    def close(self, deadline: float) -> None:
        """Take the marks of handlers back that still run: the process ends in order, so they did not crash it.

        :param deadline: monotonic seconds. There is at least 1 s.
        """

        def take_all() -> list[QueueSpec]:
            queues = list(self._marked.values())
            self._marked.clear()
            return queues

        self._take_back(self._lock.run(take_all), max(deadline, time.monotonic() + CLOSE_TIMEOUT))

    def _take_back(self, queues: list[QueueSpec], deadline: float) -> None:
        for queue in queues:
            self._marks.take_back(queue, deadline)
        self._marks.remove_left(deadline)

    def _queue(self, decoded: DecodedDelivery) -> QueueSpec:
        """The queue for the marks of a message."""
        delivery = decoded.delivery
        parts = [delivery.queue, decoded.source, decoded.message_id]
        texts = [part.encode("utf-8", "replace") for part in parts]
        # A message without an id is recognized by its body.
        texts.append(b"" if decoded.message_id else delivery.body)
        digest = hashlib.sha256()
        for text in texts:
            digest.update(len(text).to_bytes(8, "big"))
            digest.update(text)
        return crash_mark_queue(self._service, UUID(bytes=digest.digest()[:16]))
