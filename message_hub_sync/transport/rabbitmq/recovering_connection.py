"""One role's connection: an I/O thread that connects, serves the connection, and connects again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TypeVar, cast

from message_hub_sync.config import ClientConfig
from message_hub_sync.errors import MessageHubAuthorizationError, MessageHubConnectionError, MessageHubError
from message_hub_sync.runtime.deadlines import SHORTEST_WAIT, remaining, take
from message_hub_sync.runtime.locks import refuse_where_it_cannot_wait
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.real_time import time
from message_hub_sync.transport.base import ConnectionState, ConnectionStatus
from message_hub_sync.transport.rabbitmq.backoff import Backoff
from message_hub_sync.transport.rabbitmq.connection import ThreadedConnection
from message_hub_sync.transport.rabbitmq.connection_gate import ConnectionGate
from message_hub_sync.transport.rabbitmq.connection_opening import GivenUp, Opening
from message_hub_sync.transport.rabbitmq.endpoints import Endpoints, in_turn
from message_hub_sync.transport.rabbitmq.io_tasks import IOTask, IOTasks, Steps, Work
from message_hub_sync.transport.rabbitmq.polling import Waker
from message_hub_sync.transport.rabbitmq.refusals import Refusals
from message_hub_sync.transport.rabbitmq.translation import (
    ConnectionEnded,
    Refusal,
    connect_failure,
    describe,
)
from message_hub_sync.transport.threads import IOThread, on_io_thread

__all__ = ["RecoveringConnection"]

logger = SafeLogger("message_hub_sync.rabbitmq")

T = TypeVar("T")

#: Seconds within which the broker must answer while a connection is restored.
_RESTORE_SECONDS = 10.0
#: The longest round in seconds.
_LONG = 60.0


class RecoveringConnection:
    """The connection of one role, over all its reconnects.

    :param role: ``publish`` or ``consume``.
    :param restore: returns tasks that create what lives on the connection and is missing. Called on the I/O thread,
        with no lock held, for each new connection and after :meth:`request_restore`. If such a task fails, the
        connection is ended, and there will be another one.
    :param restore_patience: seconds that the tasks get before a new connection counts as open.
    :param keep_open: whether to keep the connection open although no caller waits for it.
    :param on_open: called on the I/O thread, with no lock held, each time just before the connection becomes open.
    """

    def __init__(
        self,
        role: str,
        config: ClientConfig,
        *,
        restore: Callable[[ThreadedConnection], Sequence[Work[object]]],
        restore_patience: float,
        keep_open: Callable[[], bool],
        on_open: Callable[[], None] = lambda: None,
        awaited_at_close: Callable[[], bool] = lambda: False,
    ) -> None:
        addresses = config.address
        assert isinstance(addresses, tuple)
        self._role = role
        self._config = config
        self._restore = restore
        self._restore_patience = restore_patience
        self._keep_open = keep_open
        self._on_open = on_open
        self._awaited_at_close = awaited_at_close
        self._gate = ConnectionGate(f"{role} connection of {config.service_name}")
        self._thread: threading.Thread | None = None  # guarded by the gate's lock
        self._waker: Waker | None = None  # guarded by the gate's lock
        self._close_deadline = 0.0  # guarded by the gate's lock
        self._connection: ThreadedConnection | None = None  # written by the I/O thread only
        self._opening: Opening | None = None  # written by the I/O thread only
        self._backoff = Backoff()  # I/O thread only
        self._unread = (
            False  # I/O thread only; whether the broker has said that it reads nothing: a memory or disk alarm
        )
        hosts = in_turn(addresses, config.hosts_in_order)
        self._endpoints = Endpoints(hosts, config.connect_timeout)  # I/O thread only
        self._address = self._endpoints.host  # written by the I/O thread only
        #: Why the connection was lost or the latest attempt failed, whichever came last; and when, by the wall clock.
        self._last_error: tuple[str, float] | None = None  # written by the I/O thread only
        self._tasks = IOTasks()  # added to with the gate's lock held, and only while there is a thread
        self._refusals = Refusals(self._tasks)  # I/O thread only
        self._restoring = 0  # I/O thread only; the number of restoring tasks that run
        self._restore_requested = False  # any thread sets it, the I/O thread clears it

    # --- for any thread ------------------------------------------------------------------------

    @property
    def state(self) -> ConnectionState:
        """The state of the connection now."""
        return self._gate.state

    @property
    def needed(self) -> bool:
        """Whether the connection was ever used."""
        gate = self._gate
        return gate.ever_open or gate.state is not ConnectionState.CLOSED or gate.refusal is not None

    def status(self) -> ConnectionStatus:
        """The status for health checks."""
        error, at = self._last_error or (None, None)
        connection = self._connection
        silent = self._gate.state in (ConnectionState.OPEN, ConnectionState.BLOCKED) and (
            connection is not None and connection.silent
        )
        refusal = self._gate.refusal
        login_refused = refusal is not None and refusal.kind is MessageHubAuthorizationError
        return ConnectionStatus(self._role, self._gate.state, str(self._address), error, at, silent, login_refused)

    def wait_open(self, deadline: float, *, accept_blocked: bool = True) -> ConnectionState:
        """Wait until the connection is open. Start the I/O thread if there is none.

        :param deadline: monotonic seconds.
        :param accept_blocked: return at once if the broker accepts no messages; else wait until it does.
        :returns: ``OPEN`` or ``BLOCKED``. ``BLOCKED`` also if it is still blocked at the deadline.
        :raises MessageHubConnectionError: the connection is not open by the deadline, or the client is closed. At once
            on an I/O thread, or if all hosts refused.
        :raises MessageHubAuthorizationError: all hosts refused, and the latest one did not accept the login.
        """
        return self._gate.wait(deadline, self._ensure_thread, lambda: str(self._address), accept_blocked)

    def call(self, work: Work[T], deadline: float) -> T:
        """Run one task and wait for its result: see :meth:`call_all`."""
        return self.call_all([work], deadline)[0]

    def call_all(self, works: Sequence[Work[T]], deadline: float) -> list[T]:
        """Run tasks on the I/O thread, all at the same time, and wait for their results.

        :param works: each is called with the open connection. Called again on the next connection if this one ends
            meanwhile, so it must be repeatable.
        :param deadline: monotonic seconds.
        :returns: the results, in the same order.
        :raises MessageHubConnectionError: no connection or no answer by the deadline. At once on an I/O thread.
        :raises MessageHubError: raised by a task, the first one that fails.
        """
        refuse_where_it_cannot_wait()
        results: dict[int, T] = {}
        while len(results) < len(works):
            self.wait_open(deadline)
            ended: SimpleQueue[IOTask] = SimpleQueue()
            tasks = {
                IOTask(work, deadline, ended.put): number for number, work in enumerate(works) if number not in results
            }
            if not self._add(tasks):
                continue  # the I/O thread ended meanwhile: wait for the next connection
            try:
                for _ in tasks:
                    task = take(ended, remaining(deadline))
                    if task.error is None:
                        results[tasks[task]] = cast(T, task.result)
                    elif not isinstance(task.error, ConnectionEnded):
                        raise task.error
            except Empty:
                raise MessageHubConnectionError("the broker did not answer before the deadline") from None
            finally:
                for task in tasks:
                    task.abandoned = True
            if len(results) < len(works) and time.monotonic() >= deadline:
                raise MessageHubConnectionError("the connection ended before the broker answered")
        return [results[number] for number in range(len(works))]

    def on_connection(self, connection: ThreadedConnection, work: Callable[[], Steps[None]], deadline: float) -> None:
        """Run a task if ``connection`` has not ended, and wait until it ran or cannot run.

        :param deadline: how long to wait, in monotonic seconds. The task starts even if the deadline passes first.
            On an I/O thread this does not wait.
        """

        def only_there(present: ThreadedConnection) -> Steps[None]:
            if present is connection:
                yield from work()

        ended: SimpleQueue[IOTask] = SimpleQueue()
        task = IOTask(only_there, max(deadline, time.monotonic() + SHORTEST_WAIT), ended.put)
        if connection.usable and self._add([task]) and not on_io_thread():
            with suppress(Empty):
                take(ended, remaining(deadline))

    def request_restore(self) -> None:
        """Have the I/O thread call ``restore`` soon: something that lives on the connection is missing."""
        self._restore_requested = True
        self._wake()

    def interrupt(self) -> None:
        """Drop the connection and connect again. The outcome of all that is in flight is unknown."""
        connection = self._connection
        if connection is not None:
            connection.lock.run(connection.kill, ConnectionResetError("it was interrupted"))

    def close(self, deadline: float) -> None:
        """Close the connection and join the I/O thread. Idempotent.

        :param deadline: how long to wait for the broker and the thread, in monotonic seconds.
        """
        thread, connection = self._gate.lock.run(self._begin_closing, deadline)
        if connection is not None:
            connection.stop_writes()
        self._wake()
        if thread is not None and thread is not threading.current_thread():
            thread.join(max(0.0, deadline - time.monotonic()))

    def _begin_closing(self, deadline: float) -> tuple[threading.Thread | None, ThreadedConnection | None]:
        self._close_deadline = deadline
        self._gate.close()
        return self._thread, self._connection

    def after_fork_in_child(self) -> None:
        """In a forked child: close the child's copies of the descriptors. Sends nothing and takes no lock."""
        if self._opening is not None:
            self._opening.after_fork_in_child()
        if self._connection is not None:
            self._connection.drop_socket()
        if self._waker is not None:
            self._waker.close()

    # --- the thread's beginning and end ----------------------------------------------------------

    def _wake(self) -> None:
        waker = self._waker
        if waker is not None:
            waker.wake()

    def _add(self, tasks: Iterable[IOTask]) -> bool:
        """Add tasks.

        :returns: whether an I/O thread will run or fail them.
        """
        added = self._gate.lock.run(self._add_if_served, tasks)
        if added:
            self._wake()
        return added

    def _add_if_served(self, tasks: Iterable[IOTask]) -> bool:
        if self._thread is None or self._gate.closing:
            return False
        self._tasks.add(tasks)
        return True

    def _ensure_thread(self) -> None:
        """Start the I/O thread if there is none. The caller holds the gate's lock."""
        # If it runs, wake it, so that its backoff ends sooner (not if all hosts refused).
        if self._thread is not None:
            self._wake()
            return
        self._gate.forget_refusal()
        name = f"message-hub-{self._config.service_name}-{self._role}-io"
        waker = thread = None
        try:
            waker = Waker()
            thread = IOThread(target=self._run, args=(waker,), name=name, daemon=True)
            self._thread, self._waker = thread, waker
            thread.start()
        except BaseException as error:
            # otherwise the thread runs: a signal's exception came after its start
            if thread is None or thread.ident is None:
                self._thread = None
                if waker is not None:
                    waker.close()
            if isinstance(error, (OSError, RuntimeError)):  # no descriptors; no threads at interpreter exit
                raise MessageHubConnectionError(
                    f"cannot start the thread {name}: {describe(error)} "
                    "(the interpreter is exiting, or the process is out of file descriptors or threads)"
                ) from None
            raise

    def _run(self, waker: Waker) -> None:
        self._opening = opening = Opening(self._config, self._role, waker, lambda: self._gate.closing)
        try:
            while self._still_needed():
                try:
                    connection = self._connect(opening)
                    if connection is not None:
                        self._serve(connection)
                except GivenUp:
                    break
                except Exception:  # after a bug of this library, consumers still need this thread
                    logger.exception("the %s connection failed in an unexpected way; connecting again", self._role)
                    self._backoff.failed(False, round_over=True)
                self._pause(waker)
        finally:
            self._leave(waker)

    def _still_needed(self) -> bool:
        return self._gate.lock.run(self._go_on_or_end)

    def _go_on_or_end(self) -> bool:
        gate = self._gate
        if not gate.closing and (gate.awaited or gate.ever_open or self._keep_open()):
            return True
        self._thread = None  # with the lock held: the next caller then starts a new thread
        gate.change(ConnectionState.CLOSED)
        return False

    def _leave(self, waker: Waker) -> None:
        self._gate.lock.run(self._note_end, threading.current_thread())
        self._tasks.fail()  # if a new I/O thread already runs, callers resubmit their tasks to it
        waker.close()

    def _note_end(self, ended: threading.Thread) -> None:
        if self._thread is ended:
            self._thread = None
            self._gate.change(ConnectionState.CLOSED)

    # --- on the I/O thread -------------------------------------------------------------------------

    def _connect(self, opening: Opening) -> ThreadedConnection | None:
        """Try the next IP address once; ``None`` if that failed."""
        endpoints = self._endpoints
        self._address = address = endpoints.host
        if not self._gate.ever_open:
            self._gate.enter(ConnectionState.CONNECTING, str(address))
        try:
            endpoint = endpoints.next()
            return opening.open(endpoint, endpoints.deadline(), self._begun)
        except GivenUp:
            raise
        except Exception as error:
            refusal = connect_failure(error, address)
            endpoints.failed(isinstance(error, TimeoutError))
        self._connection = None
        self._last_error = (refusal.text, time.time())
        self._backoff.failed(refusal.final, endpoints.round_over)
        self._gate.refuse(refusal, self._backoff.all_hosts_refused)
        return None

    def _begun(self, connection: ThreadedConnection) -> None:
        # In this order: close() sets `closing` before it reads _connection, so one of the two stops the writes.
        self._connection = connection
        if self._gate.closing:
            connection.stop_writes()

    def _pause(self, waker: Waker) -> None:
        """Wait before the next attempt, for a shorter time while a caller waits."""
        began = time.monotonic()
        alone, awaited = self._backoff.pauses()
        while not self._gate.closing:
            # A caller that saw OPEN just before the end waits for its task, not at the gate: count it too.
            until = began + (awaited if self._gate.awaited or self._tasks.waiting else alone)
            if time.monotonic() >= until:
                return
            waker.wait(until)

    def _serve(self, connection: ThreadedConnection) -> None:
        opened_at: float | None = None
        self._unread = False
        try:
            connection.quiet = not self._backoff.first
            connection.on_blocked(self._blocked)
            self._refusals.watch(connection)
            self._start_restoring(connection)
            patience = time.monotonic() + self._restore_patience
            while self._restoring and self._may_serve(connection) and time.monotonic() < patience:
                connection.step(patience)
            if connection.usable:
                opened_at = time.monotonic()
                self._gate.enter(ConnectionState.OPEN, str(self._address), self._on_open)
                if self._unread:  # said before the connection was open
                    self._gate.announce_blocked(True)
            while self._may_serve(connection):
                if connection.usable:
                    self._tasks.run(connection)
                    if self._restore_requested:
                        self._start_restoring(connection)
                    if self._tasks.waiting or self._restore_requested or self._gate.closing:
                        continue  # the wake for this may already have been taken while a task started
                connection.serve(time.monotonic() + _LONG)
            self._tasks.end_running()
            if self._gate.closing:
                # Nothing more is written from here on, so what is awaited now is all that was written.
                connection.stop_writes()
                while self._awaited_at_close() and self._may_answer(connection):
                    connection.step(self._close_deadline)
                connection.send_close()
                while self._may_answer(connection):
                    connection.step(self._close_deadline)
        finally:
            connection.end("the connection is no longer used")
            self._tasks.end_running()  # all have ended with their channels, unless there is a bug
            self._connection = None
            why = describe(connection.end_reason)
            if not self._gate.closing:
                self._last_error = (why, time.time())
            lived = 0.0 if opened_at is None else time.monotonic() - opened_at
            if self._backoff.lost(lived, self._endpoints.round_over):
                self._endpoints.forget()
            # Change the state before failing the tasks: their callers then wait for the next connection.
            self._gate.enter(ConnectionState.RECOVERING, why)
            self._tasks.fail()

    def _blocked(self, blocked: bool) -> None:
        # On the I/O thread, no lock held. A circuit treats "accepts messages again" like "connected again".
        self._unread = blocked
        self._gate.announce_blocked(blocked, self._on_open)

    def _may_answer(self, connection: ThreadedConnection) -> bool:
        """Whether the broker may still answer at closing. With an alarm it reads nothing, and so answers nothing."""
        return connection.alive and not self._unread and time.monotonic() < self._close_deadline

    def _may_serve(self, connection: ThreadedConnection) -> bool:
        return connection.alive and not self._gate.closing

    def _start_restoring(self, connection: ThreadedConnection) -> None:
        self._restore_requested = False

        def ended(task: IOTask) -> None:
            self._restoring -= 1
            if task.error is None or isinstance(task.error, ConnectionEnded) or self._gate.closing:
                return
            level = logging.WARNING if self._backoff.first else logging.DEBUG
            logger.log(
                level, "the %s connection cannot be restored (%s); reconnecting", self._role, describe(task.error)
            )
            if isinstance(task.error, MessageHubError) and not connection.alive:  # what the broker refused
                self._gate.refuse(Refusal(type(task.error), str(task.error), True), True)
            connection.end("the connection cannot be restored")

        for work in self._restore(connection):
            self._restoring += 1
            self._tasks.start(IOTask(work, time.monotonic() + _RESTORE_SECONDS, ended), connection)
