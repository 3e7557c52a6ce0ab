"""One role's connection: an I/O thread that connects, serves the connection, and connects again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar, cast

from message_hub_sync.config import ClientConfig
from message_hub_sync.errors import MessageHubConnectionError, MessageHubError
from message_hub_sync.runtime.locks import refuse_where_it_cannot_wait
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.real_time import time
from message_hub_sync.transport.base import ConnectionState, ConnectionStatus
from message_hub_sync.transport.rabbitmq.backoff import Backoff
from message_hub_sync.transport.rabbitmq.connection import ThreadedConnection
from message_hub_sync.transport.rabbitmq.connection_gate import ConnectionGate
from message_hub_sync.transport.rabbitmq.connection_opening import GivenUp, Opening
from message_hub_sync.transport.rabbitmq.endpoints import Endpoints, in_turn
from message_hub_sync.transport.rabbitmq.io_tasks import IOTask, IOTaskQueue
from message_hub_sync.transport.rabbitmq.polling import Waker
from message_hub_sync.transport.rabbitmq.translation import (
    ChannelClosed,
    ConnectionEnded,
    RpcTimedOut,
    connect_failure,
    describe,
)
from message_hub_sync.transport.threads import IOThread, on_io_thread

__all__ = ["RecoveringConnection"]

logger = SafeLogger("message_hub_sync.rabbitmq")

T = TypeVar("T")

#: Seconds within which the broker must answer while a connection is restored.
_RESTORE_SECONDS = 10.0
#: The longest round in seconds if nothing is due.
_LONG = 60.0


class RecoveringConnection:
    """The connection of one role, over all its reconnects.

    :param role: ``publish`` or ``consume``.
    :param restore: creates everything that lives on the connection and is missing. Called on the I/O thread, with no
        lock held; may leave a part for later, so that tasks can run in between. Idempotent. Returns when to be called
        again (monotonic seconds), or ``None``.
    :param keep_open: whether to keep the connection open although no caller waits for it.
    :param on_open: called on the I/O thread, with no lock held, each time just before the connection becomes open.
    """

    def __init__(
        self,
        role: str,
        config: ClientConfig,
        *,
        restore: Callable[[ThreadedConnection], float | None],
        keep_open: Callable[[], bool],
        on_open: Callable[[], None] = lambda: None,
    ) -> None:
        addresses = config.address
        assert isinstance(addresses, tuple)
        self._role = role
        self._config = config
        self._restore = restore
        self._keep_open = keep_open
        self._on_open = on_open
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
        self._tasks = IOTaskQueue()  # added to with the gate's lock held, and only while there is a thread
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

    @property
    def awaited(self) -> bool:
        """Whether a caller, a task or a restore waits for the I/O thread."""
        return bool(self._tasks) or self._restore_requested or self._gate.awaited

    def status(self) -> ConnectionStatus:
        """The status for health checks."""
        error, at = self._last_error or (None, None)
        connection = self._connection
        silent = self._gate.state in (ConnectionState.OPEN, ConnectionState.BLOCKED) and (
            connection is not None and connection.silent
        )
        return ConnectionStatus(self._role, self._gate.state, str(self._address), error, at, silent)

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

    def call(self, work: Callable[[ThreadedConnection], T], deadline: float) -> T:
        """Run ``work`` on the I/O thread and wait for its result.

        :param work: called with the open connection. Called again on the next connection if this one ends meanwhile,
            so it must be repeatable.
        :param deadline: monotonic seconds.
        :returns: the result of ``work``.
        :raises MessageHubConnectionError: no connection or no answer by the deadline. At once on an I/O thread.
        :raises MessageHubError: raised by ``work``.
        """
        refuse_where_it_cannot_wait()
        while True:
            self.wait_open(deadline)
            task = IOTask(work)
            if not self._add(task):
                continue  # the I/O thread ended meanwhile: wait for the next connection
            if not task.wait(deadline):
                task.abandoned = True
                raise MessageHubConnectionError("the broker did not answer before the deadline")
            if task.error is None:
                return cast(T, task.result)
            if not isinstance(task.error, ConnectionEnded):
                raise task.error
            if time.monotonic() >= deadline:
                raise MessageHubConnectionError("the connection ended before the broker answered")

    def on_connection(self, connection: ThreadedConnection, work: Callable[[], None], deadline: float) -> None:
        """Run ``work`` on the I/O thread if ``connection`` has not ended, and wait until it ran or cannot run.

        :param deadline: how long to wait, in monotonic seconds. ``work`` runs even if the deadline passes first.
            On an I/O thread this does not wait.
        """
        task = IOTask(lambda present: work() if present is connection else None)
        if connection.usable and self._add(task) and not on_io_thread():
            task.wait(deadline)

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

    def _add(self, task: IOTask) -> bool:
        """Add a task.

        :returns: whether an I/O thread will run or fail it.
        """
        added = self._gate.lock.run(self._add_if_served, task)
        if added:
            self._wake()
        return added

    def _add_if_served(self, task: IOTask) -> bool:
        if self._thread is None or self._gate.closing:
            return False
        self._tasks.add(task)
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
            until = began + (awaited if self._gate.awaited or self._tasks else alone)
            if time.monotonic() >= until:
                return
            waker.wait(until)

    def _serve(self, connection: ThreadedConnection) -> None:
        opened_at: float | None = None
        self._unread = False
        try:
            connection.quiet = not self._backoff.first
            connection.on_blocked(self._blocked)
            again = self._restored(connection)
            if connection.usable:
                opened_at = time.monotonic()
                self._gate.enter(ConnectionState.OPEN, str(self._address), self._on_open)
                if self._unread:  # said before the connection was open
                    self._gate.announce_blocked(True)
            while connection.alive and not self._gate.closing:
                if connection.usable:
                    self._tasks.run(connection)
                    if self._restore_requested or (again is not None and time.monotonic() >= again):
                        again = self._restored(connection)
                    if self._tasks or self._restore_requested or self._gate.closing:
                        continue  # the wake for this may already have been taken while a task served the connection
                due = again if again is not None and connection.usable else None
                connection.serve(time.monotonic() + _LONG if due is None else due)
            if self._gate.closing:
                connection.send_close()
                # A broker with an alarm does not read this, so it will not answer it.
                while connection.alive and not self._unread and time.monotonic() < self._close_deadline:
                    connection.step(self._close_deadline)
        finally:
            connection.end("the connection is no longer used")
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

    def _restored(self, connection: ThreadedConnection) -> float | None:
        self._restore_requested = False
        try:
            return self._restore(connection)
        except ConnectionEnded:
            pass
        except (RpcTimedOut, ChannelClosed, MessageHubError) as error:
            level = logging.WARNING if self._backoff.first else logging.DEBUG
            logger.log(level, "the %s connection cannot be restored (%s); reconnecting", self._role, describe(error))
            connection.end("the connection cannot be restored")
        return None

    @staticmethod
    def restore_deadline() -> float:
        """The deadline of a restore that starts now, in monotonic seconds."""
        return time.monotonic() + _RESTORE_SECONDS
