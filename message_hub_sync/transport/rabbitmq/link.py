"""One AMQP connection kept alive: an I/O thread that dials, serves, and dials again."""

from __future__ import annotations

import _thread
import logging
import os
import random
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar, cast

import pika

from message_hub_sync.config import BrokerAddress, ClientConfig
from message_hub_sync.errors import MessageHubConnectionError, MessageHubError
from message_hub_sync.transport.base import ConnectionState, ConnectionStatus
from message_hub_sync.transport.rabbitmq.connection import ThreadedConnection
from message_hub_sync.transport.rabbitmq.dialing import dial
from message_hub_sync.transport.rabbitmq.translation import (
    ChannelClosed,
    ConnectionEnded,
    Refusal,
    RpcTimedOut,
    connect_failure,
    describe,
    entity_error,
)
from message_hub_sync.transport.rabbitmq.waker import Waker, new_selector

__all__ = ["Link"]

logger = logging.getLogger("message_hub_sync.rabbitmq")

T = TypeVar("T")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
#: After a refusal (password, vhost, certificate) nothing heals by itself: ask rarely, brokers lock accounts.
_FIRST_REFUSED_PAUSE, _LONGEST_REFUSED_PAUSE = 1.0, 30.0
#: Seconds the broker has to answer while a connection is set up or restored.
_RESTORE_SECONDS = 10.0
#: A connection that lived this long was a sound one; losing it is not one more failure in a row.
_SOUND_SECONDS = 1.0
_LONG = 60.0


class _GivenUp(Exception):
    """The link is being closed while it dials."""


class _Task:
    """Work for the I/O thread and the place where its caller waits."""

    __slots__ = ("abandoned", "deadline", "done", "error", "result", "work")

    def __init__(self, work: Callable[[ThreadedConnection], Any], deadline: float) -> None:
        self.work = work
        self.deadline = deadline
        self.result: Any = None
        self.error: BaseException | None = None
        self.abandoned = False
        self.done = _thread.allocate_lock()
        self.done.acquire()


class Link:
    """One role's connection: ``publish`` or ``consume``.

    Mutable, guarded by ``_changed``: ``_state``, ``_thread``, ``_waiting``, ``_refusal``, ``_closing``,
    ``_ever_open``, ``_close_deadline``, ``_address``. ``_tasks`` is a deque, atomic by itself. ``_connection``,
    ``_failures`` and ``_disturbed`` are written by the I/O thread (``_disturbed`` set by anyone).

    :param restore: makes everything exist that should live on the connection; called on the I/O thread,
        idempotent, returns the monotonic moment at which it wants to be called again, or ``None``.
    :param wanted: whether the link is to be kept up though nobody waits for it.
    """

    def __init__(
        self,
        role: str,
        config: ClientConfig,
        *,
        restore: Callable[[ThreadedConnection], float | None],
        wanted: Callable[[], bool],
        on_open: Callable[[], None] | None = None,
    ) -> None:
        addresses = config.address
        assert isinstance(addresses, tuple)
        self._role = role
        self._config = config
        self._addresses: tuple[BrokerAddress, ...] = addresses
        self._restore = restore
        self._wanted = wanted
        self._on_open = on_open
        self._changed = threading.Condition(threading.Lock())
        self._state = ConnectionState.CLOSED
        self._thread: threading.Thread | None = None
        self._waker: Waker | None = None
        self._waiting = 0
        self._refusal: Refusal | None = None
        self._last_error: str | None = None
        self._closing = False
        self._close_deadline = 0.0
        self._ever_open = False
        self._address = addresses[0]
        self._next_address = 0
        self._failures = 0
        self._tasks: deque[_Task] = deque()
        self._disturbed = False
        self._connection: ThreadedConnection | None = None
        self.connection_number = 0

    # --- for any thread ------------------------------------------------------------------------

    @property
    def state(self) -> ConnectionState:
        """The present state."""
        return self._state

    @property
    def needed(self) -> bool:
        """Whether it was ever used."""
        return self._ever_open or self._state is not ConnectionState.CLOSED or self._refusal is not None

    def status(self) -> ConnectionStatus:
        """For health."""
        with self._changed:
            return ConnectionStatus(self._role, self._state, str(self._address), self._last_error)

    def wait_open(self, deadline: float, *, blocked_will_do: bool = True) -> ConnectionState:
        """Wait until the connection is open, starting it where need be.

        :param blocked_will_do: whether a connection on which the broker accepts no messages counts.
        :returns: ``OPEN`` or ``BLOCKED`` (also when it is still blocked at the deadline).
        :raises MessageHubConnectionError: not open by the deadline, or closed.
        :raises MessageHubAuthorizationError: refused.
        """
        with self._changed:
            self._waiting += 1
            try:
                while True:
                    if self._closing:
                        raise MessageHubConnectionError("the client is closed: make a new one")
                    if self._state is ConnectionState.OPEN:
                        return self._state
                    if self._state is ConnectionState.BLOCKED and blocked_will_do:
                        return self._state
                    self._ensure_thread()
                    refusal = self._refusal
                    if refusal is not None and refusal.final:
                        raise refusal.error()
                    remaining = deadline - time.monotonic()
                    if remaining <= 0:
                        if self._state is ConnectionState.BLOCKED:
                            return self._state
                        raise self._not_in_time()
                    self._changed.wait(remaining)
            finally:
                self._waiting -= 1

    def call(self, work: Callable[[ThreadedConnection], T], deadline: float) -> T:
        """Have the I/O thread do ``work``; again on the next connection if this one ends meanwhile.

        ``work`` must be repeatable. It must not be called from the I/O thread.

        :raises MessageHubError: of the work, or no connection or answer in time.
        """
        while True:
            self.wait_open(deadline)
            task = _Task(work, deadline)
            self._tasks.append(task)
            self._wake()
            if not task.done.acquire(timeout=max(0.0, deadline - time.monotonic())):
                task.abandoned = True
                raise MessageHubConnectionError("the broker did not answer in time")
            if task.error is None:
                return cast(T, task.result)
            if not isinstance(task.error, ConnectionEnded):
                raise task.error
            if time.monotonic() >= deadline:
                raise MessageHubConnectionError("the connection ended before the broker answered")

    def disturb(self) -> None:
        """Something that lives on the connection is gone: have it restored soon."""
        self._disturbed = True
        self._wake()

    def announce_blocked(self, blocked: bool) -> None:
        """The broker stopped or resumed accepting messages. Called on the I/O thread, no lock held."""
        if blocked and self._state is ConnectionState.OPEN:
            self._enter(ConnectionState.BLOCKED, "the broker accepts no messages (memory or disk alarm)")
        elif not blocked and self._state is ConnectionState.BLOCKED:
            self._enter(ConnectionState.OPEN, "the broker accepts messages again")

    def close(self, deadline: float) -> None:
        """End the connection gracefully as long as the deadline allows; join the thread. Idempotent."""
        with self._changed:
            self._closing = True
            self._close_deadline = deadline
            thread = self._thread
            self._changed.notify_all()
        self._wake()
        if thread is not None and thread is not threading.current_thread():
            thread.join(max(0.0, deadline - time.monotonic()))

    def abandon(self) -> None:
        """In a forked child, where no other thread exists: drop the descriptors, touch no lock."""
        connection, waker = self._connection, self._waker
        if connection is not None:
            connection.drop_socket()
        if waker is not None:
            waker.close()

    # --- waiting and waking --------------------------------------------------------------------

    def _wake(self) -> None:
        waker = self._waker
        if waker is not None:
            waker.wake()

    def _ensure_thread(self) -> None:
        """Start the I/O thread where none runs. The caller holds ``_changed``."""
        if self._thread is not None:
            return
        self._refusal = None
        name = f"message-hub-{self._config.service_name}-{self._role}-io"
        try:
            waker = Waker()
            thread = threading.Thread(target=self._run, args=(waker,), name=name, daemon=True)
            self._thread, self._waker = thread, waker
            thread.start()
        except (OSError, RuntimeError) as error:  # no descriptors; no threads at interpreter exit
            self._thread = None
            raise MessageHubConnectionError(
                f"cannot start the thread {name}: {describe(error)} "
                "(the interpreter is ending, or the process is out of descriptors or threads)"
            ) from None

    def _not_in_time(self) -> MessageHubConnectionError:
        reason = self._refusal.text if self._refusal is not None else f"{self._address} did not answer"
        return MessageHubConnectionError(f"no connection to the hub in time: {reason}")

    def _enter(self, state: ConnectionState, why: str) -> None:
        """The one place where the state changes."""
        with self._changed:
            before, self._state = self._state, state
            if state is ConnectionState.OPEN:
                self._ever_open = True
                self._refusal = None
            self._changed.notify_all()
        if before is not state:
            troubled = state in (ConnectionState.BLOCKED, ConnectionState.RECOVERING)
            logger.log(
                logging.WARNING if troubled else logging.INFO if self._ever_open else logging.DEBUG,
                "%s connection of %s: %s -> %s: %s",
                self._role,
                self._config.service_name,
                before.value,
                state.value,
                why,
            )

    # --- the I/O thread ------------------------------------------------------------------------

    def _run(self, waker: Waker) -> None:
        try:
            while self._still_wanted():
                connection = self._connect()
                if connection is None:
                    self._pause()
                else:
                    self._serve(connection)
        except _GivenUp:
            pass
        except Exception:
            logger.exception("the I/O thread of the %s connection failed", self._role)
        finally:
            self._leave(waker)

    def _still_wanted(self) -> bool:
        with self._changed:
            if not self._closing and (self._waiting or self._ever_open or self._wanted()):
                return True
            self._thread = None  # decided under the lock: a caller that comes now starts a new thread
            self._state = ConnectionState.CLOSED
            return False

    def _leave(self, waker: Waker) -> None:
        """Whatever ended the thread: nobody may wait for it any longer."""
        with self._changed:
            replaced = self._thread is not None and self._thread is not threading.current_thread()
            if not replaced:
                self._thread = None
                self._state = ConnectionState.CLOSED
            self._changed.notify_all()
        if not replaced:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.finish()
            self._fail_tasks()
        waker.close()

    def _connect(self) -> ThreadedConnection | None:
        """One attempt at the next host. ``None``: it failed, and why is in ``_refusal``."""
        self._address = address = self._addresses[self._next_address % len(self._addresses)]
        self._next_address += 1
        if not self._ever_open:
            self._enter(ConnectionState.CONNECTING, str(address))
        deadline = time.monotonic() + max(1.0, self._config.connect_timeout / len(self._addresses))
        try:
            connection = self._handshake(address, deadline)
        except _GivenUp:
            raise
        except Exception as error:
            refusal = connect_failure(error, address)
            self._failures += 1
            logger.debug("attempt %d: %s", self._failures, refusal.text)
            with self._changed:
                if self._refusal is None and refusal.final:
                    logger.error("%s connection of %s: %s", self._role, self._config.service_name, refusal.text)
                self._refusal = refusal
                self._last_error = refusal.text
                self._changed.notify_all()
            return None
        return connection

    def _handshake(self, address: BrokerAddress, deadline: float) -> ThreadedConnection:
        assert self._waker is not None
        connected = dial(address, deadline, self._await_socket)
        try:
            connection = ThreadedConnection(self._parameters(address), connected, self._waker)
        except BaseException:
            connected.close()
            raise
        self._connection = connection
        connection.begin()
        while not connection.is_open and not connection.ended:
            if self._closing or time.monotonic() >= deadline:
                with connection.lock:
                    connection.kill(pika.exceptions.ConnectionOpenAborted("not in time"))
                connection.finish()
                if self._closing:
                    raise _GivenUp
                raise TimeoutError
            connection.step(deadline)
        if not connection.is_open:
            raise connection.end_reason or ConnectionEnded()
        return connection

    def _await_socket(self, waiting: socket.socket, writable: bool, deadline: float) -> bool:
        assert self._waker is not None
        interest = selectors.EVENT_WRITE if writable else selectors.EVENT_READ
        with new_selector() as selector:
            selector.register(waiting, interest)
            selector.register(self._waker, selectors.EVENT_READ)
            while True:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return False
                for key, _ in selector.select(remaining):
                    if key.fileobj is waiting:
                        return True
                    self._waker.clear()
                    if self._closing:
                        raise _GivenUp

    def _parameters(self, address: BrokerAddress) -> pika.ConnectionParameters:
        return pika.ConnectionParameters(
            host=address.host,
            port=address.port,
            virtual_host=address.virtual_host,
            credentials=pika.PlainCredentials(address.username, address.password),
            heartbeat=self._config.heartbeat,
            client_properties={
                "product": "message_hub_sync",
                "connection_name": f"{self._config.service_name}/{self._role}/{os.getpid()}",
            },
        )

    def _pause(self) -> None:
        """Back off, jittered and exponential, for as long as anybody could profit from another attempt."""
        refusal = self._refusal
        if refusal is not None and refusal.final:
            first, longest = _FIRST_REFUSED_PAUSE, _LONGEST_REFUSED_PAUSE
        elif self._failures < len(self._addresses):
            return  # another host is to be tried first
        else:
            first, longest = _FIRST_PAUSE, _LONGEST_PAUSE
        seconds = min(longest, first * 2.0 ** min(self._failures - 1, 10)) * random.uniform(0.5, 1.0)
        until = time.monotonic() + seconds
        assert self._waker is not None
        while not self._closing and time.monotonic() < until:
            self._waker.wait(until)

    def _serve(self, connection: ThreadedConnection) -> None:
        self.connection_number += 1
        connection.add_on_connection_blocked_callback(
            lambda *_: connection.after.append(lambda: self.announce_blocked(True))
        )
        connection.add_on_connection_unblocked_callback(
            lambda *_: connection.after.append(lambda: self.announce_blocked(False))
        )
        again = self._restored(connection)
        opened_at = time.monotonic()
        if connection.usable:
            self._enter(ConnectionState.OPEN, str(self._address))
            if self._on_open is not None:
                self._on_open()
        while connection.usable and not self._closing:
            self._run_tasks(connection)
            if self._disturbed or (again is not None and time.monotonic() >= again):
                again = self._restored(connection)
            if self._tasks or self._disturbed:
                continue  # a wake meant for this loop may have been taken while a task served the connection
            connection.step(again if again is not None else time.monotonic() + _LONG)
        if self._closing:
            self._say_goodbye(connection)
        connection.finish()
        self._connection = None
        self._fail_tasks()
        if not self._closing:
            why = describe(connection.end_reason)
            self._last_error = why
            self._enter(ConnectionState.RECOVERING, why)
            if time.monotonic() - opened_at > _SOUND_SECONDS:
                self._failures = 0
            self._failures += 1
            if self._failures > 1:
                self._pause()

    def _restored(self, connection: ThreadedConnection) -> float | None:
        self._disturbed = False
        try:
            return self._restore(connection)
        except ConnectionEnded:
            pass
        except (RpcTimedOut, ChannelClosed, MessageHubError) as error:
            logger.warning("the %s connection cannot be used (%s): it is made anew", self._role, describe(error))
            with connection.lock:
                connection.kill(pika.exceptions.StreamLostError("the connection could not be restored"))
        return None

    def _run_tasks(self, connection: ThreadedConnection) -> None:
        while self._tasks:
            task = self._tasks.popleft()
            if task.abandoned:
                continue
            try:
                task.result = task.work(connection)
            except RpcTimedOut:
                task.error = MessageHubConnectionError("the broker did not answer in time")
            except ChannelClosed as closed:
                task.error = entity_error(closed, "the call failed")
            except Exception as error:
                task.error = error
            task.done.release()

    def _fail_tasks(self) -> None:
        while self._tasks:
            task = self._tasks.popleft()
            task.error = ConnectionEnded()
            task.done.release()

    def _say_goodbye(self, connection: ThreadedConnection) -> None:
        with connection.lock:
            if connection.is_open:
                connection.close()
                connection._flush()
        while not connection.ended and time.monotonic() < self._close_deadline:
            connection.step(self._close_deadline)

    @staticmethod
    def restore_deadline() -> float:
        """By when the broker must have answered while a connection is restored."""
        return time.monotonic() + _RESTORE_SECONDS
