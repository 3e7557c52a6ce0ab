"""One AMQP connection kept alive: an I/O thread that dials, serves, and dials again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar, cast

from message_hub_sync.config import BrokerAddress, ClientConfig
from message_hub_sync.errors import MessageHubConnectionError, MessageHubError
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.transport.base import ConnectionState, ConnectionStatus
from message_hub_sync.transport.rabbitmq.backoff import Backoff
from message_hub_sync.transport.rabbitmq.connection import ThreadedConnection
from message_hub_sync.transport.rabbitmq.connection_gate import ConnectionGate
from message_hub_sync.transport.rabbitmq.io_tasks import IOTask, IOTaskQueue
from message_hub_sync.transport.rabbitmq.opening import GivenUp, Opening
from message_hub_sync.transport.rabbitmq.polling import Waker
from message_hub_sync.transport.rabbitmq.translation import (
    ChannelClosed,
    ConnectionEnded,
    RpcTimedOut,
    connect_failure,
    describe,
)
from message_hub_sync.transport.threads import IOThread, on_io_thread, refuse_on_io_thread

__all__ = ["RecoveringConnection"]

logger = SafeLogger("message_hub_sync.rabbitmq")

T = TypeVar("T")

#: Seconds the broker has to answer while a connection is set up or restored.
_RESTORE_SECONDS = 10.0
_LONG = 60.0


class RecoveringConnection:
    """One role's connection: ``publish`` or ``consume``.

    Mutable, guarded by the gate's lock: ``_thread``, ``_waker``, ``_close_deadline``, and that tasks are added
    only while there is a thread. Written by the I/O thread alone: ``_connection``, ``_opening``, ``_backoff``,
    ``_address``, ``_next_address``, ``_last_error``. ``_restore_requested`` is set by anyone.

    :param restore: makes everything exist that should live on the connection, or part of it; called on the I/O thread,
        and tasks between two calls; idempotent, returns the monotonic moment at which it wants to be called again, or
        ``None``.
    :param keep_open: whether the connection is to be kept up though nobody waits for it.
    :param on_open: called on the I/O thread, no lock held, each time just before the connection is open to callers.
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
        self._addresses: tuple[BrokerAddress, ...] = addresses
        self._restore = restore
        self._keep_open = keep_open
        self._on_open = on_open
        self._gate = ConnectionGate(f"{role} connection of {config.service_name}")
        self._thread: threading.Thread | None = None
        self._waker: Waker | None = None
        self._close_deadline = 0.0
        self._connection: ThreadedConnection | None = None
        self._opening: Opening | None = None
        self._backoff = Backoff(len(addresses))
        self._address = addresses[0]
        self._next_address = 0
        #: What ended the connection, or kept it from being made, whichever came last, with the wall clock's time.
        self._last_error: tuple[str, float] | None = None
        self._tasks = IOTaskQueue()
        self._restore_requested = False

    # --- for any thread ------------------------------------------------------------------------

    @property
    def state(self) -> ConnectionState:
        """The present state."""
        return self._gate.state

    @property
    def needed(self) -> bool:
        """Whether it was ever used."""
        gate = self._gate
        return gate.ever_open or gate.state is not ConnectionState.CLOSED or gate.refusal is not None

    @property
    def awaited(self) -> bool:
        """Whether anybody waits for the I/O thread to have time: a caller, or something else that is to be restored."""
        return bool(self._tasks) or self._restore_requested or self._gate.awaited

    def status(self) -> ConnectionStatus:
        """For health."""
        error, at = self._last_error or (None, None)
        return ConnectionStatus(self._role, self._gate.state, str(self._address), error, at)

    def wait_open(self, deadline: float, *, accept_blocked: bool = True) -> ConnectionState:
        """Wait until the connection is open, starting it where need be. As :meth:`ConnectionGate.wait`.

        :param accept_blocked: whether a connection on which the broker accepts no messages counts.
        """
        return self._gate.wait(deadline, self._ensure_thread, lambda: str(self._address), accept_blocked)

    def call(self, work: Callable[[ThreadedConnection], T], deadline: float) -> T:
        """Have the I/O thread do ``work``; again on the next connection if this one ends meanwhile.

        ``work`` must be repeatable.

        :raises MessageHubError: of the work, or no connection or answer in time; at once on an I/O thread.
        """
        refuse_on_io_thread()
        while True:
            self.wait_open(deadline)
            task = IOTask(work)
            if not self._add(task):
                continue  # it ended in between: wait for the next connection
            if not task.wait(deadline):
                task.abandoned = True
                raise MessageHubConnectionError("the broker did not answer in time")
            if task.error is None:
                return cast(T, task.result)
            if not isinstance(task.error, ConnectionEnded):
                raise task.error
            if time.monotonic() >= deadline:
                raise MessageHubConnectionError("the connection ended before the broker answered")

    def on_connection(self, connection: ThreadedConnection, work: Callable[[], None], deadline: float) -> None:
        """Have the I/O thread do ``work`` if ``connection`` is still the present one; its end will do too.

        It is done even when ``deadline``, up to which the caller waits for it, passes first. On an I/O thread nobody
        waits.
        """
        task = IOTask(lambda present: work() if present is connection else None)
        if connection.usable and self._add(task) and not on_io_thread():
            task.wait(deadline)

    def request_restore(self) -> None:
        """Something that lives on the connection is gone: have it restored soon."""
        self._restore_requested = True
        self._wake()

    def interrupt(self) -> None:
        """Drop the connection: what is in flight is unknown, and another one is made."""
        connection = self._connection
        if connection is not None:
            with connection.lock:
                connection.kill(ConnectionResetError("it was interrupted"))

    def close(self, deadline: float) -> None:
        """End the connection gracefully as long as the deadline allows; join the thread. Idempotent."""
        with self._gate.lock:
            self._close_deadline = deadline
            self._gate.close()
            thread, connection = self._thread, self._connection
        if connection is not None:
            connection.stop_writes()
        self._wake()
        if thread is not None and thread is not threading.current_thread():
            thread.join(max(0.0, deadline - time.monotonic()))

    def after_fork_in_child(self) -> None:
        """In a forked child, where no other thread exists: drop the descriptors, touch no lock."""
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
        """Whether there is a thread that will do it, or fail it."""
        with self._gate.lock:
            if self._thread is None or self._gate.closing:
                return False
            self._tasks.add(task)
        self._wake()
        return True

    def _ensure_thread(self) -> None:
        """See to it that there is a thread, and that it pauses no longer than while nobody waits.

        The caller holds the gate's lock.
        """
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
            if thread is None or thread.ident is None:  # else it runs, and a signal interrupted the wait for it
                self._thread = None
                if waker is not None:
                    waker.close()
            if isinstance(error, (OSError, RuntimeError)):  # no descriptors; no threads at interpreter exit
                raise MessageHubConnectionError(
                    f"cannot start the thread {name}: {describe(error)} "
                    "(the interpreter is ending, or the process is out of descriptors or threads)"
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
                except Exception:  # a fault of ours must not leave the consumers without a thread
                    logger.exception("the %s connection failed in an unexpected way", self._role)
                    self._backoff.failed(False)
                self._pause(waker)
        finally:
            self._leave(waker)

    def _still_needed(self) -> bool:
        gate = self._gate
        with gate.lock:
            if not gate.closing and (gate.awaited or gate.ever_open or self._keep_open()):
                return True
            self._thread = None  # decided under the lock: a caller that comes now starts a new thread
            gate.change(ConnectionState.CLOSED)
            return False

    def _leave(self, waker: Waker) -> None:
        """Whatever ended the thread: nobody may wait for it any longer."""
        with self._gate.lock:
            if self._thread is threading.current_thread():
                self._thread = None
                self._gate.change(ConnectionState.CLOSED)
        self._tasks.fail()  # those of a successor that has started already are handed to it again
        waker.close()

    # --- on the I/O thread -------------------------------------------------------------------------

    def _connect(self, opening: Opening) -> ThreadedConnection | None:
        """One attempt at the next host; ``None`` when it failed."""
        self._address = address = self._addresses[self._next_address % len(self._addresses)]
        self._next_address += 1
        if not self._gate.ever_open:
            self._gate.enter(ConnectionState.CONNECTING, str(address))
        deadline = time.monotonic() + max(1.0, self._config.connect_timeout / len(self._addresses))
        try:
            return opening.open(address, deadline, self._begun)
        except GivenUp:
            raise
        except Exception as error:
            refusal = connect_failure(error, address)
        self._connection = None
        self._last_error = (refusal.text, time.time())
        self._backoff.failed(refusal.final)
        self._gate.refuse(refusal, self._backoff.all_hosts_refused)
        return None

    def _begun(self, connection: ThreadedConnection) -> None:
        # In this order: whoever closes sets the one before it looks at the other.
        self._connection = connection
        if self._gate.closing:
            connection.stop_writes()

    def _pause(self, waker: Waker) -> None:
        """Back off, for a shorter time while somebody waits."""
        began = time.monotonic()
        alone, awaited = self._backoff.pauses()
        while not self._gate.closing:
            # Who saw the connection open just before it ended waits for a task, and not at the gate.
            until = began + (awaited if self._gate.awaited or self._tasks else alone)
            if time.monotonic() >= until:
                return
            waker.wait(until)

    def _serve(self, connection: ThreadedConnection) -> None:
        opened_at = time.monotonic()
        try:
            connection.on_blocked(self._blocked)
            again = self._restored(connection)
            if connection.usable:
                self._gate.enter(ConnectionState.OPEN, str(self._address), self._on_open)
            while connection.alive and not self._gate.closing:
                if connection.usable:
                    self._tasks.run(connection)
                    if self._restore_requested or (again is not None and time.monotonic() >= again):
                        again = self._restored(connection)
                    if self._tasks or self._restore_requested or self._gate.closing:
                        continue  # a wake meant for this loop may have been taken while a task was served
                due = again if again is not None and connection.usable else None
                connection.serve(time.monotonic() + _LONG if due is None else due)
            if self._gate.closing:
                connection.say_goodbye()
                while connection.alive and time.monotonic() < self._close_deadline:
                    connection.step(self._close_deadline)
        finally:
            connection.end("it is not used any more")
            self._connection = None
            why = describe(connection.end_reason)
            if not self._gate.closing:
                self._last_error = (why, time.time())
            self._backoff.lost(time.monotonic() - opened_at)
            # The state first: whose task fails looks at it, and waits for the next connection.
            self._gate.enter(ConnectionState.RECOVERING, why)
            self._tasks.fail()

    def _blocked(self, blocked: bool) -> None:
        """The broker stopped or resumed accepting messages. On the I/O thread, no lock held."""
        # To a circuit, being accepted again is as good as being connected again.
        self._gate.announce_blocked(blocked, self._on_open)

    def _restored(self, connection: ThreadedConnection) -> float | None:
        self._restore_requested = False
        try:
            return self._restore(connection)
        except ConnectionEnded:
            pass
        except (RpcTimedOut, ChannelClosed, MessageHubError) as error:
            level = logging.WARNING if self._backoff.first else logging.DEBUG
            logger.log(level, "the %s connection cannot be used (%s): it is made anew", self._role, describe(error))
            connection.end("it could not be restored")
        return None

    @staticmethod
    def restore_deadline() -> float:
        """By when the broker must have answered while a connection is restored."""
        return time.monotonic() + _RESTORE_SECONDS
